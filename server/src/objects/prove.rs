//! Proving possession: inclusion proofs along a path that a device chose, and the object at its end.
//!
//! The child at depth d, from 0 at the root, is number `u64(BLAKE3_keyed(seed, d)) mod count` (d is
//! one byte; little-endian, first 8 bytes); each step is the child's id and the proof that its
//! parent names it. `docs/protocol.md` describes the challenge.

use bytes::Bytes;
use img_types::ObjectId;
use img_types::limits::NODE_LEVEL_MAX;
use img_types::object::{ChildProof, Parsed};

use super::Objects;
use crate::db::Stop;

/// From the highest node down to a leaf and to a block.
const STEPS_MAX: usize = NODE_LEVEL_MAX as usize + 1;

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
        let malformed = |error| Stop::Broken(format!("object {id} is damaged: {error}"));
        let bytes = objects.get(id).await?.ok_or_else(lost)?;
        let parsed = Parsed::decode(&bytes).map_err(malformed)?;
        let children = &parsed.header.children;
        if children.is_empty() || steps.len() == STEPS_MAX {
            return Ok((steps, bytes));
        }
        let position = pick(seed, steps.len(), children.len());
        let child = children[position];
        let mut step = child.as_bytes().to_vec();
        ChildProof::new(&parsed, u32::try_from(position).unwrap_or(u32::MAX))
            .map_err(malformed)?
            .encode(&mut step);
        steps.push(step.into());
        id = child;
    }
}

/// Chooses one of `count` children, which is not zero, at a depth below the root.
fn pick(seed: &[u8; 32], depth: usize, count: usize) -> usize {
    let hash = blake3::keyed_hash(seed, &[depth as u8]);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) % count as u64) as usize
}
