//! Packs in an object store: a local folder or a bucket.
//!
//! Packs are written once under their content's name and never changed, so that the store needs no more
//! than put and read a range. A pack is durable when [`Packs::put`] returns.

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use img_types::bytes::DecodeError;
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::pack::{self, PackId};
use crate::table::{FOOTER_LEN, Place, Table};

const FOLDER: &str = "packs";

/// Why a pack could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// There is no such pack.
    #[error("pack {0} is missing")]
    Missing(PackId),
    /// The pack's table does not verify.
    #[error("pack {id} is damaged: {reason}")]
    Corrupt {
        /// Which pack.
        id: PackId,
        /// What does not verify.
        reason: DecodeError,
    },
    /// The store is full; nothing changed.
    #[error("there is no room in the object store")]
    NoRoom,
    /// The store failed or cannot be reached.
    #[error("the object store failed")]
    Store(#[source] object_store::Error),
}

/// The packs of one home; cheap to clone.
#[derive(Debug, Clone)]
pub struct Packs {
    store: Arc<dyn ObjectStore>,
}

impl Packs {
    /// Keeps packs in a store. A local store must sync what it writes; [`Packs::local`] does.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// Keeps packs in a folder that exists.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn local(folder: &Path) -> Result<Self, PackError> {
        let store = LocalFileSystem::new_with_prefix(folder).map_err(PackError::Store)?;
        Ok(Self::new(Arc::new(store.with_fsync(true))))
    }

    /// Writes a pack durably. One that is here already is replaced, since its name says what it holds: a crash
    /// may have left it without a synced folder, and a disk may have damaged it.
    ///
    /// # Errors
    /// The store is full, fails or cannot be reached.
    pub async fn put(&self, id: PackId, bytes: Bytes) -> Result<(), PackError> {
        let put = self.store.put(&location(id), bytes.into()).await;
        put.map(|_| ()).map_err(|error| failed(id, error))
    }

    /// Reads an object of a pack; the caller checks it against the object's id.
    ///
    /// # Errors
    /// The pack is missing or shorter, or the store fails.
    pub async fn read_object(&self, id: PackId, place: Place) -> Result<Bytes, PackError> {
        self.store
            .get_range(&location(id), place.offset..place.end())
            .await
            .map_err(|error| failed(id, error))
    }

    /// Reads and checks a pack's table.
    ///
    /// # Errors
    /// The pack is missing or its table does not verify, or the store fails.
    pub async fn table(&self, id: PackId) -> Result<Table, PackError> {
        let corrupt = |reason| PackError::Corrupt { id, reason };
        let path = location(id);
        let file_len = self
            .store
            .head(&path)
            .await
            .map_err(|error| failed(id, error))?
            .size;
        let footer_start = file_len
            .checked_sub(FOOTER_LEN as u64)
            .ok_or(corrupt(DecodeError("ends early")))?;
        let read = async |range| {
            let bytes = self.store.get_range(&path, range).await;
            bytes.map_err(|error| failed(id, error))
        };
        let footer = read(footer_start..file_len).await?;
        let footer = pack::footer(&footer, file_len).map_err(corrupt)?;
        let tail = read(footer.start..file_len).await?;
        pack::table(id, file_len, &tail).map_err(corrupt)
    }
}

fn location(id: PackId) -> StorePath {
    StorePath::from_iter([FOLDER, &id.to_string()])
}

fn failed(id: PackId, error: object_store::Error) -> PackError {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return PackError::Missing(id);
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        let full = inner.downcast_ref().is_some_and(|error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        });
        if full {
            return PackError::NoRoom;
        }
        cause = inner.source();
    }
    PackError::Store(error)
}

#[cfg(test)]
mod tests;
