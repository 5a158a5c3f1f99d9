//! Open files: what keeps an inode without a name alive.

use std::collections::btree_map;

use img_index::{Inode, Key};

use super::Tree;
use super::attributes::SetAttributes;
use super::data::regular;
use super::state::Open;
use super::view::{Failure, View};

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// It may be written to.
    pub writes: bool,
    /// It may be read and written, so a shared map may change it unseen.
    pub maps: bool,
    /// Its contents go.
    pub truncates: bool,
    /// Truncating clears the set-id bits.
    pub kill_privileges: bool,
}

impl Tree {
    /// Counts one more open file of an inode; returns how often the tree had been restored then, which tells
    /// handles of before a restore from later ones.
    ///
    /// # Errors
    /// Something is absent, or the inode is no file.
    pub fn open(&self, inode: Inode, access: Access) -> Result<u64, Failure> {
        let mut state = self.lock();
        let view = View {
            state: &state,
            source: &*self.source,
        };
        let attributes = view.attributes(inode)?;
        regular(attributes.kind)?;
        let capability = access.writes
            && view
                .value(&Key::xattr(inode, super::xattrs::CAPABILITY))?
                .is_some();
        let restores = state.restores;
        let open = match state.open.entry(inode) {
            btree_map::Entry::Occupied(open) => open.into_mut(),
            btree_map::Entry::Vacant(vacant) => vacant.insert(Open {
                handles: 0,
                writers: 0,
                maps: 0,
                since: restores,
                unlinked: false,
                capability: false,
                attributes,
            }),
        };
        open.handles += 1;
        open.writers += u32::from(access.writes);
        open.maps += u32::from(access.maps);
        open.capability |= capability;
        drop(state);
        if access.truncates {
            self.set_attributes(
                inode,
                SetAttributes {
                    size: Some(0),
                    kill_privileges: access.kill_privileges,
                    ..SetAttributes::default()
                },
            )?;
        }
        Ok(restores)
    }

    /// Counts one open file less, of a handle that [`Self::open`] gave that number; the last one of an inode
    /// without a name takes it along.
    pub fn release(&self, inode: Inode, access: Access, restores: u64) {
        let mut state = self.lock();
        let is_stale = restores < state.restores;
        let btree_map::Entry::Occupied(mut open) = state.open.entry(inode) else {
            return;
        };
        let handle = open.get_mut();
        if restores < handle.since {
            return;
        }
        handle.handles = handle.handles.saturating_sub(1);
        if !is_stale {
            handle.writers = handle.writers.saturating_sub(u32::from(access.writes));
            handle.maps = handle.maps.saturating_sub(u32::from(access.maps));
        }
        if handle.handles == 0 && open.remove().unlinked {
            state.drop_unlinked(inode);
        }
    }

    /// Forgets every open file: nothing can be open any more, the kernel has let go of the mount.
    pub fn release_all(&self) {
        let mut state = self.lock();
        for (inode, open) in std::mem::take(&mut state.open) {
            if open.unlinked {
                state.drop_unlinked(inode);
            }
        }
    }

    /// Files that are open now.
    pub fn open_files(&self) -> usize {
        self.shared().open.len()
    }

    /// Inodes that a shared map may be changing.
    pub fn mapped(&self) -> Vec<Inode> {
        let state = self.shared();
        let mapped = state.open.iter().filter(|(_, open)| open.maps > 0);
        mapped.map(|(inode, _)| *inode).collect()
    }

    /// Reads what a tree wants to know about its root before anybody asks: the next inode, and the
    /// inodes that an earlier session left open but unlinked, which the next checkpoint drops.
    pub(super) fn prepare(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        let view = View {
            state: &state,
            source: &*self.source,
        };
        let found = view.range(&img_index::KeyRange::open_unlinked(), ORPHANS_MAX)?;
        let orphans = found.into_iter().filter_map(|(key, _)| match key.parts() {
            img_index::KeyParts::OpenUnlinked(inode) => Some(inode),
            _ => None,
        });
        let orphans: Vec<_> = orphans.filter(|i| !state.open.contains_key(i)).collect();
        let next_inode = view.next_inode()?;
        state.orphans.extend(orphans);
        state.next_inode.get_or_insert(next_inode);
        Ok(())
    }
}

/// Orphans that one session cleans up; the next takes what is left.
const ORPHANS_MAX: usize = 1_024;
