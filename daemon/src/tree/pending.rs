//! Changes that the journal has not got yet.
//!
//! A file that is written to a thousand times between two syncs costs one change of its attributes
//! and as few ranges as its writes can be joined into, so memory follows what is dirty and not how
//! often it was made dirty.

use std::collections::BTreeMap;

use img_index::{Inode, Key, KeyParts};
use img_overlay::{Change, GenerationId};

/// Unjournaled changes in order, joined where their order does not matter.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Generations that were closed since the last batch was taken, with their changes.
    closed: Vec<(GenerationId, Vec<Change>)>,
    changes: Vec<Change>,
    /// Where the newest change of a key stands, unless a clear came after it.
    keys: BTreeMap<Key, usize>,
    /// Where the newest change of an inode's data stands, if it is a write.
    writes: BTreeMap<Inode, usize>,
}

impl Pending {
    /// Adds a change of the top generation.
    pub(super) fn push(&mut self, change: Change) {
        match &change {
            Change::Put(key, _) | Change::Delete(key) => {
                // An extent covers the bytes of its block: neither it nor a write moves over the other.
                if let KeyParts::Extent { inode, .. } = key.parts() {
                    self.writes.remove(&inode);
                    self.changes.push(change);
                    return;
                }
                if let Some(&at) = self.keys.get(key) {
                    self.changes[at] = change;
                    return;
                }
                self.keys.insert(key.clone(), self.changes.len());
            }
            Change::Write {
                inode,
                offset,
                len,
                arena,
            } => {
                if let Some(&at) = self.writes.get(inode)
                    && let Change::Write {
                        offset: start,
                        len: joined,
                        arena: position,
                        ..
                    } = &mut self.changes[at]
                    && *start + *joined == *offset
                    && *position + *joined == *arena
                {
                    *joined += len;
                    return;
                }
                self.writes.insert(*inode, self.changes.len());
            }
            Change::Zero { inode, .. } => {
                self.writes.remove(inode);
            }
            // A range of keys may be one of data.
            Change::ClearKeys(_) => {
                self.keys.clear();
                self.writes.clear();
            }
            Change::DropInode(inode) => {
                self.keys.clear();
                self.writes.remove(inode);
            }
        }
        self.changes.push(change);
    }

    /// Starts anew for the next generation.
    pub(super) fn close(&mut self, closed: GenerationId) {
        let changes = self.take_changes();
        self.closed.push((closed, changes));
    }

    /// Takes everything for the journal, by generation, oldest first.
    pub(super) fn take(&mut self, top: GenerationId) -> Vec<(GenerationId, Vec<Change>)> {
        let mut batches = std::mem::take(&mut self.closed);
        let changes = self.take_changes();
        batches.push((top, changes));
        batches.retain(|(_, changes)| !changes.is_empty());
        batches
    }

    /// Changes that a batch taken now would hold.
    pub(super) fn len(&self) -> usize {
        self.changes.len() + self.closed.iter().map(|(_, c)| c.len()).sum::<usize>()
    }

    fn take_changes(&mut self) -> Vec<Change> {
        self.keys.clear();
        self.writes.clear();
        std::mem::take(&mut self.changes)
    }
}

#[cfg(test)]
mod tests {
    use img_index::{Extent, Value};
    use img_seal::{BlockKey, Reference};
    use img_types::ObjectId;

    use super::*;

    fn put(inode: u64, number: u64) -> Change {
        Change::Put(Key::attributes(Inode(inode)), Value::Number(number))
    }

    fn write(inode: u64, offset: u64, len: u64, arena: u64) -> Change {
        Change::Write {
            inode: Inode(inode),
            offset,
            len,
            arena,
        }
    }

    #[test]
    fn joins_what_one_file_does_between_two_syncs() {
        let mut pending = Pending::default();
        for step in 0..1_000 {
            pending.push(write(7, step * 4, 4, 100 + step * 4));
            pending.push(put(7, step));
        }
        assert_eq!(
            pending.take(GenerationId(1)),
            [(GenerationId(1), vec![write(7, 0, 4_000, 100), put(7, 999)])]
        );
        assert_eq!(pending.len(), 0);
        assert_eq!(pending.take(GenerationId(1)), []);
    }

    #[test]
    fn nothing_moves_over_a_clear_or_a_zeroed_range() {
        let mut pending = Pending::default();
        let clear = Change::ClearKeys(img_index::KeyRange::inode_metadata(Inode(7)));
        let zero = Change::Zero {
            inode: Inode(7),
            offset: 0,
            len: u64::MAX,
        };
        let all = vec![
            put(7, 1),
            clear,
            put(7, 2),
            write(7, 0, 4, 0),
            zero,
            write(7, 4, 4, 4),
        ];
        for change in &all {
            pending.push(change.clone());
        }
        pending.close(GenerationId(1));
        pending.push(put(7, 3));
        assert_eq!(pending.len(), all.len() + 1);
        assert_eq!(
            pending.take(GenerationId(2)),
            [(GenerationId(1), all), (GenerationId(2), vec![put(7, 3)])]
        );
    }

    /// What the journal gets says the same as what was done, whatever was joined on the way.
    #[test]
    fn nothing_moves_over_an_extent_or_a_cleared_range_of_data() {
        let block = Key::extent(Inode(7), 0);
        let data = Change::ClearKeys(img_index::KeyRange::extents(Inode(7), 0, 65_536));
        let all = vec![
            write(7, 0, 4_096, 0),
            Change::Put(block.clone(), extent(1)),
            write(7, 4_096, 4_096, 4_096),
            Change::Put(block.clone(), extent(2)),
            write(7, 8_192, 4_096, 8_192),
            Change::Delete(block),
            write(7, 12_288, 4_096, 12_288),
            data,
            write(7, 16_384, 4_096, 16_384),
        ];
        let mut pending = Pending::default();
        let (mut done, mut replayed) = (overlay(), overlay());
        for change in &all {
            pending.push(change.clone());
            done.apply(change.clone());
        }
        for (_, changes) in pending.take(GenerationId(1)) {
            changes
                .into_iter()
                .for_each(|change| replayed.apply(change));
        }
        assert_eq!(
            done.read(Inode(7), 0, 65_536),
            replayed.read(Inode(7), 0, 65_536)
        );
    }

    fn extent(seed: u8) -> Value {
        let base = Reference {
            id: ObjectId::from_bytes([seed; 32]),
            key: BlockKey::from_bytes([seed; 32]),
            len: 65_536,
        };
        Value::Extent(Extent {
            base: Some(base),
            patches: Vec::new(),
        })
    }

    fn overlay() -> img_overlay::Overlay {
        img_overlay::Overlay::new(GenerationId(1))
    }
}
