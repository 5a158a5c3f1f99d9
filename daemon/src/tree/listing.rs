//! Directory listings.
//!
//! An entry's place is the keyed hash of its name, so its cookie stays the same whatever else comes
//! and goes: a directory can be deleted while it is listed, also over a remount.

use img_index::{Inode, KeyParts, KeyRange, NameHash, Value};

use super::Tree;
use super::attributes::Shown;
use super::view::{Entry, Failure, View};

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub entry: Entry,
    /// Where a listing goes on behind this entry.
    pub cookie: u64,
}

impl Tree {
    /// Lists at most `limit` entries behind `cookie`, [`COOKIE_FIRST`] for the beginning.
    ///
    /// # Errors
    /// Something is absent, or the inode is no directory.
    pub fn list(&self, inode: Inode, cookie: u64, limit: usize) -> Result<Vec<Listed>, Failure> {
        self.read(|view| list(view, inode, cookie, limit))
    }

    /// Lists as [`Self::list`] does, with the attributes of each entry.
    ///
    /// # Errors
    /// Something is absent, or the inode is no directory.
    pub fn list_shown(
        &self,
        inode: Inode,
        cookie: u64,
        limit: usize,
    ) -> Result<Vec<(Listed, Shown)>, Failure> {
        self.read(|view| {
            let mut wanted = super::source::Wanted::default();
            let mut listed = Vec::new();
            for entry in list(view, inode, cookie, limit)? {
                let inode = entry.entry.inode;
                let attributes = view.attributes(inode);
                match attributes.and_then(|attributes| self.show(view, inode, attributes)) {
                    Ok(shown) => listed.push((entry, shown)),
                    Err(failure) => wanted.add(failure)?,
                }
            }
            if wanted.is_empty() {
                Ok(listed)
            } else {
                Err(Failure::Absent(wanted))
            }
        })
    }
}

fn list(view: View<'_>, inode: Inode, cookie: u64, limit: usize) -> Result<Vec<Listed>, Failure> {
    view.directory(inode)?;
    // Entries with one hash are told apart by counting, so start with the first that may have it.
    let first = cookie.saturating_sub(COOKIE_FIRST + COLLISIONS_MAX);
    let range = KeyRange::entries_from(inode, NameHash::new(first));
    let found = view.range(&range, limit + COLLISIONS_MAX as usize)?;
    let mut listed = Vec::new();
    let mut last: Option<(NameHash, u64)> = None;
    for (key, value) in &found {
        let (KeyParts::Entry { hash, name, .. }, Value::Entry { inode, kind }) =
            (key.parts(), value)
        else {
            continue;
        };
        let same = match last {
            Some((before, count)) if before == hash => count + 1,
            _ => 0,
        };
        last = Some((hash, same));
        // The kernel keeps positions as signed numbers.
        let own = (hash.value() + COOKIE_FIRST + 1 + same).min(i64::MAX.unsigned_abs());
        if own > cookie && listed.len() < limit {
            listed.push(Listed {
                name: name.to_vec(),
                entry: Entry {
                    inode: *inode,
                    kind: *kind,
                },
                cookie: own,
            });
        }
    }
    Ok(listed)
}

/// The cookie behind `.` and `..`, where the entries begin.
pub const COOKIE_FIRST: u64 = 2;
/// Names of one directory that may share a 63-bit hash.
const COLLISIONS_MAX: u64 = 8;
