//! The log of which checkout keeps which object.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | 1 keep, 2 release |
//! | 1..33 | checkout |
//! | 33..65 | object |
//! | 65..73 | first 8 bytes of BLAKE3 over bytes 0..65 |
//!
//! All records have one length, so that a damaged one is skipped and costs no other its claim. When most of
//! the log is history it is written anew under another name and renamed over the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_types::bytes::{Reader, Write};
use img_types::{CheckoutId, ObjectId};

use crate::StoreError;
use crate::spool::sync_parent;

const RECORD_LEN: usize = 73;
const KEEP: u8 = 1;
const RELEASE: u8 = 2;
/// Records of history that are not worth a rewrite: 64 Ki records are below 5 MB.
const HISTORY_MIN: u64 = 64 * 1024;

/// Which checkout keeps which object, in memory and on disk.
#[derive(Debug)]
pub(super) struct Keeps {
    path: PathBuf,
    file: Arc<File>,
    end: u64,
    kept: BTreeMap<CheckoutId, BTreeSet<ObjectId>>,
}

impl Keeps {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("keeps");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        sync_parent(&path)?;
        let (kept, end) = replay(&fs::read(&path)?);
        file.set_len(end)?;
        let file = Arc::new(file);
        Ok(Self {
            path,
            file,
            end,
            kept,
        })
    }

    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(super) fn is_kept(&self, id: &ObjectId) -> bool {
        self.kept.values().any(|ids| ids.contains(id))
    }

    pub(super) fn outbox(&self, checkout: CheckoutId) -> Vec<ObjectId> {
        let ids = self.kept.get(&checkout);
        ids.into_iter().flatten().copied().collect()
    }

    /// All kept objects.
    pub(super) fn distinct(&self) -> BTreeSet<ObjectId> {
        self.kept.values().flatten().copied().collect()
    }

    pub(super) fn keep(
        &mut self,
        checkout: CheckoutId,
        ids: &[ObjectId],
    ) -> Result<(), StoreError> {
        let known = self.kept.get(&checkout);
        let fresh = ids
            .iter()
            .copied()
            .filter(|id| !known.is_some_and(|known| known.contains(id)));
        let fresh: Vec<_> = fresh.collect();
        self.append(KEEP, checkout, &fresh)?;
        if !fresh.is_empty() {
            self.kept.entry(checkout).or_default().extend(fresh);
        }
        Ok(())
    }

    /// Returns what the checkout kept of `ids` and keeps no more.
    pub(super) fn release(
        &mut self,
        checkout: CheckoutId,
        ids: &[ObjectId],
    ) -> Result<Vec<ObjectId>, StoreError> {
        let Some(known) = self.kept.get(&checkout) else {
            return Ok(Vec::new());
        };
        let gone: BTreeSet<_> = ids
            .iter()
            .copied()
            .filter(|id| known.contains(id))
            .collect();
        let gone: Vec<_> = gone.into_iter().collect();
        if self.kept.len() == 1 && gone.len() == known.len() {
            // Nothing is kept any more, and to say so takes no room.
            self.file.set_len(0)?;
            self.end = 0;
        } else {
            self.append(RELEASE, checkout, &gone)?;
        }
        if let Some(known) = self.kept.get_mut(&checkout) {
            for id in &gone {
                known.remove(id);
            }
            if known.is_empty() {
                self.kept.remove(&checkout);
            }
        }
        match self.compact() {
            // The log stays long until there is room for a short one.
            Ok(()) | Err(StoreError::NoRoom) => Ok(gone),
            Err(error) => Err(error),
        }
    }

    /// Ends all claims on objects that are not here; returns their number.
    pub(super) fn release_absent(
        &mut self,
        is_here: impl Fn(&ObjectId) -> bool,
    ) -> Result<usize, StoreError> {
        let absent = |(checkout, ids): (&CheckoutId, &BTreeSet<ObjectId>)| {
            let ids: Vec<_> = ids.iter().copied().filter(|id| !is_here(id)).collect();
            (*checkout, ids)
        };
        let absent: Vec<_> = self.kept.iter().map(absent).collect();
        let mut count = 0;
        for (checkout, ids) in absent {
            count += self.release(checkout, &ids)?.len();
        }
        Ok(count)
    }

    fn append(&mut self, op: u8, checkout: CheckoutId, ids: &[ObjectId]) -> Result<(), StoreError> {
        let mut records = Vec::with_capacity(ids.len() * RECORD_LEN);
        for id in ids {
            encode(&mut records, op, checkout, id);
        }
        self.file.write_all_at(&records, self.end)?;
        self.end += records.len() as u64;
        Ok(())
    }

    fn compact(&mut self) -> Result<(), StoreError> {
        let live = self.kept.values().map(|ids| ids.len() as u64).sum();
        let history = self.end / RECORD_LEN as u64 - live;
        if history < HISTORY_MIN.max(live) {
            return Ok(());
        }
        let mut records = Vec::new();
        for (checkout, ids) in &self.kept {
            for id in ids {
                encode(&mut records, KEEP, *checkout, id);
            }
        }
        let new = self.path.with_extension("new");
        fs::write(&new, &records)?;
        let file = OpenOptions::new().read(true).write(true).open(&new)?;
        file.sync_all().map_err(StoreError::Sync)?;
        fs::rename(&new, &self.path)?;
        sync_parent(&self.path)?;
        self.file = Arc::new(file);
        self.end = records.len() as u64;
        Ok(())
    }
}

fn encode(records: &mut Vec<u8>, op: u8, checkout: CheckoutId, id: &ObjectId) {
    let start = records.len();
    records.put_u8(op);
    records.extend_from_slice(checkout.as_bytes());
    records.extend_from_slice(id.as_bytes());
    let check = blake3::hash(&records[start..]);
    records.extend_from_slice(&check.as_bytes()[..8]);
}

fn replay(log: &[u8]) -> (BTreeMap<CheckoutId, BTreeSet<ObjectId>>, u64) {
    let mut kept: BTreeMap<CheckoutId, BTreeSet<ObjectId>> = BTreeMap::new();
    let records = log.chunks_exact(RECORD_LEN);
    let end = log.len() - records.remainder().len();
    for record in records {
        let Some((op, checkout, id)) = decode(record) else {
            tracing::warn!("a damaged record in the log of keeps");
            continue;
        };
        if op == KEEP {
            kept.entry(checkout).or_default().insert(id);
        } else if let Some(ids) = kept.get_mut(&checkout) {
            ids.remove(&id);
        }
    }
    kept.retain(|_, ids| !ids.is_empty());
    (kept, end as u64)
}

fn decode(record: &[u8]) -> Option<(u8, CheckoutId, ObjectId)> {
    let mut reader = Reader::new(record);
    let op = reader.u8().ok()?;
    let checkout = CheckoutId::from_bytes(reader.array().ok()?);
    let id = ObjectId::from_bytes(reader.array().ok()?);
    let mut again = Vec::with_capacity(RECORD_LEN);
    encode(&mut again, op, checkout, &id);
    (matches!(op, KEEP | RELEASE) && again == record).then_some((op, checkout, id))
}
