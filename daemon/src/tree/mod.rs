//! The tree of one checkout: an overlay with its journal and arenas over an index root.
//!
//! Every operation is a synchronous function over locked state that finishes, is refused, or says
//! what is not in memory ([`Failure::Absent`]); then whoever runs it fetches that without a lock
//! and repeats it ([`Tree::repeat`]). So nothing local waits for the network, and a slow fetch holds
//! nobody else up. The tree knows inodes, names and bytes; it does not know the kernel's protocol
//! (`mount`), how a generation is sealed, or what a lease is. `docs/architecture.md` describes the
//! paths and "Files, exactly".

mod attributes;
mod block;
mod data;
mod durable;
mod handles;
mod listing;
mod lost;
mod names;
mod objects;
mod patience;
mod pending;
mod prefetch;
mod restore;
mod room;
mod source;
mod state;
mod transaction;
mod view;
mod xattrs;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use img_index::{Attributes, Boundary, Fact, FileKind, Inode, Key, Timestamp, Value};
use img_overlay::{Change, GenerationId, Overlay};
use img_proto::Class;
use img_seal::Reference;
use img_types::ObjectId;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub use attributes::{SetAttributes, SetTime, Shown};
pub use data::{Allocation, SEEK_EXTENTS_MAX, Seek};
pub use durable::{Closed, Cut, FreezeError};
pub use handles::Access;
pub use listing::{COOKIE_FIRST, Listed};
pub use names::{NewInode, RenameMode};
pub use objects::ObjectSource;
pub use restore::Restored;
pub use room::Space;
pub use source::{Fetching, MakingRoom, Source, SourceError, Wanted};
pub use view::{Entry, Failure};
pub use xattrs::SetXattr;

use crate::arena::Arena;
use crate::journal::{Head, Journal, JournalError};
use durable::{Flusher, Log};
use patience::Patience;
use pending::Pending;
use prefetch::Prefetch;
use room::Room;
use state::State;
use transaction::Transaction;
use view::View;

/// Whose files the image's owner's are shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerMapping {
    /// Ids are shown and kept as they are.
    Keep,
    /// The image's owner is shown as these ids, and these are kept as the image's owner.
    Map {
        /// User who mounts.
        uid: u32,
        /// Group that mounts.
        gid: u32,
    },
}

/// What a tree is made over.
#[derive(Debug, Clone)]
pub struct TreeConfig {
    /// The root to start from; none for an image without a first root. A tree that is recovered
    /// takes the root from its journal.
    pub root: Option<Reference>,
    /// The image's boundary key: decides the order of directory entries.
    pub boundary: Boundary,
    /// How owners are shown.
    pub owner: OwnerMapping,
}

/// Says why a tree cannot be made or recovered.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The checkout's directory or an arena cannot be used.
    #[error("the checkout's folder: {0}")]
    Io(#[from] std::io::Error),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// An arena lacks bytes that the journal names: the disk lost what it had said to be durable.
    #[error("the arena of generation {0} ends before what the journal says is in it")]
    ArenaCut(GenerationId),
    /// There is a journal already, or there is none yet.
    #[error("the checkout's folder {}", if *.exists { "is in use" } else { "has no journal" })]
    Exists {
        /// Whether a journal was found.
        exists: bool,
    },
}

/// How much a tree holds that no root contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeStats {
    /// Bytes of files in arenas.
    pub dirty_bytes: u64,
    /// Memory of edits.
    pub edit_bytes: u64,
    /// Generations that wait for their seal.
    pub closed: usize,
    /// Whether anything changed since the last checkpoint.
    pub changed: bool,
}

/// One checkout's files.
#[derive(Debug)]
pub struct Tree {
    dir: PathBuf,
    owner: OwnerMapping,
    state: RwLock<State>,
    /// Locked before the state by everything that writes the journal or closes a generation.
    log: Mutex<Log>,
    /// Locked first of all, from when a value is kept until a change names it.
    keeping: Mutex<()>,
    source: Arc<dyn Source>,
    flusher: Flusher,
    prefetch: Prefetch,
    closed: Notify,
    patience: Patience,
    /// Whether a seal could not do with everything that generations hold: parts of it are lost.
    lacks: AtomicBool,
}

impl Tree {
    /// Makes the tree of a new checkout in an empty directory.
    ///
    /// # Errors
    /// The directory holds a journal already, or the disk refuses.
    pub fn create(
        dir: &Path,
        config: TreeConfig,
        source: Arc<dyn Source>,
        runtime: &Handle,
    ) -> Result<Arc<Self>, TreeError> {
        let journal = Journal::open(dir)?;
        if journal.head()?.is_some() {
            return Err(TreeError::Exists { exists: true });
        }
        let first = GenerationId(1);
        let head = Head {
            root: config.root,
            oldest: first,
            top: first,
            next_inode: None,
            restores: 0,
        };
        let mut state = State::new(dir, &config, &head)?;
        state
            .arenas
            .insert(first, Arc::new(Arena::create(dir, first)?));
        if config.root.is_none() {
            found(&mut state, config.owner);
        }
        let tree = Self::start(dir, config, state, journal, source, runtime);
        tree.lock().changes_made += 1;
        tree.sync()
            .map_err(|_| TreeError::Io(std::io::ErrorKind::StorageFull.into()))?;
        Ok(tree)
    }

    /// Brings a tree back as it was last synced, whatever ended its daemon.
    ///
    /// # Errors
    /// The directory holds no journal, the journal is damaged, or the disk refuses.
    pub fn recover(
        dir: &Path,
        config: TreeConfig,
        source: Arc<dyn Source>,
        runtime: &Handle,
    ) -> Result<Arc<Self>, TreeError> {
        let journal = Journal::open(dir)?;
        let head = journal.head()?.ok_or(TreeError::Exists { exists: false })?;
        let mut state = State::new(dir, &config, &head)?;
        let mut generation = head.oldest;
        loop {
            let arena = Arc::new(Arena::open(dir, generation)?);
            for change in journal.changes(generation)? {
                if let Change::Write { arena: at, len, .. } = &change
                    && at.saturating_add(*len) > arena.len()
                {
                    return Err(TreeError::ArenaCut(generation));
                }
                state.remember_values(generation, &change);
                state.overlay.apply(change);
            }
            state.arenas.insert(generation, arena);
            if generation >= head.top {
                break;
            }
            state.overlay.freeze();
            generation = generation.next();
        }
        Arena::remove_others(dir, head.oldest, head.top)?;
        Ok(Self::start(dir, config, state, journal, source, runtime))
    }

    fn start(
        dir: &Path,
        config: TreeConfig,
        state: State,
        journal: Journal,
        source: Arc<dyn Source>,
        runtime: &Handle,
    ) -> Arc<Self> {
        let tree = Arc::new_cyclic(|tree| Self {
            dir: dir.to_path_buf(),
            owner: config.owner,
            state: RwLock::new(state),
            log: Mutex::new(Log::new(journal)),
            keeping: Mutex::default(),
            flusher: Flusher::start(tree.clone()),
            prefetch: Prefetch::start(Arc::clone(&source), runtime),
            source,
            closed: Notify::new(),
            patience: Patience::default(),
            lacks: AtomicBool::new(false),
        });
        if let Err(Failure::Absent(wanted)) = tree.prepare() {
            let preparing = Arc::clone(&tree);
            runtime.spawn(async move {
                if preparing.repeat(wanted, Self::prepare).await.is_err() {
                    tracing::warn!("files unlinked in an earlier session are dropped next time");
                }
            });
        }
        tree
    }

    /// Repeats an operation until it finishes, fetching what it finds absent and making room on the disk;
    /// EIO if that takes longer than the patience for it, ENOSPC if there is no room to be made.
    ///
    /// # Errors
    /// The operation is refused, or something cannot be had in time.
    pub async fn repeat<T>(
        self: Arc<Self>,
        first: Wanted,
        operation: impl Fn(&Self) -> Result<T, Failure>,
    ) -> Result<T, Errno> {
        let patience = self.patience.for_first(&first);
        let deadline = tokio::time::Instant::now() + patience;
        let mut wanted = first;
        loop {
            let missing = std::mem::take(&mut wanted.room);
            let full = missing > 0 && !self.source.make_room(missing).await;
            while !wanted.is_empty() {
                let fetching = self.source.fetch(&wanted, Class::Demand);
                match tokio::time::timeout_at(deadline, fetching).await {
                    Ok(Ok(())) => break,
                    Ok(Err(SourceError::Away)) if tokio::time::Instant::now() < deadline => {
                        tokio::time::sleep(AWAY_PAUSE).await;
                    }
                    Ok(Err(error)) => {
                        if let SourceError::Away = error {
                            self.patience.was_in_vain(&wanted, patience);
                        }
                        tracing::warn!(%error, "a read fails: what it needs cannot be fetched");
                        return Err(Errno::IO);
                    }
                    Err(_) => {
                        self.patience.was_in_vain(&wanted, patience);
                        tracing::warn!("a read fails: what it needs did not arrive in time");
                        return Err(Errno::IO);
                    }
                }
            }
            match operation(&self) {
                Ok(value) => return Ok(value),
                Err(Failure::Refused(errno)) => return Err(errno),
                // Somebody else's room may have been enough, so the last word is the operation's.
                Err(Failure::Absent(more)) if full && more.room > 0 => return Err(Errno::NOSPC),
                Err(Failure::Absent(_)) if tokio::time::Instant::now() >= deadline => {
                    tracing::warn!("a read fails: what it needs does not stay in memory");
                    return Err(Errno::IO);
                }
                Err(Failure::Absent(more)) => wanted = more,
            }
        }
    }

    /// The root below all changes.
    pub fn root(&self) -> Option<Reference> {
        self.shared().root
    }

    /// The newest generation that the root contains; 0 before the first seal.
    pub fn sealed_upto(&self) -> u64 {
        self.shared().oldest.0.saturating_sub(1)
    }

    /// The newest generation that is closed; 0 before the first cut.
    pub fn closed_upto(&self) -> u64 {
        self.shared().top.0.saturating_sub(1)
    }

    /// How often the checkout was set to another root: the generation of its directory entries.
    pub fn restores(&self) -> u64 {
        self.shared().restores
    }

    /// How much is not in any root.
    pub fn stats(&self) -> TreeStats {
        let state = self.shared();
        TreeStats {
            dirty_bytes: state.overlay.dirty_bytes(),
            edit_bytes: state.overlay.edit_bytes(),
            closed: state.overlay.closed().count(),
            changed: !state.overlay.top_is_empty(),
        }
    }

    /// Runs `work` with the blocks that changes name and no root contains; meanwhile none is added.
    pub fn with_values_kept<T>(&self, work: impl FnOnce(&BTreeSet<ObjectId>) -> T) -> T {
        let _keeping = self.keeping();
        let values = self.shared().values.values().flatten().copied().collect();
        work(&values)
    }

    /// The space that `statfs` shows.
    ///
    /// # Errors
    /// The file system below cannot be asked.
    pub fn space(&self) -> std::io::Result<Space> {
        let state = self.shared();
        let unsealed = state.overlay.dirty_bytes();
        state.room.space(unsealed, self.source.evictable())
    }

    /// Runs an operation that reads.
    fn read<T>(
        &self,
        operation: impl FnOnce(View<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let state = self.shared();
        operation(View {
            state: &state,
            source: &*self.source,
        })
    }

    /// Runs an operation that changes: all of it, or nothing.
    fn change<T>(
        &self,
        operation: impl FnOnce(&mut Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut state = self.lock();
        let mut transaction = Transaction::new(&mut state, &*self.source, now());
        let value = operation(&mut transaction)?;
        transaction.commit();
        let wake = state.pending.len() >= PENDING_MAX || state.overlay.close_wanted();
        drop(state);
        if wake {
            self.flusher.wake();
        }
        Ok(value)
    }

    fn keeping(&self) -> MutexGuard<'_, ()> {
        // It protects an order and no data.
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> RwLockReadGuard<'_, State> {
        self.state
            .read()
            .expect("no operation panics while it holds the state")
    }

    fn lock(&self) -> RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .expect("no operation panics while it holds the state")
    }
}

impl State {
    fn new(dir: &Path, config: &TreeConfig, head: &Head) -> std::io::Result<Self> {
        Ok(Self {
            boundary: config.boundary,
            root: head.root,
            overlay: Overlay::new(head.oldest),
            arenas: Default::default(),
            oldest: head.oldest,
            top: head.top,
            next_inode: head.next_inode,
            next_inode_sealed: None,
            restores: head.restores,
            open: Default::default(),
            orphans: Default::default(),
            pending: Pending::default(),
            values: Default::default(),
            values_unsynced: false,
            changes_made: 0,
            room: Room::new(dir)?,
        })
    }
}

/// Makes the root directory of an image without a first root.
fn found(state: &mut State, owner: OwnerMapping) {
    let (uid, gid) = match owner {
        OwnerMapping::Map { uid, gid } => (uid, gid),
        OwnerMapping::Keep => (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
    };
    let now = now();
    let attributes = Attributes {
        kind: FileKind::Directory,
        mode: 0o755,
        uid,
        gid,
        nlink: 2,
        size: 0,
        mtime: now,
        ctime: now,
        rdev: 0,
        extents: None,
    };
    state.next_inode = Some(Inode(Inode::ROOT.0 + 1));
    state.apply(Change::Put(
        Key::attributes(Inode::ROOT),
        Value::Attributes(attributes),
    ));
    state.apply(Change::Put(
        Key::fact(Fact::Owner),
        Value::Owner { uid, gid },
    ));
}

/// The wall clock, for the times of files.
fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// Turns a time into the form that is kept: whole seconds rounded down, and the rest.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Timestamp {
                    seconds: -seconds,
                    nanos: 0,
                },
                nanos => Timestamp {
                    seconds: -seconds - 1,
                    nanos: 1_000_000_000 - nanos,
                },
            }
        }
    }
}

/// Unjournaled changes at which the journal is written without being asked.
const PENDING_MAX: usize = 16_384;
/// Pause before a fetch is tried again while the home is away.
const AWAY_PAUSE: std::time::Duration = std::time::Duration::from_millis(250);
