//! What programs have changed through shared maps of files, and the kernel has not written yet.
//!
//! Only an invalidation of an inode from here makes the kernel write its pages and wait for them: syncfs is no barrier
//! for FUSE. It also waits for pages of the inode that are being read, and so for the home, which nobody may wait for
//! here: each flush has a thread of its own, and who asked for it gives up when nothing comes any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};

use crate::tree::Tree;

/// Asks the kernel for the pages of a mount.
#[derive(Debug)]
pub(super) struct Maps {
    tree: Arc<Tree>,
    notifier: Notifier,
    /// Bytes that the kernel has written back.
    written: Arc<AtomicU64>,
    /// Inodes that have been flushed.
    flushed: Arc<AtomicU64>,
    /// Whether a thread is at it: one that was given up ends by itself, and no second one waits beside it.
    busy: Arc<AtomicBool>,
}

impl Maps {
    pub(super) fn new(tree: Arc<Tree>, notifier: Notifier, written: Arc<AtomicU64>) -> Self {
        Self {
            tree,
            notifier,
            written,
            flushed: Arc::default(),
            busy: Arc::default(),
        }
    }

    /// Flushes all; gives up after a while in which nothing was written.
    pub(super) fn flush(&self) -> Option<u64> {
        let before = self.written.load(Ordering::Relaxed);
        let done = self.start()?;
        let mut seen = self.progress();
        loop {
            match done.recv_timeout(STALL) {
                Ok(()) => return Some(self.written.load(Ordering::Relaxed) - before),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.progress();
                    if now == seen {
                        return None;
                    }
                    seen = now;
                }
            }
        }
    }

    /// Flushes all; gives up at a moment.
    pub(super) fn flush_until(&self, until: Instant) -> Option<u64> {
        let before = self.written.load(Ordering::Relaxed);
        let done = self.start()?;
        let left = until.saturating_duration_since(Instant::now());
        done.recv_timeout(left).ok()?;
        Some(self.written.load(Ordering::Relaxed) - before)
    }

    /// Starts a thread that says when it has flushed every inode that is mapped now.
    fn start(&self) -> Option<Receiver<()>> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (sender, done) = channel();
        let inodes = self.tree.mapped();
        let (notifier, flushed) = (self.notifier.clone(), Arc::clone(&self.flushed));
        let busy = Busy(Arc::clone(&self.busy));
        let started = std::thread::Builder::new().spawn(move || {
            for inode in inodes {
                // An inode that the kernel has dropped has no dirty pages.
                if let Err(error) = notifier.inval_inode(INodeNo(inode.0), 0, 0) {
                    tracing::debug!(%error, "the kernel has nothing to flush");
                }
                flushed.fetch_add(1, Ordering::Relaxed);
            }
            // Free before anybody hears of it: the next flush may follow at once.
            drop(busy);
            sender.send(()).ok();
        });
        started.ok().map(|_| done)
    }

    fn progress(&self) -> (u64, u64) {
        let flushed = self.flushed.load(Ordering::Relaxed);
        (self.written.load(Ordering::Relaxed), flushed)
    }
}

/// Ends with the thread, whatever ends that.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// How long a flush may stand still before it is given up: local disks write something sooner, a home that is away
/// does not answer later.
const STALL: Duration = Duration::from_secs(2);
