//! The image's own facts after a generation: totals and the next inode.

use std::collections::BTreeSet;

use img_index::{Attributes, Fact, FileKind, Inode, Key, KeyParts, Value};
use img_overlay::{Edits, Layer, SealPlan};
use img_types::limits::INLINE_LEN_MAX;

use super::{SealError, Sealing};

/// What the attributes of a generation say about the whole image.
pub(super) struct Facts {
    pub(super) files: u64,
    pub(super) logical_bytes: u64,
    /// Files whose size changes and is not small: their holes do too, and contents may be inline no longer.
    pub(super) resized: BTreeSet<Inode>,
}

impl Sealing {
    /// Adds totals and the next inode to the edits, where they change.
    pub(super) fn update_facts(
        &self,
        plan: SealPlan<'_>,
        edits: &mut Edits,
    ) -> Result<Facts, SealError> {
        let nodes = self.nodes();
        let before = match nodes.value(Key::fact(Fact::Totals))? {
            Some(Value::Totals {
                files,
                logical_bytes,
            }) => Some((files, logical_bytes)),
            _ => None,
        };
        let (files, logical_bytes) = before.unwrap_or_default();
        let mut facts = Facts {
            files,
            logical_bytes,
            resized: BTreeSet::new(),
        };
        let mut next_inode = match nodes.value(Key::fact(Fact::NextInode))? {
            Some(Value::Number(next)) => next,
            _ => 0,
        };
        let next_inode_before = next_inode;
        if let Layer::Value(Value::Number(next)) = edits.get(&Key::fact(Fact::NextInode)) {
            next_inode = next_inode.max(next);
        }

        let mut inodes = changed_inodes(plan, edits);
        inodes.extend(&self.closed.removed.inodes);
        let inodes: Vec<Inode> = inodes.into_iter().collect();
        for inodes in inodes.chunks(LOOK_UPS_MAX) {
            let keys: Vec<Key> = inodes.iter().copied().map(Key::attributes).collect();
            let olds = nodes.look_up(&keys)?;
            for ((&inode, key), old) in inodes.iter().zip(&keys).zip(olds) {
                let old = attributes(old);
                let new = match edits.get(key) {
                    Layer::Value(value) => attributes(Some(value)),
                    Layer::Deleted => None,
                    Layer::Below => old,
                };
                if let Some(size) = counted(old) {
                    facts.files = facts.files.saturating_sub(1);
                    facts.logical_bytes = facts.logical_bytes.saturating_sub(size);
                }
                if let Some(size) = counted(new) {
                    facts.files += 1;
                    facts.logical_bytes = facts.logical_bytes.saturating_add(size);
                }
                if old.is_none() && new.is_some() {
                    next_inode = next_inode.max(inode.0.saturating_add(1));
                }
                let Some(mut new) = new.filter(|new| new.kind == FileKind::File) else {
                    continue;
                };
                if is_small(new.size) {
                    continue;
                }
                match old {
                    // Whoever changed something else did not know them.
                    Some(old) if old.size == new.size => {
                        if new.extents != old.extents {
                            new.extents = old.extents;
                            edits.set(key.clone(), Some(Value::Attributes(new)));
                        }
                    }
                    _ => {
                        facts.resized.insert(inode);
                    }
                }
            }
        }

        let totals = (facts.files, facts.logical_bytes);
        if before != Some(totals) {
            let (files, logical_bytes) = totals;
            let value = Value::Totals {
                files,
                logical_bytes,
            };
            edits.set(Key::fact(Fact::Totals), Some(value));
        }
        if next_inode != next_inode_before {
            let value = Value::Number(next_inode);
            edits.set(Key::fact(Fact::NextInode), Some(value));
        }
        Ok(facts)
    }
}

/// The inodes whose attributes a generation sets or removes.
fn changed_inodes(plan: SealPlan<'_>, edits: &Edits) -> BTreeSet<Inode> {
    let set = edits.keys().keys().filter_map(|key| match key.parts() {
        KeyParts::Attributes(inode) => Some(inode),
        _ => None,
    });
    let dropped = plan.inodes().filter(|file| file.dropped());
    set.chain(dropped.map(|file| file.inode)).collect()
}

/// Takes the attributes out of a value.
pub(super) fn attributes(value: Option<Value>) -> Option<Attributes> {
    match value {
        Some(Value::Attributes(attributes)) => Some(attributes),
        _ => None,
    }
}

/// Whether contents of this size may be inline.
pub(super) fn is_small(size: u64) -> bool {
    size <= INLINE_LEN_MAX as u64
}

/// The size that an inode adds to the totals; nothing if it does not count: directories do not, nor
/// what no name leads to.
fn counted(attributes: Option<Attributes>) -> Option<u64> {
    let attributes = attributes?;
    match attributes.kind {
        FileKind::Directory => None,
        _ if attributes.nlink == 0 => None,
        FileKind::File => Some(attributes.size),
        _ => Some(0),
    }
}

/// Keys that are looked up before what is absent is fetched.
pub(super) const LOOK_UPS_MAX: usize = 256;
