//! The device daemon: checkouts of images, mounted at once, changed locally, streamed home.
//!
//! The parts and their paths are described in `docs/architecture.md`, the interface to people and
//! scripts in `docs/control-api.md`. A daemon serves one state folder, one home and one user.

pub mod acl;
pub mod arena;
pub mod background;
pub mod block;
pub mod branch;
pub mod cgroup;
pub mod checkouts;
pub mod commits;
pub mod config;
pub mod control;
pub mod daemon;
pub mod diff;
pub mod enrol;
pub mod error;
pub mod events;
pub mod export;
pub mod home;
pub mod identity;
pub mod images;
pub mod import;
pub mod journal;
pub mod keeper;
pub mod memory;
pub mod mount;
pub mod objects;
mod random;
pub mod seal;
pub mod state;
pub mod stream;
pub mod tree;
pub mod uplink;
