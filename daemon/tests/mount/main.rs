//! Real programs in a real FUSE mount of an empty tree.
//!
//! These run as root on a machine with `/dev/fuse`; nothing but the home is left out: the tree's
//! source has no objects and says so.

mod contents;
mod crash;
mod names;
mod programs;
mod support;
