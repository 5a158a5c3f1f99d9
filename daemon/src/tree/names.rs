//! Operations on names: look up, create, remove, rename, link.

use img_index::value::SYMLINK_LEN_MAX;
use img_index::{Attributes, FileKind, Inode, Key, KeyRange, Value};
use rustix::io::Errno;

use super::transaction::Transaction;
use super::view::{Entry, Failure, Name};
use super::xattrs::{acl, put_acl};
use super::{Shown, Tree};
use crate::acl::{ACCESS, DEFAULT};

/// What a new inode is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewInode {
    /// File, FIFO, device or directory; symlinks have their own call.
    pub kind: FileKind,
    /// Permission bits as the caller gave them.
    pub mode: u32,
    /// Those that are taken away, unless the folder has an access list to be inherited.
    pub umask: u32,
    /// The caller's ids.
    pub uid: u32,
    /// The caller's ids; a directory with the set-group-id bit overrides it.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
}

/// How a rename treats a name that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails.
    NoReplace,
    /// Swaps the two.
    Exchange,
}

impl Tree {
    /// Looks a name up; none if the directory has no such entry.
    ///
    /// # Errors
    /// Something is absent, or `parent` is no directory.
    pub fn lookup(&self, parent: Inode, name: &[u8]) -> Result<Option<Shown>, Failure> {
        self.read(|view| {
            let name = Name::parse(view.state, name)?;
            let Some(entry) = view.entry(parent, &name)? else {
                return Ok(None);
            };
            let attributes = view.attributes(entry.inode)?;
            self.show(view, entry.inode, attributes).map(Some)
        })
    }

    /// Makes a file, FIFO, device node or directory.
    ///
    /// # Errors
    /// Something is absent, the name exists, or there is no room.
    pub fn make(&self, parent: Inode, name: &[u8], new: NewInode) -> Result<Shown, Failure> {
        let (shown, root) = self.change(|transaction| {
            transaction.state.grant(METADATA_GRANT)?;
            let name = Name::parse(transaction.state, name)?;
            let inode = self.add(transaction, parent, &name, new)?;
            let shown = self.show_changed(transaction, inode)?;
            Ok((shown, transaction.state.root))
        })?;
        // Where it will stand in the index nothing was read yet.
        if let Some(root) = root {
            self.prefetch(&root, Key::attributes(shown.inode));
        }
        Ok(shown)
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// Something is absent, the name exists, the target is too long, or there is no room.
    pub fn symlink(
        &self,
        parent: Inode,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> Result<Shown, Failure> {
        if target.len() > SYMLINK_LEN_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.change(|transaction| {
            transaction.state.grant(METADATA_GRANT)?;
            let name = Name::parse(transaction.state, name)?;
            let new = NewInode {
                kind: FileKind::Symlink,
                mode: 0o777,
                umask: 0,
                uid,
                gid,
                rdev: 0,
            };
            let inode = self.add(transaction, parent, &name, new)?;
            let mut attributes = transaction.attributes(inode)?;
            attributes.size = target.len() as u64;
            transaction.set_attributes(inode, attributes);
            transaction.put(Key::symlink(inode), Value::Symlink(target.to_vec()));
            self.show_changed(transaction, inode)
        })
    }

    /// Reads a symlink's target.
    ///
    /// # Errors
    /// Something is absent, or the inode is no symlink.
    pub fn readlink(&self, inode: Inode) -> Result<Vec<u8>, Failure> {
        self.read(|view| match view.value(&Key::symlink(inode))? {
            Some(Value::Symlink(target)) => Ok(target),
            _ => Err(Errno::INVAL.into()),
        })
    }

    /// Gives an inode one more name.
    ///
    /// # Errors
    /// Something is absent, the name exists, or the inode is a directory or has lost its last name.
    pub fn link(&self, inode: Inode, parent: Inode, name: &[u8]) -> Result<Shown, Failure> {
        self.change(|transaction| {
            transaction.state.grant(METADATA_GRANT)?;
            let name = Name::parse(transaction.state, name)?;
            let attributes = transaction.attributes(inode)?;
            if attributes.kind == FileKind::Directory {
                return Err(Errno::PERM.into());
            }
            if attributes.nlink == 0 {
                return Err(Errno::NOENT.into());
            }
            vacant(transaction, parent, &name)?;
            transaction.link(inode, 1)?;
            let kind = attributes.kind;
            transaction.put_entry(parent, &name, Entry { inode, kind });
            transaction.touch_directory(parent)?;
            self.show_changed(transaction, inode)
        })
    }

    /// Removes the name of anything but a directory.
    ///
    /// # Errors
    /// Something is absent, or the name is not there or names a directory.
    pub fn unlink(&self, parent: Inode, name: &[u8]) -> Result<(), Failure> {
        self.change(|transaction| {
            let name = Name::parse(transaction.state, name)?;
            let entry = existing(transaction, parent, &name)?;
            if entry.kind == FileKind::Directory {
                return Err(Errno::ISDIR.into());
            }
            transaction.delete_entry(parent, &name);
            transaction.unlink_inode(entry)?;
            transaction.touch_directory(parent)
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Something is absent, or the name is not there, no directory or not empty.
    pub fn rmdir(&self, parent: Inode, name: &[u8]) -> Result<(), Failure> {
        self.change(|transaction| {
            let name = Name::parse(transaction.state, name)?;
            let entry = existing(transaction, parent, &name)?;
            empty_directory(transaction, entry)?;
            transaction.delete_entry(parent, &name);
            transaction.unlink_inode(entry)?;
            transaction.link(parent, -1)?;
            transaction.touch_directory(parent)
        })
    }

    /// Renames, as renameat2 does.
    ///
    /// # Errors
    /// Something is absent, or the names are not such that the mode allows it.
    pub fn rename(
        &self,
        parent: Inode,
        name: &[u8],
        new_parent: Inode,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Failure> {
        self.change(|transaction| {
            let name = Name::parse(transaction.state, name)?;
            let new_name = Name::parse(transaction.state, new_name)?;
            let moved = existing(transaction, parent, &name)?;
            transaction.directory(new_parent)?;
            let there = transaction.view().entry(new_parent, &new_name)?;
            match (mode, there) {
                (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST.into()),
                (RenameMode::Exchange, None) => return Err(Errno::NOENT.into()),
                // Two names of one inode: nothing to do, as POSIX wants it.
                (_, Some(there)) if there.inode == moved.inode => return Ok(()),
                (RenameMode::Exchange, Some(there)) => {
                    transaction.put_entry(parent, &name, there);
                    move_directory(transaction, there, new_parent, parent)?;
                    transaction.link(there.inode, 0)?;
                }
                (RenameMode::Replace, Some(there)) => {
                    replaceable(transaction, moved, there)?;
                    transaction.delete_entry(parent, &name);
                    transaction.unlink_inode(there)?;
                    if there.kind == FileKind::Directory {
                        transaction.link(new_parent, -1)?;
                    }
                }
                (_, None) => transaction.delete_entry(parent, &name),
            }
            transaction.put_entry(new_parent, &new_name, moved);
            move_directory(transaction, moved, parent, new_parent)?;
            transaction.link(moved.inode, 0)?;
            transaction.touch_directory(parent)?;
            transaction.touch_directory(new_parent)
        })
    }

    /// Adds a new inode under a vacant name.
    fn add(
        &self,
        transaction: &mut Transaction<'_>,
        parent: Inode,
        name: &Name,
        new: NewInode,
    ) -> Result<Inode, Failure> {
        let directory = vacant(transaction, parent, name)?;
        let inode = transaction.new_inode()?;
        let inherits = directory.mode & S_ISGID != 0;
        let (uid, gid) = self.stored_owner(transaction.view(), new.uid, new.gid)?;
        let mut mode = new.mode & MODE_BITS;
        if inherits && new.kind == FileKind::Directory {
            mode |= S_ISGID;
        }
        match acl(transaction.view(), parent, DEFAULT)? {
            _ if new.kind == FileKind::Symlink => {}
            None => mode &= !(new.umask & 0o777),
            Some(default) => {
                let inherited = default.inherited(mode);
                mode = inherited.mode;
                if let Some(access) = inherited.access {
                    put_acl(transaction, inode, ACCESS, &access);
                }
                if new.kind == FileKind::Directory {
                    put_acl(transaction, inode, DEFAULT, &default);
                }
            }
        }
        transaction.set_attributes(
            inode,
            Attributes {
                kind: new.kind,
                mode,
                uid,
                gid: if inherits { directory.gid } else { gid },
                nlink: if new.kind == FileKind::Directory {
                    2
                } else {
                    1
                },
                size: 0,
                mtime: transaction.now,
                ctime: transaction.now,
                rdev: new.rdev,
                extents: None,
            },
        );
        let kind = new.kind;
        transaction.put_entry(parent, name, Entry { inode, kind });
        transaction.touch_directory(parent)?;
        if kind == FileKind::Directory {
            transaction.link(parent, 1)?;
        }
        Ok(inode)
    }
}

/// Checks that a directory exists still and has no such name; returns its attributes.
fn vacant(
    transaction: &Transaction<'_>,
    parent: Inode,
    name: &Name,
) -> Result<Attributes, Failure> {
    let directory = transaction.directory(parent)?;
    if directory.nlink == 0 {
        return Err(Errno::NOENT.into());
    }
    match transaction.view().entry(parent, name)? {
        Some(_) => Err(Errno::EXIST.into()),
        None => Ok(directory),
    }
}

pub(super) fn existing(
    transaction: &Transaction<'_>,
    parent: Inode,
    name: &Name,
) -> Result<Entry, Failure> {
    transaction.directory(parent)?;
    let entry = transaction.view().entry(parent, name)?;
    entry.ok_or_else(|| Errno::NOENT.into())
}

fn empty_directory(transaction: &Transaction<'_>, entry: Entry) -> Result<(), Failure> {
    if entry.kind != FileKind::Directory {
        return Err(Errno::NOTDIR.into());
    }
    let range = KeyRange::entries(entry.inode);
    match transaction.view().range(&range, 1)?.is_empty() {
        true => Ok(()),
        false => Err(Errno::NOTEMPTY.into()),
    }
}

fn replaceable(transaction: &Transaction<'_>, moved: Entry, there: Entry) -> Result<(), Failure> {
    match (moved.kind, there.kind) {
        (FileKind::Directory, FileKind::Directory) => empty_directory(transaction, there),
        (FileKind::Directory, _) => Err(Errno::NOTDIR.into()),
        (_, FileKind::Directory) => Err(Errno::ISDIR.into()),
        _ => Ok(()),
    }
}

/// Moves the link that a directory's `..` is from one parent to the other.
fn move_directory(
    transaction: &mut Transaction<'_>,
    moved: Entry,
    from: Inode,
    to: Inode,
) -> Result<(), Failure> {
    if moved.kind == FileKind::Directory && from != to {
        transaction.link(from, -1)?;
        transaction.link(to, 1)?;
    }
    Ok(())
}

/// The set-group-id bit: on a directory, its group is inherited.
pub(super) const S_ISGID: u32 = 0o2000;
/// Permission, sticky, set-user-id and set-group-id bits.
pub(super) const MODE_BITS: u32 = 0o7777;
/// Room asked for before a name is accepted: its edits, in the journal and in the index.
pub(super) const METADATA_GRANT: u64 = 4 * 1024;
