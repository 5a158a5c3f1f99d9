//! The clear form of a stored object: its header, its children and its id.
//!
//! A stored object is a fixed header of 16 bytes, the ids of its children (only for nodes and
//! traces), and a ciphertext. Whoever holds the bytes can compute the id, check it and see which
//! objects it names; nobody can read the content without the keys, which this crate does not know.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | kind: 1 block, 2 patch, 3 node, 4 trace |
//! | 2 | level of a node, else 0 |
//! | 3 | zero |
//! | 4..8 | key epoch |
//! | 8..12 | count of children |
//! | 12..16 | zero |
//! | 16..16+32·n | ids of the children |
//! | then | ciphertext, its 16-byte tag included |
//!
//! `id = derive_hash("imgctl object id v1", fixed header ‖ children root or 32 zeros ‖ BLAKE3(ciphertext))`.

use rs_merkle::{Hasher, MerkleProof, MerkleTree};

use crate::bytes::{DecodeError, Reader, Write};
use crate::ids::ObjectId;
use crate::lease::KeyEpoch;
use crate::limits::{
    NODE_CHILDREN_MAX, NODE_LEVEL_MAX, OBJECT_LEN_MAX, PADDED_LEN_MIN, TRACE_LEN_MAX,
};
use crate::padding::padded_len;

/// Version of the object format. Changing any byte of a sealed object needs a new one.
pub const OBJECT_VERSION: u8 = 1;
/// Length of the fixed header.
pub const HEADER_LEN: usize = 16;
/// Length of the authentication tag at the end of the ciphertext.
pub const TAG_LEN: usize = 16;

const ID_CONTEXT: &str = "imgctl object id v1";

/// What an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// Up to [`crate::limits::BLOCK_SIZE`] bytes of one file.
    Block,
    /// Small changes to blocks of one data leaf.
    Patch,
    /// A node of an index.
    Node,
    /// The order in which a checkout touched its objects.
    Trace,
}

impl ObjectKind {
    fn code(self) -> u8 {
        match self {
            Self::Block => 1,
            Self::Patch => 2,
            Self::Node => 3,
            Self::Trace => 4,
        }
    }

    fn children_max(self) -> usize {
        match self {
            Self::Block | Self::Patch => 0,
            Self::Node => NODE_CHILDREN_MAX,
            Self::Trace => TRACE_LEN_MAX,
        }
    }
}

/// The clear part of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the object holds.
    pub kind: ObjectKind,
    /// Height of a node above the leaves; zero for every other kind.
    pub level: u8,
    /// Which home secret sealed it.
    pub key_epoch: KeyEpoch,
    /// Objects that this one names, distinct, in order of first occurrence.
    pub children: Vec<ObjectId>,
}

impl Header {
    /// The header of an object without children.
    pub fn leaf(kind: ObjectKind, key_epoch: KeyEpoch) -> Self {
        Self {
            kind,
            level: 0,
            key_epoch,
            children: Vec::new(),
        }
    }

    /// The first 16 bytes.
    pub fn fixed(&self) -> [u8; HEADER_LEN] {
        let count = u32::try_from(self.children.len()).expect("bounded by the trace limit");
        let mut fixed = [0; HEADER_LEN];
        fixed[0] = OBJECT_VERSION;
        fixed[1] = self.kind.code();
        fixed[2] = self.level;
        fixed[4..8].copy_from_slice(&self.key_epoch.0.to_le_bytes());
        fixed[8..12].copy_from_slice(&count.to_le_bytes());
        fixed
    }

    /// The whole clear part: fixed header and children.
    pub fn encode(&self) -> Vec<u8> {
        let mut clear = Vec::with_capacity(HEADER_LEN + 32 * self.children.len());
        clear.extend_from_slice(&self.fixed());
        for child in &self.children {
            clear.extend_from_slice(child.as_bytes());
        }
        clear
    }

    /// The id of the object that joins this header with `ciphertext`.
    pub fn object_id(&self, ciphertext: &[u8]) -> ObjectId {
        let root = children_root(&self.children).unwrap_or([0; 32]);
        object_id(&self.fixed(), &root, &hash_ciphertext(ciphertext))
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.u8()?;
        if version != OBJECT_VERSION {
            return Err(DecodeError("unknown object version"));
        }
        let kind = match reader.u8()? {
            1 => ObjectKind::Block,
            2 => ObjectKind::Patch,
            3 => ObjectKind::Node,
            4 => ObjectKind::Trace,
            _ => return Err(DecodeError("unknown object kind")),
        };
        let level = reader.u8()?;
        if level > NODE_LEVEL_MAX || (level > 0 && kind != ObjectKind::Node) {
            return Err(DecodeError("object level out of range"));
        }
        if reader.u8()? != 0 {
            return Err(DecodeError("reserved byte set"));
        }
        let key_epoch = KeyEpoch(reader.u32()?);
        let count = reader.u32()? as usize;
        if count > kind.children_max() {
            return Err(DecodeError("too many children"));
        }
        if reader.u32()? != 0 {
            return Err(DecodeError("reserved byte set"));
        }
        let children = reader
            .take(32 * count)?
            .chunks_exact(32)
            .filter_map(ObjectId::from_slice)
            .collect();
        Ok(Self {
            kind,
            level,
            key_epoch,
            children,
        })
    }
}

/// An object taken apart into its clear part and its ciphertext, without having been opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The clear part.
    pub header: Header,
    /// The sealed part, its tag included.
    pub ciphertext: &'a [u8],
}

impl<'a> Parsed<'a> {
    /// Takes stored bytes apart.
    ///
    /// # Errors
    /// The bytes are not a canonical object within the limits.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > OBJECT_LEN_MAX {
            return Err(DecodeError("object too long"));
        }
        let mut reader = Reader::new(bytes);
        let header = Header::decode(&mut reader)?;
        let ciphertext = reader.take(reader.remaining())?;
        let sealed_len = ciphertext.len().saturating_sub(TAG_LEN);
        if sealed_len < PADDED_LEN_MIN || padded_len(sealed_len) != sealed_len {
            return Err(DecodeError("ciphertext has no padded length"));
        }
        Ok(Self { header, ciphertext })
    }

    /// The id of these bytes.
    pub fn id(&self) -> ObjectId {
        self.header.object_id(self.ciphertext)
    }
}

/// Says that stored bytes are not the object that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The bytes are no object at all.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// The bytes are another object.
    #[error("the object's content does not match its id")]
    Mismatch,
}

/// Checks that `bytes` are the object `id` and takes them apart.
///
/// # Errors
/// They are malformed or have another id.
pub fn verify(id: ObjectId, bytes: &[u8]) -> Result<Parsed<'_>, VerifyError> {
    let parsed = Parsed::decode(bytes)?;
    if parsed.id() == id {
        Ok(parsed)
    } else {
        Err(VerifyError::Mismatch)
    }
}

/// Proves that one object names another, to somebody who has neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildProof {
    /// The parent's fixed header.
    pub fixed: [u8; HEADER_LEN],
    /// BLAKE3 of the parent's ciphertext.
    pub ciphertext_hash: [u8; 32],
    /// Place of the child among the parent's children.
    pub position: u32,
    /// Sibling hashes from the child to the children root.
    pub path: Vec<[u8; 32]>,
}

impl ChildProof {
    /// Proves the child at `position`.
    ///
    /// # Errors
    /// There is no such child.
    pub fn new(parent: &Parsed<'_>, position: u32) -> Result<Self, DecodeError> {
        if position as usize >= parent.header.children.len() {
            return Err(DecodeError("no such child"));
        }
        let tree = children_tree(&parent.header.children);
        Ok(Self {
            fixed: parent.header.fixed(),
            ciphertext_hash: hash_ciphertext(parent.ciphertext),
            position,
            path: tree.proof(&[position as usize]).proof_hashes().to_vec(),
        })
    }

    /// Checks that `parent` names `child` at this proof's position.
    pub fn verify(&self, parent: ObjectId, child: ObjectId) -> bool {
        let Some(count) = self.child_count() else {
            return false;
        };
        if self.position >= count {
            return false;
        }
        let leaf = TaggedBlake3::hash(child.as_bytes());
        let proof = MerkleProof::<TaggedBlake3>::new(self.path.clone());
        let Ok(root) = proof.root(&[self.position as usize], &[leaf], count as usize) else {
            return false;
        };
        object_id(&self.fixed, &root, &self.ciphertext_hash) == parent
    }

    /// How many children the parent claims to have; nothing if its header is none.
    pub fn child_count(&self) -> Option<u32> {
        let count = u32::from_le_bytes(self.fixed[8..12].try_into().expect("four bytes"));
        (count as usize <= TRACE_LEN_MAX).then_some(count)
    }

    /// Appends the proof's bytes.
    pub fn encode(&self, record: &mut Vec<u8>) {
        record.extend_from_slice(&self.fixed);
        record.extend_from_slice(&self.ciphertext_hash);
        record.put_u32(self.position);
        record.put_u8(u8::try_from(self.path.len()).expect("a path has at most 14 hashes"));
        for hash in &self.path {
            record.extend_from_slice(hash);
        }
    }

    /// Reads a proof.
    ///
    /// # Errors
    /// The bytes are malformed.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let fixed = reader.array()?;
        let ciphertext_hash = reader.array()?;
        let position = reader.u32()?;
        let len = reader.u8()? as usize;
        if len > TRACE_LEN_MAX.ilog2() as usize {
            return Err(DecodeError("proof too long"));
        }
        let path = (0..len).map(|_| reader.array()).collect::<Result<_, _>>()?;
        Ok(Self {
            fixed,
            ciphertext_hash,
            position,
            path,
        })
    }
}

/// One step of a challenge's walk from a root down: a child, and the proof that its parent names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The child that is gone to.
    pub child: ObjectId,
    /// Proves it.
    pub proof: ChildProof,
}

impl Step {
    /// Most steps of a walk: from the highest node down to a leaf and to a block.
    pub const COUNT_MAX: usize = NODE_LEVEL_MAX as usize + 1;

    /// Takes the step that `seed` chooses from `parent`, which is `depth` steps below the root; nothing if
    /// `parent` has no children.
    pub fn choose(parent: &Parsed<'_>, seed: &[u8; 32], depth: usize) -> Option<Self> {
        let children = &parent.header.children;
        let position = chosen_position(seed, depth, u32::try_from(children.len()).ok()?)?;
        Some(Self {
            child: children[position as usize],
            proof: ChildProof::new(parent, position).ok()?,
        })
    }

    /// Tells whether this is the step that `seed` chooses from an object `depth` steps below the root.
    pub fn is_chosen(&self, seed: &[u8; 32], depth: usize) -> bool {
        let count = self.proof.child_count();
        let chosen = count.and_then(|count| chosen_position(seed, depth, count));
        chosen == Some(self.proof.position)
    }

    /// Appends the step's bytes: id of the child, then its proof.
    pub fn encode(&self, record: &mut Vec<u8>) {
        record.extend_from_slice(self.child.as_bytes());
        self.proof.encode(record);
    }

    /// Reads a step.
    ///
    /// # Errors
    /// The bytes are malformed.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let child = ObjectId::from_bytes(reader.array()?);
        let proof = ChildProof::decode(reader)?;
        Ok(Self { child, proof })
    }
}

/// Which of `count` children a challenge goes to: number `u64(BLAKE3_keyed(seed, depth)) mod count`, the
/// depth being one byte and the hash's first 8 bytes little-endian; nothing if there are none.
fn chosen_position(seed: &[u8; 32], depth: usize, count: u32) -> Option<u32> {
    let hash = blake3::keyed_hash(seed, &[u8::try_from(depth).ok()?]);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    let chosen = u64::from_le_bytes([a, b, c, d, e, f, g, h]).checked_rem(u64::from(count))?;
    u32::try_from(chosen).ok()
}

/// The Merkle root over child ids; nothing for an object without children.
pub fn children_root(children: &[ObjectId]) -> Option<[u8; 32]> {
    if children.is_empty() {
        None
    } else {
        children_tree(children).root()
    }
}

fn children_tree(children: &[ObjectId]) -> MerkleTree<TaggedBlake3> {
    let leaves: Vec<_> = children
        .iter()
        .map(|child| TaggedBlake3::hash(child.as_bytes()))
        .collect();
    MerkleTree::from_leaves(&leaves)
}

fn object_id(
    fixed: &[u8; HEADER_LEN],
    children_root: &[u8; 32],
    ciphertext_hash: &[u8; 32],
) -> ObjectId {
    let mut hasher = blake3::Hasher::new_derive_key(ID_CONTEXT);
    hasher.update(fixed);
    hasher.update(children_root);
    hasher.update(ciphertext_hash);
    ObjectId::from_bytes(*hasher.finalize().as_bytes())
}

fn hash_ciphertext(ciphertext: &[u8]) -> [u8; 32] {
    *blake3::hash(ciphertext).as_bytes()
}

/// BLAKE3 that keeps leaves and inner nodes apart, which the tree itself does not.
#[derive(Clone)]
struct TaggedBlake3;

impl Hasher for TaggedBlake3 {
    type Hash = [u8; 32];

    fn hash(data: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[0]);
        hasher.update(data);
        *hasher.finalize().as_bytes()
    }

    fn concat_and_hash(left: &[u8; 32], right: Option<&[u8; 32]>) -> [u8; 32] {
        // A lone node moves up unchanged; the count of children is bound by the header.
        let Some(right) = right else { return *left };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[1]);
        hasher.update(left);
        hasher.update(right);
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(count: usize) -> Vec<ObjectId> {
        (0..count)
            .map(|n| ObjectId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes()))
            .collect()
    }

    fn node(children: usize) -> (Header, Vec<u8>) {
        let header = Header {
            kind: ObjectKind::Node,
            level: 1,
            key_epoch: KeyEpoch(3),
            children: ids(children),
        };
        let ciphertext = vec![0x5a; PADDED_LEN_MIN + TAG_LEN];
        let bytes = [header.encode(), ciphertext].concat();
        (header, bytes)
    }

    #[test]
    fn every_bit_flip_changes_the_id_or_breaks_the_object() {
        let (header, mut bytes) = node(5);
        let id = header.object_id(&bytes[HEADER_LEN + 5 * 32..]);
        assert_eq!(verify(id, &bytes).unwrap().header, header);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(id, &bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn refuses_what_is_beyond_the_limits() {
        let (_, bytes) = node(2);
        assert!(
            Parsed::decode(&bytes[..bytes.len() - 1]).is_err(),
            "not padded"
        );
        assert!(Parsed::decode(&[0; 8]).is_err());
        let mut many = bytes.clone();
        many[8..12].copy_from_slice(&1_001u32.to_le_bytes());
        assert!(Parsed::decode(&many).is_err());
        let mut deep = bytes;
        deep[2] = NODE_LEVEL_MAX + 1;
        assert!(Parsed::decode(&deep).is_err());
    }

    proptest! {
        #[test]
        fn proofs_hold_for_every_child_and_for_nothing_else(count in 1usize..200, pick: u32) {
            let (header, bytes) = node(count);
            let parsed = Parsed::decode(&bytes).unwrap();
            let parent = parsed.id();
            let position = pick % count as u32;
            let proof = ChildProof::new(&parsed, position).unwrap();
            let mut record = Vec::new();
            proof.encode(&mut record);
            let mut reader = Reader::new(&record);
            let proof = ChildProof::decode(&mut reader).unwrap();
            let child = header.children[position as usize];
            prop_assert!(proof.verify(parent, child));
            let other = ObjectId::from_bytes([9; 32]);
            prop_assert!(!proof.verify(parent, other));
            prop_assert!(!proof.verify(other, child));
            let shifted = ChildProof { position: (position + 1) % count as u32, ..proof };
            prop_assert!(count == 1 || !shifted.verify(parent, child));
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Parsed::decode(&bytes);
        }
    }
}
