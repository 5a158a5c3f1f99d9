//! What a start finds in the spool folder: objects that have no row yet get one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use img_store::{Place, Spool, SpoolReader};
use img_types::ObjectId;
use img_types::limits::SPOOL_LEN_MAX;
use img_types::object::Parsed;

use super::spooler::OpenSpool;
use super::strong_children;
use crate::db::objects::{self as rows, NewObject, StoreNumber};
use crate::db::{Database, Stop};
use crate::objects::Objects;

/// Rows made in one transaction.
const ROWS_PER_CALL: usize = 1_024;

/// Numbers spools and packs; no number is given twice.
#[derive(Debug)]
pub(super) struct Numbers(AtomicU64);

impl Numbers {
    pub(super) fn next(&self) -> StoreNumber {
        StoreNumber(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// The spools of an earlier process.
pub(super) struct Recovered {
    /// The newest one, if it has room.
    pub(super) open: Option<OpenSpool>,
    /// Those that become packs.
    pub(super) full: Vec<OpenSpool>,
    pub(super) numbers: Arc<Numbers>,
}

/// Reads every spool, cuts torn tails, and gives rows to whole objects that have none. What rows name is
/// never cut.
pub(super) async fn recover(
    db: &Database,
    objects: &Objects,
    folder: &Path,
) -> Result<Recovered, Stop> {
    let mut spools = Vec::new();
    for (number, path) in list(folder).await? {
        let mut connection = db.reads().acquire().await?;
        let named = rows::held_by(&mut connection, number).await?;
        drop(connection);
        let named_end = named.iter().map(|(_, place)| place.end()).max();
        let recover = move || Spool::recover(&path, named_end.unwrap_or(0));
        let (spool, mut held) = blocking(recover).await?;
        // What a scan does not find because its record is damaged goes into the pack by its row.
        let found: BTreeSet<ObjectId> = held.iter().map(|(id, _)| *id).collect();
        held.extend(named.into_iter().filter(|(id, _)| !found.contains(id)));
        let spool = OpenSpool {
            number,
            spool,
            objects: held,
        };
        db.writer()
            .call(move |tx| Box::pin(async move { rows::add_store(tx, number, None).await }))
            .await?;
        objects.add_spool(number, spool.spool.reader());
        add_rows(db, objects, &spool).await?;
        spools.push(spool);
    }
    let mut connection = db.reads().acquire().await?;
    let newest = rows::newest_store(&mut connection).await?;
    let open = spools.pop_if(|spool| spool.spool.len() < SPOOL_LEN_MAX);
    Ok(Recovered {
        open,
        full: spools,
        numbers: Arc::new(Numbers(AtomicU64::new(newest.0 + 1))),
    })
}

async fn add_rows(db: &Database, objects: &Objects, spool: &OpenSpool) -> Result<(), Stop> {
    for part in spool.objects.chunks(ROWS_PER_CALL) {
        let ids: Vec<_> = part.iter().map(|(id, _)| *id).collect();
        let located = objects.locate(&ids).await?;
        let fresh: Vec<_> = part
            .iter()
            .filter(|(id, _)| !located.contains_key(id))
            .copied()
            .collect();
        if fresh.is_empty() {
            continue;
        }
        let (reader, store) = (spool.spool.reader(), spool.number);
        let new = blocking(move || Ok(read_headers(&reader, store, &fresh))).await?;
        let count = new.len();
        db.writer()
            .call(move |tx| Box::pin(async move { rows::insert(tx, &new).await }))
            .await?;
        tracing::info!(
            objects = count,
            "objects without rows were found in a spool"
        );
    }
    Ok(())
}

fn read_headers(
    reader: &SpoolReader,
    store: StoreNumber,
    places: &[(ObjectId, Place)],
) -> Vec<NewObject> {
    let read = |(id, place): &(ObjectId, Place)| {
        // Recovery has verified every object that it lists; one that fails now is sent again.
        let bytes = reader.read(*place).ok()?;
        let parsed = Parsed::decode(&bytes).ok()?;
        Some(NewObject {
            id: *id,
            store,
            place: *place,
            children: strong_children(parsed),
        })
    };
    places.iter().filter_map(read).collect()
}

/// The spools in a folder in the order of their numbers.
async fn list(folder: &Path) -> Result<Vec<(StoreNumber, PathBuf)>, Stop> {
    let broken = |error: std::io::Error| Stop::Broken(format!("{}: {error}", folder.display()));
    let mut entries = tokio::fs::read_dir(folder).await.map_err(broken)?;
    let mut spools = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(broken)? {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".spool"));
        if let Some(Ok(number)) = number.map(str::parse) {
            spools.push((StoreNumber(number), entry.path()));
        }
    }
    spools.sort();
    Ok(spools)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, img_store::StoreError> + Send + 'static,
) -> Result<T, Stop> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Stop::Closing)?
        .map_err(|error| Stop::Broken(error.to_string()))
}
