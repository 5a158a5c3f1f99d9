//! Reads a folder, a raw disk or a tar into a new image.
//!
//! Owns the way from a source's files to a sealed root: walking, sealing on all cores, and one bulk load of
//! the index. It knows no home and no checkout: sealed objects go to an [`ObjectSink`] as they come, in
//! production the upload that runs meanwhile, so an import keeps nothing on the device's disk.
//!
//! ```text
//!  walker ──items, in order──────────────────────▶ assembler ──▶ index leaves ─┐
//!    └──parts of files──▶ sealers (one per core) ──▶ │                         ├─▶ ObjectSink
//!                            └──────blocks───────────┼─────────────────────────┘
//! ```
//!
//! Every arrow is a bounded queue: a slow sink slows the walker down. Memory is about 150 bytes for each file
//! (names and attributes are sorted at the end) and 72 bytes for each block of the file that is being read.

mod assembler;
mod disk;
mod feed;
mod folder;
mod kind;
mod members;
mod sealers;
mod tarball;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use img_index::{ApplyError, Boundary};
use img_seal::{KeyRing, Reference, SealError, Sealed};
use img_types::limits::{BLOCK_SIZE, ENTRY_NAME_LEN_MAX};

use crate::acl::{ACCESS, Acl, DEFAULT};
use crate::events::Reporter;
use crate::stream::ImportUpload;
use assembler::Assembler;
use feed::{Feed, Item};
use sealers::{Shared, work};

pub use kind::look;

/// Takes sealed objects, children before the nodes that name them; may be given one twice.
pub trait ObjectSink: Sync {
    /// Takes an object; blocks while too much is under way.
    ///
    /// # Errors
    /// Nothing more can be taken; the sink's owner knows why.
    fn put(&self, sealed: Sealed) -> Result<(), SinkClosed>;
}

/// The sink takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed objects cannot be taken any more")]
pub struct SinkClosed;

impl ObjectSink for ImportUpload {
    fn put(&self, sealed: Sealed) -> Result<(), SinkClosed> {
        Self::put(self, sealed).map_err(|_| SinkClosed)
    }
}

/// What an import reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A folder with all that is in it.
    Tree,
    /// A file that becomes the image's only one, [`DISK_NAME`].
    Disk,
    /// An archive.
    Tar,
}

/// Ends an import early; clones end the same one.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the import at its next step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that could not be read, or not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where, from the source's top.
    pub path: PathBuf,
    /// Why, in words.
    pub reason: String,
}

/// A sealed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its root.
    pub root: Reference,
    /// Inodes that are no folders.
    pub files: u64,
    /// Sum of the sizes of all files.
    pub logical_bytes: u64,
    /// Bytes of the objects that were given to the sink, each counted once.
    pub sealed_bytes: u64,
    /// Those objects.
    pub objects: u64,
    /// What is not in the image, or not as it was.
    pub skipped: Vec<Skipped>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source as a whole cannot be read.
    #[error("the source cannot be read: {0}")]
    Source(#[source] io::Error),
    /// A disk without a single byte.
    #[error("a disk image of size 0")]
    EmptyDisk,
    /// The source is of another kind than was said.
    #[error("the source is not {0}")]
    OtherKind(&'static str),
    /// The source is a file in a form that is not read.
    #[error("the source is {what}")]
    Form {
        /// What it is.
        what: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// The archive cannot be read to its end.
    #[error("the archive is damaged: {what}, at byte {at}")]
    Archive {
        /// In which way.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// Something would have been skipped, and the import is strict.
    #[error("{}", .0.reason)]
    Strict(Skipped),
    /// The sink takes nothing more.
    #[error(transparent)]
    Sink(#[from] SinkClosed),
    /// Something could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The index could not be written.
    #[error(transparent)]
    Index(#[from] ApplyError),
    /// Somebody ended it.
    #[error("the import was ended")]
    Cancelled,
}

/// An import to be done.
#[derive(Debug, Clone)]
pub struct Import {
    /// Where the source is.
    pub from: PathBuf,
    /// What it is to be read as; nothing: by its content.
    pub kind: Option<SourceKind>,
    /// Whether to fail instead of leaving something out.
    pub strict: bool,
    /// Where the new image's index is cut.
    pub boundary: Boundary,
    /// What to seal with.
    pub keys: KeyRing,
}

impl Import {
    /// Reads the source and seals it. Blocks: for a thread that may, outside of the async runtime.
    ///
    /// # Errors
    /// The source as a whole is unreadable, the sink is closed, or see [`ImportError`].
    pub fn run(
        &self,
        sink: &dyn ObjectSink,
        reporter: &Reporter,
        cancel: &Cancel,
    ) -> Result<Imported, ImportError> {
        let source = File::open(&self.from).map_err(ImportError::Source)?;
        let kind = kind::of(&source, self.kind)?;
        let shared = Shared::new(sink, reporter);
        let mut leaves = self.keys.sealer();
        let mut values = self.keys.sealer();
        let sealers = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let (mut feed, items, jobs) = Feed::new(&shared, cancel);
            for _ in 0..sealers {
                let (jobs, shared, sealer) = (Arc::clone(&jobs), &shared, self.keys.sealer());
                scope.spawn(move || work(&jobs, sealer, shared));
            }
            // From here on only the sealers hold it, so that the walker notices when all have ended.
            drop(jobs);
            let walker = scope.spawn(move || {
                match kind {
                    SourceKind::Tree => folder::walk(&mut feed, source),
                    SourceKind::Disk => disk::read(&mut feed, source),
                    SourceKind::Tar => tarball::read(&mut feed, source),
                }?;
                // Whoever ended the import knows why.
                let _ended = feed.send(Item::Complete);
                Ok::<(), ImportError>(())
            });
            if kind == SourceKind::Tree {
                let (path, shared) = (&self.from, &shared);
                scope.spawn(move || folder::count(path, shared, cancel));
            }
            let mut nodes = shared.nodes();
            let assembler = Assembler::new(
                &mut nodes,
                &mut leaves,
                &mut values,
                &self.boundary,
                &shared,
                self.strict,
            );
            let outcome = assembler.run(items, cancel);
            let walked = walker.join();
            shared.end();
            let walked = walked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // A walker that fails ends the items early; why, it says itself.
            walked?;
            outcome
        })
    }
}

/// Whether an image keeps an extended attribute: not those that only the source's file system understands, and
/// none that is out of bounds.
fn keeps_xattr(name: &[u8], value: &[u8]) -> bool {
    match name {
        ACCESS | DEFAULT => Acl::decode(value).is_some(),
        name => {
            !name.starts_with(b"system.")
                && (1..=ENTRY_NAME_LEN_MAX).contains(&name.len())
                && !name.contains(&0)
                && value.len() <= BLOCK_SIZE
        }
    }
}

/// Name of a raw disk's file in its image.
pub const DISK_NAME: &str = "disk.img";

#[cfg(test)]
pub(crate) mod tests;
