//! Where nodes are cut: by keys and sizes, never by history.
//!
//! A node is scanned from its left edge. It ends
//! - after an entry e, once it has at least a quarter of its target, when
//!   `u64(BLAKE3_keyed(B, level ‖ key)) < 2⁶⁴ · size(e) / target` (little-endian, first 8 bytes);
//! - before an entry that would make it larger than [`NODE_LEN_MAX`];
//! - at level 0 before an entry of another zone.
//!
//! The chance to end grows with an entry's size, so nodes have about the same size whatever they
//! hold. B is random per image, so that nobody can choose names that are never a cut.
//!
//! The canonical size of an entry is its length in the node plus 32 bytes for each object that it
//! names, once each. An entry that names one takes more than 100 bytes, so the limit of
//! [`NODE_CHILDREN_MAX`] is kept by that of the size.

use std::fmt;

use img_seal::Reference;
use img_types::limits::{
    INDEX_KEY_LEN_MAX, METADATA_LEAF_TARGET, NODE_CHILDREN_MAX, NODE_LEN_MAX, NODE_TARGET,
};

use crate::key::{NameHash, ZONE_DATA};

/// The random value that decides where an image's nodes are cut; branches inherit it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Boundary([u8; 32]);

impl Boundary {
    /// Takes the bytes as they are.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the bytes, to seal them into the image's descriptor.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Boundary(..)")
    }
}

/// Hashes an entry's name: the first 8 bytes of `BLAKE3_keyed(B, 255 ‖ name)`, top bit clear.
///
/// 255 is no level, so that no name's hash says anything about a cut.
pub fn name_hash(boundary: &Boundary, name: &[u8]) -> NameHash {
    let mut hasher = blake3::Hasher::new_keyed(&boundary.0);
    hasher.update(&[255]);
    hasher.update(name);
    NameHash::new(first_u64(hasher.finalize().as_bytes()))
}

/// The rules of one image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    boundary: Boundary,
    metadata_target: usize,
    target: usize,
    node_len_max: usize,
}

impl Rules {
    pub(crate) fn new(boundary: &Boundary) -> Self {
        Self {
            boundary: *boundary,
            metadata_target: METADATA_LEAF_TARGET,
            target: NODE_TARGET,
            node_len_max: NODE_LEN_MAX,
        }
    }

    /// The same rules for small nodes, so that tests reach tall trees with few entries.
    #[cfg(test)]
    pub(crate) fn scaled_down(boundary: &Boundary, factor: usize) -> Self {
        Self {
            boundary: *boundary,
            metadata_target: METADATA_LEAF_TARGET / factor,
            target: NODE_TARGET / factor,
            node_len_max: NODE_LEN_MAX / factor,
        }
    }

    /// Tells whether a node of `node_size`, this entry included, ends after the entry.
    pub(crate) fn cuts_after(
        &self,
        level: u8,
        key: &[u8],
        entry_size: usize,
        node_size: usize,
    ) -> bool {
        let target = if level == 0 && key.first() != Some(&ZONE_DATA) {
            self.metadata_target
        } else {
            self.target
        };
        if node_size < target / 4 {
            return false;
        }
        let mut message = [0; 1 + INDEX_KEY_LEN_MAX];
        message[0] = level;
        message[1..=key.len()].copy_from_slice(key);
        let hash = blake3::keyed_hash(&self.boundary.0, &message[..=key.len()]);
        u128::from(first_u64(hash.as_bytes())) * (target as u128) < (entry_size as u128) << 64
    }

    /// Tells whether a node of `node_size` that ends in `last` ends before the next entry.
    pub(crate) fn cuts_before(
        &self,
        level: u8,
        last: &[u8],
        node_size: usize,
        next: &[u8],
        entry_size: usize,
    ) -> bool {
        node_size + entry_size > self.node_len_max || (level == 0 && last.first() != next.first())
    }
}

/// The canonical size of an entry that names `children` distinct objects.
pub(crate) fn entry_size(key_len: usize, value_len: usize, children: usize) -> usize {
    ENTRY_OVERHEAD + key_len + value_len + CHILD_LEN * children
}

/// Lengths of key and value in front of an entry.
pub(crate) const ENTRY_OVERHEAD: usize = 4;
/// What an object's id takes in a node's clear header.
const CHILD_LEN: usize = 32;

const _: () = assert!(
    NODE_LEN_MAX / (Reference::LEN + CHILD_LEN) < NODE_CHILDREN_MAX,
    "the limit of the size keeps the limit of the children"
);

fn first_u64(hash: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Inode, Key};

    #[test]
    fn nodes_reach_their_targets_on_average() {
        let rules = Rules::new(&Boundary::from_bytes([7; 32]));
        for (level, key, target) in [
            (0, Key::attributes as fn(Inode) -> Key, METADATA_LEAF_TARGET),
            (0, Key::inline, NODE_TARGET),
            (1, Key::attributes, NODE_TARGET),
        ] {
            let (mut size, mut cuts) = (0, 0usize);
            for inode in 1..=40_000 {
                size += 100;
                if rules.cuts_after(level, key(Inode(inode)).as_bytes(), 100, size) {
                    assert!(size >= target / 4);
                    (size, cuts) = (0, cuts + 1);
                }
            }
            let mean = 4_000_000 / cuts.max(1);
            let expected = target + target / 4;
            assert!(
                mean.abs_diff(expected) < expected / 4,
                "{mean} of {expected}"
            );
        }
    }

    #[test]
    fn an_entry_of_another_zone_starts_a_leaf() {
        let rules = Rules::new(&Boundary::from_bytes([7; 32]));
        let (metadata, data) = (Key::attributes(Inode(9)), Key::inline(Inode(1)));
        let cuts = |level| rules.cuts_before(level, metadata.as_bytes(), 1, data.as_bytes(), 1);
        assert!(cuts(0));
        assert!(!cuts(1));
    }

    #[test]
    fn name_hashes_depend_on_the_image_and_stay_below_the_top_bit() {
        let (a, b) = (Boundary::from_bytes([1; 32]), Boundary::from_bytes([2; 32]));
        assert_ne!(name_hash(&a, b"name"), name_hash(&b, b"name"));
        assert_ne!(name_hash(&a, b"name"), name_hash(&a, b"eman"));
        assert!((0..100u8).all(|n| name_hash(&a, &[n]).value() < 1 << 63));
    }
}
