//! Reads of the whole map: overlay first, then the index below it.

use img_index::key::name_allowed;
use img_index::{
    Absent, Attributes, Fact, FileKind, Inode, Key, KeyRange, NameHash, ReadError, Value, name_hash,
};
use img_overlay::Layer;
use img_types::limits::ENTRY_NAME_LEN_MAX;
use rustix::io::Errno;

use super::source::{Source, Wanted};
use super::state::State;

/// Says why an operation did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It is refused; the caller gets this number.
    Refused(Errno),
    /// Something is not in memory: fetch it, then repeat the operation.
    Absent(Wanted),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Absent(Absent(nodes)) => Self::Absent(Wanted {
                nodes,
                ..Wanted::default()
            }),
            ReadError::Misplaced(_) => {
                tracing::error!(%error, "the image's index is corrupt");
                Self::Refused(Errno::IO)
            }
        }
    }
}

/// What a directory entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The inode.
    pub inode: Inode,
    /// Its kind, repeated here so that a listing needs no attributes.
    pub kind: FileKind,
}

/// The map as it is under one lock.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) state: &'a State,
    pub(super) source: &'a dyn Source,
}

impl View<'_> {
    /// Looks one key up.
    pub(super) fn value(&self, key: &Key) -> Result<Option<Value>, Failure> {
        match self.state.overlay.get(key) {
            Layer::Value(value) => Ok(Some(value)),
            Layer::Deleted => Ok(None),
            Layer::Below => match &self.state.root {
                Some(root) => Ok(img_index::get(self.source, root, key)?),
                None => Ok(None),
            },
        }
    }

    /// Reads an inode's attributes; those of an open one are always in memory.
    pub(super) fn attributes(&self, inode: Inode) -> Result<Attributes, Failure> {
        if let Some(open) = self.state.open.get(&inode) {
            return Ok(open.attributes);
        }
        match self.value(&Key::attributes(inode))? {
            Some(Value::Attributes(attributes)) => Ok(attributes),
            _ => Err(Errno::NOENT.into()),
        }
    }

    /// Reads the attributes of what must be a directory.
    pub(super) fn directory(&self, inode: Inode) -> Result<Attributes, Failure> {
        let attributes = self.attributes(inode)?;
        if attributes.kind == FileKind::Directory {
            Ok(attributes)
        } else {
            Err(Errno::NOTDIR.into())
        }
    }

    /// Looks a name up in a directory.
    pub(super) fn entry(&self, parent: Inode, name: &Name) -> Result<Option<Entry>, Failure> {
        match self.value(&name.key(parent))? {
            Some(Value::Entry { inode, kind }) => Ok(Some(Entry { inode, kind })),
            _ => Ok(None),
        }
    }

    /// The number that the next new inode gets.
    pub(super) fn next_inode(&self) -> Result<Inode, Failure> {
        if let Some(next) = self.state.next_inode {
            return Ok(next);
        }
        let first = Inode::ROOT.0 + 1;
        match self.value(&Key::fact(Fact::NextInode))? {
            Some(Value::Number(next)) => Ok(Inode(next.max(first))),
            _ => Ok(Inode(first)),
        }
    }

    /// Lists at most `limit` keys of a range in order.
    pub(super) fn range(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Value)>, Failure> {
        let mut found = Vec::new();
        let mut rest = range.clone();
        // Where much was deleted a step may find nothing; each goes further than the one before.
        let mut step = limit.max(RANGE_STEP);
        loop {
            let above = self.state.overlay.range(&rest, step);
            let below = match &self.state.root {
                Some(root) => img_index::range(self.source, root, &rest, step)?,
                None => Vec::new(),
            };
            let below_next = match below.last() {
                Some((last, _)) if below.len() >= step => Some(last.successor()),
                _ => None,
            };
            let merged = above.over(below, below_next);
            found.extend(merged.entries);
            match merged.next {
                Some(next) if found.len() < limit => rest.start = next,
                _ => break,
            }
            step = (2 * step).min(RANGE_STEP_MAX);
        }
        found.truncate(limit);
        Ok(found)
    }
}

/// A checked name of a directory entry with its place in the directory.
#[derive(Debug, Clone)]
pub(super) struct Name {
    bytes: Vec<u8>,
    hash: NameHash,
}

impl Name {
    /// Checks a name that comes from the kernel.
    pub(super) fn parse(state: &State, bytes: &[u8]) -> Result<Self, Errno> {
        if bytes.len() > ENTRY_NAME_LEN_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if !name_allowed(bytes) {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            bytes: bytes.to_vec(),
            hash: name_hash(&state.boundary, bytes),
        })
    }

    /// The key of the entry in a directory.
    pub(super) fn key(&self, parent: Inode) -> Key {
        Key::entry(parent, self.hash, &self.bytes)
    }
}

/// Fewest and most keys that one look at a layer asks for.
const RANGE_STEP: usize = 64;
const RANGE_STEP_MAX: usize = 4_096;
