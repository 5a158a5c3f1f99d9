//! The cgroup that an application runs in: what is in it, and making it stand still.
//!
//! Knows the files of cgroup v2 and nothing of checkouts. What is stopped goes on when its [`Stop`] is dropped, and
//! after a crash when whoever wrote the cgroup down calls [`Cgroup::thaw`].

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A cgroup of processes that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    dir: PathBuf,
}

/// Why a folder is not taken for an application's cgroup.
#[derive(Debug, thiserror::Error)]
pub enum NoCgroup {
    /// It cannot be looked at.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no cgroup of version 2 below the root.
    #[error("it is no cgroup of version 2")]
    Other,
    /// It is another user's.
    #[error("it belongs to another user")]
    Foreign,
    /// Nothing runs in it.
    #[error("nothing runs in it")]
    Empty,
    /// This daemon would stop itself.
    #[error("imgd runs in it")]
    Own,
}

impl Cgroup {
    /// The cgroup of an application that runs: below the root of the cgroups, the daemon's user's, and without the
    /// daemon.
    ///
    /// # Errors
    /// [`NoCgroup`].
    pub fn of_application(dir: &Path) -> Result<Self, NoCgroup> {
        if rustix::fs::statfs(dir).map_err(io::Error::from)?.f_type != CGROUP2_MAGIC {
            return Err(NoCgroup::Other);
        }
        let cgroup = Self {
            dir: dir.canonicalize()?,
        };
        // The root has neither.
        if !cgroup.dir.join(FREEZE).exists() || !cgroup.dir.join(EVENTS).exists() {
            return Err(NoCgroup::Other);
        }
        if std::fs::metadata(&cgroup.dir)?.uid() != rustix::process::geteuid().as_raw() {
            return Err(NoCgroup::Foreign);
        }
        if !cgroup.is_populated() {
            return Err(NoCgroup::Empty);
        }
        if cgroup.processes().contains(&std::process::id()) {
            return Err(NoCgroup::Own);
        }
        Ok(cgroup)
    }

    /// A cgroup that was written down; it may be gone.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a process is in it or below it.
    pub fn is_populated(&self) -> bool {
        self.says("populated 1")
    }

    /// The processes in it and below it, as far as they can be listed.
    pub fn processes(&self) -> Vec<u32> {
        let (mut found, mut folders) = (Vec::new(), vec![self.dir.clone()]);
        while let Some(folder) = folders.pop() {
            let listed = std::fs::read_to_string(folder.join("cgroup.procs"));
            let listed = listed.unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
            let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(below.map(|entry| entry.path()));
        }
        found
    }

    /// Tells everything in it to stand still. It goes on when what this returns is dropped.
    ///
    /// # Errors
    /// The cgroup is gone, or another's.
    pub fn stop(&self) -> io::Result<Stop<'_>> {
        let started = Instant::now();
        let stop = Stop {
            cgroup: self,
            started,
        };
        std::fs::write(self.dir.join(FREEZE), "1")?;
        Ok(stop)
    }

    /// Lets everything in it go on. One that is gone needs nothing.
    pub fn thaw(&self) {
        match std::fs::write(self.dir.join(FREEZE), "0") {
            Err(error) if self.dir.exists() => {
                tracing::error!(cgroup = %self.dir.display(), %error, "an application cannot be let go on");
            }
            _ => {}
        }
    }

    /// Removes it, once nothing runs in it. One that is gone is removed.
    pub fn remove(&self) {
        if let Err(error) = std::fs::remove_dir(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(cgroup = %self.dir.display(), %error, "a cgroup stays");
        }
    }

    fn says(&self, line: &str) -> bool {
        let said = std::fs::read_to_string(self.dir.join(EVENTS)).unwrap_or_default();
        said.lines().any(|said| said == line)
    }
}

/// An application that is standing still, or is about to.
#[derive(Debug)]
pub struct Stop<'a> {
    cgroup: &'a Cgroup,
    started: Instant,
}

impl Stop<'_> {
    /// When it was told to stand still.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits until everything stands still; false if something does not before `until`. Who waits for an answer of a
    /// file system stands still only when that has come.
    pub fn is_frozen_by(&self, until: Instant) -> bool {
        let Ok(events) = File::open(self.cgroup.dir.join(EVENTS)) else {
            return false;
        };
        let mut said = [0; EVENTS_LEN_MAX];
        loop {
            let read = events.read_at(&mut said, 0).unwrap_or(0);
            let lines = said.get(..read).unwrap_or_default();
            if lines
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"frozen 1")
            {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            // The kernel tells of it up to 10 ms late.
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Lets it go on. Returns for how long it was stopped.
    pub fn end(self) -> Duration {
        let started = self.started;
        drop(self);
        started.elapsed()
    }
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.cgroup.thaw();
    }
}

/// What statfs says of cgroup v2 (linux/magic.h).
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;
const FREEZE: &str = "cgroup.freeze";
const EVENTS: &str = "cgroup.events";
/// Two short lines, with room for more.
const EVENTS_LEN_MAX: usize = 256;
/// How often it is looked whether all stands still: a small part of the time that it may.
const LOOK_PAUSE: Duration = Duration::from_micros(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_below_the_root_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Cgroup::of_application(dir.path());
        assert!(matches!(refused, Err(NoCgroup::Other)), "{refused:?}");
        let refused = Cgroup::of_application(&dir.path().join("none"));
        assert!(matches!(refused, Err(NoCgroup::Io(_))), "{refused:?}");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let dir = fields.next()?;
            (fields.next()? == "cgroup2").then(|| dir.to_owned())
        });
        if let Some(root) = root {
            let refused = Cgroup::of_application(Path::new(&root));
            // In a container it is no root to the kernel, and this test runs in it.
            let refused = matches!(
                refused,
                Err(NoCgroup::Other | NoCgroup::Own | NoCgroup::Foreign)
            );
            assert!(refused);
        }
    }

    #[test]
    fn what_is_gone_is_neither_populated_nor_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let gone = Cgroup::at(dir.path().join("gone"));
        assert!(!gone.is_populated() && gone.processes().is_empty());
        assert!(gone.stop().is_err());
        gone.thaw();
        gone.remove();
    }
}
