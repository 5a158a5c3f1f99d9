//! Decides whether the disk has room for a write before the write is accepted.
//!
//! What is dirty must still be sealed, which writes it a second time into the outbox, and the
//! journal and the index need room as well: a write is refused while that would not fit. Before that the
//! object cache is asked to give back what is missing.

use std::io;
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use img_types::limits::DISK_RESERVE;

/// Free space of the file system that a checkout's directory is on, looked up now and then.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    looked: Instant,
    available: u64,
    granted: u64,
    /// Free bytes that tests put in the place of the file system's answer.
    #[cfg(test)]
    pretended: Option<Arc<AtomicU64>>,
}

/// Numbers of the file system below, for `statfs`.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that may still be written here.
    pub available: u64,
}

impl Room {
    /// Looks up the free space of the directory's file system.
    ///
    /// # Errors
    /// The directory is not there.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_path_buf(),
            looked: Instant::now(),
            available: free(dir)?.available,
            granted: 0,
            #[cfg(test)]
            pretended: None,
        })
    }

    /// Makes the file system one of so many free bytes.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, free: Arc<AtomicU64>) {
        self.pretended = Some(free);
        self.look();
    }

    /// Grants `len` bytes if they, their seal and the seal of `unsealed` bytes fit.
    ///
    /// # Errors
    /// How many bytes are missing.
    pub(super) fn grant(&mut self, len: u64, unsealed: u64) -> Result<(), u64> {
        if self.looked.elapsed() >= LOOK_INTERVAL || self.missing(len, unsealed) > 0 {
            self.look();
        }
        match self.missing(len, unsealed) {
            0 => {
                self.granted += len;
                Ok(())
            }
            missing => Err(missing),
        }
    }

    /// Says what `statfs` shows: the reserve and the room for seals count as used, what others can give back
    /// as free.
    ///
    /// # Errors
    /// The file system below cannot be asked.
    pub(super) fn space(&self, unsealed: u64, evictable: u64) -> io::Result<Space> {
        let below = free(&self.dir)?;
        Ok(Space {
            total: below.total,
            available: below
                .available
                .saturating_add(evictable)
                .saturating_sub(DISK_RESERVE)
                .saturating_sub(unsealed)
                / 2,
        })
    }

    fn missing(&self, len: u64, unsealed: u64) -> u64 {
        let needed = len
            .saturating_mul(2)
            .saturating_add(self.granted)
            .saturating_add(unsealed)
            .saturating_add(DISK_RESERVE);
        needed.saturating_sub(self.available)
    }

    fn look(&mut self) {
        self.looked = Instant::now();
        self.granted = 0;
        // A file system that cannot be asked takes no writes either.
        self.available = free(&self.dir).map_or(0, |space| space.available);
        #[cfg(test)]
        if let Some(free) = &self.pretended {
            self.available = free.load(Ordering::SeqCst);
        }
    }
}

fn free(dir: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// How long a look at the free space is believed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_would_not_leave_room_for_its_seal() {
        let dir = tempfile::tempdir().unwrap();
        let mut room = Room::new(dir.path()).unwrap();
        room.available = DISK_RESERVE + 1_000;
        room.looked = Instant::now();
        assert_eq!(room.missing(400, 200), 0);
        assert_eq!(room.missing(401, 200), 2);
        room.granted = 100;
        assert_eq!(room.missing(400, 200), 100);
        assert_eq!(room.missing(350, 200), 0);
        assert!(room.grant(u64::MAX, 0).is_err(), "no disk is that large");
        assert!(room.grant(0, 0).is_ok());
    }
}
