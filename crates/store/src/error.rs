//! What can go wrong with a local file of objects, by what the caller does next.

use std::io;

/// Why a local file of objects could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full; nothing changed, and the call may be repeated when there is room.
    #[error("there is no room on the disk")]
    NoRoom,
    /// The operating system refused; nothing that was stored before is affected.
    #[error("the object store's file failed")]
    Io(#[source] io::Error),
    /// A sync failed, so nobody knows what is on the disk: the process has to stop, and the next one
    /// finds what is there.
    #[error("the object store's file could not be made durable")]
    Sync(#[source] io::Error),
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom,
            _ => Self::Io(error),
        }
    }
}
