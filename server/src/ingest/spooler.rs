//! The thread that owns the open spool: appends, syncs for everybody at once, hands rows over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use img_proto::Refusal;
use img_store::{Place, Spool, StoreError};
use img_types::limits::{DISK_RESERVE, SPOOL_LEN_MAX, UPLOAD_SYNC_BYTES, UPLOAD_SYNC_INTERVAL};
use img_types::{ObjectId, UploadId};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Batch;
use super::packer::{self, Packer};
use super::quota::Quota;
use super::recover::{Numbers, Recovered};
use crate::db::objects::{self, NewObject, StoreNumber};
use crate::db::{Database, Stop, uploads};
use crate::objects::Objects;

/// What the thread is told.
pub(super) enum Message {
    /// Objects to take in.
    Batch(Batch),
    /// Finish and end.
    Stop,
}

/// A spool with what it holds.
pub(super) struct OpenSpool {
    pub(super) number: StoreNumber,
    pub(super) spool: Spool,
    pub(super) objects: Vec<(ObjectId, Place)>,
}

/// The path of a spool.
pub(crate) fn path(folder: &Path, number: StoreNumber) -> PathBuf {
    folder.join(format!("{:012}.spool", number.0))
}

/// Starts the thread; `ended` is dropped when it is done.
pub(super) fn start(
    db: Database,
    objects: Objects,
    folder: PathBuf,
    recovered: Recovered,
    quota: Quota,
    incoming: Receiver<Message>,
    ended: oneshot::Sender<()>,
) -> io::Result<()> {
    let runtime = Handle::current();
    let numbers = Arc::clone(&recovered.numbers);
    let packer = packer::start(db.clone(), objects.clone(), folder.clone(), numbers);
    for full in recovered.full {
        packer.add(full, Vec::new());
    }
    let spooler = Spooler {
        db,
        objects,
        folder,
        runtime,
        packer,
        open: recovered.open,
        numbers: recovered.numbers,
        quota,
        rows: Vec::new(),
    };
    std::thread::Builder::new()
        .name("spool".to_owned())
        .spawn(move || {
            let spooler = spooler.run(&incoming);
            spooler.finish();
            drop(ended);
        })
        .map(drop)
}

struct Spooler {
    db: Database,
    objects: Objects,
    folder: PathBuf,
    runtime: Handle,
    packer: Packer,
    open: Option<OpenSpool>,
    numbers: Arc<Numbers>,
    quota: Quota,
    /// Tasks that make rows for the open spool's objects.
    rows: Vec<JoinHandle<()>>,
}

/// A batch in the spool, with its rows to be.
struct Appended {
    upload: UploadId,
    rows: Vec<NewObject>,
    durable: oneshot::Sender<Result<(), Refusal>>,
}

/// Batches that were appended and not synced.
#[derive(Default)]
struct Unsynced {
    batches: Vec<Appended>,
    /// Room that is given back when the rows are durable.
    rooms: Vec<tokio::sync::OwnedSemaphorePermit>,
    bytes: u64,
    /// What they take of the quota at most.
    taken: u64,
    ends: bool,
}

impl Spooler {
    fn run(mut self, incoming: &Receiver<Message>) -> Self {
        while let Ok(Message::Batch(first)) = incoming.recv() {
            let mut unsynced = Unsynced::default();
            let mut stop = false;
            let deadline = Instant::now() + UPLOAD_SYNC_INTERVAL;
            self.append(first, &mut unsynced);
            while !unsynced.ends && unsynced.bytes < UPLOAD_SYNC_BYTES {
                let wait = deadline.saturating_duration_since(Instant::now());
                match incoming.recv_timeout(wait) {
                    Ok(Message::Batch(batch)) => self.append(batch, &mut unsynced),
                    Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => {
                        stop = true;
                        break;
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            self.sync(unsynced);
            if stop {
                break;
            }
        }
        self
    }

    /// Appends a batch, or refuses it whole.
    fn append(&mut self, batch: Batch, unsynced: &mut Unsynced) {
        let Batch {
            upload,
            objects,
            last,
            durable,
            _room: room,
        } = batch;
        match self.append_all(&objects) {
            Ok((rows, taken)) => {
                unsynced.taken += taken;
                unsynced.bytes += rows.iter().map(|row| u64::from(row.place.len)).sum::<u64>();
                unsynced.ends |= last;
                unsynced.batches.push(Appended {
                    upload,
                    rows,
                    durable,
                });
                unsynced.rooms.extend(room);
            }
            Err(refusal) => {
                // The device learns it from the end of its push if it is gone here.
                let _ = durable.send(Err(refusal));
            }
        }
    }

    /// Appends objects; tells their rows to be, and what they take of the quota at most.
    fn append_all(
        &mut self,
        objects: &[super::Verified],
    ) -> Result<(Vec<NewObject>, u64), Refusal> {
        self.check_room(len_of(objects))?;
        let taken = self.take_quota(objects)?;
        match self.append_to_spool(objects) {
            Ok(rows) => Ok((rows, taken)),
            Err(refusal) => {
                self.quota.give_back(taken);
                Err(refusal)
            }
        }
    }

    /// Only a home that is nearly full looks first which of the objects it has: these take nothing.
    fn take_quota(&self, objects: &[super::Verified]) -> Result<u64, Refusal> {
        let all = len_of(objects);
        if self.quota.take(all).is_ok() {
            return Ok(all);
        }
        let ids: Vec<ObjectId> = objects.iter().map(|object| object.id).collect();
        let here = self
            .runtime
            .block_on(self.objects.locate(&ids))
            .map_err(|error| Refusal::Internal(error.to_string()))?;
        let new = len_of(
            objects
                .iter()
                .filter(|object| !here.contains_key(&object.id)),
        );
        self.quota.take(new)?;
        Ok(new)
    }

    fn append_to_spool(&mut self, objects: &[super::Verified]) -> Result<Vec<NewObject>, Refusal> {
        let open = self.open_spool()?;
        let mut rows = Vec::with_capacity(objects.len());
        for object in objects {
            let place = open
                .spool
                .append(object.id, &object.bytes)
                .map_err(|error| refusal(&error))?;
            open.objects.push((object.id, place));
            rows.push(NewObject {
                id: object.id,
                store: open.number,
                place,
                children: object.children.clone(),
            });
        }
        Ok(rows)
    }

    fn check_room(&self, wanted: u64) -> Result<(), Refusal> {
        let disk = rustix::fs::statvfs(&self.folder)
            .map_err(|errno| Refusal::Internal(format!("the spool's disk: {errno}")))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < DISK_RESERVE.saturating_add(wanted) {
            return Err(Refusal::NoRoom("the home's disk is full".to_owned()));
        }
        Ok(())
    }

    fn open_spool(&mut self) -> Result<&mut OpenSpool, Refusal> {
        if self.open.is_none() {
            let number = self.numbers.next();
            let spool =
                Spool::create(&path(&self.folder, number)).map_err(|error| refusal(&error))?;
            let add = self.db.writer().call(move |tx| {
                Box::pin(async move { objects::add_store(tx, number, None).await })
            });
            self.runtime
                .block_on(add)
                .map_err(|error| Refusal::Internal(error.to_string()))?;
            self.objects.add_spool(number, spool.reader());
            self.open = Some(OpenSpool {
                number,
                spool,
                objects: Vec::new(),
            });
        }
        let open = self.open.as_mut();
        open.ok_or_else(|| Refusal::Internal("no spool".to_owned()))
    }

    /// Makes everything appended durable and lets its rows follow.
    fn sync(&mut self, unsynced: Unsynced) {
        let Some(open) = &self.open else { return };
        if let Err(error) = open.spool.sync() {
            fatal(&error);
        }
        let full = open.spool.len() >= SPOOL_LEN_MAX;
        let db = self.db.clone();
        self.rows.retain(|task| !task.is_finished());
        let quota = self.quota.clone();
        self.rows
            .push(self.runtime.spawn(make_rows(db, quota, unsynced)));
        if full && let Some(open) = self.open.take() {
            self.packer.add(open, std::mem::take(&mut self.rows));
        }
    }

    /// Waits for the rows and for the pack under way.
    fn finish(self) {
        for task in self.rows {
            // A task that failed has told its callers.
            let _ = self.runtime.block_on(task);
        }
        self.runtime.block_on(self.packer.stop());
    }
}

/// Gives rows to synced objects and tells their devices.
async fn make_rows(db: Database, quota: Quota, unsynced: Unsynced) {
    let Unsynced {
        batches,
        rooms,
        taken,
        ..
    } = unsynced;
    let mut callers = Vec::with_capacity(batches.len());
    let mut work = Vec::with_capacity(batches.len());
    for batch in batches {
        work.push((batch.upload, batch.rows));
        callers.push(batch.durable);
    }
    let made = db.writer().call(move |tx| {
        Box::pin(async move {
            let mut new = 0;
            for (upload, rows) in &work {
                let new_bytes = objects::insert(tx, rows).await?;
                uploads::progress(tx, *upload, new_bytes).await?;
                new += new_bytes;
            }
            Ok::<_, Stop>(new)
        })
    });
    let made = made.await;
    quota.give_back(taken.saturating_sub(made.as_ref().copied().unwrap_or(0)));
    let result = made.map(drop).map_err(|error| match error {
        Stop::Refused(refusal) => refusal,
        // A full disk ended its group before its turn.
        Stop::Closing => Refusal::Busy,
        error => {
            tracing::error!(%error, "objects got no rows");
            Refusal::Internal("objects got no rows".to_owned())
        }
    });
    drop(rooms);
    for durable in callers {
        // A device that is gone asks for what is missing when it comes back.
        let _ = durable.send(result.clone());
    }
}

fn len_of<'a>(objects: impl IntoIterator<Item = &'a super::Verified>) -> u64 {
    let lengths = objects.into_iter().map(|object| object.bytes.len() as u64);
    lengths.sum()
}

fn refusal(error: &StoreError) -> Refusal {
    match error {
        StoreError::NoRoom => Refusal::NoRoom("the home's disk is full".to_owned()),
        StoreError::Io(_) => {
            tracing::error!(%error, "the spool failed");
            Refusal::Internal("the spool failed".to_owned())
        }
        StoreError::Sync(_) => fatal(error),
    }
}

fn fatal(error: &StoreError) -> ! {
    tracing::error!(%error, "objects did not become durable; the home stops here");
    std::process::abort()
}
