//! Writes an archive: pax, with times to the nanosecond and extended attributes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use img_index::{FileKind, Inode, Key, Timestamp};
use tar::{Builder, EntryType, Header};

use super::ExportError;
use super::folder::fresh_file;
use super::image::{Found, Image, Metadata, Piece};
use super::made::Report;
use super::pool::Pool;

/// Writes what stands at the top to an archive at a path where there is none.
pub(super) fn write(
    image: &Image<'_>,
    top: &Found,
    dest: &Path,
    report: &Report<'_>,
) -> Result<(), ExportError> {
    let file = fresh_file(dest)?;
    std::thread::scope(|scope| {
        let pool = Pool::start(scope, report);
        let mut archive = Archive {
            image,
            report,
            pool,
            builder: Builder::new(BufWriter::with_capacity(BUFFER_LEN, file)),
            linked: HashMap::new(),
            entered: HashSet::new(),
        };
        if let Err(error) = archive.tree(top).and_then(|()| archive.finish()) {
            report.fail(error);
        }
    });
    report.outcome()
}

struct Archive<'env> {
    image: &'env Image<'env>,
    report: &'env Report<'env>,
    pool: Pool<'env>,
    builder: Builder<BufWriter<File>>,
    /// Names of files that have more than one.
    linked: HashMap<Inode, Vec<u8>>,
    /// Folders that have been gone into: an image in which one lies in itself has no end.
    entered: HashSet<Inode>,
}

/// A folder that is being gone through.
struct Level {
    inode: Inode,
    path: Vec<u8>,
    entries: std::vec::IntoIter<Found>,
    more: Option<Key>,
}

impl Archive<'_> {
    fn tree(&mut self, top: &Found) -> Result<(), ExportError> {
        let path = match top.kind {
            FileKind::Directory => b".".to_vec(),
            _ => top.name.clone(),
        };
        let mut stack = Vec::new();
        stack.extend(self.member(top, path)?);
        while let Some(mut level) = stack.pop() {
            if !self.report.goes_on() {
                break;
            }
            let Some(found) = level.entries.next() else {
                if level.more.is_some() {
                    let more = level.more.take();
                    let (entries, more) = self.image.entries(level.inode, more, ENTRIES_MAX)?;
                    level.entries = entries.into_iter();
                    level.more = more;
                    stack.push(level);
                }
                continue;
            };
            let mut path = level.path.clone();
            path.push(b'/');
            path.extend_from_slice(&found.name);
            let below = self.member(&found, path)?;
            stack.push(level);
            stack.extend(below);
        }
        Ok(())
    }

    /// Writes what an entry names; returns a folder to go into.
    fn member(&mut self, found: &Found, path: Vec<u8>) -> Result<Option<Level>, ExportError> {
        let Some(metadata) = self.image.metadata(found)? else {
            let path = Path::new(OsStr::from_bytes(&path));
            self.report.skip(path, "has no attributes in the image");
            return Ok(None);
        };
        let attributes = metadata.attributes;
        if attributes.kind == FileKind::Directory && !self.entered.insert(found.inode) {
            let path = Path::new(OsStr::from_bytes(&path));
            self.report
                .skip(path, "is a folder that has another place too");
            return Ok(None);
        }
        let mut kind = match attributes.kind {
            FileKind::File => EntryType::Regular,
            FileKind::Directory => EntryType::Directory,
            FileKind::Symlink => EntryType::Symlink,
            FileKind::Fifo => EntryType::Fifo,
            FileKind::CharDevice => EntryType::Char,
            FileKind::BlockDevice => EntryType::Block,
        };
        let mut target = metadata.symlink.clone();
        if attributes.kind != FileKind::Directory && attributes.nlink > 1 {
            if let Some(first) = self.linked.get(&found.inode) {
                kind = EntryType::Link;
                target = first.clone();
            } else {
                self.linked.insert(found.inode, path.clone());
            }
        }
        let size = match kind {
            EntryType::Regular => attributes.size,
            _ => 0,
        };
        if kind != EntryType::Directory {
            self.report.file(size);
        }
        let mut name = path.clone();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        let header = self.header(kind, &name, &target, size, &metadata)?;
        let mut content = Content::new(self.image, &self.pool, self.report, found.inode, size);
        let written = self.builder.append(&header, &mut content);
        match content.problem {
            Some(problem) => return Err(problem),
            None => written?,
        }
        if attributes.kind != FileKind::Directory {
            return Ok(None);
        }
        let (entries, more) = self.image.entries(found.inode, None, ENTRIES_MAX)?;
        Ok(Some(Level {
            inode: found.inode,
            path,
            entries: entries.into_iter(),
            more,
        }))
    }

    /// The plain header of a member; what does not fit goes before it as pax records.
    fn header(
        &mut self,
        kind: EntryType,
        name: &[u8],
        target: &[u8],
        size: u64,
        metadata: &Metadata,
    ) -> Result<Header, ExportError> {
        let attributes = &metadata.attributes;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_size(size);
        header.set_mtime(u64::try_from(attributes.mtime.seconds).unwrap_or(0));
        if matches!(
            attributes.kind,
            FileKind::CharDevice | FileKind::BlockDevice
        ) {
            let device = u64::from(attributes.rdev);
            header.set_device_major(rustix::fs::major(device))?;
            header.set_device_minor(rustix::fs::minor(device))?;
        }
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let plain = header.as_old_mut();
        if !fill(&mut plain.name, name) {
            records.push(("path".into(), name.to_vec()));
        }
        if !fill(&mut plain.linkname, target) {
            records.push(("linkpath".into(), target.to_vec()));
        }
        header.set_cksum();
        if let Some(mtime) = fraction(attributes.mtime) {
            records.push(("mtime".into(), mtime.into_bytes()));
        }
        if kind != EntryType::Link {
            for (name, value) in &metadata.xattrs {
                match std::str::from_utf8(name) {
                    Ok(name) => records.push((format!("SCHILY.xattr.{name}"), value.clone())),
                    Err(_) => {
                        let path = Path::new(OsStr::from_bytes(name));
                        self.report
                            .skip(path, "is an attribute that a tar cannot name");
                    }
                }
            }
        }
        if !records.is_empty() {
            let records = records.iter().map(|(name, value)| (&name[..], &value[..]));
            self.builder.append_pax_extensions(records)?;
        }
        Ok(header)
    }

    fn finish(&mut self) -> Result<(), ExportError> {
        if self.report.goes_on() {
            self.builder.finish()?;
            self.builder.get_mut().flush()?;
        }
        Ok(())
    }
}

/// A file's contents from beginning to end, fetched ahead.
struct Content<'c, 'env> {
    image: &'env Image<'env>,
    pool: &'c Pool<'env>,
    report: &'env Report<'env>,
    inode: Inode,
    size: u64,
    at: u64,
    /// Fetches under way, in order; where each belongs.
    ahead: VecDeque<(u64, Receiver<Bytes>)>,
    listed: bool,
    more: Option<Key>,
    current: Option<(u64, Bytes)>,
    problem: Option<ExportError>,
}

impl<'c, 'env> Content<'c, 'env> {
    fn new(
        image: &'env Image<'env>,
        pool: &'c Pool<'env>,
        report: &'env Report<'env>,
        inode: Inode,
        size: u64,
    ) -> Self {
        Self {
            image,
            pool,
            report,
            inode,
            size,
            at: 0,
            ahead: VecDeque::new(),
            listed: size == 0,
            more: None,
            current: None,
            problem: None,
        }
    }

    /// Starts fetches, so that some are always under way.
    fn look_ahead(&mut self) -> Result<(), ExportError> {
        while !self.listed && self.ahead.len() < AHEAD_MIN {
            let (pieces, more) = self.image.pieces(self.inode, self.more.take(), AHEAD_MIN)?;
            self.listed = more.is_none();
            self.more = more;
            for piece in pieces {
                let (fetched, content) = sync_channel(1);
                let offset = match piece {
                    Piece::Inline(inline) => {
                        // Nobody else holds the other end yet.
                        let _ = fetched.send(inline.into());
                        0
                    }
                    Piece::Block(offset, extent) => {
                        let image = self.image;
                        self.pool.run(move || {
                            // Who waited for it may have ended.
                            let _ = fetched.send(image.block(&extent)?);
                            Ok(())
                        });
                        offset
                    }
                };
                self.ahead.push_back((offset, content));
            }
        }
        Ok(())
    }

    /// Copies what comes next, zeros where there is no content.
    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, ExportError> {
        let left = self.size - self.at;
        let len = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        loop {
            let (offset, content) = match self.current.take() {
                Some(current) => current,
                None => {
                    self.look_ahead()?;
                    let Some((offset, content)) = self.ahead.pop_front() else {
                        buffer[..len].fill(0);
                        return Ok(len);
                    };
                    // The fetch failed or was left out: the report knows why.
                    let content = content.recv().map_err(|_| ExportError::Cancelled)?;
                    (offset, content)
                }
            };
            if self.at < offset {
                let len = len.min(usize::try_from(offset - self.at).unwrap_or(usize::MAX));
                buffer[..len].fill(0);
                self.current = Some((offset, content));
                return Ok(len);
            }
            let passed = usize::try_from(self.at - offset).unwrap_or(usize::MAX);
            if let Some(rest) = content.get(passed..).filter(|rest| !rest.is_empty()) {
                let len = len.min(rest.len());
                buffer[..len].copy_from_slice(&rest[..len]);
                self.current = Some((offset, content));
                return Ok(len);
            }
        }
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.next(buffer) {
            Ok(len) => {
                self.at += len as u64;
                self.report.advance(len as u64);
                Ok(len)
            }
            Err(problem) => {
                self.problem = Some(problem);
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}

/// Fills a field of a header; false if the value does not fit.
fn fill(field: &mut [u8], value: &[u8]) -> bool {
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value[..len]);
    len == value.len()
}

/// A time that a plain header cannot hold, as pax writes it.
fn fraction(time: Timestamp) -> Option<String> {
    let Timestamp { seconds, nanos } = time;
    if seconds >= 0 && nanos == 0 {
        return None;
    }
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, rest) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    Some(format!("{sign}{whole}.{rest:09}"))
}

/// Entries of a folder that are listed at a time.
const ENTRIES_MAX: usize = 1_000;
/// Blocks that are fetched ahead of the one that is written.
const AHEAD_MIN: usize = 32;
/// Writes to the archive are this large.
const BUFFER_LEN: usize = 1024 * 1024;
