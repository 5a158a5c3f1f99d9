//! Taking objects in: verified ids, then the spool, then rows, then the acknowledgement.
//!
//! ```text
//! push streams ──verified batches──▶ spool thread ──synced──▶ writer (rows) ──durable──▶ acknowledge
//!                                        │ 64 MiB
//!                                        └──▶ packer: pack durable ──▶ rows move ──▶ spool removed
//! ```
//!
//! A crash between the sync and the rows loses nothing that was acknowledged; start-up gives rows to
//! whole objects that it finds in spools, so that a device need not send them again either.

mod packer;
mod quota;
mod recover;
mod spooler;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use img_proto::Refusal;
use img_types::object::{ObjectKind, Parsed};
use img_types::{ObjectId, UploadId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub(crate) use spooler::path as spool_path;

use crate::db::{Database, Stop};
use crate::objects::Objects;
use quota::Quota;

/// Objects that are verified, appended and acknowledged together.
pub(crate) const BATCH_MAX: usize = 64;
/// Bytes at which a batch is complete.
pub(crate) const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of objects that may be on their way from streams to rows, over all devices.
const IN_FLIGHT_MAX: usize = 48 * 1024 * 1024;
/// The semaphore counts in these.
const UNIT: usize = 1024;

/// An object whose bytes match its id.
#[derive(Debug, Clone)]
pub(crate) struct Verified {
    id: ObjectId,
    bytes: Bytes,
    children: Vec<ObjectId>,
}

impl Verified {
    /// Computes the id of pushed bytes. Slow: call it on a blocking thread.
    ///
    /// # Errors
    /// [`Refusal::BadObject`] where the bytes are no canonical object.
    pub(crate) fn check(bytes: Bytes) -> Result<Self, Refusal> {
        let parsed = Parsed::decode(&bytes).map_err(|_| Refusal::BadObject)?;
        let id = parsed.id();
        let children = strong_children(parsed);
        Ok(Self {
            id,
            bytes,
            children,
        })
    }
}

/// What an object needs to be complete: nothing for a trace, whose list is weak.
fn strong_children(parsed: Parsed<'_>) -> Vec<ObjectId> {
    match parsed.header.kind {
        ObjectKind::Trace => Vec::new(),
        _ => parsed.header.children,
    }
}

/// Objects of one push, in its order.
pub(crate) struct Batch {
    upload: UploadId,
    objects: Vec<Verified>,
    /// Whether the push ends here, so that there is nothing to wait for before syncing.
    last: bool,
    durable: oneshot::Sender<Result<(), Refusal>>,
    _room: Vec<OwnedSemaphorePermit>,
}

/// Takes objects in for all connections.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    queue: std::sync::mpsc::Sender<spooler::Message>,
    room: Arc<Semaphore>,
    thread: Arc<tokio::sync::Mutex<Option<oneshot::Receiver<()>>>>,
}

impl Ingest {
    /// Recovers the spools in `folder` and starts the thread that appends to them, up to `max_stored` bytes
    /// of objects in all.
    pub(crate) async fn start(
        db: Database,
        objects: Objects,
        folder: PathBuf,
        max_stored: Option<u64>,
    ) -> Result<Self, Stop> {
        let recovered = recover::recover(&db, &objects, &folder).await?;
        let quota = Quota::of(&db, max_stored).await?;
        let (queue, incoming) = std::sync::mpsc::channel();
        let (ended, thread) = oneshot::channel();
        spooler::start(db, objects, folder, recovered, quota, incoming, ended)
            .map_err(|error| Stop::Broken(format!("no thread for the spool: {error}")))?;
        Ok(Self {
            queue,
            room: Arc::new(Semaphore::new(IN_FLIGHT_MAX / UNIT)),
            thread: Arc::new(tokio::sync::Mutex::new(Some(thread))),
        })
    }

    /// Waits until `len` more bytes may be on their way.
    pub(crate) async fn room(&self, len: usize) -> Result<OwnedSemaphorePermit, Stop> {
        let units = u32::try_from(len.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(units).await;
        room.map_err(|_| Stop::Closing)
    }

    /// Queues objects, with the room that they take, and returns what tells when they are durable.
    /// `last` asks for a sync at once, because the push ends here.
    pub(crate) fn add(
        &self,
        upload: UploadId,
        objects: Vec<Verified>,
        room: Vec<OwnedSemaphorePermit>,
        last: bool,
    ) -> Result<oneshot::Receiver<Result<(), Refusal>>, Stop> {
        let (durable, receiver) = oneshot::channel();
        let batch = Batch {
            upload,
            objects,
            last,
            durable,
            _room: room,
        };
        self.queue
            .send(spooler::Message::Batch(batch))
            .map_err(|_| Stop::Closing)?;
        Ok(receiver)
    }

    /// Syncs what was taken, gives it rows and ends the thread.
    pub(crate) async fn stop(&self) {
        self.room.close();
        // A thread that has ended already has nothing left to sync.
        let _ = self.queue.send(spooler::Message::Stop);
        if let Some(thread) = self.thread.lock().await.take() {
            let _ = thread.await;
        }
    }
}
