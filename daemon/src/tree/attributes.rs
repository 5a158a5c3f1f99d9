//! Attributes: what `stat` shows, and what chmod, chown, truncate and utimens set.

use img_index::{Attributes, Fact, FileKind, Inode, Key, Timestamp, Value};
use img_overlay::INFINITY;
use rustix::io::Errno;

use super::data::{FILE_SIZE_MAX, drop_capability, regular};
use super::names::{MODE_BITS, S_ISGID};
use super::transaction::Transaction;
use super::view::{Failure, View};
use super::xattrs::{acl, put_acl};
use super::{OwnerMapping, Tree};
use crate::acl::ACCESS;

/// An inode as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Its number.
    pub inode: Inode,
    /// Its attributes, owners mapped.
    pub attributes: Attributes,
    /// Space that it occupies in units of 512 bytes.
    pub blocks: u64,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This one.
    At(Timestamp),
}

/// Attributes to set; what is none stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size; beyond the old one the file reads zeros.
    pub size: Option<u64>,
    /// Time of the last change of the contents.
    pub mtime: Option<SetTime>,
    /// A change of size clears the set-id bits: the caller has no right to keep them.
    pub kill_privileges: bool,
}

impl Tree {
    /// Reads an inode's attributes.
    ///
    /// # Errors
    /// Something is absent, or there is no such inode.
    pub fn attributes(&self, inode: Inode) -> Result<Shown, Failure> {
        self.read(|view| {
            let attributes = view.attributes(inode)?;
            self.show(view, inode, attributes)
        })
    }

    /// Sets attributes and returns what they are now.
    ///
    /// # Errors
    /// Something is absent, there is no such inode, or it cannot have such a size.
    pub fn set_attributes(&self, inode: Inode, set: SetAttributes) -> Result<Shown, Failure> {
        self.change(|transaction| {
            let mut attributes = transaction.attributes(inode)?;
            if set.uid.is_some() || set.gid.is_some() {
                let (uid, gid) = self.stored_owner(
                    transaction.view(),
                    set.uid.unwrap_or(attributes.uid),
                    set.gid.unwrap_or(attributes.gid),
                )?;
                attributes.uid = set.uid.map_or(attributes.uid, |_| uid);
                attributes.gid = set.gid.map_or(attributes.gid, |_| gid);
                attributes.mode = without_privileges(attributes.kind, attributes.mode);
                drop_capability(transaction, inode);
            }
            if let Some(mode) = set.mode {
                attributes.mode = mode & MODE_BITS;
                if attributes.kind != FileKind::Symlink
                    && let Some(mut acl) = acl(transaction.view(), inode, ACCESS)?
                {
                    acl.chmod(mode);
                    put_acl(transaction, inode, ACCESS, &acl);
                }
            }
            if let Some(size) = set.size {
                regular(attributes.kind)?;
                if size > FILE_SIZE_MAX {
                    return Err(Errno::FBIG.into());
                }
                resize(transaction, inode, &mut attributes, size);
                if set.kill_privileges {
                    attributes.mode = without_privileges(attributes.kind, attributes.mode);
                }
            }
            match set.mtime {
                Some(SetTime::Now) => attributes.mtime = transaction.now,
                Some(SetTime::At(time)) => attributes.mtime = time,
                None => {}
            }
            attributes.ctime = transaction.now;
            transaction.set_attributes(inode, attributes);
            self.show_changed(transaction, inode)
        })
    }

    /// Shows an inode with its owners mapped.
    pub(super) fn show(
        &self,
        view: View<'_>,
        inode: Inode,
        mut attributes: Attributes,
    ) -> Result<Shown, Failure> {
        let ids = self.shown_ids(view)?;
        attributes.uid = ids.user(attributes.uid);
        attributes.gid = ids.group(attributes.gid);
        let blocks = match attributes.kind {
            FileKind::File if attributes.size > 0 => self.blocks(view, inode, attributes.size),
            _ => 0,
        };
        Ok(Shown {
            inode,
            attributes,
            blocks,
        })
    }

    /// Shows an inode as the transaction leaves it.
    pub(super) fn show_changed(
        &self,
        transaction: &Transaction<'_>,
        inode: Inode,
    ) -> Result<Shown, Failure> {
        let attributes = transaction.attributes(inode)?;
        self.show(transaction.view(), inode, attributes)
    }

    /// Turns ids that a caller gives into those that are kept.
    pub(super) fn stored_owner(
        &self,
        view: View<'_>,
        uid: u32,
        gid: u32,
    ) -> Result<(u32, u32), Failure> {
        let ids = self.stored_ids(view)?;
        Ok((ids.user(uid), ids.group(gid)))
    }

    /// What turns the ids that are kept into those that are shown.
    pub(super) fn shown_ids(&self, view: View<'_>) -> Result<Ids, Failure> {
        Ok(match self.owner {
            OwnerMapping::Keep => Ids::default(),
            OwnerMapping::Map { uid, gid } => Ids {
                from: image_owner(view)?,
                to: (uid, gid),
            },
        })
    }

    /// What turns the ids that a caller gives into those that are kept.
    pub(super) fn stored_ids(&self, view: View<'_>) -> Result<Ids, Failure> {
        let Ids { from, to } = self.shown_ids(view)?;
        Ok(Ids { from: to, to: from })
    }
}

/// Changes a file's size; what lies behind a smaller one is gone for good.
pub(super) fn resize(
    transaction: &mut Transaction<'_>,
    inode: Inode,
    attributes: &mut Attributes,
    size: u64,
) {
    if size < attributes.size {
        transaction.zero(inode, size, INFINITY - size);
    }
    attributes.size = size;
    attributes.mtime = transaction.now;
    attributes.ctime = transaction.now;
    drop_capability(transaction, inode);
}

/// Clears what a write by somebody else than root takes away: set-user-id, and set-group-id where
/// the group may execute. On directories the bits mean something else and stay.
pub(super) fn without_privileges(kind: FileKind, mode: u32) -> u32 {
    if kind == FileKind::Directory {
        return mode;
    }
    let group = if mode & GROUP_EXECUTE != 0 {
        S_ISGID
    } else {
        0
    };
    mode & !(S_ISUID | group)
}

/// Turns one owner into another and leaves all others alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ids {
    from: (u32, u32),
    to: (u32, u32),
}

impl Ids {
    pub(super) fn user(self, id: u32) -> u32 {
        if id == self.from.0 { self.to.0 } else { id }
    }

    pub(super) fn group(self, id: u32) -> u32 {
        if id == self.from.1 { self.to.1 } else { id }
    }
}

fn image_owner(view: View<'_>) -> Result<(u32, u32), Failure> {
    match view.value(&Key::fact(Fact::Owner))? {
        Some(Value::Owner { uid, gid }) => Ok((uid, gid)),
        // An image without the fact belongs to root, as an import by root would say.
        _ => Ok((0, 0)),
    }
}

const S_ISUID: u32 = 0o4000;
const GROUP_EXECUTE: u32 = 0o010;
