//! A disk in memory that knows what a power cut would take.
//!
//! Each file has its bytes as programs see them, its bytes as of the last sync, and the writes between the two;
//! each folder has its names likewise. A file's sync says nothing of the file's name, and a folder's sync
//! nothing of its files: stricter than ext4 or XFS, where the sync of a new file brings its name along. Owners,
//! permissions and times are durable at once. A rename is atomic, and durable with either of its folders.

mod load;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::io::Errno;

use crate::luck::Luck;

/// Number of a file, folder or link.
pub type Node = u64;

/// The folder that everything is in; the number that FUSE gives it too.
pub const ROOT: Node = 1;

/// What a power cut leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nothing: the strictest reading of POSIX.
    Nothing,
    /// Everything: what `kill -9` does.
    Everything,
    /// Some of it, torn between pages and between sectors.
    Torn,
}

impl Way {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Nothing, Self::Everything, Self::Torn];
}

/// Attributes that are durable at once.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of change.
    pub mtime: SystemTime,
}

/// A file, folder or link.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Permissions, owner and time.
    pub attributes: Attributes,
    /// The last name that it was given, to tell people of it.
    pub name: OsString,
    /// What it is.
    pub body: Body,
}

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Body {
    /// A file.
    File(Bytes),
    /// A folder.
    Folder(Names),
    /// A symbolic link.
    Link(PathBuf),
}

/// The bytes of a file.
#[derive(Debug, Clone, Default)]
pub struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Write>,
}

/// The names in a folder.
#[derive(Debug, Clone, Default)]
pub struct Names {
    now: BTreeMap<OsString, Node>,
    durable: BTreeMap<OsString, Node>,
}

#[derive(Debug, Clone)]
enum Write {
    Bytes { offset: usize, data: Vec<u8> },
    Len(usize),
}

/// A change of names that no sync has covered.
#[derive(Debug, Clone)]
struct Change {
    /// The name that goes.
    from: Option<(Node, OsString)>,
    /// The name that comes, and what it means.
    to: Option<(Node, OsString, Node)>,
}

/// The disk.
#[derive(Debug, Clone)]
pub struct Disk {
    entries: BTreeMap<Node, Entry>,
    changes: Vec<Change>,
    next: Node,
}

impl Disk {
    /// What a number means.
    ///
    /// # Errors
    /// Nothing.
    pub fn entry(&self, node: Node) -> Result<&Entry, Errno> {
        self.entries.get(&node).ok_or(Errno::NOENT)
    }

    /// To change what is durable at once.
    ///
    /// # Errors
    /// There is no such entry.
    pub fn attributes(&mut self, node: Node) -> Result<&mut Attributes, Errno> {
        Ok(&mut self.entry_mut(node)?.attributes)
    }

    /// What a name means.
    ///
    /// # Errors
    /// Nothing, or `folder` is none.
    pub fn lookup(&self, folder: Node, name: &OsStr) -> Result<Node, Errno> {
        self.names(folder)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// The names in a folder.
    ///
    /// # Errors
    /// It is none.
    pub fn names(&self, folder: Node) -> Result<&BTreeMap<OsString, Node>, Errno> {
        match &self.entry(folder)?.body {
            Body::Folder(names) => Ok(&names.now),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Makes an entry.
    ///
    /// # Errors
    /// The name is taken.
    pub fn make(
        &mut self,
        folder: Node,
        name: &OsStr,
        attributes: Attributes,
        body: Body,
    ) -> Result<Node, Errno> {
        if self.lookup(folder, name).is_ok() {
            return Err(Errno::EXIST);
        }
        let node = self.next;
        self.next += 1;
        let entry = Entry {
            attributes,
            name: name.to_owned(),
            body,
        };
        self.entries.insert(node, entry);
        self.change(None, Some((folder, name.to_owned(), node)))?;
        Ok(node)
    }

    /// Gives a file another name as well.
    ///
    /// # Errors
    /// The name is taken.
    pub fn link(&mut self, node: Node, folder: Node, name: &OsStr) -> Result<(), Errno> {
        if self.lookup(folder, name).is_ok() {
            return Err(Errno::EXIST);
        }
        self.change(None, Some((folder, name.to_owned(), node)))
    }

    /// Removes a name; what it meant lives on for who has it open.
    ///
    /// # Errors
    /// There is no such name, or a folder that is not empty.
    pub fn remove(&mut self, folder: Node, name: &OsStr) -> Result<(), Errno> {
        let node = self.lookup(folder, name)?;
        if self.names(node).is_ok_and(|names| !names.is_empty()) {
            return Err(Errno::NOTEMPTY);
        }
        self.change(Some((folder, name.to_owned())), None)
    }

    /// Renames, replacing what has the new name.
    ///
    /// # Errors
    /// There is no such name.
    pub fn rename(&mut self, from: (Node, &OsStr), to: (Node, &OsStr)) -> Result<(), Errno> {
        let node = self.lookup(from.0, from.1)?;
        to.1.clone_into(&mut self.entry_mut(node)?.name);
        let from = (from.0, from.1.to_owned());
        self.change(Some(from), Some((to.0, to.1.to_owned(), node)))
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// It is none.
    pub fn bytes(&self, node: Node) -> Result<&[u8], Errno> {
        match &self.entry(node)?.body {
            Body::File(bytes) => Ok(&bytes.now),
            _ => Err(Errno::INVAL),
        }
    }

    /// Writes to a file.
    ///
    /// # Errors
    /// It is none.
    pub fn write(&mut self, node: Node, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let data = data.to_vec();
        self.file(node)?.write(Write::Bytes { offset, data });
        Ok(())
    }

    /// Cuts or extends a file.
    ///
    /// # Errors
    /// It is none.
    pub fn set_len(&mut self, node: Node, len: usize) -> Result<(), Errno> {
        self.file(node)?.write(Write::Len(len));
        Ok(())
    }

    /// Makes a file's bytes or a folder's names durable.
    ///
    /// # Errors
    /// There is no such entry.
    pub fn sync(&mut self, node: Node) -> Result<(), Errno> {
        for change in self.settle(node)? {
            self.endure(&change);
        }
        if let Body::File(bytes) = &mut self.entry_mut(node)?.body {
            for write in std::mem::take(&mut bytes.pending) {
                write.apply(&mut bytes.durable);
            }
        }
        Ok(())
    }

    /// A sync that fails, as it does with Linux: the bytes that it should have made durable are still to be seen, and
    /// no later sync tries them again. A folder's names wait for the next one.
    ///
    /// # Errors
    /// There is no such entry.
    pub fn fail_sync(&mut self, node: Node) -> Result<(), Errno> {
        if let Body::File(bytes) = &mut self.entry_mut(node)?.body {
            bytes.pending.clear();
        }
        Ok(())
    }

    /// Cuts the power: afterwards the disk has what survived, and all of it is durable.
    pub fn cut(&mut self, way: Way, luck: &mut Luck) {
        let changes = std::mem::take(&mut self.changes);
        let taste = Taste::of(way, luck);
        for change in changes {
            if taste.keeps(luck) {
                self.endure(&change);
            }
        }
        for entry in self.entries.values_mut() {
            match &mut entry.body {
                Body::File(bytes) => bytes.cut(way, luck),
                Body::Folder(names) if way == Way::Everything => names.durable = names.now.clone(),
                Body::Folder(names) => names.now = names.durable.clone(),
                Body::Link(_) => {}
            }
        }
        let mut reached = BTreeSet::from([ROOT]);
        let mut next = vec![ROOT];
        while let Some(folder) = next.pop() {
            for node in self.names(folder).into_iter().flat_map(BTreeMap::values) {
                if reached.insert(*node) {
                    next.push(*node);
                }
            }
        }
        self.entries.retain(|node, _| reached.contains(node));
    }

    fn entry_mut(&mut self, node: Node) -> Result<&mut Entry, Errno> {
        self.entries.get_mut(&node).ok_or(Errno::NOENT)
    }

    fn file(&mut self, node: Node) -> Result<&mut Bytes, Errno> {
        match &mut self.entry_mut(node)?.body {
            Body::File(bytes) => Ok(bytes),
            _ => Err(Errno::INVAL),
        }
    }

    fn folder(&mut self, node: Node) -> Result<&mut Names, Errno> {
        match &mut self.entry_mut(node)?.body {
            Body::Folder(names) => Ok(names),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn change(
        &mut self,
        from: Option<(Node, OsString)>,
        to: Option<(Node, OsString, Node)>,
    ) -> Result<(), Errno> {
        if let Some((folder, _, _)) = &to {
            self.folder(*folder)?;
        }
        if let Some((folder, name)) = &from {
            self.folder(*folder)?.now.remove(name);
        }
        if let Some((folder, name, node)) = &to {
            self.folder(*folder)?.now.insert(name.clone(), *node);
        }
        self.changes.push(Change { from, to });
        Ok(())
    }

    /// Takes the changes that a sync of this folder covers.
    fn settle(&mut self, folder: Node) -> Result<Vec<Change>, Errno> {
        self.entry(folder)?;
        let all = std::mem::take(&mut self.changes).into_iter();
        let (covered, others) = all.partition(|change| change.touches(folder));
        self.changes = others;
        Ok(covered)
    }

    fn endure(&mut self, change: &Change) {
        // A folder whose own name was lost takes its names with it.
        if let Some((folder, name)) = &change.from
            && let Ok(names) = self.folder(*folder)
        {
            names.durable.remove(name);
        }
        if let Some((folder, name, node)) = &change.to
            && let Ok(names) = self.folder(*folder)
        {
            names.durable.insert(name.clone(), *node);
        }
    }
}

impl Change {
    fn touches(&self, folder: Node) -> bool {
        self.from.as_ref().is_some_and(|(from, _)| *from == folder)
            || self.to.as_ref().is_some_and(|(to, _, _)| *to == folder)
    }
}

impl Bytes {
    fn write(&mut self, write: Write) {
        write.apply(&mut self.now);
        self.pending.push(write);
    }

    fn cut(&mut self, way: Way, luck: &mut Luck) {
        let pending = std::mem::take(&mut self.pending);
        let taste = Taste::of(way, luck);
        match taste {
            Taste::All if way == Way::Everything => self.durable.clone_from(&self.now),
            Taste::All => pending
                .iter()
                .for_each(|write| write.apply(&mut self.durable)),
            Taste::Nothing => {}
            Taste::Some => {
                pending
                    .iter()
                    .for_each(|write| write.tear(&mut self.durable, luck));
                // The length is the file system's and the bytes are not: it can have grown without them.
                if self.now.len() > self.durable.len() && luck.below(3) == 0 {
                    self.durable.resize(self.now.len(), 0);
                }
            }
        }
        self.now.clone_from(&self.durable);
    }
}

impl Write {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Bytes { offset, data } => put(bytes, *offset, data),
            Self::Len(len) => bytes.resize(*len, 0),
        }
    }

    fn tear(&self, bytes: &mut Vec<u8>, luck: &mut Luck) {
        match self {
            Self::Bytes { offset, data } => {
                for (at, page) in pieces(*offset, data, PAGE_LEN) {
                    match luck.below(4) {
                        0 | 1 => put(bytes, at, page),
                        2 => {}
                        _ => {
                            for (at, sector) in pieces(at, page, SECTOR_LEN) {
                                if luck.coin() {
                                    put(bytes, at, sector);
                                }
                            }
                        }
                    }
                }
            }
            Self::Len(len) => {
                if luck.coin() {
                    bytes.resize(*len, 0);
                }
            }
        }
    }
}

/// How much a torn disk keeps of one file, or of all changes of names: with pages alone, files of
/// which all is there beside files of which nothing is would hardly ever be seen.
#[derive(Clone, Copy)]
enum Taste {
    Nothing,
    Some,
    All,
}

impl Taste {
    fn of(way: Way, luck: &mut Luck) -> Self {
        match way {
            Way::Nothing => Self::Nothing,
            Way::Everything => Self::All,
            Way::Torn => match luck.below(3) {
                0 => Self::Nothing,
                1 => Self::Some,
                _ => Self::All,
            },
        }
    }

    fn keeps(self, luck: &mut Luck) -> bool {
        match self {
            Self::Nothing => false,
            Self::Some => luck.coin(),
            Self::All => true,
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

/// Cuts bytes where the disk's units end.
fn pieces(mut at: usize, mut data: &[u8], unit: usize) -> impl Iterator<Item = (usize, &[u8])> {
    std::iter::from_fn(move || {
        let (piece, rest) = data.split_at(data.len().min(unit - at % unit));
        let found = (!piece.is_empty()).then_some((at, piece));
        at += piece.len();
        data = rest;
        found
    })
}

const PAGE_LEN: usize = 4096;
const SECTOR_LEN: usize = 512;
