//! Writes an archive: pax, with times to the nanosecond, extended attributes and access lists; files with
//! holes in the sparse form 1.0 of GNU tar.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use img_index::{FileKind, Inode, Key, Timestamp};
use img_types::limits::BLOCK_SIZE;
use tar::{Builder, EntryType, Header};

use super::ExportError;
use super::folder::fresh_file;
use super::image::{Found, Image, Metadata, Piece};
use super::made::Report;
use super::pool::Pool;
use crate::acl::{ACCESS, Acl, DEFAULT};

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
                    let listed = self.image.entries(level.inode, more, ENTRIES_MAX);
                    let path = Path::new(OsStr::from_bytes(&level.path));
                    if let Some((entries, more)) = self.report.had(path, listed)? {
                        level.entries = entries.into_iter();
                        level.more = more;
                        stack.push(level);
                    }
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
        let named = Path::new(OsStr::from_bytes(&path));
        let Some(metadata) = self.report.had(named, self.image.metadata(found))? else {
            return Ok(None);
        };
        let Some(metadata) = metadata else {
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
            FileKind::Socket => {
                let path = Path::new(OsStr::from_bytes(&path));
                self.report
                    .skip(path, "is a socket, which a tar cannot hold");
                return Ok(None);
            }
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
        let map = match kind {
            EntryType::Regular => {
                let map = self.map(found.inode, size);
                self.report.had(named, map)?.flatten()
            }
            _ => None,
        };
        let header = self.header(kind, &name, &target, size, map.as_ref(), &metadata)?;
        let mut content = Content::new(self.image, &self.pool, self.report, found.inode, size);
        content.skips_holes = map.is_some();
        content.path = named.to_owned();
        let map = map.map_or(Vec::new(), |map| map.text);
        let written = self.builder.append(&header, (&map[..]).chain(&mut content));
        match content.problem {
            Some(problem) => return Err(problem),
            None => written?,
        }
        if attributes.kind != FileKind::Directory {
            return Ok(None);
        }
        let listed = self.image.entries(found.inode, None, ENTRIES_MAX);
        let listed = self.report.had(named, listed)?;
        Ok(listed.map(|(entries, more)| Level {
            inode: found.inode,
            path: path.clone(),
            entries: entries.into_iter(),
            more,
        }))
    }

    /// The map of a file with holes that are worth it.
    fn map(&self, inode: Inode, size: u64) -> Result<Option<Map>, ExportError> {
        if size <= BLOCK_SIZE as u64 {
            return Ok(None);
        }
        let (mut stretches, mut stored): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
        let mut more = None;
        loop {
            let (pieces, next) = self.image.pieces(inode, more, PIECES_MAX)?;
            for piece in pieces {
                let start = piece.offset();
                let end = start.saturating_add(BLOCK_SIZE as u64).min(size);
                if start >= end {
                    continue;
                }
                stored += end - start;
                match stretches.last_mut() {
                    Some((_, last)) if *last == start => *last = end,
                    _ => stretches.push((start, end)),
                }
            }
            more = next;
            if more.is_none() {
                break;
            }
        }
        if size - stored < BLOCK_SIZE as u64 {
            return Ok(None);
        }
        // A hole at the end is told by an empty stretch.
        if stretches.last().is_none_or(|(_, end)| *end < size) {
            stretches.push((size, size));
        }
        let mut text = format!("{}\n", stretches.len());
        for (start, end) in stretches {
            text.push_str(&format!("{start}\n{}\n", end - start));
        }
        let mut text = text.into_bytes();
        text.resize(text.len().next_multiple_of(TAR_BLOCK_LEN), 0);
        let stored = text.len() as u64 + stored;
        Ok(Some(Map { text, stored }))
    }

    /// The plain header of a member; what does not fit goes before it as pax records.
    fn header(
        &mut self,
        kind: EntryType,
        name: &[u8],
        target: &[u8],
        size: u64,
        map: Option<&Map>,
        metadata: &Metadata,
    ) -> Result<Header, ExportError> {
        let attributes = &metadata.attributes;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_size(map.map_or(size, |map| map.stored));
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
        if map.is_some() {
            // Whoever does not know the form finds what it is not under the file's name.
            fill(&mut plain.name, b"GNUSparseFile.0/sparse");
            records.push(("GNU.sparse.major".into(), b"1".to_vec()));
            records.push(("GNU.sparse.minor".into(), b"0".to_vec()));
            records.push(("GNU.sparse.name".into(), name.to_vec()));
            let size = size.to_string().into_bytes();
            records.push(("GNU.sparse.realsize".into(), size));
        } else if !fill(&mut plain.name, name) {
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
                let acl = match &name[..] {
                    ACCESS => Some("SCHILY.acl.access"),
                    DEFAULT => Some("SCHILY.acl.default"),
                    _ => None,
                };
                if let (Some(record), Some(acl)) = (acl, Acl::decode(value)) {
                    records.push((record.into(), acl.to_text().into_bytes()));
                    continue;
                }
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

/// Where a sparse member's contents belong.
struct Map {
    /// As it stands before them, filled up to a whole block.
    text: Vec<u8>,
    /// Its own length and that of the contents.
    stored: u64,
}

/// A file's contents from beginning to end, fetched ahead.
struct Content<'c, 'env> {
    image: &'env Image<'env>,
    pool: &'c Pool<'env>,
    report: &'env Report<'env>,
    inode: Inode,
    path: PathBuf,
    size: u64,
    at: u64,
    /// Blocks that are not there are left out instead of being zeros.
    skips_holes: bool,
    /// End of the block that was reached last.
    block_end: u64,
    /// Fetches under way, in order; where each belongs.
    ahead: VecDeque<(u64, Receiver<Result<Bytes, ExportError>>)>,
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
            path: PathBuf::new(),
            size,
            at: 0,
            skips_holes: false,
            block_end: 0,
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
            let pieces = self.image.pieces(self.inode, self.more.take(), AHEAD_MIN);
            // The rest is zeros where its list cannot be had.
            let pieces = self.report.had(&self.path, pieces)?;
            let (pieces, more) = pieces.unwrap_or_default();
            self.listed = more.is_none();
            self.more = more;
            for piece in pieces {
                let (fetched, content) = sync_channel(1);
                let offset = match piece {
                    Piece::Inline(inline) => {
                        // Nobody else holds the other end yet.
                        let _ = fetched.send(Ok(inline.into()));
                        0
                    }
                    Piece::Block(offset, extent) => {
                        let image = self.image;
                        self.pool.run(move || {
                            // Who waited for it may have ended.
                            let _ = fetched.send(image.block(&extent));
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
                        return Ok(self.zeros(&mut buffer[..len], self.size));
                    };
                    // Left out: the report knows why.
                    let content = content.recv().map_err(|_| ExportError::Cancelled)?;
                    let content = self.report.had(&self.path, content)?;
                    (offset, content.unwrap_or_default())
                }
            };
            if self.at < offset {
                let filled = self.zeros(&mut buffer[..len], offset.min(self.size));
                self.current = Some((offset, content));
                if filled > 0 {
                    return Ok(filled);
                }
                return self.next(buffer);
            }
            self.block_end = offset.saturating_add(BLOCK_SIZE as u64);
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

impl Content<'_, '_> {
    /// Goes on to where there is content again: by zeros, or where holes are left out by zeros up to the
    /// block's end and then without a byte.
    fn zeros(&mut self, buffer: &mut [u8], until: u64) -> usize {
        let mut end = until;
        if self.skips_holes {
            end = end.min(self.block_end);
            if end <= self.at {
                self.report.advance(until - self.at);
                self.at = until;
                return 0;
            }
        }
        let left = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        buffer[..len].fill(0);
        len
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
/// Pieces of a file that are looked at at a time for its holes.
const PIECES_MAX: usize = 4_096;
const TAR_BLOCK_LEN: usize = 512;
/// Blocks that are fetched ahead of the one that is written.
const AHEAD_MIN: usize = 32;
/// Writes to the archive are this large.
const BUFFER_LEN: usize = 1024 * 1024;
