//! Applying sorted edits to a tree.

use std::borrow::Borrow;

use img_seal::{Reference, SealError, Sealer};
use img_types::ObjectId;
use img_types::bytes::DecodeError;

use crate::boundary::{Boundary, Rules, entry_size};
use crate::key::{Key, KeyRange};
use crate::node::each_named;
use crate::tree::{Absent, NodeSink, NodeSource, ReadError};
use crate::value::Value;
use crate::writer::{Bound, Pen, Writer};

/// A change of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Sets the value of a key.
    Put(Key, Value),
    /// Removes a key, if it is there.
    Delete(Key),
    /// Removes all keys of a range.
    Clear(KeyRange),
}

impl Edit {
    /// Where the edit starts, which is what edits are sorted by.
    pub fn start(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
            Self::Clear(range) => &range.start,
        }
    }
}

/// Says why edits could not be applied. Nothing is lost: the old tree stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Nodes must be fetched first.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// The object is a sound node in a place where it does not belong: corruption.
    #[error("object {0} is not the node that its parent says")]
    Misplaced(ObjectId),
    /// A node could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The edits do not rise, or overlap.
    #[error("edits are not sorted")]
    Unsorted,
    /// A key or a value is none that the map can hold.
    #[error("an edit that no map can hold: {0}")]
    Invalid(#[from] DecodeError),
    /// The map is larger than eight levels of nodes can hold.
    #[error("the map is too large")]
    TooLarge,
}

impl From<ReadError> for ApplyError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Absent(absent) => Self::Absent(absent),
            ReadError::Misplaced(id) => Self::Misplaced(id),
        }
    }
}

/// Applies edits to a tree and gives the root of the new one; no root stands for the empty map.
///
/// `edits` rise and do not overlap. A put of the value that is already there, and the removal of what
/// is not, change nothing. Work grows with the edits, not with the tree: only leaves that edits touch,
/// their ancestors, and what follows up to the next old cut are written. Without an old root the edits
/// are taken one by one, so that a map of any size is written in constant memory; with one they are
/// kept, and gone through once without writing to find what is absent.
///
/// # Errors
/// Nodes are absent (then nothing has been sealed), or see [`ApplyError`].
pub fn apply<E: Borrow<Edit>>(
    source: &dyn NodeSource,
    sink: &mut dyn NodeSink,
    sealer: &mut Sealer,
    boundary: &Boundary,
    root: Option<&Reference>,
    edits: impl IntoIterator<Item = E>,
) -> Result<Reference, ApplyError> {
    let rules = Rules::new(boundary);
    apply_by(rules, source, sink, sealer, root, edits)
}

pub(crate) fn apply_by<E: Borrow<Edit>>(
    rules: Rules,
    source: &dyn NodeSource,
    sink: &mut dyn NodeSink,
    sealer: &mut Sealer,
    root: Option<&Reference>,
    edits: impl IntoIterator<Item = E>,
) -> Result<Reference, ApplyError> {
    let Some(root) = root else {
        let writer = Writer::from_nothing(rules, source, Pen::Seal { sealer, sink });
        return write(writer, edits, false);
    };
    let edits: Vec<E> = edits.into_iter().collect();
    let edits = || edits.iter().map(|edit| edit.borrow());
    write(
        Writer::new(rules, source, Some(root), Pen::Dry)?,
        edits(),
        true,
    )?;
    let pen = Pen::Seal { sealer, sink };
    write(Writer::new(rules, source, Some(root), pen)?, edits(), false)
}

/// Writes all edits. A dry run goes on when a node is absent, to find all that are.
fn write<E: Borrow<Edit>>(
    mut writer: Writer<'_>,
    edits: impl IntoIterator<Item = E>,
    dry: bool,
) -> Result<Reference, ApplyError> {
    let mut scratch = Vec::new();
    let mut reached: Vec<u8> = Vec::new();
    let mut reached_inclusive = false;
    for edit in edits {
        let edit = edit.borrow();
        let start = edit.start().as_bytes();
        if start < &reached[..] || (start == reached && reached_inclusive) {
            return Err(ApplyError::Unsorted);
        }
        reached.clear();
        reached_inclusive = !matches!(edit, Edit::Clear(_));
        match edit {
            Edit::Put(key, value) => {
                scratch.clear();
                let size = encode(key, value, &mut scratch)?;
                let key = key.as_bytes();
                reached.extend_from_slice(key);
                if writer.advance(0, key)? && !writer.append(0, key, &scratch, size)? {
                    writer.remove(0, Bound::Through(key))?;
                }
            }
            Edit::Delete(key) => {
                let key = key.as_bytes();
                reached.extend_from_slice(key);
                if writer.advance(0, key)? {
                    writer.remove(0, Bound::Through(key))?;
                }
            }
            Edit::Clear(range) => {
                let end = range.end.as_bytes();
                reached.extend_from_slice(if range.is_empty() { start } else { end });
                if !range.is_empty() && writer.advance(0, start)? {
                    writer.remove(0, Bound::Before(end))?;
                }
            }
        }
        if !dry {
            writer.complete()?;
        }
    }
    let root = writer.finish()?;
    writer.complete()?;
    Ok(root)
}

/// Appends the value's bytes, checks them, and returns the entry's canonical size.
pub(crate) fn encode(key: &Key, value: &Value, bytes: &mut Vec<u8>) -> Result<usize, DecodeError> {
    if !value.belongs_to(&key.parts()) {
        return Err(DecodeError("the value does not belong to the key"));
    }
    value.encode(bytes);
    let named = each_named(0, key.as_bytes(), bytes, &mut |_| {})?;
    Ok(entry_size(key.as_bytes().len(), bytes.len(), named))
}
