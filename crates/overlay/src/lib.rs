//! Local changes over an image's root: generations, dirty byte ranges and the plan of a seal.
//!
//! An image is one sorted map. What a checkout has changed since its root is a short stack of
//! **generations**: each holds edits of the map's zones 0 and 1 (values, tombstones, range clears)
//! and, per inode, the dirty byte ranges of zone 2, whose bytes lie in the generation's arena.
//! Only the top generation is written to; [`Overlay::freeze`] closes it in constant time, and a
//! closed one is immutable by type: it is only reachable through a shared [`Generation`].
//!
//! The crate computes and does nothing else: no I/O, no clock, no async. It does not know where an
//! arena's bytes are, how a journal keeps [`Change`]s, or how a root is read; it says which bytes
//! come from an arena, which are zero and which are the root's, and what a seal has to write.
//! `docs/architecture.md` describes the stack, `docs/formats.md` blocks and patches.

mod change;
mod edits;
mod generation;
mod overlay;
mod plan;
mod policy;
mod ranges;
mod view;

pub use change::Change;
pub use edits::{Edits, Layer};
pub use generation::{Generation, GenerationId};
pub use overlay::{Overlay, Piece, Removed};
pub use plan::{BlockPlan, Blocks, Dirty, DirtySource, InodePlan, SealPlan, plan};
pub use policy::{BlockAction, decide};
pub use ranges::INFINITY;
pub use view::{Merged, RangeView};
