//! Objects that name each other, as a sealed index does.

use bytes::Bytes;
use img_types::object::{Header, ObjectKind, TAG_LEN};
use img_types::padding::padded_len;
use img_types::{KeyEpoch, ObjectId};

/// Objects, children before parents, and the id of the last one.
pub(super) struct Tree {
    pub(super) root: ObjectId,
    pub(super) ids: Vec<ObjectId>,
    pub(super) objects: Vec<Bytes>,
}

/// A root over leaves over blocks.
pub(super) fn tree(seed: u64, leaves: u64, blocks_per_leaf: u64) -> Tree {
    let mut tree = Tree {
        root: ObjectId::from_bytes([0; 32]),
        ids: Vec::new(),
        objects: Vec::new(),
    };
    let mut leaf_ids = Vec::new();
    for leaf in 0..leaves {
        let mut block_ids = Vec::new();
        for block in 0..blocks_per_leaf {
            let seed = seed * 1_000_000 + leaf * 1_000 + block;
            let (id, bytes) = img_testkit::object(seed, 3_000);
            tree.add(id, bytes);
            block_ids.push(id);
        }
        let (id, bytes) = node(seed, 0, block_ids);
        tree.add(id, bytes);
        leaf_ids.push(id);
    }
    let (id, bytes) = node(seed, 1, leaf_ids);
    tree.add(id, bytes);
    tree.root = id;
    tree
}

impl Tree {
    fn add(&mut self, id: ObjectId, bytes: Bytes) {
        self.ids.push(id);
        self.objects.push(bytes);
    }
}

/// A node over children.
pub(super) fn node(seed: u64, level: u8, children: Vec<ObjectId>) -> (ObjectId, Bytes) {
    sealed(ObjectKind::Node, seed, level, children)
}

/// An object of any kind that names others.
pub(super) fn sealed(
    kind: ObjectKind,
    seed: u64,
    level: u8,
    children: Vec<ObjectId>,
) -> (ObjectId, Bytes) {
    let header = Header {
        kind,
        level,
        key_epoch: KeyEpoch(0),
        children,
    };
    let ciphertext = img_testkit::bytes(seed, padded_len(300) + TAG_LEN);
    let id = header.object_id(&ciphertext);
    (id, [header.encode(), ciphertext].concat().into())
}
