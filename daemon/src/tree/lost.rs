//! Files that go because parts of them are lost: what a person does without.

use img_index::{Inode, Key, KeyRange, Value};
use img_overlay::Piece;
use rustix::io::Errno;

use super::Tree;
use super::names::existing;
use super::view::{Failure, Name};

impl Tree {
    /// Keys of metadata and their values as they are now, the first `limit` of a range.
    ///
    /// # Errors
    /// Something is absent.
    pub fn metadata(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Key, Value)>, Failure> {
        self.read(|view| view.range(range, limit))
    }

    /// Removes a file, with these names, that still needs one of these ranges from the root below; whoever has it
    /// open gets errors from now on. Tells whether it was removed: what was written over as a whole stays.
    ///
    /// # Errors
    /// Something is absent, or (`ESTALE`) these are not all of its names.
    pub fn take_out(
        &self,
        inode: Inode,
        lost: &[(u64, u64)],
        names: &[(Inode, &[u8])],
    ) -> Result<bool, Failure> {
        let taken = self.change(|transaction| {
            let attributes = match transaction.attributes(inode) {
                Err(Failure::Refused(Errno::NOENT)) => return Ok(false),
                attributes => attributes?,
            };
            let overlay = &transaction.state.overlay;
            let is_needed = lost.iter().any(|(start, end)| {
                let len = (*end).min(attributes.size).saturating_sub(*start);
                let mut pieces = overlay.read(inode, *start, len).into_iter();
                pieces.any(|piece| matches!(piece, Piece::Below { .. }))
            });
            if !is_needed {
                return Ok(false);
            }
            for (parent, name) in names {
                let name = Name::parse(transaction.state, name)?;
                let entry = match existing(transaction, *parent, &name) {
                    Err(Failure::Refused(Errno::NOENT)) => return Err(Errno::STALE.into()),
                    entry => entry?,
                };
                if entry.inode != inode {
                    return Err(Errno::STALE.into());
                }
                transaction.delete_entry(*parent, &name);
                transaction.unlink_inode(entry)?;
                transaction.touch_directory(*parent)?;
            }
            match transaction.attributes(inode)?.nlink {
                0 => Ok(true),
                _ => Err(Errno::STALE.into()),
            }
        })?;
        if taken {
            let mut state = self.lock();
            let is_open = state.open.remove(&inode).is_some();
            let is_orphan = state.orphans.remove(&inode);
            if is_open || is_orphan || names.is_empty() {
                state.drop_unlinked(inode);
            }
        }
        Ok(taken)
    }

    /// Removes an extended attribute that still has a value; tells whether it was removed.
    ///
    /// # Errors
    /// Something is absent.
    pub fn take_out_xattr(
        &self,
        inode: Inode,
        name: &[u8],
        value: &Value,
    ) -> Result<bool, Failure> {
        self.change(|transaction| {
            let mut attributes = match transaction.attributes(inode) {
                Err(Failure::Refused(Errno::NOENT)) => return Ok(false),
                attributes => attributes?,
            };
            let key = Key::xattr(inode, name);
            if transaction.view().value(&key)?.as_ref() != Some(value) {
                return Ok(false);
            }
            transaction.delete(key);
            attributes.ctime = transaction.now;
            transaction.set_attributes(inode, attributes);
            Ok(true)
        })
    }
}
