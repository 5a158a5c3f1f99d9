//! Packing the changes of neighbouring blocks into shared patch objects.

use img_index::{Extent, Inode, Key, Patch, PatchPart, PatchRange, Value};
use img_overlay::Edits;
use img_seal::{Reference, Sealer};
use img_types::limits::{BLOCK_SIZE, PATCH_LEN_MAX};
use img_types::object::ObjectKind;

use super::{Made, SealError, Sealing};

/// Collects sections until they fill an object, or the next one belongs to another leaf.
pub(super) struct Packer<'a> {
    sealing: &'a Sealing,
    sealer: Sealer,
    patch: Patch,
    len: usize,
    /// Where each section belongs, and what its extent has before it.
    waiting: Vec<Waiting>,
    pub(super) made: Made,
}

/// A block whose last patch is about to be made.
pub(super) struct Waiting {
    pub(super) inode: Inode,
    pub(super) offset: u64,
    pub(super) base: Option<Reference>,
    pub(super) patches: Vec<PatchPart>,
}

impl<'a> Packer<'a> {
    pub(super) fn new(sealing: &'a Sealing) -> Self {
        Self {
            sealing,
            sealer: sealing.objects.keyring().sealer(),
            patch: Patch::default(),
            len: Patch::default().encoded_len(),
            waiting: Vec::new(),
            made: Made::default(),
        }
    }

    /// Takes the section of one block; blocks come in order.
    pub(super) fn add(
        &mut self,
        block: Waiting,
        section: Vec<PatchRange>,
        edits: &mut Edits,
    ) -> Result<(), SealError> {
        let alone = Patch {
            sections: vec![section],
        };
        let more = alone.encoded_len() - Patch::default().encoded_len();
        let joins = self
            .waiting
            .first()
            .is_none_or(|first| first.is_near(&block) && self.len + more <= PATCH_LEN_MAX);
        if !joins {
            self.flush(edits)?;
        }
        self.len += more;
        self.patch.sections.extend(alone.sections);
        self.waiting.push(block);
        Ok(())
    }

    /// Makes an object of what was collected, and sets the extents that name it.
    pub(super) fn flush(&mut self, edits: &mut Edits) -> Result<(), SealError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let patch = std::mem::take(&mut self.patch);
        self.len = self.patch.encoded_len();
        let sealed = self.sealer.seal(ObjectKind::Patch, &patch.encode()?)?;
        self.made.add(self.sealing.keep(&sealed)?);
        for (section, block) in (0..).zip(self.waiting.drain(..)) {
            let Waiting {
                inode,
                offset,
                base,
                mut patches,
            } = block;
            patches.push(PatchPart {
                reference: sealed.reference,
                section,
            });
            let extent = Extent { base, patches };
            edits.set(Key::extent(inode, offset), Some(Value::Extent(extent)));
        }
        Ok(())
    }
}

impl Waiting {
    /// Whether a later block's extent is likely to stand in the same leaf of the index. A patch
    /// that many leaves name would be fetched whole for the sake of little.
    fn is_near(&self, later: &Self) -> bool {
        let from = if self.inode == later.inode {
            self.offset
        } else {
            0
        };
        later.inode.0.abs_diff(self.inode.0) < LEAF_EXTENTS
            && self.offset - from < LEAF_LEN
            && later.offset.abs_diff(from) < LEAF_LEN
    }
}

/// Extents with a patch each that fill a leaf of the index.
const LEAF_EXTENTS: u64 = 32;
/// Bytes of a file that they cover.
const LEAF_LEN: u64 = LEAF_EXTENTS * BLOCK_SIZE as u64;
