//! Proofs that the home holds what a signed root names, checked without any node.
//!
//! A challenge is a seed. From the root on, the child to go to is chosen by the seed and the count of
//! children, until an object has none. The answer is one inclusion proof per step and the bytes of the
//! last object, whose id the device computes. So the home cannot answer from ids alone, it cannot
//! choose what is looked at, and the device needs nothing but the root's id. Which child is next, and
//! the bytes of a step, are [`Step`]'s, which the home has too.

use img_types::ObjectId;
use img_types::bytes::DecodeError;
use img_types::object::{Parsed, Step};

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
        let Some(step) = Step::choose(&Parsed::decode(&object)?, seed, steps.len()) else {
            return Ok(Proof { steps, object });
        };
        if steps.len() == Step::COUNT_MAX {
            return Err(DecodeError("nodes too deep").into());
        }
        id = step.child;
        steps.push(step);
    }
}

impl Proof {
    /// Checks the answer to a challenge and says which object was looked at.
    ///
    /// # Errors
    /// The proof does not hold.
    pub fn verify(&self, root: ObjectId, seed: &[u8; 32]) -> Result<ObjectId, ProofError> {
        if self.steps.len() > Step::COUNT_MAX {
            return Err(ProofError::OtherWay);
        }
        let mut id = root;
        for (depth, step) in self.steps.iter().enumerate() {
            if !step.is_chosen(seed, depth) {
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
