//! The log of a daemon that imgctl has started: a file in the state folder, since nobody reads its output.
//!
//! Standard error itself becomes the file, so that the last words of a crash are in it too.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;

/// Lets standard error go to `imgd.log` in a folder, after what earlier daemons wrote.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn to_folder(dir: &Path) -> anyhow::Result<()> {
    let opened = open(dir, LEN_MAX);
    let log = opened.with_context(|| format!("the log in {}", dir.display()))?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

/// Opens the log; one that has grown longer than `len_max` is the one of before from now on.
fn open(dir: &Path, len_max: u64) -> io::Result<std::fs::File> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join("imgd.log");
    if std::fs::metadata(&path).is_ok_and(|found| found.len() > len_max) {
        std::fs::rename(&path, dir.join("imgd.log.1"))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Length beyond which a start begins a new log: months of rare life events.
const LEN_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_goes_on_until_it_is_long_and_one_of_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        for line in ["one", "two", "six"] {
            open(&state, 5).unwrap().write_all(line.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(state.join(name)).unwrap();
        assert_eq!(
            (read("imgd.log.1").as_str(), read("imgd.log").as_str()),
            ("onetwo", "six")
        );
    }
}
