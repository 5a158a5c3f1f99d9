//! Walks a folder.
//!
//! Every name is opened relative to its folder and no symlink is followed, so what is read is what lies under
//! the folder that was named. Names are taken in the order of their bytes, so that the same tree is read in
//! the same order everywhere.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_index::{Attributes, FileKind, Inode, Timestamp};
use img_types::limits::INLINE_LEN_MAX;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, lgetxattr,
    llistxattr, openat, readlinkat, statat,
};
use rustix::io::Errno;

use super::feed::{Content, Ended, Feed, Item, Name, Node, Stamp, Xattrs};
use super::sealers::Shared;
use super::{Cancel, ImportError, keeps_xattr};

/// Hands on everything under an open folder.
pub(super) fn walk(feed: &mut Feed<'_>, root: File) -> Result<(), ImportError> {
    let mut walker = Walker {
        feed,
        linked: HashMap::new(),
        buffer: vec![0; XATTR_LEN_MAX],
    };
    let stat = fstat(&root).map_err(|error| ImportError::Source(error.into()))?;
    let names = names_in(root.as_fd()).map_err(|error| ImportError::Source(error.into()))?;
    // Nobody listens any more: whoever ended the import knows why.
    let _ended = walker.walk(OwnedFd::from(root), &stat, names);
    Ok(())
}

/// Adds up what there is to read, beside the walk itself.
pub(super) fn count(root: &Path, shared: &Shared<'_>, cancel: &Cancel) {
    let mut total = 0;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        // What cannot be read is reported by the walk.
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if shared.has_ended() || cancel.is_cancelled() {
                return;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    total += entry.metadata().map_or(0, |metadata| metadata.len());
                }
                _ => {}
            }
        }
    }
    shared.set_total(total);
}

struct Walker<'f, 'a> {
    feed: &'f mut Feed<'a>,
    /// Files with more than one name, by device and inode of the source.
    linked: HashMap<(u64, u64), Inode>,
    buffer: Vec<u8>,
}

/// A folder that is being walked.
struct Folder {
    fd: OwnedFd,
    inode: Inode,
    path: PathBuf,
    names: std::vec::IntoIter<CString>,
}

/// A name that is being looked at.
struct Place<'p> {
    folder: &'p Folder,
    name: &'p CStr,
    path: PathBuf,
}

impl Place<'_> {
    fn name(&self) -> Name {
        Name {
            parent: self.folder.inode,
            name: self.name.to_bytes().into(),
        }
    }
}

impl Walker<'_, '_> {
    fn walk(&mut self, root: OwnedFd, stat: &Stat, names: Vec<CString>) -> Result<(), Ended> {
        let inode = self.feed.number();
        let path = PathBuf::new();
        let xattrs = self.xattrs(Whose::Open(root.as_fd()), &path)?;
        self.send(Node {
            inode,
            name: None,
            attributes: attributes_of(stat, FileKind::Directory),
            symlink: None,
            xattrs,
            content: Content::None,
            path: path.clone(),
        })?;
        let mut stack = vec![Folder {
            fd: root,
            inode,
            path,
            names: names.into_iter(),
        }];
        while let Some(mut folder) = stack.pop() {
            let Some(name) = folder.names.next() else {
                continue;
            };
            let path = folder.path.join(OsStr::from_bytes(name.to_bytes()));
            let place = Place {
                folder: &folder,
                name: &name,
                path,
            };
            let below = match self.visit(&place) {
                Ok(below) => below,
                Err(Problem::Ended) => return Err(Ended),
                Err(Problem::Skip(reason)) => {
                    self.feed.skip(&place.path, reason)?;
                    None
                }
            };
            stack.push(folder);
            stack.extend(below);
        }
        Ok(())
    }

    /// Hands on what a name stands for; returns a folder to go into.
    fn visit(&mut self, place: &Place<'_>) -> Result<Option<Folder>, Problem> {
        let dir = place.folder.fd.as_fd();
        let stat = statat(dir, place.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::CharacterDevice => FileKind::CharDevice,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::Socket => return Err(Problem::Skip("is a socket".into())),
            _ => return Err(Problem::Skip("is of an unknown kind".into())),
        };
        if kind != FileKind::Directory && stat.st_nlink > 1 {
            let known = self.linked.get(&(stat.st_dev, stat.st_ino));
            if let Some(inode) = known.copied() {
                let (name, path) = (place.name(), place.path.clone());
                self.feed.send(Item::Link { name, inode, path })?;
                return Ok(None);
            }
        }
        let below = match kind {
            FileKind::File => {
                self.file(place)?;
                None
            }
            FileKind::Directory => Some(self.folder(place)?),
            _ => {
                self.special(place, &stat, kind)?;
                None
            }
        };
        Ok(below)
    }

    fn file(&mut self, place: &Place<'_>) -> Result<(), Problem> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&place.folder.fd, place.name, flags, Mode::empty())?;
        let file = File::from(file);
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Problem::Skip("was replaced while it was read".into()));
        }
        let xattrs = self.xattrs(Whose::Open(file.as_fd()), &place.path)?;
        let attributes = attributes_of(&stat, FileKind::File);
        let mut content = Content::Parts;
        let mut changed = false;
        if attributes.size <= INLINE_LEN_MAX as u64 {
            let bytes = small(&file, attributes.size as usize)?;
            changed = bytes.len() as u64 != attributes.size;
            self.feed.shared.advance(attributes.size);
            content = Content::Inline(bytes);
        }
        let has_parts = matches!(content, Content::Parts);
        let inode = self.number(&stat);
        self.send(Node {
            inode,
            name: Some(place.name()),
            attributes,
            symlink: None,
            xattrs,
            content,
            path: place.path.clone(),
        })?;
        if changed {
            let reason = "changed while it was read; the image has what was read";
            self.feed.skip(&place.path, reason)?;
        }
        if has_parts {
            let file = Arc::new(file);
            let is_sparse = (stat.st_blocks as u64).saturating_mul(512) < attributes.size;
            self.feed.parts(&file, attributes.size, is_sparse)?;
            self.feed
                .send(Item::End(Some(Stamp { file, attributes })))?;
        }
        Ok(())
    }

    fn folder(&mut self, place: &Place<'_>) -> Result<Folder, Problem> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&place.folder.fd, place.name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let xattrs = self.xattrs(Whose::Open(fd.as_fd()), &place.path)?;
        let inode = self.feed.number();
        self.send(Node {
            inode,
            name: Some(place.name()),
            attributes: attributes_of(&stat, FileKind::Directory),
            symlink: None,
            xattrs,
            content: Content::None,
            path: place.path.clone(),
        })?;
        let names = match names_in(fd.as_fd()) {
            Ok(names) => names,
            Err(error) => {
                let reason = format!("could not be listed: {}", std::io::Error::from(error));
                self.feed.skip(&place.path, reason)?;
                Vec::new()
            }
        };
        Ok(Folder {
            fd,
            inode,
            path: place.path.clone(),
            names: names.into_iter(),
        })
    }

    /// Symlinks, FIFOs and device nodes: what cannot be opened without doing something.
    fn special(&mut self, place: &Place<'_>, stat: &Stat, kind: FileKind) -> Result<(), Problem> {
        let symlink = match kind {
            FileKind::Symlink => {
                let target = readlinkat(&place.folder.fd, place.name, Vec::new())?;
                Some(target.into_bytes())
            }
            _ => None,
        };
        let mut through = format!("/proc/self/fd/{}/", place.folder.fd.as_raw_fd()).into_bytes();
        through.extend_from_slice(place.name.to_bytes());
        let xattrs = self.xattrs(Whose::Path(OsStr::from_bytes(&through)), &place.path)?;
        let inode = self.number(stat);
        self.send(Node {
            inode,
            name: Some(place.name()),
            attributes: attributes_of(stat, kind),
            symlink,
            xattrs,
            content: Content::None,
            path: place.path.clone(),
        })?;
        Ok(())
    }

    fn send(&self, node: Node) -> Result<(), Ended> {
        self.feed.send(Item::Node(Box::new(node)))
    }

    /// A new inode, found again by the file's other names.
    fn number(&mut self, stat: &Stat) -> Inode {
        let inode = self.feed.number();
        if stat.st_nlink > 1 {
            self.linked.insert((stat.st_dev, stat.st_ino), inode);
        }
        inode
    }

    fn xattrs(&mut self, whose: Whose<'_>, path: &Path) -> Result<Xattrs, Ended> {
        match whose.xattrs(&mut self.buffer) {
            Ok(xattrs) => {
                let (kept, lost): (Xattrs, Xattrs) = xattrs
                    .into_iter()
                    .partition(|(name, value)| keeps_xattr(name, value));
                for (name, _) in lost {
                    let name = String::from_utf8_lossy(&name);
                    let reason = format!("without its attribute {name}, which images do not keep");
                    self.feed.skip(path, reason)?;
                }
                Ok(kept)
            }
            Err(Errno::NOTSUP | Errno::NOENT) => Ok(Vec::new()),
            Err(error) => {
                let error = std::io::Error::from(error);
                let reason = format!("its extended attributes could not be read: {error}");
                self.feed.skip(path, reason)?;
                Ok(Vec::new())
            }
        }
    }
}

/// Why a name is not handed on.
enum Problem {
    Ended,
    Skip(String),
}

impl From<Ended> for Problem {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl From<Errno> for Problem {
    fn from(error: Errno) -> Self {
        Self::Skip(match error {
            Errno::NOENT => "vanished while the folder was read".into(),
            error => format!("could not be read: {}", std::io::Error::from(error)),
        })
    }
}

/// What extended attributes belong to.
#[derive(Clone, Copy)]
enum Whose<'a> {
    Open(BorrowedFd<'a>),
    /// Not followed if it is a symlink.
    Path(&'a OsStr),
}

impl Whose<'_> {
    fn xattrs(self, buffer: &mut [u8]) -> Result<Xattrs, Errno> {
        let len = match self {
            Self::Open(fd) => flistxattr(fd, &mut *buffer)?,
            Self::Path(path) => llistxattr(path, &mut *buffer)?,
        };
        let names: Vec<Vec<u8>> = buffer[..len]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        let mut xattrs = Vec::with_capacity(names.len());
        for name in names {
            let value = match self {
                Self::Open(fd) => fgetxattr(fd, &name[..], &mut *buffer),
                Self::Path(path) => lgetxattr(path, &name[..], &mut *buffer),
            };
            match value {
                Ok(len) => xattrs.push((name, buffer[..len].to_vec())),
                // Removed meanwhile, or one that only the kernel shows.
                Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(xattrs)
    }
}

/// The names in a folder, sorted.
fn names_in(folder: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a small file; less than its size if it was cut short meanwhile.
fn small(file: &File, size: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Problem::Skip(format!("could not be read: {error}"))),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The attributes of a file; only files and symlinks have a size.
pub(super) fn attributes_of(stat: &Stat, kind: FileKind) -> Attributes {
    let time = |seconds: i64, nanos: u64| Timestamp {
        seconds,
        nanos: nanos.min(999_999_999) as u32,
    };
    Attributes {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: 1,
        size: match kind {
            FileKind::File | FileKind::Symlink => stat.st_size as u64,
            _ => 0,
        },
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        rdev: match kind {
            // The kernel's numbers fit: 12 bits of major, 20 of minor.
            FileKind::CharDevice | FileKind::BlockDevice => stat.st_rdev as u32,
            _ => 0,
        },
        extents: None,
    }
}

/// Longest list of names and longest value of extended attributes, as in Linux.
const XATTR_LEN_MAX: usize = 64 * 1024;
