//! The sealer: turns a closed generation into objects and a new root.
//!
//! A seal goes through the plan of `img-overlay`: the blocks of changed files become blocks,
//! patches or inline contents, sealed on every core, a bounded batch at a time; the edits of the
//! map are then applied to the old root. Every new object is durable in the checkout's outbox when
//! the seal returns. What a seal reads is local, except for index nodes that this device has never
//! had or has evicted. It knows nothing of mounts, leases or commits, and may be repeated: the same
//! generation over the same root gives the same root. What is lost for ever does not hold it up where nothing that
//! stays needs it (see `gaps`). See "Write" and "Checkpoint → commit" in
//! `docs/architecture.md`, and "Patches" in `docs/formats.md`.

mod blocks;
mod canvas;
mod facts;
mod files;
mod gaps;
mod nodes;
mod patches;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use img_index::{ApplyError, Boundary, Gap, Inode, ReadError};
use img_overlay::plan;
use img_seal::{Reference, Sealed, Sealer};
use img_store::{Keep, StoreError};
use img_types::bytes::DecodeError;
use img_types::{CheckoutId, ObjectId};
use tokio::runtime::Handle;

use crate::background;
use crate::objects::{FetchError, Objects};
use crate::tree::Closed;

pub use gaps::lost_contents;
use nodes::Nodes;

/// What a seal has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedRoot {
    /// The root that contains the generation.
    pub root: Reference,
    /// Bytes of the objects that were sealed.
    pub sealed_bytes: u64,
    /// How many objects were sealed.
    pub objects: u64,
    /// Sum of the sizes of all files of the image.
    pub logical_bytes: u64,
    /// How many files the image has, directories not counted.
    pub files: u64,
    /// Time of a core that this seal took.
    pub core_time: Duration,
}

/// Says why a generation is not sealed. It stays as it is, and the seal can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Index nodes, or parts of a block that holds no more patches, cannot be had.
    #[error("the seal needs what is not on this device: {0}")]
    Fetch(#[from] FetchError),
    /// The generation's arena cannot be read.
    #[error("cannot read the changes that are to be sealed: {0}")]
    Arena(#[from] io::Error),
    /// The object cache takes no objects.
    #[error("cannot keep sealed objects: {0}")]
    Store(#[from] StoreError),
    /// A content cannot be sealed.
    #[error(transparent)]
    Seal(#[from] img_seal::SealError),
    /// The index is corrupt.
    #[error("object {0} is not the index node that its parent says")]
    Misplaced(ObjectId),
    /// The generation holds an edit that no index can hold.
    #[error("the changes cannot be sealed: {0}")]
    Invalid(#[from] DecodeError),
    /// The map has no room for more.
    #[error("the image is too large")]
    TooLarge,
    /// Parts of these files' contents are lost: neither this device nor the home has them.
    #[error("parts of {} files exist neither on this device nor at home", .0.len())]
    Lost(Vec<Inode>),
    /// A part of the index is lost, with whatever it said about files; nothing more is known of a lost root.
    #[error("a part of the list of files exists neither on this device nor at home")]
    LostIndex(Option<Box<Gap>>),
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Ending,
}

/// Seals a closed generation over its base; the new objects are durable in the outbox of
/// `checkout` when this returns.
///
/// # Errors
/// See [`SealError`]; nothing has changed but for objects that nothing names.
pub async fn seal_generation(
    objects: &Arc<Objects>,
    closed: &Closed,
    boundary: &Boundary,
    checkout: CheckoutId,
) -> Result<SealedRoot, SealError> {
    let mut sealing = Sealing {
        objects: Arc::clone(objects),
        closed: closed.clone(),
        boundary: *boundary,
        checkout,
        runtime: Handle::current(),
        core_us: AtomicU64::new(0),
    };
    match background::run(move || sealing.run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err(SealError::Ending),
    }
}

/// One seal; shared by the threads that work on it.
struct Sealing {
    objects: Arc<Objects>,
    closed: Closed,
    boundary: Boundary,
    checkout: CheckoutId,
    runtime: Handle,
    /// Microseconds of cores that threads beside the first one took.
    core_us: AtomicU64,
}

/// How much a seal has made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Made {
    objects: u64,
    bytes: u64,
}

impl Made {
    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

impl Sealing {
    fn run(&mut self) -> Result<SealedRoot, SealError> {
        let before = background::core_time();
        let mut sealed = self.repair_and_seal()?;
        let others = Duration::from_micros(self.core_us.load(Ordering::Relaxed));
        sealed.core_time = background::core_time().saturating_sub(before) + others;
        Ok(sealed)
    }

    /// Seals; where parts of the root below are lost, over a root without them.
    fn repair_and_seal(&mut self) -> Result<SealedRoot, SealError> {
        let sound = self.closed.base;
        let mut lost = BTreeSet::new();
        loop {
            match self.attempt() {
                Err(SealError::Fetch(FetchError::Missing(id) | FetchError::Corrupt(id)))
                    if lost.insert(id) => {}
                outcome => return outcome,
            }
            self.closed.base = sound;
            let without = loop {
                match self.without(&lost) {
                    Err(SealError::Fetch(FetchError::Missing(id) | FetchError::Corrupt(id)))
                        if lost.insert(id) => {}
                    cut => break cut?,
                }
            };
            self.closed.base = Some(without);
        }
    }

    /// Seals over a root of which everything is expected to be had.
    fn attempt(&self) -> Result<SealedRoot, SealError> {
        let plan = plan(&self.closed.generation);
        let mut edits = plan.edits().clone();
        self.leave_out_removed(&mut edits)?;
        let facts = self.update_facts(plan, &mut edits)?;
        let mut made = self.seal_files(plan, &facts.resized, &mut edits)?;

        let nodes = self.nodes();
        let mut sealer = self.objects.keyring().sealer();
        let root = loop {
            let mut sink = nodes::Outbox::new(self);
            let applied = img_index::apply(
                &nodes,
                &mut sink,
                &mut sealer,
                &self.boundary,
                self.closed.base.as_ref(),
                edits.sorted(),
            );
            let kept = sink.finish()?;
            match applied {
                Ok(root) => {
                    made.add(kept);
                    break root;
                }
                Err(ApplyError::Absent(absent)) => nodes.fetch(&absent.0)?,
                Err(error) => return Err(error.into()),
            }
        };
        self.objects.sync()?;
        Ok(SealedRoot {
            root,
            sealed_bytes: made.bytes,
            objects: made.objects,
            logical_bytes: facts.logical_bytes,
            files: facts.files,
            core_time: Duration::ZERO,
        })
    }

    /// One sealer for each core.
    fn sealers(&self) -> Vec<Sealer> {
        let keys = self.objects.keyring();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores.min(THREADS_MAX)).map(|_| keys.sealer()).collect()
    }

    fn nodes(&self) -> Nodes<'_> {
        Nodes::new(&self.objects, &self.runtime, self.closed.base)
    }

    /// Keeps a sealed object in the outbox.
    fn keep(&self, sealed: &Sealed) -> Result<Made, SealError> {
        self.objects.keep(sealed, Keep::Outbox(self.checkout))?;
        Ok(Made {
            objects: 1,
            bytes: sealed.bytes.len() as u64,
        })
    }
}

impl From<ReadError> for SealError {
    fn from(error: ReadError) -> Self {
        ApplyError::from(error).into()
    }
}

impl From<ApplyError> for SealError {
    fn from(error: ApplyError) -> Self {
        match error {
            // Whoever meets absent nodes fetches them; they get here only if that led nowhere.
            ApplyError::Absent(absent) => match absent.0.first() {
                Some(reference) => Self::Fetch(FetchError::Missing(reference.id)),
                None => Self::Fetch(FetchError::Away),
            },
            ApplyError::Misplaced(id) => Self::Misplaced(id),
            ApplyError::Seal(error) => Self::Seal(error),
            ApplyError::Unsorted => Self::Invalid(DecodeError("edits are not sorted")),
            ApplyError::Invalid(error) => Self::Invalid(error),
            ApplyError::TooLarge => Self::TooLarge,
        }
    }
}

/// More threads than this would wait for the disk.
const THREADS_MAX: usize = 8;
