//! Puts a block together from its base and its patches, if all of them are in memory.

use bytes::Bytes;
use img_index::Extent;
use img_seal::Reference;
use rustix::io::Errno;

use super::source::{Source, Wanted};
use super::view::Failure;

/// Returns the block's bytes; what is behind them up to the block's end is zeros.
///
/// # Errors
/// The base or a patch is not in memory, or a patch is malformed (EIO).
pub(super) fn assemble(source: &dyn Source, extent: &Extent) -> Result<Bytes, Failure> {
    let mut wanted = Wanted::default();
    let mut take = |reference: &Reference| {
        let content = source.block(reference);
        if content.is_none() {
            wanted.blocks.push(*reference);
        }
        content
    };
    let parts: Vec<_> = crate::block::references(extent).map(&mut take).collect();
    if !wanted.is_empty() {
        return Err(Failure::Absent(wanted));
    }
    let mut parts: Vec<Bytes> = parts.into_iter().flatten().collect();
    if extent.patches.is_empty() {
        // The zeros behind it are the reader's business, and a copy less.
        return Ok(parts.pop().unwrap_or_default());
    }
    crate::block::assemble(extent, parts).map_err(|error| {
        tracing::error!(%error, "a block cannot be put together");
        Errno::IO.into()
    })
}
