//! The file into which a home takes uploads before they become a pack.
//!
//! A spool is a sequence of records (see `docs/formats.md`). An upload is acknowledged after [`Spool::sync`];
//! what was appended since may be torn by a crash, and [`Spool::recover`] cuts it off.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use img_types::ObjectId;

use crate::StoreError;
use crate::record;
use crate::table::Place;

/// An append-only file of objects with one writer. All calls block.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    end: u64,
    buffer: Vec<u8>,
}

/// Reads and syncs a spool beside its writer; cheap to clone.
#[derive(Debug, Clone)]
pub struct SpoolReader {
    file: Arc<File>,
}

impl Spool {
    /// Makes an empty spool, durable as a file.
    ///
    /// # Errors
    /// The file exists or cannot be made.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        sync_parent(path)?;
        Ok(Self::new(file, 0))
    }

    /// Opens a spool after a crash: cuts the torn tail and lists the whole objects in the order in which
    /// they were appended. Objects that do not match their id are left out. Nothing is cut before
    /// `named_end`, which is where the objects end whose places somebody remembers: a header there that
    /// does not hold is damage of what was durable, and the objects behind it are still read by their places.
    ///
    /// # Errors
    /// The file cannot be read or cut.
    pub fn recover(
        path: &Path,
        named_end: u64,
    ) -> Result<(Self, Vec<(ObjectId, Place)>), StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let scan = record::scan(&file)?;
        let end = scan.end.max(named_end.min(file.metadata()?.len()));
        if end > scan.end {
            tracing::error!(path = %path.display(), at = scan.end, "a damaged record in a spool");
        }
        if scan.corrupt > 0 {
            tracing::warn!(path = %path.display(), objects = scan.corrupt, "damaged objects in a spool");
        }
        file.set_len(end)?;
        file.sync_all().map_err(StoreError::Sync)?;
        Ok((Self::new(file, end), scan.records))
    }

    /// Appends an object; the caller has checked its id.
    ///
    /// # Errors
    /// The disk is full or fails, or the object is over its limit; the spool is as before.
    pub fn append(&mut self, id: ObjectId, object: &[u8]) -> Result<Place, StoreError> {
        let place = record::append(&self.file, self.end, id, object, &mut self.buffer)?;
        self.end = place.end();
        Ok(place)
    }

    /// Makes all that was appended durable.
    ///
    /// # Errors
    /// [`StoreError::Sync`]: the process has to stop.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.reader().sync()
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.end
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// A handle for reading and syncing on other threads.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader {
            file: Arc::clone(&self.file),
        }
    }

    fn new(file: File, end: u64) -> Self {
        Self {
            file: Arc::new(file),
            end,
            buffer: Vec::new(),
        }
    }
}

impl SpoolReader {
    /// Reads an object; the caller checks it against its id.
    ///
    /// # Errors
    /// The place is not in the file, or the disk fails.
    pub fn read(&self, place: Place) -> Result<Bytes, StoreError> {
        Ok(record::read(&self.file, place)?)
    }

    /// Makes all that was appended before this call durable.
    ///
    /// # Errors
    /// [`StoreError::Sync`]: the process has to stop.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(StoreError::Sync)
    }
}

/// Makes a new or removed name in its directory durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path
        .parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no parent directory"))?;
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    File::open(parent)?.sync_all().map_err(StoreError::Sync)
}

#[cfg(test)]
mod tests;
