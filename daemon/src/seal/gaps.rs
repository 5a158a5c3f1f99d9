//! Seals over a root of which something is lost: nodes that exist neither on this device nor at home.
//!
//! A lost node with contents is cut out of the root where nothing that stays needs it: where every file whose
//! contents may be in it is removed, or written over as far as they are. That is known from the metadata, and from
//! the keys that the node's parent names; nothing is guessed. What is removed only by a later generation is left out
//! with its names then, so that an earlier one is not held up by what nobody wants any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use img_index::{
    ApplyError, Attributes, FileKind, Gap, Inode, Key, KeyParts, KeyRange, Value, cut_out,
};
use img_overlay::{Edits, Layer, plan};
use img_seal::Reference;
use img_types::ObjectId;
use img_types::limits::BLOCK_SIZE;
use tokio::runtime::Handle;

use super::facts::{LOOK_UPS_MAX, attributes, is_small};
use super::nodes::{Nodes, Outbox};
use super::{SealError, Sealing};
use crate::objects::{FetchError, Objects};

/// Finds which files' contents may have been in lost nodes, and which of their bytes: start and exclusive end.
///
/// # Errors
/// [`SealError::LostIndex`] if more than contents may have been in one; or what says so cannot be had itself.
pub async fn lost_contents(
    objects: &Arc<Objects>,
    root: Reference,
    lost: BTreeSet<ObjectId>,
) -> Result<Vec<(Inode, (u64, u64))>, SealError> {
    let (objects, runtime) = (Arc::clone(objects), Handle::current());
    let found = tokio::task::spawn_blocking(move || {
        let nodes = Nodes::new(&objects, &runtime, Some(root));
        let mut found = Vec::new();
        for gap in gaps(&nodes, &root, &lost)? {
            let files = nodes.holders(&gap)?.into_iter();
            found.extend(files.map(|(inode, _)| (inode, gap.blocks_of(inode))));
        }
        Ok(found)
    });
    found.await.unwrap_or(Err(SealError::Ending))
}

/// All of the lost nodes, in the order of their keys.
fn gaps(
    nodes: &Nodes<'_>,
    root: &Reference,
    lost: &BTreeSet<ObjectId>,
) -> Result<Vec<Gap>, SealError> {
    if lost.contains(&root.id) {
        return Err(SealError::LostIndex(None));
    }
    let found = Gap::find(nodes, root, lost);
    let known: BTreeSet<_> = found.iter().map(|gap| gap.node).collect();
    match lost.difference(&known).next() {
        // No node of this tree, or one below another.
        Some(id) => Err(FetchError::Missing(*id).into()),
        None => Ok(found),
    }
}

impl Nodes<'_> {
    /// The files of the root that may have contents in a gap.
    fn holders(&self, gap: &Gap) -> Result<Vec<(Inode, Attributes)>, SealError> {
        let Some((first, last)) = gap.contents() else {
            return Err(SealError::LostIndex(Some(Box::new(gap.clone()))));
        };
        let mut rest = KeyRange {
            start: Key::attributes(first),
            end: KeyRange::inode_metadata(last).end,
        };
        let mut holders = Vec::new();
        loop {
            let some = match self.range(&rest, ENTRIES_AT_ONCE) {
                Err(SealError::Fetch(FetchError::Missing(_) | FetchError::Corrupt(_))) => {
                    return Err(SealError::LostIndex(Some(Box::new(gap.clone()))));
                }
                some => some?,
            };
            let Some((key, _)) = some.last() else {
                return Ok(holders);
            };
            rest.start = key.successor();
            for (key, value) in some {
                if let (KeyParts::Attributes(inode), Value::Attributes(file)) = (key.parts(), value)
                    && file.kind == FileKind::File
                    && !self.is_whole_without(inode, &file, gap, inode == first || inode == last)
                {
                    holders.push((inode, file));
                }
            }
        }
    }

    /// Whether all contents of a file lie outside of a gap; of one in its midst that could only be none.
    fn is_whole_without(&self, inode: Inode, file: &Attributes, gap: &Gap, at_edge: bool) -> bool {
        let all = match file.extents {
            _ if file.size == 0 => 0,
            _ if is_small(file.size) => 1,
            Some(extents) => extents,
            None => file.size.div_ceil(BLOCK),
        };
        if all == 0 || !at_edge {
            return all == 0;
        }
        let (data, lost) = (KeyRange::data(inode), gap.range());
        let before = KeyRange {
            start: data.start,
            end: lost.start,
        };
        let after = KeyRange {
            start: lost.end,
            end: data.end,
        };
        let mut found = 0;
        for mut rest in [before, after] {
            // Where that cannot be read either, it is not whole.
            while let Ok(some) = self.range(&rest, ENTRIES_AT_ONCE)
                && let Some((key, _)) = some.last()
            {
                found += some.len() as u64;
                rest.start = key.successor();
            }
        }
        found >= all
    }
}

impl Sealing {
    /// Makes the root without lost nodes, if nothing that stays needs them.
    pub(super) fn without(&self, lost: &BTreeSet<ObjectId>) -> Result<Reference, SealError> {
        let Some(root) = self.closed.base else {
            return Err(SealError::LostIndex(None));
        };
        let nodes = self.nodes();
        let gaps = gaps(&nodes, &root, lost)?;
        let mut needed = BTreeSet::new();
        for gap in &gaps {
            let holders = nodes.holders(gap)?.into_iter();
            let stay = holders.filter(|(inode, before)| self.needs(*inode, before, gap));
            needed.extend(stay.map(|(inode, _)| inode));
        }
        if !needed.is_empty() {
            return Err(SealError::Lost(needed.into_iter().collect()));
        }
        let mut sealer = self.objects.keyring().sealer();
        loop {
            let mut sink = Outbox::new(self);
            let cut = cut_out(&gaps, &nodes, &mut sink, &mut sealer, &self.boundary, &root);
            sink.finish()?;
            match cut {
                Err(ApplyError::Absent(absent)) => nodes.fetch(&absent.0)?,
                cut => return Ok(cut?),
            }
        }
    }

    /// Whether a file still needs its contents in a gap after the generation.
    fn needs(&self, inode: Inode, before: &Attributes, gap: &Gap) -> bool {
        let edits = plan(&self.closed.generation).edits();
        let now = match edits.get(&Key::attributes(inode)) {
            Layer::Value(value) => attributes(Some(value)),
            Layer::Deleted => None,
            Layer::Below => Some(*before),
        };
        let Some(now) = now.filter(|_| !self.closed.removed.inodes.contains(&inode)) else {
            return false;
        };
        let (start, end) = gap.blocks_of(inode);
        let end = end.min(now.size);
        let changed = plan(&self.closed.generation)
            .inodes()
            .find(|file| file.inode == inode);
        start < end && !changed.is_some_and(|file| file.dropped() || file.covers(start, end))
    }

    /// Takes what later generations remove out of this one, with its names.
    pub(super) fn leave_out_removed(&self, edits: &mut Edits) -> Result<(), SealError> {
        let removed = &self.closed.removed;
        if removed.inodes.is_empty() {
            return Ok(());
        }
        let names: Vec<Key> = removed.names.iter().cloned().collect();
        for names in names.chunks(LOOK_UPS_MAX) {
            let below = self.nodes().look_up(names)?;
            for (name, below) in names.iter().zip(below) {
                let value = match edits.get(name) {
                    Layer::Value(value) => Some(value),
                    Layer::Deleted => None,
                    Layer::Below => below,
                };
                if matches!(value, Some(Value::Entry { inode, .. }) if removed.inodes.contains(&inode))
                {
                    edits.set(name.clone(), None);
                }
            }
        }
        for inode in &removed.inodes {
            edits.clear(KeyRange::inode_metadata(*inode));
            edits.clear(KeyRange::data(*inode));
            edits.set(Key::open_unlinked(*inode), None);
        }
        Ok(())
    }
}

/// Entries of the index that are looked at together.
const ENTRIES_AT_ONCE: usize = 4_096;
const BLOCK: u64 = BLOCK_SIZE as u64;
