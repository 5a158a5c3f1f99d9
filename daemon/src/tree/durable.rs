//! What makes changes durable: the journal's flush, the cut of a checkpoint, the swap of a root.
//!
//! One lock, the log's, orders these; it is taken before the state's, and the state's is held only
//! to take or swap a few values. A flush brings the arenas and large values to disk first and
//! commits the journal then. The process aborts when a sync fails: the kernel may have dropped the pages, so what was
//! acknowledged can no longer be vouched for, and recovery starts from the journal.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, MutexGuard, TryLockError, Weak};
use std::time::{Duration, Instant};

use img_index::{Fact, Key, Value};
use img_overlay::{Change, Generation, GenerationId, Removed};
use img_seal::Reference;
use rustix::io::Errno;

use super::Tree;
use super::state::State;
use crate::arena::Arena;
use crate::journal::{Head, Journal, JournalError};

/// A checkpoint's cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The generation that was closed; older ones belong to the checkpoint as well.
    pub generation: GenerationId,
    /// How long the cut held writers up, in microseconds.
    pub freeze_us: u64,
    /// Dirty bytes of the closed generation.
    pub dirty_bytes: u64,
    /// Whether shared maps may have held changes that the kernel had not written yet.
    pub mapped: bool,
}

/// Says why no cut was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// Too many generations wait for their seal: seal the oldest, then ask again.
    #[error("earlier checkpoints are not sealed yet")]
    Unsealed,
    /// The disk refuses.
    #[error("the checkpoint cannot be written: {0}")]
    Disk(Errno),
}

/// A closed generation with all that its seal needs.
#[derive(Debug, Clone)]
pub struct Closed {
    /// Its changes.
    pub generation: Arc<Generation>,
    /// Its dirty bytes.
    pub arena: Arc<Arena>,
    /// The root below it.
    pub base: Option<Reference>,
    /// What is left out because later generations remove it; nothing unless a seal cannot do with it.
    pub removed: Removed,
}

/// The journal and what it has.
#[derive(Debug)]
pub(super) struct Log {
    journal: Journal,
    /// Changes that were taken for the journal and could not be committed.
    backlog: Vec<(GenerationId, Vec<Change>)>,
    /// All changes up to this number are durable.
    synced: u64,
    /// Bytes of the top generation's rows.
    top_bytes: u64,
}

impl Log {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            backlog: Vec::new(),
            synced: 0,
            top_bytes: 0,
        }
    }

    /// Writes down that the tree stands on another root, with nothing above it.
    pub(super) fn restored(&mut self, head: &Head) -> Result<(), JournalError> {
        self.journal.drop_sealed(head)?;
        self.backlog.clear();
        self.top_bytes = 0;
        Ok(())
    }
}

impl Tree {
    /// Makes everything that happened before the call durable on this device.
    ///
    /// # Errors
    /// The disk is full: nothing is lost, but it is not durable either.
    pub fn sync(&self) -> Result<(), Errno> {
        self.flush(&mut self.log())
    }

    /// Whether a cut can be made now: no earlier one waits for its seal.
    pub fn has_room_for_cut(&self) -> bool {
        self.shared().overlay.has_room()
    }

    /// Calls `done` when everything that happened before is durable; calls share a flush.
    pub fn sync_then(&self, done: impl FnOnce(Result<(), Errno>) + Send + 'static) {
        self.flusher.sync(Box::new(done));
    }

    /// Closes the top generation: the instant, immutable cut of a checkpoint. Nothing is copied.
    ///
    /// Returns nothing if nothing has changed since the last cut.
    ///
    /// # Errors
    /// Two generations wait for their seal already, or the disk refuses.
    pub fn freeze(&self) -> Result<Option<Cut>, FreezeError> {
        self.freeze_with(self.log(), || {})
    }

    /// As [`Self::freeze`], for writers that stand still: begins before `until` or not at all, in which case nothing is
    /// returned, and calls `go_on` as soon as the cut is made, before it is durable. Where there is no cut, `go_on` is
    /// dropped.
    pub fn freeze_until(
        &self,
        until: Instant,
        go_on: impl FnOnce(),
    ) -> Option<Result<Option<Cut>, FreezeError>> {
        loop {
            match self.log.try_lock() {
                Ok(log) => return Some(self.freeze_with(log, go_on)),
                // Something is being synced.
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOG_PAUSE);
                }
                Err(_) => return None,
            }
        }
    }

    fn freeze_with(
        &self,
        mut log: MutexGuard<'_, Log>,
        go_on: impl FnOnce(),
    ) -> Result<Option<Cut>, FreezeError> {
        let next = {
            let state = self.shared();
            if state.overlay.top_is_empty() {
                return Ok(None);
            }
            state.top.next()
        };
        let arena = Arena::create(&self.dir, next).map_err(|e| FreezeError::Disk(disk(&e)))?;
        let mut state = self.lock();
        let started = Instant::now();
        if state.overlay.top_is_empty() || !state.overlay.has_room() {
            arena.retire();
            return match state.overlay.top_is_empty() {
                true => Ok(None),
                false => Err(FreezeError::Unsealed),
            };
        }
        let cut = cut(&mut state, arena);
        let freeze_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        drop(state);
        go_on();
        log.top_bytes = 0;
        let flushed = self.flush(&mut log);
        self.closed.notify_one();
        flushed.map_err(FreezeError::Disk)?;
        Ok(Some(Cut { freeze_us, ..cut }))
    }

    /// The generation to seal next.
    pub fn closed_oldest(&self) -> Option<Closed> {
        let state = self.shared();
        let generation = Arc::clone(state.overlay.closed().next()?);
        let arena = Arc::clone(state.arenas.get(&generation.id())?);
        Some(Closed {
            arena,
            base: state.root,
            removed: match self.lacks.load(Ordering::Relaxed) {
                true => state.overlay.removed_after(generation.id()),
                false => Removed::default(),
            },
            generation,
        })
    }

    /// The generation to seal next, without the files that have been removed since. Later ones are without such files
    /// as well, so that none comes back which its base has not got.
    pub fn closed_oldest_without_removed(&self) -> Option<Closed> {
        self.lacks.store(true, Ordering::Relaxed);
        self.closed_oldest()
    }

    /// Waits until a generation has been closed, by a checkpoint or by its size.
    pub async fn generation_closed(&self) {
        self.closed.notified().await;
    }

    /// Takes the root that the oldest closed generation was sealed into; open files go on.
    ///
    /// The journal comes first: a crash before leaves the generation, one after has the root.
    ///
    /// # Errors
    /// The disk is full; nothing has changed then.
    pub fn sealed(&self, generation: GenerationId, root: Reference) -> Result<(), JournalError> {
        let mut log = self.log();
        let head = {
            let state = self.shared();
            if state.oldest != generation || state.top == generation {
                return Ok(());
            }
            Head {
                root: Some(root),
                oldest: generation.next(),
                ..state.head()
            }
        };
        log.backlog.retain(|(of, _)| *of > generation);
        match log.journal.drop_sealed(&head) {
            Err(error) if !error.is_full() => {
                tracing::error!(%error, "the journal cannot be written; ending before data is lost");
                std::process::abort();
            }
            dropped => dropped?,
        }
        let mut state = self.lock();
        state.root = head.root;
        state.oldest = head.oldest;
        // A large generation takes time to free, and an arena to remove: not under the lock.
        let dropped = state.overlay.drop_oldest(generation);
        let arena = state.arenas.remove(&generation);
        state.values.remove(&generation);
        drop(state);
        if let Some(arena) = arena {
            arena.retire();
        }
        drop(dropped);
        self.flusher.wake();
        Ok(())
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log
            .lock()
            .expect("no flush panics while it holds the log")
    }

    fn flush(&self, log: &mut Log) -> Result<(), Errno> {
        let (head, arenas, values, upto) = {
            let mut state = self.lock();
            if state.changes_made == log.synced {
                return Ok(());
            }
            let top = state.top;
            log.backlog.extend(state.pending.take(top));
            let arenas: Vec<_> = state.arenas.values().cloned().collect();
            let values = std::mem::take(&mut state.values_unsynced);
            (state.head(), arenas, values, state.changes_made)
        };
        if values && let Err(errno) = self.source.sync() {
            self.lock().values_unsynced = true;
            return Err(errno);
        }
        for arena in arenas {
            if let Err(error) = arena.sync() {
                tracing::error!(%error, "an arena cannot be synced; ending before data is lost");
                std::process::abort();
            }
        }
        match log.journal.commit(&head, &log.backlog) {
            Ok(added) => log.top_bytes += added,
            Err(error) if error.is_full() => {
                tracing::error!(%error, "the journal has no room");
                return Err(Errno::NOSPC);
            }
            Err(error) => {
                tracing::error!(%error, "the journal cannot be written; ending before data is lost");
                std::process::abort();
            }
        }
        log.backlog.clear();
        log.synced = upto;
        Ok(())
    }

    /// Closes the top generation if it has grown large, or if its journal has.
    fn close_if_large(&self) {
        let journal_large = self.log().top_bytes > JOURNAL_LEN_MAX;
        let wanted = {
            let state = self.shared();
            state.overlay.close_wanted() || (journal_large && state.overlay.has_room())
        };
        if wanted && let Err(error) = self.freeze() {
            tracing::warn!(%error, "a large generation stays open");
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            tracing::error!(%error, "a checkout was closed without its last changes");
        }
    }
}

/// Closes the top generation and opens the next one with its arena.
fn cut(state: &mut State, arena: Arena) -> Cut {
    for inode in std::mem::take(&mut state.orphans) {
        state.drop_unlinked(inode);
    }
    if let Some(next) = state.next_inode
        && state.next_inode_sealed != Some(next)
    {
        let fact = Change::Put(Key::fact(Fact::NextInode), Value::Number(next.0));
        state.apply(fact);
        state.next_inode_sealed = Some(next);
    }
    let dirty_bytes = state.overlay.top().dirty_bytes();
    let generation = state.overlay.freeze();
    state.pending.close(generation);
    state.top = generation.next();
    state.arenas.insert(state.top, Arc::new(arena));
    state.changes_made += 1;
    Cut {
        generation,
        freeze_us: 0,
        dirty_bytes,
        mapped: state.open.values().any(|open| open.maps > 0),
    }
}

pub(super) fn disk(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

type Done = Box<dyn FnOnce(Result<(), Errno>) + Send>;

enum Request {
    Sync(Done),
    Wake,
}

/// Asks the thread that keeps the journal near the state.
#[derive(Debug)]
pub(super) struct Flusher(Sender<Request>);

impl Flusher {
    /// Starts the thread; it ends with the tree.
    pub(super) fn start(tree: Weak<Tree>) -> Self {
        let (sender, requests) = channel();
        std::thread::spawn(move || run(&tree, &requests));
        Self(sender)
    }

    pub(super) fn wake(&self) {
        // The thread lives as long as the sender.
        self.0.send(Request::Wake).ok();
    }

    fn sync(&self, done: Done) {
        self.0.send(Request::Sync(done)).ok();
    }
}

fn run(tree: &Weak<Tree>, requests: &Receiver<Request>) {
    loop {
        let first = match requests.recv_timeout(FLUSH_INTERVAL) {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Some(tree) = tree.upgrade() else {
            return;
        };
        let waiting: Vec<Done> = first
            .into_iter()
            .chain(requests.try_iter())
            .filter_map(|request| match request {
                Request::Sync(done) => Some(done),
                Request::Wake => None,
            })
            .collect();
        let outcome = tree.sync();
        for done in waiting {
            done(outcome);
        }
        tree.close_if_large();
    }
}

/// Pause before it is looked again whether a sync that is under way has ended.
const LOG_PAUSE: Duration = Duration::from_micros(200);
/// How old a change may be that the journal has not got.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// Rows of one generation at which it is closed: a file that is synced for ever adds a row each time.
const JOURNAL_LEN_MAX: u64 = 256 * 1024 * 1024;
