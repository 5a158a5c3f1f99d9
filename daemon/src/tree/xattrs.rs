//! Extended attributes.
//!
//! Values up to 2 KiB stand in the index. Larger ones become blocks when they are set, and are kept by
//! the device until a commit contains them. POSIX ACLs are attributes too; what else hangs on them is in
//! [`crate::acl`], and the kernel enforces them.

use img_index::{FileKind, Inode, Key, KeyParts, KeyRange, Value, Xattr};
use img_types::limits::{BLOCK_SIZE, ENTRY_NAME_LEN_MAX, INLINE_LEN_MAX};
use rustix::io::Errno;

use super::Tree;
use super::names::{METADATA_GRANT, S_ISGID};
use super::source::Wanted;
use super::transaction::Transaction;
use super::view::{Failure, View};
use crate::acl::{ACCESS, Acl, DEFAULT};

/// How a value is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetXattr {
    /// Whether or not it is there.
    Any,
    /// Only if it is not there.
    Create,
    /// Only if it is there.
    Replace,
}

impl Tree {
    /// Reads a value.
    ///
    /// # Errors
    /// Something is absent, or there is no such attribute (ENODATA).
    pub fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>, Failure> {
        supported(name)?;
        if is_acl(name) {
            let acl = self.read(|view| {
                let acl = acl(view, inode, name)?;
                acl.map(|acl| self.shown_acl(view, acl)).transpose()
            })?;
            return Ok(acl.ok_or(Errno::NODATA)?.encode());
        }
        let value = self.read(|view| view.value(&Key::xattr(inode, name)))?;
        match value {
            Some(Value::Xattr(Xattr::Inline(value))) => Ok(value),
            Some(Value::Xattr(Xattr::Block(reference))) => match self.source.block(&reference) {
                Some(value) => Ok(value.to_vec()),
                None => Err(Failure::Absent(Wanted {
                    blocks: vec![reference],
                    ..Wanted::default()
                })),
            },
            _ => Err(Errno::NODATA.into()),
        }
    }

    /// Lists the names, each with a NUL behind it.
    ///
    /// # Errors
    /// Something is absent.
    pub fn xattr_names(&self, inode: Inode) -> Result<Vec<u8>, Failure> {
        let found = self.read(|view| view.range(&KeyRange::xattrs(inode), XATTRS_MAX))?;
        let mut names = Vec::new();
        for (key, _) in &found {
            if let KeyParts::Xattr { name, .. } = key.parts() {
                names.extend_from_slice(name);
                names.push(0);
            }
        }
        Ok(names)
    }

    /// Sets a value. An access list sets the permission bits as well; `kill_privileges` clears the
    /// set-group-id bit then.
    ///
    /// # Errors
    /// Something is absent, the mode forbids it, the value is longer than 64 KiB (E2BIG), there is no
    /// room (ENOSPC), or the name is one that is not supported.
    pub fn set_xattr(
        &self,
        inode: Inode,
        name: &[u8],
        value: &[u8],
        mode: SetXattr,
        kill_privileges: bool,
    ) -> Result<(), Failure> {
        supported(name)?;
        if is_acl(name) {
            let acl = Acl::decode(value).ok_or(Errno::INVAL)?;
            return self.set_acl(inode, name, acl, kill_privileges);
        }
        if value.len() > BLOCK_SIZE {
            return Err(Errno::TOOBIG.into());
        }
        let is_large = value.len() > INLINE_LEN_MAX;
        let _keeping = is_large.then(|| self.keeping());
        let kept = if !is_large {
            Xattr::Inline(value.to_vec())
        } else {
            self.lock().grant(value.len() as u64)?;
            Xattr::Block(self.source.keep(value)?)
        };
        self.change(|transaction| {
            transaction.state.grant(METADATA_GRANT)?;
            let mut attributes = transaction.attributes(inode)?;
            let key = Key::xattr(inode, name);
            match (mode, transaction.view().value(&key)?) {
                (SetXattr::Create, Some(_)) => return Err(Errno::EXIST.into()),
                (SetXattr::Replace, None) => return Err(Errno::NODATA.into()),
                (_, None) => {
                    let range = KeyRange::xattrs(inode);
                    if transaction.view().range(&range, XATTRS_MAX)?.len() >= XATTRS_MAX {
                        return Err(Errno::NOSPC.into());
                    }
                }
                _ => {}
            }
            transaction.put(key, Value::Xattr(kept));
            attributes.ctime = transaction.now;
            transaction.set_attributes(inode, attributes);
            if name == CAPABILITY
                && let Some(open) = transaction.state.open.get_mut(&inode)
            {
                open.capability = true;
            }
            Ok(())
        })
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// Something is absent, or there is no such attribute (ENODATA).
    pub fn remove_xattr(&self, inode: Inode, name: &[u8]) -> Result<(), Failure> {
        supported(name)?;
        self.change(|transaction| {
            let mut attributes = transaction.attributes(inode)?;
            let key = Key::xattr(inode, name);
            if transaction.view().value(&key)?.is_none() {
                // There always is an access list: the mode.
                return match is_acl(name) {
                    true => Ok(()),
                    false => Err(Errno::NODATA.into()),
                };
            }
            transaction.delete(key);
            attributes.ctime = transaction.now;
            transaction.set_attributes(inode, attributes);
            Ok(())
        })
    }

    fn set_acl(
        &self,
        inode: Inode,
        name: &[u8],
        acl: Acl,
        kill_privileges: bool,
    ) -> Result<(), Failure> {
        self.change(|transaction| {
            transaction.state.grant(METADATA_GRANT)?;
            let mut attributes = transaction.attributes(inode)?;
            let mut acl = acl.clone();
            let ids = self.stored_ids(transaction.view())?;
            acl.map_ids(|user| ids.user(user), |group| ids.group(group));
            if name == ACCESS {
                attributes.mode = acl.mode(attributes.mode);
                if kill_privileges && attributes.kind != FileKind::Directory {
                    attributes.mode &= !S_ISGID;
                }
            } else if attributes.kind != FileKind::Directory {
                return Err(Errno::ACCESS.into());
            }
            put_acl(transaction, inode, name, &acl);
            attributes.ctime = transaction.now;
            transaction.set_attributes(inode, attributes);
            Ok(())
        })
    }

    fn shown_acl(&self, view: View<'_>, mut acl: Acl) -> Result<Acl, Failure> {
        let ids = self.shown_ids(view)?;
        acl.map_ids(|user| ids.user(user), |group| ids.group(group));
        Ok(acl)
    }
}

/// Reads a list as it is kept.
pub(super) fn acl(view: View<'_>, inode: Inode, name: &[u8]) -> Result<Option<Acl>, Failure> {
    match view.value(&Key::xattr(inode, name))? {
        Some(Value::Xattr(Xattr::Inline(value))) => {
            let acl = Acl::decode(&value);
            Ok(Some(acl.ok_or(Errno::IO)?))
        }
        // No device keeps one that is longer than what stands in the index.
        Some(_) => Err(Errno::IO.into()),
        None => Ok(None),
    }
}

/// Keeps a list; an access list that the mode says as well needs no place.
pub(super) fn put_acl(transaction: &mut Transaction<'_>, inode: Inode, name: &[u8], acl: &Acl) {
    let key = Key::xattr(inode, name);
    if name == ACCESS && acl.is_minimal() {
        transaction.delete(key);
    } else {
        transaction.put(key, Value::Xattr(Xattr::Inline(acl.encode())));
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// The kernel checks who may use `security.` and `trusted.`; of `system.` it knows the ACLs.
fn supported(name: &[u8]) -> Result<(), Errno> {
    let prefixes: [&[u8]; 3] = [b"user.", b"security.", b"trusted."];
    if !is_acl(name) && !prefixes.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(Errno::OPNOTSUPP);
    }
    if name.len() > ENTRY_NAME_LEN_MAX {
        return Err(Errno::RANGE);
    }
    Ok(())
}

/// File capabilities; a write to the file removes them.
pub(super) const CAPABILITY: &[u8] = b"security.capability";
/// Attributes of one inode: their names stay below the 64 KiB that the kernel can list.
const XATTRS_MAX: usize = 250;
