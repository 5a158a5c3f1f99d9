//! The names of inodes. The index leads from names to inodes; here the way back is found.
//!
//! An import numbers inodes in the order in which it meets them, a folder before all that is in it, and programs that
//! unpack or copy trees do the same. So the way goes down from the top, each time into the folder with the largest
//! number that is not above the inode's. What was moved since it was made, or made later in an older folder, is not
//! there: one pass over the metadata finds all such names together. Contents are never read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use img_index::{FileKind, Inode, KeyParts, KeyRange, Value};
use img_seal::Reference;

use super::DiffError;
use super::reader::{Reader, metadata};

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) parent: Inode,
    pub(super) name: Vec<u8>,
}

/// Names of inodes in one state.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<Inode, BTreeSet<Name>>);

/// An entry of a folder.
struct Entry {
    name: Name,
    inode: Inode,
    kind: FileKind,
}

impl Names {
    /// Finds so many names of each inode, and one of each folder above them. `known` are some that need not be
    /// looked for.
    pub(super) fn find(
        reader: &Reader<'_>,
        root: &Reference,
        known: &BTreeMap<Inode, BTreeSet<Name>>,
        wanted: &BTreeMap<Inode, usize>,
    ) -> Result<Self, DiffError> {
        let mut names = Self::default();
        for inode in wanted.keys() {
            names.take_known(known, *inode);
        }
        loop {
            names.add_known_above(known, wanted);
            let open = names.open(wanted);
            if open.is_empty() {
                return Ok(names);
            }
            names.descend(reader, root, &open)?;
            names.add_known_above(known, wanted);
            let open = names.open(wanted);
            if open.is_empty() {
                return Ok(names);
            }
            if !names.pass(reader, root, wanted, open)? {
                return Ok(names);
            }
        }
    }

    /// All names of an inode that were found.
    pub(super) fn of(&self, inode: Inode) -> impl Iterator<Item = &Name> {
        self.0.get(&inode).into_iter().flatten()
    }

    /// The path of a name from the image's top; nothing if a folder above it has none.
    pub(super) fn path(&self, name: &Name) -> Option<PathBuf> {
        let mut names = vec![name];
        let mut parent = name.parent;
        while parent != Inode::ROOT {
            let above = self.of(parent).next()?;
            names.push(above);
            parent = above.parent;
            if names.len() > DEPTH_MAX {
                return None;
            }
        }
        let names = names.iter().rev().map(|name| as_path(&name.name));
        Some(names.collect())
    }

    fn take_known(&mut self, known: &BTreeMap<Inode, BTreeSet<Name>>, inode: Inode) {
        if let Some(names) = known.get(&inode) {
            self.0
                .entry(inode)
                .or_default()
                .extend(names.iter().cloned());
        }
    }

    fn add(&mut self, inode: Inode, name: Name) -> bool {
        self.0.entry(inode).or_default().insert(name)
    }

    /// Goes up from what has names as long as folders are known.
    fn add_known_above(
        &mut self,
        known: &BTreeMap<Inode, BTreeSet<Name>>,
        wanted: &BTreeMap<Inode, usize>,
    ) {
        loop {
            let above: Vec<_> = self.open(wanted).into_iter().collect();
            let before = self.0.len();
            for inode in above {
                self.take_known(known, inode);
            }
            if self.0.len() == before {
                return;
            }
        }
    }

    /// What lacks names.
    fn open(&self, wanted: &BTreeMap<Inode, usize>) -> BTreeSet<Inode> {
        let count = |inode: &Inode| self.0.get(inode).map_or(0, BTreeSet::len);
        let few = wanted
            .iter()
            .filter(|(inode, names)| count(inode) < **names);
        let few = few.map(|(inode, _)| *inode);
        let above = self.0.values().flatten().map(|name| name.parent);
        let above = above.filter(|parent| count(parent) == 0);
        let open = few.chain(above);
        open.filter(|inode| *inode != Inode::ROOT).collect()
    }

    /// Looks where an inode is that was numbered after its folder, as those around it were.
    fn descend(
        &mut self,
        reader: &Reader<'_>,
        root: &Reference,
        open: &BTreeSet<Inode>,
    ) -> Result<(), DiffError> {
        let mut ways = vec![(Inode::ROOT, open.clone())];
        while let Some((folder, sought)) = ways.pop() {
            // For each inode the folder with the largest number below its own.
            let mut nearest: BTreeMap<Inode, Option<(Inode, Name)>> =
                sought.iter().map(|inode| (*inode, None)).collect();
            each_entry(reader, root, KeyRange::entries(folder), |entry| {
                if open.contains(&entry.inode) {
                    self.add(entry.inode, entry.name.clone());
                }
                if entry.kind == FileKind::Directory {
                    for (_, nearest) in nearest.range_mut(Inode(entry.inode.0.saturating_add(1))..)
                    {
                        // Whoever has a larger number has a nearer folder already.
                        if nearest
                            .as_ref()
                            .is_some_and(|(inode, _)| *inode >= entry.inode)
                        {
                            break;
                        }
                        *nearest = Some((entry.inode, entry.name.clone()));
                    }
                }
                true
            })?;
            let mut below: BTreeMap<Inode, BTreeSet<Inode>> = BTreeMap::new();
            for (inode, nearest) in nearest {
                let Some((folder, name)) = nearest else {
                    continue;
                };
                if self.of(inode).next().is_none() {
                    self.add(folder, name);
                    below.entry(folder).or_default().insert(inode);
                }
            }
            ways.extend(below);
        }
        Ok(())
    }

    /// Goes through the metadata until nothing is open any more; tells whether it has found anything.
    fn pass(
        &mut self,
        reader: &Reader<'_>,
        root: &Reference,
        wanted: &BTreeMap<Inode, usize>,
        mut open: BTreeSet<Inode>,
    ) -> Result<bool, DiffError> {
        let mut found = false;
        each_entry(reader, root, metadata(), |entry| {
            if open.contains(&entry.inode) {
                found |= self.add(entry.inode, entry.name);
                let names = self.of(entry.inode).count();
                if names >= wanted.get(&entry.inode).copied().unwrap_or(1) {
                    open.remove(&entry.inode);
                }
            }
            !open.is_empty()
        })?;
        Ok(found)
    }
}

/// Shows the directory entries of a range until `see` has seen enough.
fn each_entry(
    reader: &Reader<'_>,
    root: &Reference,
    mut rest: KeyRange,
    mut see: impl FnMut(Entry) -> bool,
) -> Result<(), DiffError> {
    loop {
        let some = reader.range(root, &rest, KEYS_AT_ONCE)?;
        for (key, value) in &some {
            if let (KeyParts::Entry { parent, name, .. }, Value::Entry { inode, kind }) =
                (key.parts(), value)
            {
                let name = Name {
                    parent,
                    name: name.to_vec(),
                };
                let (inode, kind) = (*inode, *kind);
                if !see(Entry { name, inode, kind }) {
                    return Ok(());
                }
            }
        }
        match some.last() {
            Some((last, _)) if some.len() == KEYS_AT_ONCE => rest.start = last.successor(),
            _ => return Ok(()),
        }
    }
}

fn as_path(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

/// Keys that are looked at together: about a megabyte.
const KEYS_AT_ONCE: usize = 4_096;
/// Folders above a file: more than any path that a program can name.
const DEPTH_MAX: usize = 4_096;
