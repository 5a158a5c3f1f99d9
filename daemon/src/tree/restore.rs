//! Sets a live checkout to another root: what is mounted goes on, with other contents.
//!
//! A restore is a generation whose seal is the root that was asked for, so that numbers of generations go on
//! growing and whoever counts by them need not know of restores. What it replaces has been sealed before, or
//! nothing happens: no change is ever dropped here. The kernel is told by the caller, who knows what differs.

use std::collections::BTreeMap;
use std::sync::Arc;

use img_index::{Fact, Inode, Key, Value};
use img_overlay::{GenerationId, Overlay};
use img_seal::Reference;
use rustix::io::Errno;

use super::Tree;
use super::durable::disk;
use super::source::Source;
use super::state::{Open, State};
use super::view::{Failure, View};
use crate::arena::Arena;
use crate::journal::Head;

/// What became of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// The tree stands on the root, as if this generation had been sealed into it.
    Done(GenerationId),
    /// So many files are open for writing: nothing was changed.
    Writers(usize),
    /// Something is in no root yet, or in another than was seen: seal it, look again, and ask again.
    Unsealed,
}

/// What a tree is on another root.
struct Standing {
    next_inode: Inode,
    open: BTreeMap<Inode, Open>,
}

impl Tree {
    /// Sets the tree from one root to another, durably. `force` does so although files are open for writing: their
    /// handles are stale from then on ([`Self::is_stale`]), and so are all of files that the root has not got.
    ///
    /// # Errors
    /// Nodes of the root are absent, or the disk is full; nothing has changed then.
    pub fn restore(
        &self,
        from: Reference,
        root: Reference,
        force: bool,
    ) -> Result<Restored, Failure> {
        let mut log = self.log();
        let (closed, next) = {
            let state = self.shared();
            (state.top, state.top.next())
        };
        let arena = Arena::create(&self.dir, next).map_err(|error| disk(&error))?;
        let mut state = self.lock();
        let standing = match may_restore(&state, from, force) {
            Restored::Done(_) => standing(&state, &*self.source, &root),
            refused => {
                arena.retire();
                return Ok(refused);
            }
        };
        let standing = standing.inspect_err(|_| arena.retire())?;
        let head = Head {
            root: Some(root),
            oldest: next,
            top: next,
            next_inode: Some(standing.next_inode),
            restores: state.restores + 1,
        };
        // Nobody may write between the look above and the swap below, so the lock is held meanwhile.
        match log.restored(&head) {
            Ok(()) => {}
            Err(error) if error.is_full() => {
                arena.retire();
                return Err(Errno::NOSPC.into());
            }
            Err(error) => {
                tracing::error!(%error, "the journal cannot be written; ending before data is lost");
                std::process::abort();
            }
        }
        let retired = state.stand_on(head, standing, arena);
        drop(state);
        drop(log);
        retired.iter().for_each(|arena| arena.retire());
        if let Err(Failure::Absent(_)) = self.prepare() {
            tracing::debug!("files unlinked in an earlier session are dropped next time");
        }
        Ok(Restored::Done(closed))
    }

    /// How many files are open for writing.
    pub fn writers(&self) -> usize {
        writers(&self.shared())
    }

    /// Looks at what [`Self::restore`] to a root would need.
    ///
    /// # Errors
    /// Nodes of the root are absent.
    pub fn can_stand_on(&self, root: &Reference) -> Result<(), Failure> {
        standing(&self.shared(), &*self.source, root).map(drop)
    }

    /// Whether a handle that was opened after so many restores may not be used any more, for writing or after having
    /// been opened for it.
    pub fn is_stale(&self, restores: u64) -> bool {
        restores < self.restores()
    }
}

impl State {
    fn stand_on(&mut self, head: Head, standing: Standing, arena: Arena) -> Vec<Arc<Arena>> {
        self.root = head.root;
        self.overlay = Overlay::new(head.top);
        self.oldest = head.oldest;
        self.top = head.top;
        self.next_inode = head.next_inode;
        self.next_inode_sealed = None;
        self.restores = head.restores;
        self.open = standing.open;
        self.orphans.clear();
        self.values.clear();
        self.changes_made += 1;
        let retired = std::mem::take(&mut self.arenas);
        self.arenas.insert(head.top, Arc::new(arena));
        retired.into_values().collect()
    }
}

/// Whether nothing would be lost.
fn may_restore(state: &State, from: Reference, force: bool) -> Restored {
    if state.root != Some(from)
        || !state.overlay.top_is_empty()
        || state.overlay.closed().next().is_some()
    {
        return Restored::Unsealed;
    }
    match writers(state) {
        0 => Restored::Done(state.top),
        _ if force => Restored::Done(state.top),
        writers => Restored::Writers(writers),
    }
}

fn writers(state: &State) -> usize {
    let open = state.open.values();
    open.filter(|open| open.writers > 0).count()
}

/// What the kernel has open, as it is under `root`; inodes are never given out twice.
fn standing(state: &State, source: &dyn Source, root: &Reference) -> Result<Standing, Failure> {
    let value = |key: &Key| img_index::get(source, root, key);
    let now = View { state, source }.next_inode()?;
    let there = match value(&Key::fact(Fact::NextInode))? {
        Some(Value::Number(next)) => Inode(next),
        _ => now,
    };
    let mut open = BTreeMap::new();
    for (inode, before) in &state.open {
        let Some(Value::Attributes(attributes)) = value(&Key::attributes(*inode))? else {
            continue;
        };
        if attributes.kind != before.attributes.kind {
            continue;
        }
        let kept = Open {
            handles: before.handles,
            writers: 0,
            maps: 0,
            since: before.since,
            unlinked: value(&Key::open_unlinked(*inode))?.is_some(),
            capability: value(&Key::xattr(*inode, super::xattrs::CAPABILITY))?.is_some(),
            attributes,
        };
        open.insert(*inode, kept);
    }
    Ok(Standing {
        next_inode: now.max(there),
        open,
    })
}
