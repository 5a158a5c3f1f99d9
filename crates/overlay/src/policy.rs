//! How a changed block is written: whole, merged with its base, or as a patch.

use img_index::Extent;
use img_types::limits::PATCHES_WANTED_MAX;

use crate::plan::BlockPlan;

/// What a seal does with one changed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockAction {
    /// Takes over the reference of a copied block as it is.
    Keep,
    /// Deletes the extent: every byte is zero.
    Hole,
    /// Writes a block from the dirty bytes and zeros alone.
    Whole,
    /// Opens the base and its patches, lays the dirty bytes over them, and writes a block.
    Merge,
    /// Writes the dirty ranges as one more patch over what is there.
    Patch,
    /// Writes the dirty ranges and the trailing patches that are at hand as one patch. Where not
    /// even the last patch is at hand and there are as many as the format allows, the parts
    /// have to be fetched first.
    Fold,
}

/// Decides how to write `block`, of which `len` bytes lie below the file's size, over the extent
/// `base` that the root has there (nothing for a hole or a new file). `at_hand` says that base and
/// patches are on this device.
///
/// Small changes stay small: below a quarter of the content a patch is written even over parts at
/// hand, until there are [`PATCHES_WANTED_MAX`]; then the parts are merged if they are at hand.
pub fn decide(block: &BlockPlan, len: u32, base: Option<&Extent>, at_hand: bool) -> BlockAction {
    if block.pieces.is_empty() {
        return BlockAction::Keep;
    }
    let base = block.copied.as_deref().or(base);
    let Some(base) = base.filter(|_| !block.covers(len)) else {
        return if block.adds_zeros_only(len) {
            BlockAction::Hole
        } else {
            BlockAction::Whole
        };
    };
    let small = block.dirty_len(len) < len / 4;
    let patches = base.patches.len();
    if small && patches < PATCHES_WANTED_MAX {
        BlockAction::Patch
    } else if at_hand {
        BlockAction::Merge
    } else if patches < PATCHES_WANTED_MAX {
        BlockAction::Patch
    } else {
        BlockAction::Fold
    }
}

#[cfg(test)]
mod tests {
    use img_index::PatchPart;
    use img_seal::{BlockKey, Reference};
    use img_types::ObjectId;
    use img_types::limits::BLOCK_SIZE;

    use super::*;
    use crate::plan::{Dirty, DirtySource};

    const BLOCK: u32 = BLOCK_SIZE as u32;

    fn extent(patches: usize) -> Extent {
        let reference = Reference {
            id: ObjectId::from_bytes([1; 32]),
            key: BlockKey::from_bytes([2; 32]),
            len: BLOCK,
        };
        let patch = PatchPart {
            reference,
            section: 0,
        };
        Extent {
            base: Some(reference),
            patches: vec![patch; patches],
        }
    }

    fn block(pieces: &[(u32, u32, DirtySource)]) -> BlockPlan {
        let pieces = pieces.iter().map(|&(offset, len, source)| Dirty {
            offset,
            len,
            source,
        });
        BlockPlan {
            offset: 0,
            pieces: pieces.collect(),
            copied: None,
        }
    }

    const DATA: DirtySource = DirtySource::Arena(0);

    #[test]
    fn a_covered_block_needs_no_base() {
        let block = block(&[(0, 100, DirtySource::Zero), (100, BLOCK - 100, DATA)]);
        assert_eq!(
            decide(&block, BLOCK, Some(&extent(0)), true),
            BlockAction::Whole
        );
        assert_eq!(
            decide(&block, BLOCK, Some(&extent(64)), false),
            BlockAction::Whole
        );
        assert_eq!(decide(&block, BLOCK, None, false), BlockAction::Whole);
    }

    #[test]
    fn only_bytes_below_the_size_count() {
        let start = block(&[(0, 3_000, DATA)]);
        assert_eq!(
            decide(&start, 3_000, Some(&extent(0)), true),
            BlockAction::Whole
        );
        assert_eq!(
            decide(&start, 4_000, Some(&extent(0)), true),
            BlockAction::Merge
        );
        let behind = block(&[(0, 10, DirtySource::Zero), (3_000, 50, DATA)]);
        assert_eq!(
            decide(&behind, 10, Some(&extent(0)), true),
            BlockAction::Hole
        );
    }

    #[test]
    fn zeros_over_nothing_are_a_hole_and_data_over_nothing_a_block() {
        let zeros = block(&[(0, 10, DirtySource::Zero)]);
        assert_eq!(decide(&zeros, BLOCK, None, true), BlockAction::Hole);
        assert_eq!(
            decide(&zeros, 10, Some(&extent(1)), true),
            BlockAction::Hole
        );
        assert_eq!(
            decide(&zeros, BLOCK, Some(&extent(1)), true),
            BlockAction::Patch
        );
        assert_eq!(
            decide(&block(&[(7, 1, DATA)]), BLOCK, None, false),
            BlockAction::Whole
        );
    }

    #[test]
    fn small_changes_stay_patches_until_there_are_four() {
        let small = block(&[(0, BLOCK / 8, DATA), (BLOCK / 2, BLOCK / 8 - 1, DATA)]);
        for patches in 0..4 {
            for at_hand in [true, false] {
                let action = decide(&small, BLOCK, Some(&extent(patches)), at_hand);
                assert_eq!(action, BlockAction::Patch);
            }
        }
        for patches in [4, 63, 64] {
            let base = extent(patches);
            assert_eq!(decide(&small, BLOCK, Some(&base), true), BlockAction::Merge);
            assert_eq!(decide(&small, BLOCK, Some(&base), false), BlockAction::Fold);
        }
    }

    #[test]
    fn large_changes_are_merged_if_that_needs_no_network() {
        let large = block(&[(0, BLOCK / 4, DATA)]);
        assert_eq!(
            decide(&large, BLOCK, Some(&extent(0)), true),
            BlockAction::Merge
        );
        assert_eq!(
            decide(&large, BLOCK, Some(&extent(0)), false),
            BlockAction::Patch
        );
        assert_eq!(
            decide(&large, BLOCK, Some(&extent(4)), false),
            BlockAction::Fold
        );
    }

    #[test]
    fn a_copied_block_stands_in_for_the_base() {
        let mut copied = block(&[]);
        copied.copied = Some(extent(4).into());
        assert_eq!(decide(&copied, BLOCK, None, false), BlockAction::Keep);
        copied.pieces = block(&[(0, 1, DATA)]).pieces;
        assert_eq!(decide(&copied, BLOCK, None, false), BlockAction::Fold);
        assert_eq!(
            decide(&copied, BLOCK, Some(&extent(0)), true),
            BlockAction::Merge
        );
    }
}
