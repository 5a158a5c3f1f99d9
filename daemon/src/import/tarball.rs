//! Reads a tar.
//!
//! In a file, contents are read where they lie, by the sealers; from a pipe they are handed on as they come.
//! Folders that the archive does not mention are made, and of a name that stands in it twice the first is
//! taken and the second reported.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_index::{Attributes, FileKind, Inode, Timestamp};
use img_types::limits::{ENTRY_NAME_LEN_MAX, INLINE_LEN_MAX};
use tar::{Archive, Entries, Entry, EntryType, Header};

use super::ImportError;
use super::feed::{Bytes, Content, Ended, Feed, Item, Name, Node, PART_LEN, Xattrs};

/// Tells whether a file begins with the header of an archive's member.
pub(super) fn is_tar(source: &File) -> io::Result<bool> {
    let mut block = [0; BLOCK_LEN];
    if source.read_at(&mut block, 0)? < block.len() {
        return Ok(false);
    }
    let header = Header::from_byte_slice(&block);
    let claimed = header.cksum();
    let around = |byte: (usize, &u8)| match byte.0 {
        148..156 => u32::from(b' '),
        _ => u32::from(*byte.1),
    };
    let sum: u32 = block.iter().enumerate().map(around).sum();
    Ok(claimed.is_ok_and(|claimed| claimed == sum))
}

/// Hands on everything in an archive.
pub(super) fn read(feed: &mut Feed<'_>, source: File) -> Result<(), ImportError> {
    let metadata = source.metadata().map_err(ImportError::Source)?;
    let mut reader = TarReader {
        root: feed.number(),
        feed,
        at: None,
        folders: Vec::new(),
        known: HashMap::new(),
    };
    reader.folders.push(Folder {
        name: None,
        attributes: folder_attributes(),
        inode: reader.root,
        xattrs: Vec::new(),
        path: PathBuf::new(),
    });
    let outcome = if metadata.is_file() {
        reader.feed.shared.set_total(metadata.len());
        let file = source.try_clone().map_err(ImportError::Source)?;
        reader.at = Some(Arc::new(file));
        let mut archive = Archive::new(source);
        match archive.entries_with_seek() {
            Ok(entries) => reader.entries(entries),
            Err(error) => Err(Problem::Source(error)),
        }
    } else {
        let mut archive = Archive::new(source);
        match archive.entries() {
            Ok(entries) => reader.entries(entries),
            Err(error) => Err(Problem::Source(error)),
        }
    };
    match outcome.and_then(|()| Ok(reader.finish()?)) {
        // Whoever ended the import knows why.
        Ok(()) | Err(Problem::Ended) => Ok(()),
        Err(Problem::Source(error)) => Err(ImportError::Source(error)),
    }
}

/// Why reading stops.
enum Problem {
    Ended,
    Source(io::Error),
}

impl From<Ended> for Problem {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Source(error)
    }
}

struct TarReader<'f, 'a> {
    feed: &'f mut Feed<'a>,
    root: Inode,
    /// The archive, if its contents can be read where they lie.
    at: Option<Arc<File>>,
    /// Handed on at the end, when their attributes are known.
    folders: Vec<Folder>,
    known: HashMap<(Inode, Box<[u8]>), Known>,
}

struct Folder {
    inode: Inode,
    name: Option<Name>,
    attributes: Attributes,
    xattrs: Xattrs,
    path: PathBuf,
}

/// What a name stands for.
#[derive(Clone, Copy)]
enum Known {
    /// By its place in the list.
    Folder(usize),
    Other(Inode),
}

/// What pax headers say beyond a plain one.
struct Extensions {
    mtime: Option<Timestamp>,
    /// Whether every record could be read: not those whose value holds a line break.
    is_whole: bool,
    /// Whether the content is a map of a sparse file and its pieces, which is not read here.
    is_sparse: bool,
    xattrs: Xattrs,
}

impl TarReader<'_, '_> {
    fn entries<R: Read>(&mut self, entries: Entries<'_, R>) -> Result<(), Problem> {
        for entry in entries {
            self.entry(entry?)?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), Problem> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let extensions = extensions_of(&mut entry)?;
        let attributes = attributes_of(entry.header(), entry.size(), extensions.mtime)?;
        let (Some(attributes), Some(mut names)) = (attributes, names_of(&path)) else {
            let reason = match names_of(&path) {
                Some(_) => "is of a kind that images do not have",
                None => "has a name that no file can have",
            };
            return Ok(self.feed.skip(&path, reason)?);
        };
        if extensions.is_sparse {
            let reason =
                "is a sparse file in pax form; make the tar with --format=gnu, or without --sparse";
            return Ok(self.feed.skip(&path, reason)?);
        }
        if !extensions.is_whole {
            let reason = "without an extended attribute whose value holds a line break";
            self.feed.skip(&path, reason)?;
        }
        let Some(last) = names.pop() else {
            // The top itself.
            self.folders[0].attributes = Attributes {
                kind: FileKind::Directory,
                ..attributes
            };
            self.folders[0].xattrs = extensions.xattrs;
            return Ok(());
        };
        let Some(parent) = self.folder(&names) else {
            return Ok(self
                .feed
                .skip(&path, "lies in something that is no folder")?);
        };
        let key = (parent, Box::from(last));
        let name = || Name {
            parent,
            name: last.into(),
        };
        match (self.known.get(&key).copied(), attributes.kind) {
            (None, _) => {}
            (Some(Known::Folder(at)), FileKind::Directory) if kind.is_dir() => {
                self.folders[at].attributes = attributes;
                self.folders[at].xattrs = extensions.xattrs;
                return Ok(());
            }
            (Some(_), _) => {
                let reason = "stands in the archive twice; the image has the first";
                return Ok(self.feed.skip(&path, reason)?);
            }
        }
        if kind.is_dir() {
            self.known.insert(key, Known::Folder(self.folders.len()));
            self.folders.push(Folder {
                inode: self.feed.number(),
                name: Some(name()),
                attributes,
                xattrs: extensions.xattrs,
                path,
            });
            return Ok(());
        }
        if kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let Some(inode) = self.inode_at(Path::new(OsStr::from_bytes(&target))) else {
                let reason = "is a hard link to a file that is not in the archive before it";
                return Ok(self.feed.skip(&path, reason)?);
            };
            self.known.insert(key, Known::Other(inode));
            let name = name();
            return Ok(self.feed.send(Item::Link { name, inode, path })?);
        }
        let inode = self.feed.number();
        self.known.insert(key, Known::Other(inode));
        let symlink = match attributes.kind {
            FileKind::Symlink => entry.link_name_bytes().map(|target| target.into_owned()),
            _ => None,
        };
        if attributes.kind == FileKind::Symlink && symlink.as_ref().is_none_or(Vec::is_empty) {
            return Ok(self.feed.skip(&path, "is a symlink to nothing")?);
        }
        let size = symlink
            .as_ref()
            .map_or(attributes.size, |target| target.len() as u64);
        let node = Node {
            inode,
            name: Some(name()),
            attributes: Attributes { size, ..attributes },
            symlink,
            xattrs: extensions.xattrs,
            content: Content::None,
            path,
        };
        if attributes.kind == FileKind::File {
            self.file(node, &mut entry)
        } else {
            Ok(self.feed.send(Item::Node(Box::new(node)))?)
        }
    }

    fn file<R: Read>(&mut self, mut node: Node, entry: &mut Entry<'_, R>) -> Result<(), Problem> {
        let size = node.attributes.size;
        if size <= INLINE_LEN_MAX as u64 {
            let mut content = vec![0; size as usize];
            entry.read_exact(&mut content)?;
            node.content = Content::Inline(content);
            self.feed.shared.advance(size);
            return Ok(self.feed.send(Item::Node(Box::new(node)))?);
        }
        node.content = Content::Parts;
        self.feed.send(Item::Node(Box::new(node)))?;
        let lies_in_one_piece = !entry.header().entry_type().is_gnu_sparse();
        let mut offset = 0;
        while offset < size {
            let len = (size - offset).min(PART_LEN as u64);
            let bytes = match &self.at {
                Some(file) if lies_in_one_piece => Bytes::File {
                    file: Arc::clone(file),
                    position: entry.raw_file_position() + offset,
                    len: len as usize,
                    may_be_short: false,
                },
                _ => {
                    let mut bytes = vec![0; len as usize];
                    entry.read_exact(&mut bytes)?;
                    Bytes::Memory(bytes)
                }
            };
            self.feed.part(bytes, offset)?;
            offset += len;
        }
        Ok(self.feed.send(Item::End(None))?)
    }

    /// The folder at a path, made if need be; nothing if something else is in the way.
    fn folder(&mut self, names: &[&[u8]]) -> Option<Inode> {
        let mut parent = self.root;
        let mut path = PathBuf::new();
        for name in names {
            path.push(OsStr::from_bytes(name));
            let known = self.known.get(&(parent, Box::from(*name))).copied();
            parent = match known {
                Some(Known::Folder(at)) => self.folders[at].inode,
                Some(Known::Other(_)) => return None,
                None => {
                    let inode = self.feed.number();
                    let at = Known::Folder(self.folders.len());
                    self.known.insert((parent, Box::from(*name)), at);
                    self.folders.push(Folder {
                        inode,
                        name: Some(Name {
                            parent,
                            name: Box::from(*name),
                        }),
                        attributes: folder_attributes(),
                        xattrs: Vec::new(),
                        path: path.clone(),
                    });
                    inode
                }
            };
        }
        Some(parent)
    }

    /// The file at a path that was met before.
    fn inode_at(&self, path: &Path) -> Option<Inode> {
        let names = names_of(path)?;
        let (last, folders) = names.split_last()?;
        let mut parent = self.root;
        for name in folders {
            match self.known.get(&(parent, Box::from(*name)))? {
                Known::Folder(at) => parent = self.folders[*at].inode,
                Known::Other(_) => return None,
            }
        }
        match self.known.get(&(parent, Box::from(*last)))? {
            Known::Other(inode) => Some(*inode),
            Known::Folder(_) => None,
        }
    }

    fn finish(self) -> Result<(), Ended> {
        for folder in self.folders {
            self.feed.send(Item::Node(Box::new(Node {
                inode: folder.inode,
                name: folder.name,
                attributes: folder.attributes,
                symlink: None,
                xattrs: folder.xattrs,
                content: Content::None,
                path: folder.path,
            })))?;
        }
        Ok(())
    }
}

/// The names of a path from the top; nothing if one of them is none.
fn names_of(path: &Path) -> Option<Vec<&[u8]>> {
    let parts = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let names: Vec<_> = parts
        .filter(|name| !name.is_empty() && *name != b".")
        .collect();
    let possible = |name: &&[u8]| name.len() <= ENTRY_NAME_LEN_MAX && *name != b"..";
    names.iter().all(possible).then_some(names)
}

fn extensions_of<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Extensions> {
    let mut extensions = Extensions {
        mtime: None,
        is_whole: true,
        is_sparse: false,
        xattrs: Vec::new(),
    };
    let Some(records) = entry.pax_extensions()? else {
        return Ok(extensions);
    };
    for record in records {
        let Ok(record) = record else {
            extensions.is_whole = false;
            continue;
        };
        let (name, value) = (record.key_bytes(), record.value_bytes());
        if name == b"mtime" {
            extensions.mtime = std::str::from_utf8(value).ok().and_then(time_of);
        } else if let Some(name) = name.strip_prefix(b"SCHILY.xattr.") {
            extensions.xattrs.push((name.to_vec(), value.to_vec()));
        } else if name.starts_with(b"GNU.sparse.") {
            extensions.is_sparse = true;
        }
    }
    Ok(extensions)
}

/// Reads seconds with a decimal fraction.
fn time_of(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: i64 = whole.parse().ok()?;
    let mut digits = fraction.get(..fraction.len().min(9))?.to_owned();
    while digits.len() < 9 {
        digits.push('0');
    }
    let mut nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        seconds = seconds.checked_sub(1)?;
        nanos = 1_000_000_000 - nanos;
    }
    Some(Timestamp { seconds, nanos })
}

/// The attributes of a member; nothing for a kind that images do not have.
fn attributes_of(
    header: &Header,
    size: u64,
    mtime: Option<Timestamp>,
) -> io::Result<Option<Attributes>> {
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Link => {
            FileKind::File
        }
        EntryType::Directory => FileKind::Directory,
        EntryType::Symlink => FileKind::Symlink,
        EntryType::Fifo => FileKind::Fifo,
        EntryType::Char => FileKind::CharDevice,
        EntryType::Block => FileKind::BlockDevice,
        _ => return Ok(None),
    };
    let number = |number: u64| u32::try_from(number).map_err(|_| io::ErrorKind::InvalidData);
    let mtime = match mtime {
        Some(mtime) => mtime,
        None => Timestamp {
            seconds: i64::try_from(header.mtime()?).unwrap_or(i64::MAX),
            nanos: 0,
        },
    };
    let rdev = match kind {
        FileKind::CharDevice | FileKind::BlockDevice => {
            let major = header.device_major()?.unwrap_or_default();
            let minor = header.device_minor()?.unwrap_or_default();
            rustix::fs::makedev(major, minor) as u32
        }
        _ => 0,
    };
    Ok(Some(Attributes {
        kind,
        mode: header.mode()? & 0o7777,
        uid: number(header.uid()?)?,
        gid: number(header.gid()?)?,
        nlink: 1,
        size: if kind == FileKind::File { size } else { 0 },
        mtime,
        ctime: mtime,
        rdev,
    }))
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
    }
}

const BLOCK_LEN: usize = 512;
