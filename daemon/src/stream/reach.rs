//! Which objects of an outbox belong to a root: what has to be at home before its commit, and what the
//! commit's receipt lets go.
//!
//! The outbox holds every object of a local root that is not reachable from the base commit, so a walk from
//! the root stops at the first object that is not in it. Only headers are read, and of nodes only.

use bytes::Bytes;
use img_types::ObjectId;
use img_types::object::Parsed;

/// A node of the outbox is not on the disk, or is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("object {0} of the outbox is not on this disk")]
pub struct Lost(pub ObjectId);

/// The objects of an outbox below and with some roots, each once, children before their parents.
///
/// `outbox` is ascending, as the cache lists it; `read` blocks on the disk.
///
/// # Errors
/// A node cannot be read.
pub fn below(
    roots: &[ObjectId],
    outbox: &[ObjectId],
    read: impl Fn(&ObjectId) -> Option<Bytes>,
) -> Result<Vec<ObjectId>, Lost> {
    let mut walk = Walk {
        outbox,
        met: vec![false; outbox.len()],
        order: Vec::new(),
    };
    let mut path = Vec::new();
    for root in roots {
        if walk.meet(root) {
            path.push(Open::read(*root, &read)?);
        }
        while let Some(node) = path.last_mut() {
            let Some(child) = node.children.next() else {
                walk.order.push(node.id);
                path.pop();
                continue;
            };
            let is_node = node.level > 0;
            if !walk.meet(&child) {
                continue;
            }
            if is_node {
                path.push(Open::read(child, &read)?);
            } else {
                walk.order.push(child);
            }
        }
    }
    Ok(walk.order)
}

struct Walk<'a> {
    outbox: &'a [ObjectId],
    met: Vec<bool>,
    order: Vec<ObjectId>,
}

impl Walk<'_> {
    /// Whether an object is in the outbox and is met for the first time.
    fn meet(&mut self, id: &ObjectId) -> bool {
        match self.outbox.binary_search(id) {
            Ok(position) => !std::mem::replace(&mut self.met[position], true),
            Err(_) => false,
        }
    }
}

/// A node whose children are being visited.
struct Open {
    id: ObjectId,
    level: u8,
    children: std::vec::IntoIter<ObjectId>,
}

impl Open {
    fn read(id: ObjectId, read: impl Fn(&ObjectId) -> Option<Bytes>) -> Result<Self, Lost> {
        let bytes = read(&id).ok_or(Lost(id))?;
        let header = Parsed::decode(&bytes).map_err(|_| Lost(id))?.header;
        Ok(Self {
            id,
            level: header.level,
            children: header.children.into_iter(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use img_types::KeyEpoch;
    use img_types::limits::PADDED_LEN_MIN;
    use img_types::object::{Header, ObjectKind};

    use super::*;

    /// Objects with headers as the real ones have.
    #[derive(Default)]
    struct Disk(BTreeMap<ObjectId, Bytes>);

    impl Disk {
        fn put(
            &mut self,
            kind: ObjectKind,
            level: u8,
            children: &[ObjectId],
            salt: u8,
        ) -> ObjectId {
            let header = Header {
                kind,
                level,
                key_epoch: KeyEpoch(0),
                children: children.to_vec(),
            };
            let ciphertext = vec![salt; PADDED_LEN_MIN + 16];
            let id = header.object_id(&ciphertext);
            let bytes = [header.encode(), ciphertext].concat();
            self.0.insert(id, bytes.into());
            id
        }

        fn block(&mut self, salt: u8) -> ObjectId {
            self.put(ObjectKind::Block, 0, &[], salt)
        }

        fn node(&mut self, level: u8, children: &[ObjectId], salt: u8) -> ObjectId {
            self.put(ObjectKind::Node, level, children, salt)
        }

        fn below(&self, root: ObjectId, outbox: &[ObjectId]) -> Result<Vec<ObjectId>, Lost> {
            let mut outbox = outbox.to_vec();
            outbox.sort();
            below(&[root], &outbox, |id| self.0.get(id).cloned())
        }
    }

    #[test]
    fn children_come_before_their_parents_and_each_object_once() {
        let mut disk = Disk::default();
        let blocks: Vec<_> = (0..3).map(|n| disk.block(n)).collect();
        let left = disk.node(0, &blocks[..2], 10);
        let right = disk.node(0, &blocks[1..], 11);
        let root = disk.node(1, &[left, right], 12);
        let all: Vec<_> = disk.0.keys().copied().collect();
        let order = disk.below(root, &all).unwrap();
        assert_eq!(order, [blocks[0], blocks[1], left, blocks[2], right, root]);
    }

    #[test]
    fn the_walk_stops_where_the_base_begins_and_leaves_other_roots_alone() {
        let mut disk = Disk::default();
        let (old, new, other) = (disk.block(0), disk.block(1), disk.block(2));
        let base_leaf = disk.node(0, &[old], 10);
        let leaf = disk.node(0, &[old, new], 11);
        let root = disk.node(1, &[base_leaf, leaf], 12);
        let newer_root = disk.node(0, &[other], 13);
        let outbox = [new, leaf, root, other, newer_root];
        assert_eq!(disk.below(root, &outbox).unwrap(), [new, leaf, root]);
        assert_eq!(disk.below(base_leaf, &outbox), Ok(vec![]));
    }

    #[test]
    fn a_node_that_is_gone_is_named() {
        let mut disk = Disk::default();
        let leaf = disk.node(0, &[], 1);
        let root = disk.node(1, &[leaf], 2);
        disk.0.remove(&leaf);
        assert_eq!(disk.below(root, &[leaf, root]), Err(Lost(leaf)));
    }
}
