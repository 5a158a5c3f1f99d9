//! Puts the content of a block together from its base and its patches.
//!
//! One rule for all who read: the base, zeros behind it up to the block's end, then each patch's
//! section over it, in order. Where the parts come from is the business of [`Objects`].
//! "Blocks" and "Patches" in `docs/formats.md` describe the parts.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use img_index::{Extent, Patch};
use img_proto::Class;
use img_seal::Reference;
use img_types::limits::BLOCK_SIZE;

use crate::objects::{FetchError, Objects};

/// Reads a whole block, [`BLOCK_SIZE`] bytes, from this device or the home.
///
/// # Errors
/// A part cannot be had, or is not what the extent says.
pub async fn read_block(
    objects: &Arc<Objects>,
    extent: &Extent,
    class: Class,
) -> Result<Bytes, FetchError> {
    let references: Vec<Reference> = references(extent).copied().collect();
    let parts = references.iter().map(|part| objects.block(part, class));
    assemble(extent, try_join_all(parts).await?)
}

/// Reads a whole block if this device has all of its parts; blocks on the disk, never asks the home.
///
/// # Errors
/// A part is not what the extent says.
pub fn load_block(objects: &Objects, extent: &Extent) -> Result<Option<Bytes>, FetchError> {
    let parts: Option<Vec<Bytes>> = references(extent)
        .map(|part| objects.load_block(part))
        .collect();
    parts.map(|parts| assemble(extent, parts)).transpose()
}

/// The objects that an extent names, base first, as often as it names them.
pub(crate) fn references(extent: &Extent) -> impl Iterator<Item = &Reference> {
    let patches = extent.patches.iter().map(|part| &part.reference);
    extent.base.iter().chain(patches)
}

/// Lays the opened parts of an extent over each other; `parts` come in the extent's order.
///
/// # Errors
/// A part is not what the extent says.
pub(crate) fn assemble(extent: &Extent, parts: Vec<Bytes>) -> Result<Bytes, FetchError> {
    let mut parts = parts.into_iter();
    let base = match &extent.base {
        Some(_) => parts.next().unwrap_or_default(),
        None => Bytes::new(),
    };
    if extent.patches.is_empty() && base.len() == BLOCK_SIZE {
        return Ok(base);
    }
    let mut block = vec![0; BLOCK_SIZE];
    let start = block.get_mut(..base.len());
    match (start, &extent.base) {
        (Some(start), _) => start.copy_from_slice(&base),
        (None, Some(base)) => return Err(FetchError::Corrupt(base.id)),
        (None, None) => {}
    }
    let target: &mut [u8; BLOCK_SIZE] = block
        .as_mut_slice()
        .try_into()
        .expect("made with this length");
    for (part, content) in extent.patches.iter().zip(parts) {
        Patch::decode(&content)
            .and_then(|patch| patch.apply(part.section, target))
            .map_err(|_| FetchError::Corrupt(part.reference.id))?;
    }
    Ok(block.into())
}
