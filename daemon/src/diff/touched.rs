//! Which inodes and names are not alike in two states: what a kernel that knew one has to forget for the other.

use std::sync::Arc;

use img_index::KeyParts;
use img_proto::Class;
use img_seal::Reference;
use tokio::runtime::Handle;

use super::reader::{Reader, data, metadata};
use super::{DiffError, inode_of};
use crate::import::Cancel;
use crate::mount::Forget;
use crate::objects::Objects;

/// Finds everything that differs between two roots, and brings the nodes that say so to this device. Reads nothing
/// that the two share, and no contents. Blocks: for a thread that may, within a runtime that fetches.
///
/// # Errors
/// A part of a state cannot be had or does not verify.
pub fn touched(
    objects: &Arc<Objects>,
    runtime: &Handle,
    before: Reference,
    after: Reference,
    cancel: &Cancel,
) -> Result<Forget, DiffError> {
    // Somebody waits, and it is little.
    let reader = Reader::new(objects, runtime, cancel, Class::Demand);
    let mut forget = Forget::default();
    for range in [metadata(), data()] {
        let mut differences = reader.differences(before, after, range);
        while let Some(difference) = differences.next_if(|_| true)? {
            // Of a name the folder: what was listed of it is not so any more.
            let inode = inode_of(&difference);
            if inode != forget.inodes.last().copied() {
                forget.inodes.extend(inode);
            }
            if let KeyParts::Entry { parent, name, .. } = difference.key.parts() {
                forget.entries.push((parent, name.into()));
            }
        }
    }
    forget.inodes.sort_unstable();
    forget.inodes.dedup();
    Ok(forget)
}
