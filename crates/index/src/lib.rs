//! The index: an image's one sorted map as an immutable Merkle search tree.
//!
//! This crate owns the keys and values of the map, the bytes of its nodes, where nodes are cut, and
//! the operations on whole trees: [`get`], [`range`], [`diff`](fn@diff) and [`apply`](fn@apply). The
//! same map has the same root, whatever the order of the edits that led to it, because cuts depend
//! on keys and not on history.
//!
//! It is a pure core. Nodes come from a [`NodeSource`] that has them in memory or says that it has
//! not; who calls then fetches what is named [`Absent`] and calls again. The crate knows no files,
//! no network, no clock, and nothing of overlays. The bytes are described in `docs/formats.md`.

mod apply;
mod boundary;
mod cursor;
mod diff;
mod gap;
mod load;
mod writer;

pub mod key;
pub mod node;
pub mod patch;
pub mod proof;
pub mod tree;
pub mod value;

pub use apply::{ApplyError, Edit, apply};
pub use boundary::{Boundary, name_hash};
pub use diff::{Diff, Difference, diff};
pub use gap::{Gap, cut_out};
pub use key::{Fact, Inode, Key, KeyParts, KeyRange, NameHash};
pub use load::Loader;
pub use node::{Node, NodeError};
pub use patch::{Patch, PatchRange};
pub use proof::{Proof, ProofError, prove};
pub use tree::{Absent, NodeSink, NodeSource, ReadError, get, open_node, range};
pub use value::{Attributes, Extent, FileKind, PatchPart, Timestamp, Value, Xattr};

#[cfg(test)]
mod tests;
