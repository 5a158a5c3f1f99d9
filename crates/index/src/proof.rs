//! Proofs that the home holds what a signed root names, checked without any node.
//!
//! A challenge is a seed. From the root on, the child to go to is chosen by the seed and the count of
//! children, until an object has none. The answer is one inclusion proof per step and the bytes of the
//! last object, whose id the device computes. So the home cannot answer from ids alone, it cannot
//! choose what is looked at, and the device needs nothing but the root's id.
//!
//! The child at depth d, from 0 at the root, is number
//! `u64(BLAKE3_keyed(seed, d)) mod count` (d is one byte; little-endian, first 8 bytes).

use img_types::ObjectId;
use img_types::bytes::{DecodeError, Reader};
use img_types::limits::NODE_LEVEL_MAX;
use img_types::object::{ChildProof, Parsed};

/// One step of a walk: a child, and the proof that the object before names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The child that is gone to.
    pub child: ObjectId,
    /// Proves it.
    pub proof: ChildProof,
}

impl Step {
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

/// The answer to a challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// From the root down.
    pub steps: Vec<Step>,
    /// The stored bytes of the object at the end.
    pub object: Vec<u8>,
}

/// Says why there is no proof, or why one does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Whoever answers has not got an object on the way.
    #[error("object {0} is missing")]
    Missing(ObjectId),
    /// An object on the way is malformed.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// The walk is not the one that the seed chooses, or ends too early.
    #[error("the proof takes another way than the challenge chose")]
    OtherWay,
    /// A step does not prove what it says.
    #[error("the proof does not lead to the root")]
    Broken,
}

/// Answers a challenge from stored objects.
///
/// # Errors
/// An object on the way is missing or malformed.
pub fn prove(
    root: ObjectId,
    seed: &[u8; 32],
    mut stored: impl FnMut(&ObjectId) -> Option<Vec<u8>>,
) -> Result<Proof, ProofError> {
    let mut steps = Vec::new();
    let mut id = root;
    loop {
        let object = stored(&id).ok_or(ProofError::Missing(id))?;
        let parsed = Parsed::decode(&object)?;
        let count = parsed.header.children.len() as u32;
        if count == 0 {
            return Ok(Proof { steps, object });
        }
        if steps.len() == STEPS_MAX {
            return Err(DecodeError("nodes too deep").into());
        }
        let position = pick(seed, steps.len(), count);
        let proof = ChildProof::new(&parsed, position)?;
        id = parsed.header.children[position as usize];
        steps.push(Step { child: id, proof });
    }
}

impl Proof {
    /// Checks the answer to a challenge and says which object was looked at.
    ///
    /// # Errors
    /// The proof does not hold.
    pub fn verify(&self, root: ObjectId, seed: &[u8; 32]) -> Result<ObjectId, ProofError> {
        if self.steps.len() > STEPS_MAX {
            return Err(ProofError::OtherWay);
        }
        let mut id = root;
        for (depth, step) in self.steps.iter().enumerate() {
            let count = step.proof.child_count().filter(|count| *count > 0);
            if count.map(|count| pick(seed, depth, count)) != Some(step.proof.position) {
                return Err(ProofError::OtherWay);
            }
            if !step.proof.verify(id, step.child) {
                return Err(ProofError::Broken);
            }
            id = step.child;
        }
        let object = Parsed::decode(&self.object)?;
        if object.id() != id {
            return Err(ProofError::Broken);
        }
        if !object.header.children.is_empty() {
            return Err(ProofError::OtherWay);
        }
        Ok(id)
    }
}

/// Chooses one of `count` children, which is not zero, at a depth below the root.
fn pick(seed: &[u8; 32], depth: usize, count: u32) -> u32 {
    let hash = blake3::keyed_hash(seed, &[depth as u8]);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) % u64::from(count)) as u32
}

/// From the highest node down to a leaf and to a block.
const STEPS_MAX: usize = NODE_LEVEL_MAX as usize + 1;
