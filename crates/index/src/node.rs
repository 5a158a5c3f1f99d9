//! Nodes of the index, kept as the bytes they were opened from.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | level; 0 for leaves |
//! | 2..4 | count of entries |
//! | then | entries: key length u16 ‖ value length u16 ‖ key ‖ value |
//!
//! Keys rise strictly. Above level 0 a value is the reference of a child, and its key is the last
//! key of that child. The children that the object's clear header lists are the distinct ids of all
//! references in the entries, by first occurrence.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use img_seal::{OpenError, Reference};
use img_types::ObjectId;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{INDEX_VALUE_LEN_MAX, NODE_LEN_MAX, NODE_LEVEL_MAX};
use img_types::object::{Header, ObjectKind};

use crate::boundary::{ENTRY_OVERHEAD, entry_size};
use crate::key::{Key, KeyParts, parts_of};
use crate::value::{Value, check};

/// Says why an object is not a node of an index. Whoever meets it has met corruption.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The object does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A key, a value or the frame around them is malformed.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// The object is no node, or of another level than its content says.
    #[error("not a node of the level that its header says")]
    Level,
    /// Keys do not rise, or a leaf holds more than one zone.
    #[error("entries of a node are out of order")]
    Order,
    /// The node is larger than any that is written.
    #[error("a node is too large")]
    TooLarge,
    /// The header lists other children than the entries name.
    #[error("a node's header lists other objects than its entries name")]
    Children,
}

/// A node whose bytes have been checked; entries are decoded when they are asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    level: u8,
    raw: Vec<u8>,
    /// Where each entry starts in `raw`, and where the last one ends.
    offsets: Vec<u32>,
    /// Canonical size of all entries.
    size: usize,
}

impl Node {
    /// Checks the content of an opened object.
    ///
    /// # Errors
    /// It is no node that a device made by the rules.
    pub fn open(raw: Vec<u8>, header: &Header) -> Result<Self, NodeError> {
        let mut reader = Reader::new(&raw);
        if reader.u8()? != NODE_VERSION {
            return Err(DecodeError("unknown version of a node").into());
        }
        let level = reader.u8()?;
        if header.kind != ObjectKind::Node || level != header.level || level > NODE_LEVEL_MAX {
            return Err(NodeError::Level);
        }
        if raw.len() > PREFIX_LEN + NODE_LEN_MAX {
            return Err(NodeError::TooLarge);
        }
        let count = usize::from(reader.u16()?);
        if count * ENTRY_OVERHEAD > reader.remaining() {
            return Err(DecodeError("ends early").into());
        }
        let mut offsets = Vec::with_capacity(count + 1);
        let mut children = Children::default();
        let mut size = 0;
        let mut previous: Option<&[u8]> = None;
        for _ in 0..count {
            offsets.push(offset(raw.len() - reader.remaining()));
            let key_len = usize::from(reader.u16()?);
            let value_len = usize::from(reader.u16()?);
            let key = reader.take(key_len)?;
            let value = reader.take(value_len)?;
            if let Some(previous) = previous
                && (previous >= key || (level == 0 && previous[0] != key[0]))
            {
                return Err(NodeError::Order);
            }
            previous = Some(key);
            let named = children.add(level, key, value)?;
            size += entry_size(key_len, value_len, named);
        }
        offsets.push(offset(raw.len() - reader.remaining()));
        reader.finish()?;
        if size > NODE_LEN_MAX {
            return Err(NodeError::TooLarge);
        }
        if count == 0 && level > 0 {
            return Err(NodeError::Order);
        }
        if children.ids != header.children {
            return Err(NodeError::Children);
        }
        Ok(Self {
            level,
            raw,
            offsets,
            size,
        })
    }

    /// Height above the leaves.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Count of entries.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Tells whether the node is the empty leaf, which only the empty map has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory that the node takes in bytes, about.
    pub fn memory_len(&self) -> usize {
        size_of::<Self>() + self.raw.capacity() + size_of::<u32>() * self.offsets.capacity()
    }

    /// The entry at `position` of a leaf.
    ///
    /// # Panics
    /// There is no such entry, or the node is no leaf.
    pub fn entry(&self, position: usize) -> (Key, Value) {
        (Key::from_checked(self.key(position)), self.value(position))
    }

    /// The value at `position` of a leaf; panics as [`Self::entry`] does.
    pub(crate) fn value(&self, position: usize) -> Value {
        let (key, value) = self.raw_entry(position);
        Value::decode_parts(&parts_of(key), value)
            .expect("a leaf is only made of values that were checked or encoded")
    }

    /// The child at `position` of a node above level 0.
    ///
    /// # Panics
    /// There is no such entry, or the node is a leaf.
    pub fn child(&self, position: usize) -> Reference {
        let (_, value) = self.raw_entry(position);
        Reference::decode(&mut Reader::new(value))
            .expect("a node above level 0 is only made of references that were checked or encoded")
    }

    pub(crate) fn key(&self, position: usize) -> &[u8] {
        self.raw_entry(position).0
    }

    pub(crate) fn raw_entry(&self, position: usize) -> (&[u8], &[u8]) {
        let entry = &self.raw[self.offsets[position] as usize..self.offsets[position + 1] as usize];
        let key_len = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
        entry[ENTRY_OVERHEAD..].split_at(key_len)
    }

    pub(crate) fn first_key(&self) -> Option<&[u8]> {
        (!self.is_empty()).then(|| self.key(0))
    }

    pub(crate) fn last_key(&self) -> Option<&[u8]> {
        self.len().checked_sub(1).map(|last| self.key(last))
    }

    /// Canonical size of all entries.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Canonical size of one entry.
    pub(crate) fn entry_size(&self, position: usize) -> usize {
        let (key, value) = self.raw_entry(position);
        let named = each_named(self.level, key, value, &mut |_| {}).unwrap_or(0);
        entry_size(key.len(), value.len(), named)
    }

    /// Position of the first entry whose key is at least `key`.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> usize {
        self.partition(0..self.len(), |other| other < key)
    }

    /// Position of the first entry of `within` whose key does not satisfy `before`.
    pub(crate) fn partition(
        &self,
        within: Range<usize>,
        mut before: impl FnMut(&[u8]) -> bool,
    ) -> usize {
        let (mut low, mut high) = (within.start, within.end);
        while low < high {
            let middle = low.midpoint(high);
            if before(self.key(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("level", &self.level)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// A node that is being written.
#[derive(Debug)]
pub(crate) struct OpenNode {
    level: u8,
    raw: Vec<u8>,
    offsets: Vec<u32>,
    size: usize,
}

impl OpenNode {
    pub(crate) fn new(level: u8) -> Self {
        let mut node = Self {
            level,
            raw: Vec::new(),
            offsets: Vec::new(),
            size: 0,
        };
        node.clear();
        node
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The last entry's key and value.
    pub(crate) fn last(&self) -> Option<(&[u8], &[u8])> {
        let entry = &self.raw[*self.offsets.last()? as usize..];
        let key_len = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
        Some(entry[ENTRY_OVERHEAD..].split_at(key_len))
    }

    /// Appends an entry of canonical size `size`.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8], size: usize) {
        self.offsets.push(offset(self.raw.len()));
        self.raw.put_u16(key.len() as u16);
        self.raw.put_u16(value.len() as u16);
        self.raw.extend_from_slice(key);
        self.raw.extend_from_slice(value);
        self.size += size;
    }

    pub(crate) fn clear(&mut self) {
        self.raw.clear();
        self.raw
            .extend_from_slice(&[NODE_VERSION, self.level, 0, 0]);
        self.offsets.clear();
        self.size = 0;
    }

    /// Ends the node; also shows its bytes and the objects that it names.
    pub(crate) fn finish(&mut self) -> Result<(Node, Vec<ObjectId>), DecodeError> {
        let count = self.offsets.len() as u16;
        self.raw[2..4].copy_from_slice(&count.to_le_bytes());
        self.offsets.push(offset(self.raw.len()));
        let node = Node {
            level: self.level,
            raw: self.raw.as_slice().to_vec(),
            offsets: self.offsets.as_slice().to_vec(),
            size: self.size,
        };
        self.clear();
        let mut children = Children::default();
        for position in 0..node.len() {
            let (key, value) = node.raw_entry(position);
            children.add(node.level, key, value)?;
        }
        Ok((node, children.ids))
    }
}

impl Node {
    /// The content that is sealed.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }
}

/// Distinct ids by first occurrence.
#[derive(Debug, Default)]
struct Children {
    ids: Vec<ObjectId>,
    seen: BTreeSet<ObjectId>,
}

impl Children {
    /// Checks an entry and adds what it names; returns how many distinct objects that are.
    fn add(&mut self, level: u8, key: &[u8], value: &[u8]) -> Result<usize, DecodeError> {
        each_named(level, key, value, &mut |id| {
            if self.seen.insert(id) {
                self.ids.push(id);
            }
        })
    }
}

/// Checks an entry, shows each object that it names once, and returns how many those are.
pub(crate) fn each_named(
    level: u8,
    key: &[u8],
    value: &[u8],
    named: &mut dyn FnMut(ObjectId),
) -> Result<usize, DecodeError> {
    let parts = parts_of(key);
    if parts == KeyParts::Bound {
        return Err(DecodeError("no index key"));
    }
    if value.len() > INDEX_VALUE_LEN_MAX {
        return Err(DecodeError("value too long"));
    }
    if level > 0 {
        let mut reader = Reader::new(value);
        let reference = Reference::decode(&mut reader)?;
        if reference.len as usize > PREFIX_LEN + NODE_LEN_MAX {
            return Err(DecodeError("child too long"));
        }
        named(reference.id);
        reader.finish()?;
        return Ok(1);
    }
    // At most a base and 64 patches, almost always one or two.
    let mut ids: Vec<ObjectId> = Vec::new();
    check(&parts, value, &mut |id| {
        if !ids.contains(&id) {
            ids.push(id);
            named(id);
        }
    })?;
    Ok(ids.len())
}

fn offset(position: usize) -> u32 {
    u32::try_from(position).expect("a node is shorter than 4 GiB")
}

const NODE_VERSION: u8 = 1;
const PREFIX_LEN: usize = 4;

#[cfg(test)]
mod tests;
