//! Reads a tar.
//!
//! Twice: first the names, to know what each of them stands for at the end, then what is left of it. As tar
//! itself does, of a name that stands in the archive more than once the last is taken, whatever the first
//! was. Contents are read where they lie, by the sealers. Folders that the archive does not mention are made.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_index::key::name_allowed;
use img_index::value::SYMLINK_LEN_MAX;
use img_index::{Attributes, FileKind, Inode, Timestamp};
use img_types::limits::{BLOCK_SIZE, INLINE_LEN_MAX};
use tar::EntryType;

use super::ImportError;
use super::feed::{Bytes, Content, Ended, Feed, Item, Name, Node, PART_LEN, Xattrs};
use super::members::{Member, Members, Stretch};

/// Hands on everything in an archive.
pub(super) fn read(feed: &mut Feed<'_>, source: File) -> Result<(), ImportError> {
    let source = Arc::new(source);
    let outcome = Tree::read(feed, &source).and_then(|tree| {
        let reader = Reader {
            plan: tree.plan(feed),
            source: &source,
            feed,
        };
        reader.read()
    });
    match outcome {
        // Whoever ended the import knows why.
        Ok(()) | Err(Problem::Ended) => Ok(()),
        Err(Problem::Fails(error)) => Err(error),
    }
}

/// Why reading stops.
enum Problem {
    Ended,
    Fails(ImportError),
}

impl From<Ended> for Problem {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        Self::Fails(error)
    }
}

/// What the names stand for so far.
struct Tree {
    /// The first is the top; those that nothing leads to any more are left where they are.
    folders: Vec<Folder>,
}

#[derive(Default)]
struct Folder {
    /// The member that describes it.
    member: Option<u64>,
    entries: BTreeMap<Box<[u8]>, Entry>,
}

#[derive(Clone, Copy)]
enum Entry {
    /// By its place in the list.
    Folder(usize),
    /// By the member that has its contents.
    Other(u64),
}

impl Tree {
    fn read(feed: &Feed<'_>, source: &File) -> Result<Self, Problem> {
        let mut tree = Self {
            folders: vec![Folder::default()],
        };
        let mut members = Members::new(source)?;
        let mut number = 0;
        while let Some(member) = members.next()? {
            if let Err(reason) = tree.add(number, &member) {
                feed.skip(path_of(&member), reason)?;
            }
            number += 1;
        }
        Ok(tree)
    }

    /// Takes a member in, or says why it has no place.
    fn add(&mut self, number: u64, member: &Member) -> Result<(), &'static str> {
        let kind = kind_of(member.kind).ok_or("is of a kind that images do not have")?;
        if kind == FileKind::Symlink && !(1..=SYMLINK_LEN_MAX).contains(&member.target.len()) {
            return Err("is a symlink to nothing, or too long");
        }
        let names = names_of(&member.path).ok_or("has a name that no file can have")?;
        let Some((last, above)) = names.split_last() else {
            if kind == FileKind::Directory {
                self.folders[0].member = Some(number);
            }
            return Ok(());
        };
        let target = match member.kind.is_hard_link() {
            true => Some(self.file_at(&member.target).ok_or(NO_TARGET)?),
            false => None,
        };
        let mut parent = 0;
        for name in above {
            parent = match self.folders[parent].entries.get(*name) {
                Some(Entry::Folder(at)) => *at,
                Some(Entry::Other(_)) => return Err("lies in something that is no folder"),
                None => self.add_folder(parent, name),
            };
        }
        let before = self.folders[parent].entries.get(*last);
        match (kind, before) {
            (FileKind::Directory, Some(Entry::Folder(at))) => {
                let at = *at;
                self.folders[at].member = Some(number);
            }
            (FileKind::Directory, _) => {
                let at = self.add_folder(parent, last);
                self.folders[at].member = Some(number);
            }
            _ => {
                let entry = Entry::Other(target.unwrap_or(number));
                self.folders[parent].entries.insert((*last).into(), entry);
            }
        }
        Ok(())
    }

    fn add_folder(&mut self, parent: usize, name: &[u8]) -> usize {
        let at = self.folders.len();
        self.folders.push(Folder::default());
        let entries = &mut self.folders[parent].entries;
        entries.insert(name.into(), Entry::Folder(at));
        at
    }

    /// The member whose contents stand at a path now.
    fn file_at(&self, path: &[u8]) -> Option<u64> {
        let names = names_of(path)?;
        let (last, above) = names.split_last()?;
        let mut at = 0;
        for name in above {
            at = match self.folders[at].entries.get(*name)? {
                Entry::Folder(below) => *below,
                Entry::Other(_) => return None,
            };
        }
        match self.folders[at].entries.get(*last)? {
            Entry::Other(member) => Some(*member),
            Entry::Folder(_) => None,
        }
    }

    /// Numbers the folders that are left and finds the names of all else.
    fn plan(mut self, feed: &mut Feed<'_>) -> Plan {
        let mut plan = Plan::default();
        let mut stack = vec![(0, None, PathBuf::new())];
        while let Some((at, name, path)) = stack.pop() {
            let folder = std::mem::take(&mut self.folders[at]);
            let parent = feed.number();
            let planned = PlannedFolder {
                inode: parent,
                name,
                path: path.clone(),
            };
            match folder.member {
                Some(member) => drop(plan.folders.insert(member, planned)),
                None => plan.unnamed.push(planned),
            }
            for (name, entry) in folder.entries {
                let path = path.join(OsStr::from_bytes(&name));
                let name = Name { parent, name };
                match entry {
                    Entry::Folder(at) => stack.push((at, Some(name), path)),
                    Entry::Other(member) => {
                        plan.others.entry(member).or_default().push((name, path))
                    }
                }
            }
        }
        plan
    }
}

/// What is to be handed on of which member.
#[derive(Default)]
struct Plan {
    folders: BTreeMap<u64, PlannedFolder>,
    /// Folders that no member describes.
    unnamed: Vec<PlannedFolder>,
    /// All names of each file, symlink, FIFO or device.
    others: BTreeMap<u64, Vec<(Name, PathBuf)>>,
}

struct PlannedFolder {
    inode: Inode,
    name: Option<Name>,
    path: PathBuf,
}

impl PlannedFolder {
    fn into_node(self, attributes: Attributes, xattrs: Xattrs) -> Item {
        Item::Node(Box::new(Node {
            inode: self.inode,
            name: self.name,
            attributes,
            symlink: None,
            xattrs,
            content: Content::None,
            path: self.path,
        }))
    }
}

struct Reader<'f, 'a> {
    plan: Plan,
    source: &'f Arc<File>,
    feed: &'f mut Feed<'a>,
}

impl Reader<'_, '_> {
    fn read(mut self) -> Result<(), Problem> {
        let source = Arc::clone(self.source);
        let mut members = Members::new(&source)?;
        let len = source.metadata().map_err(ImportError::Source)?.len();
        self.feed.shared.set_total(len);
        for folder in std::mem::take(&mut self.plan.unnamed) {
            let node = folder.into_node(folder_attributes(), Xattrs::new());
            self.feed.send(node)?;
        }
        let mut number = 0;
        while let Some(mut member) = members.next()? {
            let lost = std::mem::take(&mut member.lost);
            let path = path_of(&member).to_owned();
            let is_kept = self.hand_on(number, member)?;
            for reason in lost.into_iter().filter(|_| is_kept) {
                self.feed.skip(&path, reason)?;
            }
            number += 1;
        }
        match self.plan.folders.is_empty() && self.plan.others.is_empty() {
            true => Ok(()),
            false => Err(ImportError::Archive {
                what: "it changed while it was read",
                at: len,
            }
            .into()),
        }
    }

    /// Hands on what is left of a member; false if nothing is.
    fn hand_on(&mut self, number: u64, member: Member) -> Result<bool, Problem> {
        let Some(kind) = kind_of(member.kind) else {
            return Ok(false);
        };
        let attributes = Attributes {
            kind,
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            nlink: 1,
            size: match kind {
                FileKind::File => member.size,
                FileKind::Symlink => member.target.len() as u64,
                _ => 0,
            },
            mtime: member.mtime,
            ctime: member.mtime,
            rdev: member.rdev,
            extents: None,
        };
        if let Some(folder) = self.plan.folders.remove(&number) {
            self.feed
                .send(folder.into_node(attributes, member.xattrs))?;
            return Ok(true);
        }
        let Some(names) = self.plan.others.remove(&number) else {
            return Ok(false);
        };
        let mut names = names.into_iter();
        let Some((name, path)) = names.next() else {
            return Ok(false);
        };
        let inode = self.feed.number();
        let node = Node {
            inode,
            name: Some(name),
            attributes,
            symlink: (kind == FileKind::Symlink).then_some(member.target),
            xattrs: member.xattrs,
            content: Content::None,
            path,
        };
        match kind {
            FileKind::File => self.file(node, &member.stretches)?,
            _ => self.feed.send(Item::Node(Box::new(node)))?,
        }
        for (name, path) in names {
            self.feed.send(Item::Link { name, inode, path })?;
        }
        Ok(true)
    }

    fn file(&mut self, mut node: Node, stretches: &[Stretch]) -> Result<(), Problem> {
        let size = node.attributes.size;
        if size <= INLINE_LEN_MAX as u64 {
            let content = self.pick(stretches, 0, size as usize);
            node.content = Content::Inline(content.map_err(ImportError::Source)?);
            self.feed.shared.advance(size);
            return Ok(self.feed.send(Item::Node(Box::new(node)))?);
        }
        node.content = Content::Parts;
        self.feed.send(Item::Node(Box::new(node)))?;
        let mut offset = 0;
        let mut rest = stretches;
        loop {
            let passed = rest.partition_point(|stretch| stretch.end() <= offset);
            rest = &rest[passed..];
            let Some(first) = rest.first() else { break };
            let start = offset.max(first.offset - first.offset % BLOCK_SIZE as u64);
            let len = (size - start).min(PART_LEN as u64);
            self.feed.shared.advance(start - offset);
            let is_whole = first.offset <= start && first.end() >= start + len;
            let bytes = if is_whole {
                Bytes::File {
                    file: Arc::clone(self.source),
                    position: first.position + (start - first.offset),
                    len: len as usize,
                    may_be_short: false,
                }
            } else {
                let picked = self.pick(rest, start, len as usize);
                Bytes::Memory(picked.map_err(ImportError::Source)?)
            };
            self.feed.part(bytes, start)?;
            offset = start + len;
        }
        self.feed.shared.advance(size - offset);
        Ok(self.feed.send(Item::End(None))?)
    }

    /// Puts a range of a file together.
    fn pick(&self, stretches: &[Stretch], offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let end = offset + len as u64;
        for stretch in stretches.iter().take_while(|stretch| stretch.offset < end) {
            let (from, to) = (stretch.offset.max(offset), stretch.end().min(end));
            if from < to {
                let place = &mut bytes[(from - offset) as usize..(to - offset) as usize];
                let position = stretch.position + (from - stretch.offset);
                self.source.read_exact_at(place, position)?;
            }
        }
        Ok(bytes)
    }
}

/// What a member is in an image; a hard link is whatever it leads to.
fn kind_of(kind: EntryType) -> Option<FileKind> {
    Some(match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Link => {
            FileKind::File
        }
        EntryType::Directory => FileKind::Directory,
        EntryType::Symlink => FileKind::Symlink,
        EntryType::Fifo => FileKind::Fifo,
        EntryType::Char => FileKind::CharDevice,
        EntryType::Block => FileKind::BlockDevice,
        _ => return None,
    })
}

fn path_of(member: &Member) -> &Path {
    Path::new(OsStr::from_bytes(&member.path))
}

/// The names of a path from the top; nothing if one of them is none.
fn names_of(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts = path.split(|byte| *byte == b'/');
    let names: Vec<_> = parts
        .filter(|name| !name.is_empty() && *name != b".")
        .collect();
    let possible = |name: &&[u8]| name_allowed(name);
    names.iter().all(possible).then_some(names)
}

/// A folder that the archive does not describe: the importer's own.
fn folder_attributes() -> Attributes {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let now = since.unwrap_or_default();
    let now = Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: now.subsec_nanos(),
    };
    Attributes {
        kind: FileKind::Directory,
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        nlink: 2,
        size: 0,
        mtime: now,
        ctime: now,
        rdev: 0,
        extents: None,
    }
}

const NO_TARGET: &str = "is a hard link to a file that is not in the archive before it";
