//! Proving possession: inclusion proofs along a path that a device chose, and the object at its end.
//!
//! The walk is that of [`Step`]; `docs/protocol.md` describes the challenge.

use bytes::Bytes;
use img_types::ObjectId;
use img_types::object::{Parsed, Step};

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
        let parsed = Parsed::decode(&bytes)
            .map_err(|error| Stop::Broken(format!("object {id} is damaged: {error}")))?;
        if steps.len() == Step::COUNT_MAX {
            return Ok((steps, bytes));
        }
        let Some(step) = Step::choose(&parsed, seed, steps.len()) else {
            return Ok((steps, bytes));
        };
        let mut encoded = Vec::new();
        step.encode(&mut encoded);
        steps.push(encoded.into());
        id = step.child;
    }
}
