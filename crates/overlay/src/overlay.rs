//! The stack of generations over a root.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use img_index::{Extent, Inode, Key, KeyParts, KeyRange};
use img_types::limits::{
    BLOCK_SIZE, GENERATION_DIRTY_MAX, GENERATION_EDITS_MAX, GENERATIONS_UNSEALED_MAX,
};

use crate::change::Change;
use crate::edits::Layer;
use crate::generation::{Generation, GenerationId, Open};
use crate::ranges::Source;
use crate::view::RangeView;

/// Where a part of a file's bytes comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// An arena.
    Arena {
        /// The generation whose arena it is.
        generation: GenerationId,
        /// First byte in the arena.
        position: u64,
        /// How many bytes.
        len: u64,
    },
    /// Nowhere: the bytes are zero.
    Zero {
        /// How many bytes.
        len: u64,
    },
    /// A block that was copied from another file by reference.
    Copied {
        /// The block's parts.
        extent: Arc<Extent>,
        /// First byte in the block.
        offset: u32,
        /// How many bytes; never beyond the block's end.
        len: u64,
    },
    /// The root.
    Below {
        /// First byte in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

impl Piece {
    /// How many bytes the piece has.
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub fn len(&self) -> u64 {
        match self {
            Self::Arena { len, .. }
            | Self::Zero { len }
            | Self::Copied { len, .. }
            | Self::Below { len, .. } => *len,
        }
    }
}

/// What later generations remove, seen from an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The inodes that go; their numbers never come again.
    pub inodes: BTreeSet<Inode>,
    /// All names that change, those of the inodes among them.
    pub names: BTreeSet<Key>,
}

/// A checkout's local changes: closed generations under the one that is written to.
///
/// What one generation does not mention the next older one decides, and at last the root.
#[derive(Debug, PartialEq)]
pub struct Overlay {
    top: Open,
    /// Oldest first.
    closed: VecDeque<Arc<Generation>>,
}

impl Overlay {
    /// Starts with one empty generation of this number.
    pub fn new(first: GenerationId) -> Self {
        Self {
            top: Open::new(first),
            closed: VecDeque::with_capacity(GENERATIONS_UNSEALED_MAX + 1),
        }
    }

    /// Changes the top generation.
    pub fn apply(&mut self, change: Change) {
        self.top.apply(change);
    }

    /// Looks a key of zone 0 or 1 up. Data is [`read`](Self::read).
    pub fn get(&self, key: &Key) -> Layer {
        self.newest_first()
            .map(|generation| generation.get(key))
            .find(|layer| *layer != Layer::Below)
            .unwrap_or(Layer::Below)
    }

    /// Merges what all generations say about a range of keys of zone 0 or 1, up to `limit` entries.
    pub fn range(&self, range: &KeyRange, limit: usize) -> RangeView {
        let oldest_first = self
            .closed
            .iter()
            .map(Arc::as_ref)
            .chain([self.top.generation()]);
        RangeView::merge(oldest_first, range, limit)
    }

    /// Resolves `len` bytes of a file: pieces in order that cover exactly what was asked for.
    pub fn read(&self, inode: Inode, offset: u64, len: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.resolve(0, inode, offset..offset.saturating_add(len), &mut pieces);
        pieces
    }

    /// How many ranges of a file the generations hold together, at most so many pieces does it read as beside the
    /// gaps between them. Constant work for each generation.
    pub fn ranges(&self, inode: Inode) -> usize {
        let files = self
            .newest_first()
            .filter_map(|generation| generation.file(inode));
        files.map(|file| file.ranges.len()).sum()
    }

    /// Bytes of a file that lie in arenas; what a generation overwrites of an older one counts twice. Constant work
    /// for each generation.
    pub fn arena_bytes(&self, inode: Inode) -> u64 {
        let files = self
            .newest_first()
            .filter_map(|generation| generation.file(inode));
        files.map(|file| file.ranges.arena_bytes()).sum()
    }

    /// Divides a range that is about to be written: the parts that the top generation's arena holds
    /// come with their position there and are overwritten in place, the others need a new one.
    pub fn place(&self, inode: Inode, offset: u64, len: u64) -> Vec<(Range<u64>, Option<u64>)> {
        let end = offset.saturating_add(len);
        let mut places = Vec::new();
        let mut at = offset;
        if let Some(file) = self.top.generation().file(inode) {
            for span in file.ranges.within(offset, end) {
                let Source::Arena(position) = span.source else {
                    continue;
                };
                if at < span.start {
                    places.push((at..span.start, None));
                }
                places.push((span.start..span.end, Some(position)));
                at = span.end;
            }
        }
        if at < end {
            places.push((at..end, None));
        }
        places
    }

    /// Closes the top generation and opens an empty one over it; answers the closed one's number.
    ///
    /// The work is constant: nothing that the generation holds is looked at, moved or copied.
    pub fn freeze(&mut self) -> GenerationId {
        let id = self.top.generation().id();
        let closed = std::mem::replace(&mut self.top, Open::new(id.next()));
        self.closed.push_back(closed.close());
        id
    }

    /// The closed generations, oldest first.
    pub fn closed(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.closed.iter()
    }

    /// Takes the oldest closed generation off, now that the root contains it. Nothing happens if
    /// the oldest is another one.
    pub fn drop_oldest(&mut self, id: GenerationId) -> Option<Arc<Generation>> {
        self.closed.pop_front_if(|oldest| oldest.id() == id)
    }

    /// What the generations after this one remove for good.
    pub fn removed_after(&self, id: GenerationId) -> Removed {
        let later = self.newest_first().filter(|later| later.id() > id);
        let mut removed = Removed::default();
        for generation in later {
            let dropped = generation.files().filter(|(_, changes)| changes.dropped);
            removed.inodes.extend(dropped.map(|(inode, _)| *inode));
            let keys = generation.edits().keys().keys();
            let names = keys.filter(|key| matches!(key.parts(), KeyParts::Entry { .. }));
            removed.names.extend(names.cloned());
        }
        removed
    }

    /// The generation that is written to.
    pub fn top(&self) -> &Generation {
        self.top.generation()
    }

    /// Whether nothing has changed since the last freeze.
    pub fn top_is_empty(&self) -> bool {
        self.top().is_empty()
    }

    /// Bytes of files in the arenas of all generations that are still wanted.
    pub fn dirty_bytes(&self) -> u64 {
        self.newest_first().map(Generation::dirty_bytes).sum()
    }

    /// Estimated memory of all edits and ranges in bytes.
    pub fn edit_bytes(&self) -> u64 {
        self.newest_first().map(Generation::edit_bytes).sum()
    }

    /// Whether a closed generation more may wait for its seal.
    pub fn has_room(&self) -> bool {
        self.closed.len() < GENERATIONS_UNSEALED_MAX
    }

    /// Whether the top generation is to be closed for its size. While too many wait for their seal
    /// it grows on.
    pub fn close_wanted(&self) -> bool {
        let top = self.top();
        let large =
            top.edit_bytes() >= GENERATION_EDITS_MAX || top.arena_end() >= GENERATION_DIRTY_MAX;
        large && self.has_room()
    }

    fn newest_first(&self) -> impl Iterator<Item = &Generation> {
        std::iter::once(self.top.generation()).chain(self.closed.iter().rev().map(Arc::as_ref))
    }

    /// Resolves what `depth` generations from the top have left open.
    fn resolve(&self, depth: usize, inode: Inode, range: Range<u64>, pieces: &mut Vec<Piece>) {
        if range.is_empty() {
            return;
        }
        let Some(generation) = self.newest_first().nth(depth) else {
            let len = range.end - range.start;
            return push(
                pieces,
                Piece::Below {
                    offset: range.start,
                    len,
                },
            );
        };
        let Some(file) = generation.file(inode) else {
            return self.resolve(depth + 1, inode, range, pieces);
        };
        let gap = |range: Range<u64>, pieces: &mut Vec<Piece>| match file.dropped {
            true if range.is_empty() => {}
            true => push(
                pieces,
                Piece::Zero {
                    len: range.end - range.start,
                },
            ),
            false => self.resolve(depth + 1, inode, range, pieces),
        };
        let mut at = range.start;
        for span in file.ranges.within(range.start, range.end) {
            gap(at..span.start, pieces);
            at = span.end;
            let len = span.end - span.start;
            let piece = match span.source {
                Source::Arena(position) => Piece::Arena {
                    generation: generation.id(),
                    position,
                    len,
                },
                Source::Zero => Piece::Zero { len },
                Source::Copied(extent) => Piece::Copied {
                    extent,
                    offset: offset_in_block(span.start),
                    len,
                },
            };
            push(pieces, piece);
        }
        gap(at..range.end, pieces);
    }
}

/// Appends a piece, joined with the last one where both are zero or both are the root's.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), &piece) {
        (Some(Piece::Zero { len }), Piece::Zero { len: more })
        | (Some(Piece::Below { len, .. }), Piece::Below { len: more, .. }) => *len += more,
        _ => pieces.push(piece),
    }
}

fn offset_in_block(offset: u64) -> u32 {
    let within = offset % BLOCK_SIZE as u64;
    u32::try_from(within).expect("a block is shorter than 4 GiB")
}
