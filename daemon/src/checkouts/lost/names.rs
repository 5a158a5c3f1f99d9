//! The names of inodes: one pass over the metadata finds their entries, one more for each level of folders above them.
//!
//! Only what is looked for is kept in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use img_index::{Inode, Key, KeyParts, KeyRange, ReadError, Value};
use img_proto::Class;
use img_seal::Reference;

use super::{finish, forbidden};
use crate::checkouts::work::CommitError;
use crate::error::ApiError;
use crate::objects::{FetchError, Objects};
use crate::tree::Tree;

/// Where names are looked for.
pub(super) enum Names<'a> {
    /// In a checkout as it is now.
    Tree(&'a Arc<Tree>),
    /// In a root, but for keys that cannot be read.
    Root {
        objects: &'a Arc<Objects>,
        root: Reference,
        unread: Option<KeyRange>,
    },
}

/// Entries by the inode that they lead to: the folder, and the name in it.
#[derive(Debug, Default)]
pub(super) struct Found(BTreeMap<Inode, Vec<(Inode, Vec<u8>)>>);

impl Names<'_> {
    /// All names of inodes, and those of the folders above them.
    ///
    /// # Errors
    /// Metadata cannot be read.
    pub(super) async fn of(&self, mut wanted: BTreeSet<Inode>) -> Result<Found, CommitError> {
        let mut entries: BTreeMap<Inode, Vec<(Inode, Vec<u8>)>> = BTreeMap::new();
        while !wanted.is_empty() {
            for mut rest in self.ranges() {
                loop {
                    let some = self.listed(&rest).await?;
                    let Some((last, _)) = some.last() else {
                        break;
                    };
                    rest.start = last.successor();
                    for (key, value) in &some {
                        if let (KeyParts::Entry { parent, name, .. }, Value::Entry { inode, .. }) =
                            (key.parts(), value)
                            && wanted.contains(inode)
                        {
                            let of_inode = entries.entry(*inode).or_default();
                            of_inode.push((parent, name.to_vec()));
                        }
                    }
                }
            }
            let above = wanted.iter().filter_map(|inode| entries.get(inode));
            let above = above.flatten().map(|(parent, _)| *parent);
            wanted = above
                .filter(|parent| *parent != Inode::ROOT && !entries.contains_key(parent))
                .collect();
        }
        Ok(Found(entries))
    }

    /// The keys of all metadata that can be read.
    fn ranges(&self) -> Vec<KeyRange> {
        let all = KeyRange {
            start: KeyRange::open_unlinked().end,
            end: KeyRange::data(Inode(0)).start,
        };
        let Self::Root {
            unread: Some(unread),
            ..
        } = self
        else {
            return vec![all];
        };
        let before = KeyRange {
            start: all.start.clone(),
            end: unread.start.clone().min(all.end.clone()),
        };
        let behind = KeyRange {
            start: unread.end.clone().max(all.start),
            end: all.end,
        };
        vec![before, behind]
    }

    async fn listed(&self, range: &KeyRange) -> Result<Vec<(Key, Value)>, CommitError> {
        match self {
            Self::Tree(tree) => finish(tree, |tree| tree.metadata(range, ENTRIES_AT_ONCE))
                .await
                .map_err(|errno| {
                    forbidden(ApiError::failed(format!(
                        "The list of files cannot be read: {errno}"
                    )))
                }),
            Self::Root { objects, root, .. } => loop {
                match img_index::range(&***objects, root, range, ENTRIES_AT_ONCE) {
                    Ok(some) => return Ok(some),
                    Err(ReadError::Absent(absent)) => {
                        objects.fetch_nodes(&absent.0, Class::Control).await?;
                    }
                    Err(ReadError::Misplaced(id)) => return Err(FetchError::Corrupt(id).into()),
                }
            },
        }
    }
}

impl Found {
    /// All names of an inode: folder, name and path. The top folder has one, which is empty.
    pub(super) fn of_inode(&self, inode: Inode) -> Vec<(Inode, Vec<u8>, PathBuf)> {
        if inode == Inode::ROOT {
            return vec![(inode, Vec::new(), PathBuf::from("/"))];
        }
        let names = self.0.get(&inode).into_iter().flatten();
        names
            .map(|(parent, name)| (*parent, name.clone(), self.path(*parent, name)))
            .collect()
    }

    fn path(&self, mut parent: Inode, name: &[u8]) -> PathBuf {
        let mut names = vec![name];
        while parent != Inode::ROOT
            && names.len() < DEPTH_MAX
            && let Some((above, name)) = self.0.get(&parent).and_then(|names| names.first())
        {
            names.push(name);
            parent = *above;
        }
        let mut path = PathBuf::from("/");
        path.extend(names.iter().rev().map(|name| OsStr::from_bytes(name)));
        path
    }
}

/// Entries of the index that are looked at together.
const ENTRIES_AT_ONCE: usize = 4_096;
/// Folders above a file: more than any path that a program can name.
const DEPTH_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_goes_up_to_the_root_and_ends_in_a_circle_too() {
        let (root, a, b) = (Inode::ROOT, Inode(2), Inode(3));
        let up = Found(BTreeMap::from([
            (a, vec![(root, b"a".to_vec())]),
            (b, vec![(a, b"b".to_vec())]),
        ]));
        assert_eq!(up.path(b, b"file"), PathBuf::from("/a/b/file"));
        assert_eq!(up.of_inode(b)[0].2, PathBuf::from("/a/b"));
        assert_eq!(up.of_inode(root)[0].2, PathBuf::from("/"));
        let circle = Found(BTreeMap::from([
            (a, vec![(b, b"a".to_vec())]),
            (b, vec![(a, b"b".to_vec())]),
        ]));
        assert!(circle.path(b, b"file").ends_with("file"));
    }
}
