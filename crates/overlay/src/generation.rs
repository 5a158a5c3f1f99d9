//! One layer of changes: open while it is the top of the stack, then immutable.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use img_index::{Inode, Key, KeyParts, KeyRange, Value};
use img_types::limits::BLOCK_SIZE;

use crate::change::Change;
use crate::edits::{Edits, Layer};
use crate::ranges::{INFINITY, Ranges, Source};

/// Numbers the generations of a checkout; grows with every freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u64);

impl GenerationId {
    /// The generation after this one.
    pub fn next(self) -> Self {
        // 2⁶⁴ freezes take longer than any device lasts.
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The changes of one generation. Nothing outside the stack's top can alter one.
#[derive(Debug)]
pub struct Generation {
    id: GenerationId,
    edits: Edits,
    files: BTreeMap<Inode, FileChanges>,
    /// Ranges of dropped inodes. Freeing a large map takes time, so it is left to the seal.
    discarded: Vec<Ranges>,
    dirty_bytes: u64,
    ranges: u64,
    arena_end: u64,
}

/// What one generation does to the data of one inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileChanges {
    /// Nothing below this generation counts any more.
    pub(crate) dropped: bool,
    pub(crate) ranges: Ranges,
}

impl Generation {
    /// The generation's number.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.files.is_empty()
    }

    /// Bytes of files that lie in the arena and are still wanted.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    /// Estimated memory of edits and ranges in bytes.
    pub fn edit_bytes(&self) -> u64 {
        self.edits.bytes() + self.ranges * RANGE_BYTES
    }

    /// One past the last byte of the arena that a write has used.
    pub fn arena_end(&self) -> u64 {
        self.arena_end
    }

    pub(crate) fn edits(&self) -> &Edits {
        &self.edits
    }

    pub(crate) fn file(&self, inode: Inode) -> Option<&FileChanges> {
        self.files.get(&inode)
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (&Inode, &FileChanges)> {
        self.files.iter()
    }

    /// Looks up what this generation alone says about a key of zone 0 or 1.
    pub fn get(&self, key: &Key) -> Layer {
        self.edits.get(key)
    }
}

impl PartialEq for Generation {
    /// Compares what the generations say; what they have discarded says nothing.
    fn eq(&self, other: &Self) -> bool {
        let Self {
            id,
            edits,
            files,
            discarded: _,
            dirty_bytes,
            ranges,
            arena_end,
        } = self;
        *id == other.id
            && *edits == other.edits
            && *files == other.files
            && *dirty_bytes == other.dirty_bytes
            && *ranges == other.ranges
            && *arena_end == other.arena_end
    }
}

/// The top of the stack: the one generation that takes changes. Closing consumes it.
#[derive(Debug, PartialEq)]
pub(crate) struct Open(Generation);

impl Open {
    pub(crate) fn new(id: GenerationId) -> Self {
        Self(Generation {
            id,
            edits: Edits::default(),
            files: BTreeMap::new(),
            discarded: Vec::new(),
            dirty_bytes: 0,
            ranges: 0,
            arena_end: 0,
        })
    }

    /// Makes the generation immutable. Moves a few words, whatever it holds.
    pub(crate) fn close(self) -> Arc<Generation> {
        Arc::new(self.0)
    }

    pub(crate) fn generation(&self) -> &Generation {
        &self.0
    }

    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(key, value) => match (key.parts(), value) {
                (KeyParts::Extent { inode, offset }, Value::Extent(extent)) => {
                    let source = Source::Copied(Arc::new(extent));
                    self.cover(inode, offset, offset.saturating_add(BLOCK), source);
                }
                (KeyParts::Inline(_), _) => debug_assert!(false, "contents are written, not put"),
                (_, value) => self.0.edits.set(key, Some(value)),
            },
            Change::Delete(key) => match key.parts() {
                KeyParts::Extent { inode, offset } => {
                    self.cover(inode, offset, offset.saturating_add(BLOCK), Source::Zero);
                }
                KeyParts::Inline(_) => debug_assert!(false, "contents are zeroed, not deleted"),
                _ => self.0.edits.set(key, None),
            },
            Change::ClearKeys(range) => match data_range(&range) {
                Some((inode, from, to)) => self.cover(inode, from, to, Source::Zero),
                None => self.0.edits.clear(range),
            },
            Change::Write {
                inode,
                offset,
                len,
                arena,
            } => {
                let end = offset.saturating_add(len);
                self.cover(inode, offset, end, Source::Arena(arena));
                self.0.arena_end = self.0.arena_end.max(arena.saturating_add(len));
            }
            Change::Zero { inode, offset, len } => {
                self.cover(inode, offset, offset.saturating_add(len), Source::Zero);
            }
            Change::DropInode(inode) => self.drop_inode(inode),
        }
    }

    fn cover(&mut self, inode: Inode, start: u64, end: u64, source: Source) {
        if start >= end {
            return;
        }
        let ranges = &mut self.0.files.entry(inode).or_default().ranges;
        self.0.dirty_bytes -= ranges.arena_bytes();
        self.0.ranges -= ranges.len() as u64;
        ranges.insert(start, end, source);
        self.0.dirty_bytes += ranges.arena_bytes();
        self.0.ranges += ranges.len() as u64;
    }

    fn drop_inode(&mut self, inode: Inode) {
        self.0.edits.clear(KeyRange::inode_metadata(inode));
        let file = self.0.files.entry(inode).or_default();
        file.dropped = true;
        let ranges = std::mem::take(&mut file.ranges);
        self.0.dirty_bytes -= ranges.arena_bytes();
        if ranges.len() > 0 {
            self.0.discarded.push(ranges);
        }
    }
}

/// The byte range of a file that a range of data keys stands for; nothing for other keys.
fn data_range(range: &KeyRange) -> Option<(Inode, u64, u64)> {
    let (zone, rest) = range.start.as_bytes().split_first()?;
    let inode = Inode(u64::from_be_bytes(*rest.first_chunk()?));
    if *zone != KeyRange::data(inode).start.as_bytes()[0] {
        return None;
    }
    let offset = |key: &Key| match key.parts() {
        KeyParts::Extent { offset, .. } => Some(offset),
        _ => None,
    };
    Some((
        inode,
        offset(&range.start).unwrap_or(0),
        offset(&range.end).unwrap_or(INFINITY),
    ))
}

/// Memory of one range: its fields and its share of a B-tree node.
const RANGE_BYTES: u64 = 64;
const BLOCK: u64 = BLOCK_SIZE as u64;
