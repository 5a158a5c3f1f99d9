//! Puts a block together from its base and its patches, if all of them are in memory.

use bytes::Bytes;
use img_index::{Extent, Patch};
use img_types::limits::BLOCK_SIZE;
use rustix::io::Errno;

use super::source::{Source, Wanted};
use super::view::Failure;

/// Returns the block's bytes; what is behind them up to the block's end is zeros.
///
/// # Errors
/// The base or a patch is not in memory, or a patch is malformed (EIO).
pub(super) fn assemble(source: &dyn Source, extent: &Extent) -> Result<Bytes, Failure> {
    let mut wanted = Wanted::default();
    let mut take = |reference| {
        let content = source.block(reference);
        if content.is_none() {
            wanted.blocks.push(*reference);
        }
        content
    };
    let base = extent.base.as_ref().map(&mut take);
    let patches: Vec<_> = extent
        .patches
        .iter()
        .map(|part| (part.section, take(&part.reference)))
        .collect();
    if !wanted.is_empty() {
        return Err(Failure::Absent(wanted));
    }
    let base = base.flatten().unwrap_or_default();
    if patches.is_empty() {
        return Ok(base);
    }
    let mut block: Box<[u8; BLOCK_SIZE]> = vec![0; BLOCK_SIZE]
        .try_into()
        .expect("the vector has exactly this length");
    block
        .get_mut(..base.len())
        .ok_or(Errno::IO)?
        .copy_from_slice(&base);
    for (section, content) in patches {
        let content = content.unwrap_or_default();
        let applied = Patch::decode(&content).and_then(|patch| patch.apply(section, &mut block));
        applied.map_err(|error| {
            tracing::error!(%error, "a patch is malformed");
            Errno::IO
        })?;
    }
    Ok(Bytes::from(block as Box<[u8]>))
}
