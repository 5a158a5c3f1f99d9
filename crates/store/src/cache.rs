//! The device's objects on disk: a bounded cache that also holds what has not reached home yet.
//!
//! Objects are appended to segment files; the table of places is in memory and is rebuilt from the segments
//! at start. When the limit is reached, or the disk gets short of room, whole segments go, the oldest first. An
//! object that is *kept* for a checkout (its outbox) is never evicted: it is copied forward out of a segment that
//! goes, and neither the limit nor the disk's reserve binds it. Which checkout keeps what stands in a log of its
//! own, `keeps`.
//!
//! A crash at any point leaves every object that was put before the last [`Cache::sync`], and its keeps.
//! The cache does not check objects when it reads them, since opening a sealed object does; who finds a
//! damaged one says [`Cache::forget`], or reads with [`Cache::get_verified`].

mod disk;
mod inner;
mod keeps;
mod limit;
mod segment;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use img_types::{CheckoutId, ObjectId, object};

use crate::{StoreError, record};
use inner::Inner;

/// Most bytes of one segment file: what one eviction gives back.
const SEGMENT_LEN_MAX: u64 = 64 * 1024 * 1024;
/// Least bytes of one segment file: a small cache still has segments to choose from.
const SEGMENT_LEN_MIN: u64 = 1024 * 1024;
/// Segments that a full cache consists of, unless they would be too large or too small.
const SEGMENTS_WANTED: u64 = 32;

/// How long an object stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// As long as there is room.
    Evictable,
    /// Until the checkout releases it.
    Outbox(CheckoutId),
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Objects at hand.
    pub objects: u64,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Bytes of objects that a checkout keeps.
    pub kept_bytes: u64,
    /// Bytes that can be given back.
    pub evictable_bytes: u64,
    /// Segments that were evicted since the cache was opened.
    pub evictions: u64,
    /// Bytes that the segment files may have before something is evicted.
    pub limit: u64,
}

/// The object files of one device. All calls block on the disk, unless they say otherwise; none blocks on another's
/// read or sync, but all wait while an eviction copies what is kept.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    inner: Mutex<Inner>,
    /// What could be given back after the last change, for who cannot wait.
    evictable: AtomicU64,
    /// Held while files are synced, so that a sync also waits for what an earlier one took on.
    syncing: Mutex<()>,
}

impl Cache {
    /// Opens or makes the cache in a folder, for one process at a time. `limit` is in bytes and holds until
    /// [`Cache::set_limit`] has set another.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, StoreError> {
        let limit = limit::read(folder)?.unwrap_or(limit);
        Self::open_with(folder, limit, segment_len(limit))
    }

    fn open_with(folder: &Path, limit: u64, segment_len: u64) -> Result<Self, StoreError> {
        let inner = Inner::open(folder, limit, segment_len)?;
        Ok(Self {
            folder: folder.to_owned(),
            evictable: AtomicU64::new(inner.evictable()),
            inner: Mutex::new(inner),
            syncing: Mutex::new(()),
        })
    }

    /// Reads an object without checking it; nothing if it is not here or cannot be read.
    pub fn get(&self, id: &ObjectId) -> Option<Bytes> {
        let (file, place) = self.lock().find(id)?;
        match record::read(&file, place) {
            Ok(object) => Some(object),
            Err(error) => {
                tracing::warn!(object = %id.short(), %error, "a cached object cannot be read");
                None
            }
        }
    }

    /// Reads an object and checks it against its id; forgets it if it is damaged.
    pub fn get_verified(&self, id: &ObjectId) -> Option<Bytes> {
        let object = self.get(id)?;
        if object::verify(*id, &object).is_ok() {
            return Some(object);
        }
        tracing::warn!(object = %id.short(), "a cached object is damaged");
        self.forget(id);
        None
    }

    /// Whether the object is here.
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.lock().contains(id)
    }

    /// Takes an object whose id the caller has checked. One that is only evictable is not taken if there is no
    /// room for it. Durable after the next [`Cache::sync`].
    ///
    /// # Errors
    /// The disk is full or fails; what was here before still is.
    pub fn put(&self, id: &ObjectId, object: &[u8], keep: Keep) -> Result<(), StoreError> {
        let filled_segment = self.change(|cache| cache.put(*id, object, keep))?;
        if filled_segment {
            self.sync()?;
        }
        Ok(())
    }

    /// Keeps objects that are here for a checkout; returns those that are not here. Durable after the next
    /// [`Cache::sync`].
    ///
    /// # Errors
    /// The disk is full or fails; nothing is kept that was not.
    pub fn keep(
        &self,
        checkout: CheckoutId,
        ids: &[ObjectId],
    ) -> Result<Vec<ObjectId>, StoreError> {
        self.change(|cache| cache.keep(checkout, ids))
    }

    /// Makes everything that was put, kept or released before durable.
    ///
    /// # Errors
    /// [`StoreError::Sync`]: the process has to stop.
    pub fn sync(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let unsynced = self.lock().take_unsynced();
        unsynced.sync()
    }

    /// Lists what a checkout keeps, in ascending order.
    pub fn outbox(&self, checkout: CheckoutId) -> Vec<ObjectId> {
        self.lock().outbox(checkout)
    }

    /// Ends a checkout's claim on objects; they become evictable unless another checkout keeps them.
    ///
    /// # Errors
    /// The disk is full or fails; everything is kept as before.
    pub fn release(&self, checkout: CheckoutId, ids: &[ObjectId]) -> Result<(), StoreError> {
        self.change(|cache| cache.release(checkout, ids))
    }

    /// Drops an object that turned out to be damaged, so that it is fetched or sealed again.
    pub fn forget(&self, id: &ObjectId) {
        self.change(|cache| cache.forget(id));
    }

    /// What the cache holds.
    pub fn usage(&self) -> Usage {
        self.lock().usage()
    }

    /// Bytes that can be given back; never blocks.
    pub fn evictable(&self) -> u64 {
        self.evictable.load(Ordering::Relaxed)
    }

    /// Bytes that the cache may have now: its limit, or less where the disk is short of room.
    pub fn allowance(&self) -> u64 {
        self.lock().allowance()
    }

    /// Evicts until `wanted` bytes are free on the disk that were not, or nothing is evictable any more. Returns how
    /// many are.
    ///
    /// # Errors
    /// The disk fails.
    pub fn give_back(&self, wanted: u64) -> Result<u64, StoreError> {
        self.change(|cache| cache.give_back(wanted))
    }

    /// Sets the limit in bytes, for later starts as well, and evicts what is over it. What is kept stays.
    ///
    /// # Errors
    /// The disk is full or fails; the limit is what it was.
    pub fn set_limit(&self, limit: u64) -> Result<(), StoreError> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.usage().limit;
        // The eviction first: it makes room for the file.
        let set = self
            .change(|cache| cache.set_limit(limit, segment_len(limit)))
            .and_then(|()| limit::write(&self.folder, limit));
        if set.is_err() {
            self.change(|cache| cache.set_limit(before, segment_len(before)))?;
        }
        set
    }

    fn change<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let outcome = work(&mut inner);
        self.evictable.store(inner.evictable(), Ordering::Relaxed);
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No call leaves the state half changed where it could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn segment_len(limit: u64) -> u64 {
    (limit / SEGMENTS_WANTED).clamp(SEGMENT_LEN_MIN, SEGMENT_LEN_MAX)
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
