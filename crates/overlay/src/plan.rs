//! What a seal has to write for one closed generation.

use std::sync::Arc;

use img_index::{Extent, Inode};
use img_types::limits::BLOCK_SIZE;

use crate::edits::Edits;
use crate::generation::{FileChanges, Generation};
use crate::ranges::{INFINITY, Ranges, Source, Span};

/// A closed generation taken apart in the order of the map: zones 0 and 1, then data by inode.
#[derive(Debug, Clone, Copy)]
pub struct SealPlan<'a> {
    generation: &'a Generation,
}

/// Plans the seal of a closed generation. It needs nothing but the generation.
pub fn plan(generation: &Generation) -> SealPlan<'_> {
    SealPlan { generation }
}

impl<'a> SealPlan<'a> {
    /// The edits of zones 0 and 1.
    pub fn edits(&self) -> &'a Edits {
        self.generation.edits()
    }

    /// The inodes whose data changed, in order.
    pub fn inodes(&self) -> impl Iterator<Item = InodePlan<'a>> + use<'a> {
        self.generation
            .files()
            .map(|(&inode, changes)| InodePlan { inode, changes })
    }
}

/// The data of one inode that a generation changed.
#[derive(Debug, Clone, Copy)]
pub struct InodePlan<'a> {
    /// The file.
    pub inode: Inode,
    changes: &'a FileChanges,
}

impl<'a> InodePlan<'a> {
    /// Whether all that the root has of this inode goes, before anything else here applies.
    pub fn dropped(&self) -> bool {
        self.changes.dropped
    }

    /// Byte ranges of whole blocks that are zero, in order: (start, exclusive end), the last one
    /// maybe without an end ([`INFINITY`]).
    pub fn cleared(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        self.changes.ranges.iter().filter_map(|span| {
            let whole = (block_up(span.start), block_down(span.end));
            (span.source == Source::Zero && whole.0 < whole.1).then_some(whole)
        })
    }

    /// The blocks with dirty bytes, in order, but for those that are zero as a whole.
    pub fn blocks(&self) -> Blocks<'a> {
        Blocks {
            ranges: &self.changes.ranges,
            from: 0,
        }
    }

    /// Whether the generation says what each of these bytes is.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for span in self.changes.ranges.within(start, end) {
            if span.start > at {
                break;
            }
            at = span.end;
        }
        at >= end
    }

    /// How many bytes of the file lie in the arena.
    pub fn dirty_bytes(&self) -> u64 {
        self.changes.ranges.arena_bytes()
    }
}

/// One changed block of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockPlan {
    /// First byte in the file, a multiple of the block size.
    pub offset: u64,
    /// Dirty ranges in order, disjoint.
    pub pieces: Vec<Dirty>,
    /// The extent that stands below the pieces instead of the root's, if one was copied here.
    pub copied: Option<Arc<Extent>>,
}

/// A dirty range of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirty {
    /// First byte in the block.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
    /// Where the bytes come from.
    pub source: DirtySource,
}

/// Where dirty bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtySource {
    /// The generation's arena, at this position.
    Arena(u64),
    /// They are zero.
    Zero,
}

impl BlockPlan {
    /// Whether the pieces cover the block's first `len` bytes.
    pub fn covers(&self, len: u32) -> bool {
        self.dirty_len(len) == len
    }

    /// How many of the block's first `len` bytes are dirty.
    pub fn dirty_len(&self, len: u32) -> u32 {
        let clipped = |dirty: &Dirty| (dirty.offset + dirty.len).min(len);
        self.pieces
            .iter()
            .map(|dirty| clipped(dirty).saturating_sub(dirty.offset))
            .sum()
    }

    /// Whether none of the block's first `len` bytes comes from the arena.
    pub(crate) fn adds_zeros_only(&self, len: u32) -> bool {
        self.pieces
            .iter()
            .all(|dirty| dirty.source == DirtySource::Zero || dirty.offset >= len)
    }
}

/// Iterates over the changed blocks of one inode.
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    ranges: &'a Ranges,
    from: u64,
}

impl Iterator for Blocks<'_> {
    type Item = BlockPlan;

    fn next(&mut self) -> Option<BlockPlan> {
        loop {
            let span = self.ranges.within(self.from, INFINITY).next()?;
            let offset = block_down(span.start);
            let block_end = offset + BLOCK;
            if span.source == Source::Zero && span.start == offset && span.end >= block_end {
                self.from = block_down(span.end);
                if span.end == INFINITY {
                    return None;
                }
                continue;
            }
            self.from = block_end;
            return Some(self.block(offset));
        }
    }
}

impl Blocks<'_> {
    fn block(&self, offset: u64) -> BlockPlan {
        let mut block = BlockPlan {
            offset,
            pieces: Vec::new(),
            copied: None,
        };
        for Span { start, end, source } in self.ranges.within(offset, offset + BLOCK) {
            let source = match source {
                Source::Arena(position) => DirtySource::Arena(position),
                Source::Zero => DirtySource::Zero,
                Source::Copied(extent) => {
                    block.copied = Some(extent);
                    continue;
                }
            };
            block.pieces.push(Dirty {
                offset: in_block(start - offset),
                len: in_block(end - start),
                source,
            });
        }
        block
    }
}

fn block_down(offset: u64) -> u64 {
    if offset == INFINITY {
        INFINITY
    } else {
        offset & !(BLOCK - 1)
    }
}

fn block_up(offset: u64) -> u64 {
    block_down(offset.saturating_add(BLOCK - 1))
}

fn in_block(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("a block is shorter than 4 GiB")
}

const BLOCK: u64 = BLOCK_SIZE as u64;
