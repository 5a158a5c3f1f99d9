//! Proving possession: inclusion proofs along a path that a device chose, and the object at its end.

use bytes::Bytes;
use img_types::ObjectId;
use img_types::limits::NODE_LEVEL_MAX;
use img_types::object::{ChildProof, Parsed};

use super::Objects;
use crate::db::Stop;

/// Walks from `root` down by `seed` and proves each step.
pub(crate) async fn prove(
    objects: &Objects,
    root: ObjectId,
    seed: &[u8; 32],
) -> Result<(Vec<Bytes>, Bytes), Stop> {
    let mut steps = Vec::new();
    let mut id = root;
    loop {
        let lost = || Stop::Broken(format!("object {id} of a commit is not here"));
        let bytes = objects.get(id).await?.ok_or_else(lost)?;
        let parsed = Parsed::decode(&bytes).map_err(|error| Stop::Broken(error.to_string()))?;
        let children = &parsed.header.children;
        let Ok(count) = u32::try_from(children.len()) else {
            return Err(lost());
        };
        if count == 0 || steps.len() > usize::from(NODE_LEVEL_MAX) {
            return Ok((steps, bytes));
        }
        let position = chosen(seed, steps.len(), count);
        let proof =
            ChildProof::new(&parsed, position).map_err(|error| Stop::Broken(error.to_string()))?;
        let mut step = Vec::new();
        proof.encode(&mut step);
        steps.push(step.into());
        id = children[position as usize];
    }
}

/// Which of `count` children the walk takes at a depth: nobody but the device knew before.
fn chosen(seed: &[u8; 32], depth: usize, count: u32) -> u32 {
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher.update(&(depth as u64).to_le_bytes());
    let hash = hasher.finalize();
    let word = hash
        .as_bytes()
        .first_chunk()
        .copied()
        .map_or(0, u64::from_le_bytes);
    u32::try_from(word % u64::from(count)).unwrap_or(0)
}
