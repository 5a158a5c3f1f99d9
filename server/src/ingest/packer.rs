//! Turns full spools into packs, one at a time, beside everything else.
//!
//! The pack is durable before a row names it, every row has moved before the spool goes, and each
//! step can be repeated after a crash: the pack's name follows from its content.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use img_store::{Pack, PackId, Place};
use img_types::ObjectId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::recover::Numbers;
use super::spooler::{self, OpenSpool};
use crate::db::objects::{self as rows, StoreNumber};
use crate::db::{Database, Stop};
use crate::objects::Objects;

/// Objects that change their place in one transaction, so that lease calls get in between.
const MOVED_PER_CALL: usize = 512;
/// How long to wait after the object store failed.
const RETRY: Duration = Duration::from_secs(30);

/// A spool that takes no more objects, and the tasks that still make rows for it.
type Full = (OpenSpool, Vec<JoinHandle<()>>);

/// Hands spools to the packing task.
pub(super) struct Packer {
    queue: mpsc::UnboundedSender<Full>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Starts the task. Its queue is bounded by the disk: a spool in it is a file.
pub(super) fn start(
    db: Database,
    objects: Objects,
    folder: PathBuf,
    numbers: Arc<Numbers>,
) -> Packer {
    let (queue, mut incoming) = mpsc::unbounded_channel::<Full>();
    let (stop, mut stopped) = watch::channel(false);
    let worker = Worker {
        db,
        objects,
        folder,
        numbers,
    };
    let task = tokio::spawn(async move {
        loop {
            let (spool, row_tasks) = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                full = incoming.recv() => match full {
                    Some(full) => full,
                    None => break,
                },
            };
            for task in row_tasks {
                // A task that failed has told its callers; its objects get rows at the next start.
                let _ = task.await;
            }
            let packed = async {
                while let Err(error) = worker.pack(&spool).await {
                    tracing::warn!(%error, spool = spool.number.0, "a spool stays: its pack failed");
                    tokio::time::sleep(RETRY).await;
                }
            };
            tokio::select! {
                // A pack that is left half made is made again by the next start.
                _ = stopped.wait_for(|stop| *stop) => break,
                () = packed => {}
            }
        }
    });
    Packer { queue, stop, task }
}

impl Packer {
    /// Queues a spool.
    pub(super) fn add(&self, spool: OpenSpool, row_tasks: Vec<JoinHandle<()>>) {
        // A task that has stopped leaves the spool for the next start.
        let _ = self.queue.send((spool, row_tasks));
    }

    /// Ends the task; the spool under way stays for the next start.
    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        // A panic has been reported by the runtime.
        let _ = self.task.await;
    }
}

struct Worker {
    db: Database,
    objects: Objects,
    folder: PathBuf,
    numbers: Arc<Numbers>,
}

impl Worker {
    async fn pack(&self, full: &OpenSpool) -> Result<(), Stop> {
        let from = full.number;
        let places = self.still_here(full).await?;
        if !places.is_empty() {
            let reader = full.spool.reader();
            let build = move || Pack::build(&reader, &places);
            let pack = tokio::task::spawn_blocking(build)
                .await
                .map_err(|_| Stop::Closing)?
                .map_err(|error| Stop::Broken(error.to_string()))?;
            let put = self.objects.packs().put(pack.id, pack.bytes).await;
            put.map_err(|error| Stop::Broken(error.to_string()))?;
            let to = self.register(pack.id).await?;
            for part in pack.table.entries().chunks(MOVED_PER_CALL) {
                self.relocate(from, to, part.to_vec()).await?;
            }
        }
        self.db
            .writer()
            .call(move |tx| Box::pin(async move { rows::remove_store(tx, from).await }))
            .await?;
        self.objects.remove_spool(from);
        let path = spooler::path(&self.folder, from);
        tokio::fs::remove_file(&path)
            .await
            .map_err(|error| Stop::Broken(format!("{}: {error}", path.display())))
    }

    /// The objects whose rows name this spool; others have an older copy elsewhere.
    async fn still_here(&self, full: &OpenSpool) -> Result<Vec<(ObjectId, Place)>, Stop> {
        let ids: Vec<ObjectId> = full.objects.iter().map(|(id, _)| *id).collect();
        let located = self.objects.locate(&ids).await?;
        let here = located
            .into_iter()
            .filter(|(_, at)| at.store == full.number);
        Ok(here.map(|(id, at)| (id, at.place)).collect())
    }

    /// The number of a pack: the one it was given before a crash, or a new one.
    async fn register(&self, pack: PackId) -> Result<StoreNumber, Stop> {
        let mut connection = self.db.reads().acquire().await?;
        let known = rows::packs(&mut connection).await?;
        drop(connection);
        if let Some((number, _)) = known.into_iter().find(|(_, known)| *known == pack) {
            return Ok(number);
        }
        let number = self.numbers.next();
        self.db
            .writer()
            .call(move |tx| Box::pin(async move { rows::add_store(tx, number, Some(pack)).await }))
            .await?;
        Ok(number)
    }

    async fn relocate(
        &self,
        from: StoreNumber,
        to: StoreNumber,
        part: Vec<(ObjectId, Place)>,
    ) -> Result<(), Stop> {
        self.db
            .writer()
            .call(move |tx| Box::pin(async move { rows::relocate(tx, from, to, &part).await }))
            .await
    }
}
