//! Where sealed objects lie: the home's spools and packs, and the device's bounded cache.
//!
//! This crate owns bytes under object ids and what survives a crash of the machine. It knows no keys and no
//! names, and it does not decide which object is wanted: the home's database and the daemon do. The byte
//! layouts are described in `docs/formats.md`.
//!
//! - [`spool`]: an append-only file that takes uploads and is synced before they are acknowledged.
//! - [`pack`], [`packs`]: a full spool as one immutable file in an object store.
//! - [`cache`]: segment files that hold what a device has fetched or still has to send.

pub mod cache;
pub mod pack;
pub mod packs;
pub mod spool;

mod error;
mod record;
mod table;

pub use cache::{Cache, Keep, Usage};
pub use error::StoreError;
pub use pack::{Pack, PackId};
pub use packs::{PackError, Packs};
pub use spool::{Spool, SpoolReader};
pub use table::{Place, Table};
