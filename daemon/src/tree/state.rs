//! What one lock protects: the overlay over its root, and what is open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use img_index::{Attributes, Boundary, Inode, Key};
use img_overlay::{Change, GenerationId, Overlay};
use img_seal::Reference;
use img_types::ObjectId;
use rustix::io::Errno;

use super::pending::Pending;
use super::room::Room;
use super::source::Wanted;
use super::view::Failure;
use crate::arena::Arena;
use crate::journal::Head;

/// An inode that the kernel has open.
#[derive(Debug)]
pub(super) struct Open {
    /// Open files; the inode's data stays as long as there is one.
    pub(super) handles: u32,
    /// Those that write, without the ones of before the last restore.
    pub(super) writers: u32,
    /// Those of them that may carry a shared map.
    pub(super) maps: u32,
    /// Restores before which no handle counts here: the inode was not there then, or is another.
    pub(super) since: u64,
    /// No name leads here any more: dropped at the last close.
    pub(super) unlinked: bool,
    /// A file capability that a write must remove.
    pub(super) capability: bool,
    /// Its attributes now, so that a write needs nothing from the index.
    pub(super) attributes: Attributes,
}

/// The state of a tree.
#[derive(Debug)]
pub(super) struct State {
    pub(super) boundary: Boundary,
    pub(super) root: Option<Reference>,
    pub(super) overlay: Overlay,
    /// Arenas of every generation of the overlay.
    pub(super) arenas: BTreeMap<GenerationId, Arc<Arena>>,
    pub(super) oldest: GenerationId,
    pub(super) top: GenerationId,
    pub(super) next_inode: Option<Inode>,
    /// The value of `next_inode` that the newest closed generation or the root holds.
    pub(super) next_inode_sealed: Option<Inode>,
    pub(super) restores: u64,
    pub(super) open: BTreeMap<Inode, Open>,
    /// Open-but-unlinked inodes of an earlier session, dropped by the next checkpoint.
    pub(super) orphans: BTreeSet<Inode>,
    pub(super) pending: Pending,
    /// Blocks that the changes of each generation name; nothing else keeps them.
    pub(super) values: BTreeMap<GenerationId, BTreeSet<ObjectId>>,
    /// Whether some of them may not be durable.
    pub(super) values_unsynced: bool,
    /// Grows with every change; a sync covers all changes up to the number it saw.
    pub(super) changes_made: u64,
    pub(super) room: Room,
}

impl State {
    /// The arena that new dirty bytes go to.
    pub(super) fn arena(&self) -> &Arc<Arena> {
        self.arenas
            .get(&self.top)
            .expect("every generation of the overlay has its arena")
    }

    /// Applies a change to the top generation and remembers it for the journal.
    pub(super) fn apply(&mut self, change: Change) {
        self.pending.push(change.clone());
        self.values_unsynced |= self.remember_values(self.top, &change);
        self.overlay.apply(change);
        self.changes_made += 1;
    }

    /// Notes the blocks that a change of a generation names; returns whether there are any.
    pub(super) fn remember_values(&mut self, generation: GenerationId, change: &Change) -> bool {
        let Change::Put(_, value) = change else {
            return false;
        };
        let mut named = value.references().map(|reference| reference.id).peekable();
        if named.peek().is_none() {
            return false;
        }
        self.values.entry(generation).or_default().extend(named);
        true
    }

    /// Grants `len` more dirty bytes, or says before anything was accepted how much room is wanted.
    pub(super) fn grant(&mut self, len: u64) -> Result<(), Failure> {
        let granted = self.room.grant(len, self.overlay.dirty_bytes());
        granted.map_err(|room| {
            Failure::Absent(Wanted {
                room,
                ..Wanted::default()
            })
        })
    }

    /// Writes dirty bytes of a file into the arena and the overlay.
    ///
    /// What the top generation owns already is overwritten in place; the rest is appended. Returns
    /// whether anything was.
    pub(super) fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) -> Result<bool, Errno> {
        let mut appended = false;
        let arena = Arc::clone(self.arena());
        for (range, place) in self.overlay.place(inode, offset, bytes.len() as u64) {
            let from = usize::try_from(range.start - offset).map_err(|_| Errno::FBIG)?;
            let to = usize::try_from(range.end - offset).map_err(|_| Errno::FBIG)?;
            let part = &bytes[from..to];
            match place {
                Some(position) => arena.write_at(part, position).map_err(|e| failed(&e))?,
                None => {
                    appended = true;
                    let position = arena.append(part).map_err(|e| failed(&e))?;
                    self.apply(Change::Write {
                        inode,
                        offset: range.start,
                        len: part.len() as u64,
                        arena: position,
                    });
                }
            }
        }
        self.changes_made += 1;
        Ok(appended)
    }

    /// Lets go of an inode that nothing names and nobody has open any more.
    pub(super) fn drop_unlinked(&mut self, inode: Inode) {
        self.apply(Change::Delete(Key::open_unlinked(inode)));
        self.apply(Change::DropInode(inode));
    }

    /// The journal's head row for this state.
    pub(super) fn head(&self) -> Head {
        Head {
            root: self.root,
            oldest: self.oldest,
            top: self.top,
            next_inode: self.next_inode,
            restores: self.restores,
        }
    }
}

/// Turns an error of the arena's file into what the writer sees.
fn failed(error: &std::io::Error) -> Errno {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    if errno != Errno::NOSPC {
        tracing::error!(%error, "cannot write to an arena");
    }
    errno
}
