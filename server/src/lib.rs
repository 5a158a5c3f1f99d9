//! The home server: leases, commits and history in a database, sealed objects in packs.
//!
//! It owns what survives the loss of a device. It deliberately has no code that could open an
//! object, a name or a message: it sees ids, sizes, which object names which, and signed records.
//! The rules of leases and heads are `img-lease`'s, the bytes of records `img-records`', the wire is
//! `img-net`'s and `img-proto`'s; `docs/protocol.md` describes how they meet here.

mod audit;
mod backup;
mod calls;
mod check;
mod clock;
mod connection;
mod db;
mod folder;
mod home;
mod ingest;
mod init;
mod objects;
mod proposal;
mod serve;
mod size;
#[cfg(test)]
mod tests;

pub use backup::{BackupError, Copied, backup, restore};
pub use check::{CheckError, Findings, Pinned, Usage, check, usage};
pub use db::{Address, OpenError};
pub use folder::{Folder, FolderError, FolderLock};
pub use home::{Places, StartError};
pub use init::{DEFAULT_PORT, InitError, default_address, init, invite};
pub use serve::Running;
pub use size::show_size;

/// Random bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| RandomError(error.to_string()))?;
    Ok(bytes)
}

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes: {0}")]
struct RandomError(String);
