//! The cache's state behind its lock: places of objects, segments and their eviction.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_types::{CheckoutId, ObjectId, object};
use rustix::fs::{Advice, fadvise};

use super::disk::Disk;
use super::keeps::Keeps;
use super::segment::{self, SegmentNumber, record_len};
use super::{Keep, Usage};
use crate::table::{Place, Table};
use crate::{StoreError, record};

/// Segment files that stay open for reading; far below the usual limit of 1,024 for a process.
const OPEN_FILES_MAX: usize = 128;

/// Where an object lies; small, since there is one for each cached object.
#[derive(Debug, Clone, Copy)]
struct Location {
    segment: SegmentNumber,
    offset: u32,
    len: u32,
}

#[derive(Debug, Default)]
struct Segment {
    /// Length of the file.
    len: u64,
    /// Bytes of its records that a checkout keeps.
    kept: u64,
}

impl Segment {
    /// Whether its eviction gives back more than an eighth of it: less is not worth copying the rest, and may be
    /// nothing but headers and the table.
    fn is_worth_evicting(&self) -> bool {
        self.kept * 8 < self.len * 7
    }
}

/// The segment that grows.
#[derive(Debug)]
struct Active {
    number: SegmentNumber,
    file: Arc<File>,
    entries: Vec<(ObjectId, Place)>,
}

#[derive(Debug)]
pub(super) struct Inner {
    folder: PathBuf,
    limit: u64,
    segment_len: u64,
    objects: HashMap<ObjectId, Location>,
    segments: BTreeMap<SegmentNumber, Segment>,
    active: Active,
    open: HashMap<SegmentNumber, Arc<File>>,
    /// Segments that were filled since the last sync.
    filled: BTreeMap<SegmentNumber, Arc<File>>,
    /// Segments that were evicted since the start.
    evictions: u64,
    disk: Disk,
    keeps: Keeps,
    buffer: Vec<u8>,
}

/// Files that a sync makes durable.
pub(super) struct Unsynced {
    filled: BTreeMap<SegmentNumber, Arc<File>>,
    active: Arc<File>,
    keeps: Arc<File>,
}

impl Inner {
    pub(super) fn open(folder: &Path, limit: u64, segment_len: u64) -> Result<Self, StoreError> {
        fs::create_dir_all(folder)?;
        let mut objects = HashMap::new();
        let mut segments = BTreeMap::new();
        let mut growing = None;
        let numbers = segment::list(folder)?;
        let newest = numbers.last().copied();
        for number in numbers {
            let found = segment::open(&number.path(folder))?;
            let mut len = found.len;
            for (id, place) in &found.records {
                objects.insert(*id, Location::new(number, *place));
            }
            if !found.sealed && newest == Some(number) {
                growing = Some(Active {
                    number,
                    file: Arc::new(found.file),
                    entries: found.records,
                });
            } else if !found.sealed {
                len = seal(&found.file, len, &Table::new(found.records));
            }
            segments.insert(number, Segment { len, kept: 0 });
        }
        let active = match growing {
            Some(active) => active,
            None => {
                let number = SegmentNumber(newest.map_or(0, |newest| newest.0 + 1));
                segments.insert(number, Segment::default());
                Active::create(folder, number)?
            }
        };
        let mut inner = Self {
            folder: folder.to_owned(),
            limit,
            segment_len,
            objects,
            segments,
            active,
            open: HashMap::new(),
            filled: BTreeMap::new(),
            evictions: 0,
            disk: Disk::new(folder),
            keeps: Keeps::open(folder)?,
            buffer: Vec::new(),
        };
        let lost = inner
            .keeps
            .release_absent(|id| inner.objects.contains_key(id))?;
        if lost > 0 {
            tracing::warn!(
                objects = lost,
                "kept objects were not synced before the last end"
            );
        }
        for id in inner.keeps.distinct() {
            inner.count(&id, true);
        }
        inner.make_room(0)?;
        Ok(inner)
    }

    pub(super) fn contains(&self, id: &ObjectId) -> bool {
        self.objects.contains_key(id)
    }

    pub(super) fn find(&mut self, id: &ObjectId) -> Option<(Arc<File>, Place)> {
        let location = *self.objects.get(id)?;
        match self.file(location.segment) {
            Ok(file) => Some((file, location.place())),
            Err(error) => {
                tracing::warn!(object = %id.short(), %error, "a cache segment cannot be opened");
                None
            }
        }
    }

    /// Returns whether the segment is full, so that a sync is due.
    pub(super) fn put(
        &mut self,
        id: ObjectId,
        bytes: &[u8],
        keep: Keep,
    ) -> Result<bool, StoreError> {
        let mut filled = false;
        if !self.contains(&id) {
            let room = self.make_room(segment::room_for(bytes.len()))?;
            if !room && keep == Keep::Evictable {
                return Ok(false);
            }
            filled = self.append_evicting(id, bytes)?;
        }
        if let Keep::Outbox(checkout) = keep {
            self.keep(checkout, &[id])?;
        }
        Ok(filled)
    }

    pub(super) fn keep(
        &mut self,
        checkout: CheckoutId,
        ids: &[ObjectId],
    ) -> Result<Vec<ObjectId>, StoreError> {
        let (here, absent): (Vec<_>, Vec<_>) = ids.iter().partition(|id| self.contains(id));
        let fresh: Vec<_> = here
            .iter()
            .copied()
            .filter(|id| !self.keeps.is_kept(id))
            .collect();
        self.keeps.keep(checkout, &here)?;
        for id in fresh {
            self.count(&id, true);
        }
        Ok(absent)
    }

    pub(super) fn release(
        &mut self,
        checkout: CheckoutId,
        ids: &[ObjectId],
    ) -> Result<(), StoreError> {
        let released = loop {
            match self.keeps.release(checkout, ids) {
                Err(StoreError::NoRoom) if self.evict_on_full_disk() => {}
                outcome => break outcome?,
            }
        };
        for id in released {
            if !self.keeps.is_kept(&id) {
                self.count(&id, false);
            }
        }
        self.make_room(0).map(|_| ())
    }

    pub(super) fn outbox(&self, checkout: CheckoutId) -> Vec<ObjectId> {
        self.keeps.outbox(checkout)
    }

    pub(super) fn forget(&mut self, id: &ObjectId) {
        if self.keeps.is_kept(id) {
            self.count(id, false);
        }
        self.objects.remove(id);
        // If it is put again before the segment is full, the table must name the new copy.
        self.active.entries.retain(|(entry, _)| entry != id);
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            objects: self.objects.len() as u64,
            bytes: self.bytes(),
            kept_bytes: self.segments.values().map(|segment| segment.kept).sum(),
            evictable_bytes: self.evictable(),
            evictions: self.evictions,
            limit: self.limit,
        }
    }

    /// Bytes that evictions can give back.
    pub(super) fn evictable(&self) -> u64 {
        let worth_it = self
            .segments
            .values()
            .filter(|segment| segment.is_worth_evicting());
        worth_it.map(|segment| segment.len - segment.kept).sum()
    }

    /// Bytes that the cache may have now: its limit, or less where the disk is short of room.
    pub(super) fn allowance(&mut self) -> u64 {
        let used = self.bytes();
        self.limit.min(self.disk.allowance(used))
    }

    /// Sets the limit, and the length of segments to come.
    pub(super) fn set_limit(&mut self, limit: u64, segment_len: u64) -> Result<(), StoreError> {
        self.limit = limit;
        self.segment_len = segment_len;
        self.make_room(0).map(|_| ())
    }

    /// Evicts until `wanted` bytes have been given back, or nothing is evictable any more. Returns what was given
    /// back.
    pub(super) fn give_back(&mut self, wanted: u64) -> Result<u64, StoreError> {
        let before = self.bytes();
        let target = before.saturating_sub(wanted);
        self.evict_until(|cache| cache.bytes() <= target)?;
        let after = self.bytes();
        self.disk.gave_back(after);
        Ok(before.saturating_sub(after))
    }

    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        Unsynced {
            filled: std::mem::take(&mut self.filled),
            active: Arc::clone(&self.active.file),
            keeps: self.keeps.file(),
        }
    }

    #[cfg(test)]
    pub(super) fn pretend_disk(&mut self, total: u64) {
        self.disk.pretend(total);
    }

    /// Makes the next writes go elsewhere, for instance to a full disk.
    #[cfg(test)]
    pub(super) fn replace_active_file(&mut self, file: Arc<File>) -> Arc<File> {
        std::mem::replace(&mut self.active.file, file)
    }

    fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.len).sum()
    }

    /// Evicts until `more` bytes fit into what the cache may have; returns whether they do.
    fn make_room(&mut self, more: u64) -> Result<bool, StoreError> {
        let allowed = self.allowance();
        self.evict_until(|cache| {
            let table = segment::table_len(cache.active.entries.len());
            cache.bytes() + table + more <= allowed
        })
    }

    /// Evicts until it is enough; returns whether it is.
    fn evict_until(&mut self, enough: impl Fn(&Self) -> bool) -> Result<bool, StoreError> {
        while !enough(self) {
            let before = self.bytes();
            let evicted = match self.evict() {
                Err(StoreError::NoRoom) => self.evict_on_full_disk(),
                outcome => outcome?,
            };
            if !evicted || self.bytes() >= before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Appends and, where the disk is full, gives back what is evictable before it fails.
    fn append_evicting(&mut self, id: ObjectId, bytes: &[u8]) -> Result<bool, StoreError> {
        loop {
            match self.append(id, bytes) {
                Err(StoreError::NoRoom) if self.evict_on_full_disk() => {}
                outcome => return outcome,
            }
        }
    }

    /// Appends to the growing segment and returns whether that is full now, and a new one begun.
    fn append(&mut self, id: ObjectId, bytes: &[u8]) -> Result<bool, StoreError> {
        let number = self.active.number;
        let end = self.segments[&number].len;
        let place = record::append(&self.active.file, end, id, bytes, &mut self.buffer)?;
        self.active.entries.push((id, place));
        self.objects.insert(id, Location::new(number, place));
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.len = place.end();
        }
        if self.keeps.is_kept(&id) {
            self.count(&id, true);
        }
        if place.end() < self.segment_len {
            return Ok(false);
        }
        // The object is in; if the disk has no room for a new segment, the next call tries again.
        match self.begin_segment() {
            Ok(()) => Ok(true),
            Err(StoreError::NoRoom) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn begin_segment(&mut self) -> Result<(), StoreError> {
        let number = self.active.number;
        let next = Active::create(&self.folder, SegmentNumber(number.0 + 1))?;
        if let Some(segment) = self.segments.get_mut(&number) {
            let table = Table::new(std::mem::take(&mut self.active.entries));
            segment.len = seal(&self.active.file, segment.len, &table);
        }
        self.segments.insert(next.number, Segment::default());
        let full = std::mem::replace(&mut self.active, next);
        self.filled.insert(full.number, Arc::clone(&full.file));
        self.remember(full.number, full.file);
        Ok(())
    }

    /// Removes the oldest segment of which less than half is kept, else the oldest that is worth it, and copies
    /// forward what is kept of it. Returns whether there was one.
    fn evict(&mut self) -> Result<bool, StoreError> {
        Ok(
            self.remove_oldest(|segment| segment.kept * 2 < segment.len)?
                || self.remove_oldest(Segment::is_worth_evicting)?,
        )
    }

    /// Removes the oldest segment of which nothing is kept, which takes no room on the disk. Returns
    /// whether there was one.
    fn evict_on_full_disk(&mut self) -> bool {
        self.remove_oldest(|segment| segment.kept == 0 && segment.len > 0)
            .unwrap_or(false)
    }

    fn remove_oldest(&mut self, fits: impl Fn(&Segment) -> bool) -> Result<bool, StoreError> {
        let Some((victim, segment)) = self.segments.iter().find(|(_, segment)| fits(segment))
        else {
            return Ok(false);
        };
        let (victim, has_kept) = (*victim, segment.kept > 0);
        if victim == self.active.number {
            self.begin_segment()?;
        }
        let ids = self.ids_of(victim);
        if has_kept {
            for id in &ids {
                if self.keeps.is_kept(id) {
                    self.copy_forward(*id)?;
                }
            }
            // The copies have to be durable before the originals go.
            self.take_unsynced().sync()?;
        }
        for id in ids {
            if let Entry::Occupied(entry) = self.objects.entry(id)
                && entry.get().segment == victim
            {
                entry.remove();
            }
        }
        fs::remove_file(victim.path(&self.folder))?;
        self.segments.remove(&victim);
        // The room comes back when nobody has the file open.
        self.open.remove(&victim);
        self.filled.remove(&victim);
        self.evictions += 1;
        Ok(true)
    }

    /// The objects whose location is in a segment.
    fn ids_of(&mut self, number: SegmentNumber) -> Vec<ObjectId> {
        let is_in = |location: &Location| location.segment == number;
        let table = self
            .file(number)
            .and_then(|file| segment::read_table(&file));
        if let Ok(Some(table)) = table {
            let ids = table.entries().iter().map(|(id, _)| *id);
            return ids
                .filter(|id| self.objects.get(id).is_some_and(is_in))
                .collect();
        }
        let all = self.objects.iter();
        all.filter(|(_, location)| is_in(location))
            .map(|(id, _)| *id)
            .collect()
    }

    fn copy_forward(&mut self, id: ObjectId) -> Result<(), StoreError> {
        let Some((file, place)) = self.find(&id) else {
            return Err(StoreError::Io(std::io::ErrorKind::NotFound.into()));
        };
        let bytes = record::read(&file, place)?;
        self.count(&id, false);
        if object::verify(id, &bytes).is_err() {
            tracing::error!(object = %id.short(), "an object that is not home yet is damaged");
            self.objects.remove(&id);
            return Ok(());
        }
        self.append(id, &bytes)
            .inspect_err(|_| self.count(&id, true))
            .map(|_| ())
    }

    /// Adds or takes an object's bytes to or from what is kept of its segment.
    fn count(&mut self, id: &ObjectId, kept: bool) {
        let Some(location) = self.objects.get(id) else {
            return;
        };
        if let Some(segment) = self.segments.get_mut(&location.segment) {
            let len = record_len(location.len as usize);
            segment.kept = if kept {
                segment.kept + len
            } else {
                segment.kept.saturating_sub(len)
            };
        }
    }

    fn file(&mut self, number: SegmentNumber) -> std::io::Result<Arc<File>> {
        if number == self.active.number {
            return Ok(Arc::clone(&self.active.file));
        }
        if let Some(file) = self.open.get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(number.path(&self.folder))?);
        self.remember(number, Arc::clone(&file));
        Ok(file)
    }

    fn remember(&mut self, number: SegmentNumber, file: Arc<File>) {
        if self.open.len() >= OPEN_FILES_MAX {
            self.open.clear();
        }
        self.open.insert(number, file);
    }
}

/// Ends a segment with its table, if there is room for one; returns the file's length. A segment without a
/// table is read record by record at the next start.
fn seal(file: &File, len: u64, table: &Table) -> u64 {
    segment::seal(file, len, table).unwrap_or_else(|error| {
        tracing::warn!(%error, "a cache segment gets no table");
        len
    })
}

impl Unsynced {
    pub(super) fn sync(self) -> Result<(), StoreError> {
        for file in self.filled.values() {
            file.sync_data().map_err(StoreError::Sync)?;
            // What is read again is cached in the clear by its reader. Only advice: a failure costs memory.
            let _ = fadvise(file, 0, None, Advice::DontNeed);
        }
        self.active.sync_data().map_err(StoreError::Sync)?;
        self.keeps.sync_data().map_err(StoreError::Sync)
    }
}

impl Active {
    fn create(folder: &Path, number: SegmentNumber) -> Result<Self, StoreError> {
        Ok(Self {
            number,
            file: Arc::new(segment::create(&number.path(folder))?),
            entries: Vec::new(),
        })
    }
}

impl Location {
    fn new(segment: SegmentNumber, place: Place) -> Self {
        Self {
            segment,
            offset: u32::try_from(place.offset).expect("segments are cut at 64 MiB"),
            len: place.len,
        }
    }

    fn place(self) -> Place {
        Place {
            offset: u64::from(self.offset),
            len: self.len,
        }
    }
}
