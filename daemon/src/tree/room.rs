//! Decides whether the disk has room for a write before the write is accepted.
//!
//! What is dirty must still be sealed, which writes it a second time into the outbox, and the
//! journal and the index need room as well: a write is refused while that would not fit.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use img_types::limits::DISK_RESERVE;

/// Free space of the file system that a checkout's directory is on, looked up now and then.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    looked: Instant,
    available: u64,
    granted: u64,
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
        })
    }

    /// Grants `len` bytes if they, their seal and the seal of `unsealed` bytes fit.
    pub(super) fn grant(&mut self, len: u64, unsealed: u64) -> bool {
        if self.looked.elapsed() >= LOOK_INTERVAL || !self.fits(len, unsealed) {
            self.look();
        }
        let fits = self.fits(len, unsealed);
        if fits {
            self.granted += len;
        }
        fits
    }

    /// Says what `statfs` shows: the reserve and the room for seals count as used.
    ///
    /// # Errors
    /// The file system below cannot be asked.
    pub(super) fn space(&self, unsealed: u64) -> io::Result<Space> {
        let below = free(&self.dir)?;
        Ok(Space {
            total: below.total,
            available: below
                .available
                .saturating_sub(DISK_RESERVE)
                .saturating_sub(unsealed)
                / 2,
        })
    }

    fn fits(&self, len: u64, unsealed: u64) -> bool {
        let needed = len
            .saturating_mul(2)
            .saturating_add(self.granted)
            .saturating_add(unsealed)
            .saturating_add(DISK_RESERVE);
        needed <= self.available
    }

    fn look(&mut self) {
        self.looked = Instant::now();
        self.granted = 0;
        // A file system that cannot be asked takes no writes either.
        self.available = free(&self.dir).map_or(0, |space| space.available);
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
        assert!(room.fits(400, 200));
        assert!(!room.fits(401, 200));
        room.granted = 100;
        assert!(!room.fits(400, 200));
        assert!(room.fits(350, 200));
        assert!(!room.grant(u64::MAX, 0), "no disk is that large");
        assert!(room.grant(0, 0));
    }
}
