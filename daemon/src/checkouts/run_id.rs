//! Run ids: what tells an application that its state goes on in another life.
//!
//! A state that is restored, branched or checked out elsewhere is in two places or times at once: what was random or
//! unique in it is no more. A run id is new each time. It lies beside the daemon's socket, in no image, so that it is
//! never a part of what is cut.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use img_types::CheckoutId;

/// The files that hold the run ids of this daemon's checkouts.
#[derive(Debug)]
pub(super) struct RunIds {
    dir: PathBuf,
}

impl RunIds {
    /// Those beside a socket.
    pub(super) fn beside(socket: &Path) -> Self {
        Self {
            dir: socket.with_extension("run"),
        }
    }

    /// The file of a checkout's run id.
    pub(super) fn file(&self, checkout: CheckoutId) -> PathBuf {
        self.dir.join(checkout.to_string())
    }

    /// A checkout's run id; a new one where there is none, as after a reboot.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn of(&self, checkout: CheckoutId) -> io::Result<String> {
        match std::fs::read_to_string(self.file(checkout)) {
            Ok(text) if text.trim_end().len() == 2 * RUN_ID_LEN => Ok(text.trim_end().to_owned()),
            _ => self.renew(checkout),
        }
    }

    /// Gives a checkout a new run id: its state is another's from here on.
    ///
    /// # Errors
    /// The file cannot be written; the run id is what it was.
    pub(super) fn renew(&self, checkout: CheckoutId) -> io::Result<String> {
        let mut id = [0; RUN_ID_LEN];
        getrandom::fill(&mut id).expect("the kernel has randomness once a daemon runs");
        let id = data_encoding::HEXLOWER.encode(&id);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let (file, new) = (
            self.file(checkout),
            self.dir.join(format!("{checkout}.new")),
        );
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&new)?
            .write_all(format!("{id}\n").as_bytes())?;
        // Who reads it sees the one or the other.
        std::fs::rename(new, file)?;
        Ok(id)
    }

    /// Forgets a checkout that has ended.
    pub(super) fn forget(&self, checkout: CheckoutId) {
        std::fs::remove_file(self.file(checkout)).ok();
    }
}

const RUN_ID_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_stays_until_it_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let ids = RunIds::beside(&dir.path().join("imgd.sock"));
        let checkout = CheckoutId::from_bytes([1; 32]);
        let first = ids.of(checkout).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(ids.of(checkout).unwrap(), first);
        let second = ids.renew(checkout).unwrap();
        assert_ne!(first, second);
        assert_eq!(ids.of(checkout).unwrap(), second);
        let text = std::fs::read_to_string(ids.file(checkout)).unwrap();
        assert_eq!(text, format!("{second}\n"));
        std::fs::write(ids.file(checkout), "cut short").unwrap();
        assert_ne!(ids.of(checkout).unwrap(), second);
        ids.forget(checkout);
        assert!(!ids.file(checkout).exists());
    }
}
