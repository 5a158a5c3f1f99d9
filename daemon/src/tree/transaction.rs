//! One operation's changes: read first, then applied together or not at all.
//!
//! Reads see the state before the operation, except for attributes, which a transaction keeps so
//! that several steps can edit the same inode. An operation that meets something absent leaves no
//! trace and can simply be repeated.

use std::collections::BTreeMap;

use img_index::{Attributes, FileKind, Inode, Key, Timestamp, Value};
use img_overlay::Change;
use rustix::io::Errno;

use super::source::Source;
use super::state::State;
use super::view::{Entry, Failure, Name, View};

/// The changes of one operation so far.
pub(super) struct Transaction<'a> {
    pub(super) state: &'a mut State,
    pub(super) source: &'a dyn Source,
    pub(super) now: Timestamp,
    attributes: BTreeMap<Inode, Attributes>,
    changes: Vec<Change>,
    unlinked: Vec<Inode>,
    created: bool,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(state: &'a mut State, source: &'a dyn Source, now: Timestamp) -> Self {
        Self {
            state,
            source,
            now,
            attributes: BTreeMap::new(),
            changes: Vec::new(),
            unlinked: Vec::new(),
            created: false,
        }
    }

    /// The state before the operation.
    pub(super) fn view(&self) -> View<'_> {
        View {
            state: self.state,
            source: self.source,
        }
    }

    /// Reads attributes, as this operation has edited them so far.
    pub(super) fn attributes(&self, inode: Inode) -> Result<Attributes, Failure> {
        match self.attributes.get(&inode) {
            Some(attributes) => Ok(*attributes),
            None => self.view().attributes(inode),
        }
    }

    /// Reads the attributes of what must be a directory that still has a name.
    pub(super) fn directory(&self, inode: Inode) -> Result<Attributes, Failure> {
        let attributes = self.attributes(inode)?;
        if attributes.kind != FileKind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        Ok(attributes)
    }

    /// Sets attributes. How many extents a file has then is for its seal to say.
    pub(super) fn set_attributes(&mut self, inode: Inode, mut attributes: Attributes) {
        attributes.extents = None;
        self.attributes.insert(inode, attributes);
    }

    /// Marks a directory as changed now.
    pub(super) fn touch_directory(&mut self, inode: Inode) -> Result<(), Failure> {
        let mut attributes = self.attributes(inode)?;
        attributes.mtime = self.now;
        attributes.ctime = self.now;
        self.set_attributes(inode, attributes);
        Ok(())
    }

    /// Adds to or takes from an inode's count of links and sets its change time.
    pub(super) fn link(&mut self, inode: Inode, links: i32) -> Result<u32, Failure> {
        let mut attributes = self.attributes(inode)?;
        attributes.nlink = attributes
            .nlink
            .checked_add_signed(links)
            .ok_or(if links > 0 { Errno::MLINK } else { Errno::IO })?;
        attributes.ctime = self.now;
        let nlink = attributes.nlink;
        self.set_attributes(inode, attributes);
        Ok(nlink)
    }

    /// Makes a new inode's number.
    pub(super) fn new_inode(&mut self) -> Result<Inode, Failure> {
        let next = self.view().next_inode()?;
        self.created = true;
        self.state.next_inode = Some(next);
        Ok(next)
    }

    /// Points a name at an inode.
    pub(super) fn put_entry(&mut self, parent: Inode, name: &Name, entry: Entry) {
        self.put(
            name.key(parent),
            Value::Entry {
                inode: entry.inode,
                kind: entry.kind,
            },
        );
    }

    /// Removes a name.
    pub(super) fn delete_entry(&mut self, parent: Inode, name: &Name) {
        self.changes.push(Change::Delete(name.key(parent)));
    }

    /// Takes one link from what a name led to; without links it goes at its last close.
    pub(super) fn unlink_inode(&mut self, entry: Entry) -> Result<(), Failure> {
        let mut attributes = self.attributes(entry.inode)?;
        attributes.nlink = match entry.kind {
            FileKind::Directory => 0,
            _ => attributes.nlink.saturating_sub(1),
        };
        attributes.ctime = self.now;
        let gone = attributes.nlink == 0;
        self.set_attributes(entry.inode, attributes);
        if gone {
            self.unlinked.push(entry.inode);
        }
        Ok(())
    }

    /// Sets a key.
    pub(super) fn put(&mut self, key: Key, value: Value) {
        self.changes.push(Change::Put(key, value));
    }

    /// Removes a key.
    pub(super) fn delete(&mut self, key: Key) {
        self.changes.push(Change::Delete(key));
    }

    /// Adds a change of data: a zeroed range.
    pub(super) fn zero(&mut self, inode: Inode, offset: u64, len: u64) {
        self.changes.push(Change::Zero { inode, offset, len });
    }

    /// Applies everything.
    pub(super) fn commit(self) {
        let Self {
            state,
            attributes,
            changes,
            unlinked,
            created,
            ..
        } = self;
        if created {
            state.next_inode = state.next_inode.map(|Inode(next)| Inode(next + 1));
        }
        for change in changes {
            state.apply(change);
        }
        for (inode, attributes) in attributes {
            if let Some(open) = state.open.get_mut(&inode) {
                open.attributes = attributes;
            }
            if !unlinked.contains(&inode) || state.open.contains_key(&inode) {
                state.apply(Change::Put(
                    Key::attributes(inode),
                    Value::Attributes(attributes),
                ));
            }
        }
        for inode in unlinked {
            match state.open.get_mut(&inode) {
                Some(open) => {
                    open.unlinked = true;
                    state.apply(Change::Put(Key::open_unlinked(inode), Value::Mark));
                }
                None => state.apply(Change::DropInode(inode)),
            }
        }
    }
}
