//! Where a tree gets nodes and blocks that are not in its overlay, and keeps values too large for it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use img_index::NodeSource;
use img_proto::Class;
use img_seal::Reference;
use rustix::io::Errno;

use super::view::Failure;

/// What must be brought into memory, or made room for, before an operation can be repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Index nodes.
    pub nodes: Vec<Reference>,
    /// Blocks and patches.
    pub blocks: Vec<Reference>,
    /// Bytes that are missing on the disk.
    pub room: u64,
}

impl Wanted {
    /// Tells whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.blocks.is_empty() && self.room == 0
    }

    /// Adds what a part of an operation found absent; passes a refusal on.
    pub(super) fn add(&mut self, failure: Failure) -> Result<(), Failure> {
        let Failure::Absent(other) = failure else {
            return Err(failure);
        };
        for (mine, theirs) in [
            (&mut self.nodes, other.nodes),
            (&mut self.blocks, other.blocks),
        ] {
            let known: BTreeSet<Reference> = mine.iter().copied().collect();
            mine.extend(theirs.into_iter().filter(|r| !known.contains(r)));
        }
        self.room = self.room.max(other.room);
        Ok(())
    }
}

/// Says why something could not be brought into memory; the caller gets EIO either way, and tries
/// again before that only if the home is away.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The home cannot be reached now.
    #[error("the home cannot be reached")]
    Away,
    /// Waiting does not help: the object is gone, corrupt, or the cache fails.
    #[error("{0}")]
    Failed(String),
}

/// A fetch under way.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<(), SourceError>> + Send + 'a>>;

/// Room that is being made; tells whether there is more than before.
pub type MakingRoom<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// Gives nodes and blocks at hand at once, brings others into memory, and keeps new ones.
pub trait Source: NodeSource + Debug + Send + Sync {
    /// Returns the opened content of a block or patch if it is in memory; never blocks.
    fn block(&self, reference: &Reference) -> Option<Bytes>;

    /// Brings every node and block wanted into memory, from the disk cache or the home.
    fn fetch<'a>(&'a self, wanted: &'a Wanted, class: Class) -> Fetching<'a>;

    /// Seals a value into a block that this device keeps until it is at home; blocks on the disk.
    ///
    /// # Errors
    /// What the caller is told: ENOSPC where the disk is full.
    fn keep(&self, value: &[u8]) -> Result<Reference, Errno>;

    /// Makes what was kept before durable; blocks on the disk.
    ///
    /// # Errors
    /// The disk is full: nothing is lost, but it is not durable either.
    fn sync(&self) -> Result<(), Errno>;

    /// Gives back `missing` bytes of room on the disk, or nothing if it has not got as much to give.
    fn make_room(&self, _missing: u64) -> MakingRoom<'_> {
        Box::pin(std::future::ready(false))
    }

    /// Bytes that could be given back; never blocks.
    fn evictable(&self) -> u64 {
        0
    }
}
