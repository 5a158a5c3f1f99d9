//! How much room the cache's file system has, and how much of it the cache may take.
//!
//! What is evictable is worth less than anything else on the disk: it may have the disk's free room down to
//! [`CACHE_FREE_MIN`] and shrinks when others need that. The file system is asked at most once a second; in
//! between the cache stays within what the last answer left it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use img_types::limits::CACHE_FREE_MIN;

/// How long an answer of the file system is believed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The file system that the segments are on.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    looked: Option<Instant>,
    /// What the segments may take together, as of the last look.
    allowed: u64,
    /// What tests put in the place of the file system's answer.
    #[cfg(test)]
    pretended: Option<u64>,
}

impl Disk {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            looked: None,
            allowed: u64::MAX,
            #[cfg(test)]
            pretended: None,
        }
    }

    /// Bytes that segments of `used` bytes may have here for the disk's sake.
    pub(super) fn allowance(&mut self, used: u64) -> u64 {
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL) {
            self.looked = Some(Instant::now());
            // A file system that does not say how full it is leaves the limit alone to bind.
            self.allowed = self
                .room(used)
                .map_or(u64::MAX, |room| room.saturating_sub(CACHE_FREE_MIN));
        }
        self.allowed
    }

    /// Leaves to others what the cache has just given back.
    pub(super) fn gave_back(&mut self, used: u64) {
        self.looked = Some(Instant::now());
        self.allowed = self.allowed.min(used);
    }

    /// Makes the file system one of `total` bytes that holds nothing but the segments.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, total: u64) {
        self.pretended = Some(total);
        self.looked = None;
    }

    /// Bytes of the segments and free ones together; nothing if the file system does not say.
    fn room(&self, used: u64) -> Option<u64> {
        #[cfg(test)]
        if self.pretended.is_some() {
            return self.pretended;
        }
        let stat = rustix::fs::statvfs(&self.folder).ok()?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Some(used.saturating_add(free))
    }
}
