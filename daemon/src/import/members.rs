//! Reads the members of an archive, one after the other: ustar, GNU and pax, sparse ones included.
//!
//! It tells where contents lie and reads none. An archive has to end with its end mark: one that was cut
//! short is damaged, not small.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use img_index::Timestamp;
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::feed::Xattrs;
use super::{ImportError, keeps_xattr};
use crate::acl::{ACCESS, Acl, DEFAULT};

/// One member and all that is said about it.
pub(super) struct Member {
    pub(super) kind: EntryType,
    pub(super) path: Vec<u8>,
    /// Where a symlink or hard link leads.
    pub(super) target: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) rdev: u32,
    pub(super) size: u64,
    /// Where the contents lie, in rising order; the rest is zeros.
    pub(super) stretches: Vec<Stretch>,
    pub(super) xattrs: Xattrs,
    /// What is said and cannot be kept, in words.
    pub(super) lost: Vec<String>,
}

/// A range of a file's contents within the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) position: u64,
}

impl Stretch {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// The members of an archive in a file.
pub(super) struct Members<'s> {
    source: &'s File,
    len: u64,
    at: u64,
    globals: Records,
}

/// Records of a pax header in their order: names and values.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What headers before a member say about it.
#[derive(Default)]
struct Before {
    records: Records,
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl<'s> Members<'s> {
    /// Starts at the archive's beginning.
    pub(super) fn new(source: &'s File) -> Result<Self, ImportError> {
        use std::io::{Seek, SeekFrom};
        let mut end = source;
        // Block devices have no length but an end.
        let len = end.seek(SeekFrom::End(0)).map_err(ImportError::Source)?;
        Ok(Self {
            source,
            len,
            at: 0,
            globals: Records::new(),
        })
    }

    /// The next member; nothing at the end mark.
    pub(super) fn next(&mut self) -> Result<Option<Member>, ImportError> {
        let mut before = Before::default();
        loop {
            let at = self.at;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let stored = number(header.entry_size(), at)?;
            match header.entry_type() {
                EntryType::XHeader => before.records = records(&self.extension(stored)?, at)?,
                EntryType::XGlobalHeader => {
                    let records = records(&self.extension(stored)?, at)?;
                    self.globals.extend(records);
                    if self.globals.len() > GLOBALS_MAX {
                        return Err(damaged("it has too many global records", at));
                    }
                }
                EntryType::GNULongName => before.path = Some(text(self.extension(stored)?)),
                EntryType::GNULongLink => before.target = Some(text(self.extension(stored)?)),
                _ => return self.member(&header, before, at).map(Some),
            }
        }
    }

    fn member(&mut self, header: &Header, before: Before, at: u64) -> Result<Member, ImportError> {
        let records = &before.records;
        let record = |name: &[u8]| {
            let found = records.iter().rev().chain(self.globals.iter().rev());
            let mut found = found.filter(|(key, _)| key == name);
            // An empty value takes a global one back.
            found
                .next()
                .map(|(_, value)| value)
                .filter(|value| !value.is_empty())
        };
        let decimal_of = |name: &[u8]| record(name).map(|value| decimal(value, at)).transpose();
        let id = |name: &[u8], plain: io::Result<u64>| {
            let id = decimal_of(name)?.map_or_else(|| number(plain, at), Ok)?;
            u32::try_from(id).map_err(|_| damaged("an owner's number is too large", at))
        };
        let mut kind = header.entry_type();
        let sparse_name = record(b"GNU.sparse.name");
        let path = sparse_name.or(record(b"path")).cloned();
        let path = path.or(before.path);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let target = record(b"linkpath").cloned().or(before.target);
        let target = target.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        // Before there was a kind for it, a folder was a file whose name ends in a slash.
        if kind == EntryType::Regular && path.ends_with(b"/") {
            kind = EntryType::Directory;
        }
        let mut stored = match decimal_of(b"size")? {
            Some(size) => size,
            None => number(header.entry_size(), at)?,
        };
        // Whatever size of its file a hard link tells, no contents follow it.
        if kind.is_hard_link() {
            stored = 0;
        }
        let mtime = match record(b"mtime").map(|value| time(value)) {
            Some(mtime) => mtime.ok_or_else(|| damaged("a time is none", at))?,
            None => Timestamp {
                seconds: i64::try_from(number(header.mtime(), at)?).unwrap_or(i64::MAX),
                nanos: 0,
            },
        };
        let (uid, gid) = (id(b"uid", header.uid())?, id(b"gid", header.gid())?);
        let mut mode = number(header.mode(), at)? & 0o7777;
        let rdev = match kind {
            EntryType::Char | EntryType::Block => {
                let major = number(header.device_major(), at)?.unwrap_or_default();
                let minor = number(header.device_minor(), at)?.unwrap_or_default();
                rustix::fs::makedev(major, minor) as u32
            }
            _ => 0,
        };
        let mut xattrs = Xattrs::new();
        let mut lost = Vec::new();
        for (name, value) in records {
            let (name, value) = match &name[..] {
                b"SCHILY.acl.access" | b"SCHILY.acl.default" => {
                    let acl = std::str::from_utf8(value).ok().and_then(Acl::from_text);
                    let Some(acl) = acl else {
                        lost.push(NAMES_IN_ACL.to_owned());
                        continue;
                    };
                    if name == b"SCHILY.acl.default" {
                        (DEFAULT, acl.encode())
                    } else {
                        mode = acl.mode(mode);
                        if acl.is_minimal() {
                            continue;
                        }
                        (ACCESS, acl.encode())
                    }
                }
                name => match name.strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => (name, value.clone()),
                    None => continue,
                },
            };
            if keeps_xattr(name, &value) {
                xattrs.retain(|(other, _)| other != name);
                xattrs.push((name.to_vec(), value));
            } else {
                let name = String::from_utf8_lossy(name);
                lost.push(format!(
                    "without its attribute {name}, which images do not keep"
                ));
            }
        }
        let (size, stretches) = self.contents(header, records, stored, at)?;
        Ok(Member {
            kind,
            path,
            target: target.unwrap_or_default(),
            mode,
            uid,
            gid,
            mtime,
            rdev,
            size,
            stretches,
            xattrs,
            lost,
        })
    }

    /// Passes a member's contents; tells its size and where they lie.
    fn contents(
        &mut self,
        header: &Header,
        records: &Records,
        mut stored: u64,
        at: u64,
    ) -> Result<(u64, Vec<Stretch>), ImportError> {
        let all = |name: &[u8]| {
            let found = records.iter().filter(|(key, _)| key == name);
            let found = found.map(|(_, value)| decimal(value, at));
            found.collect::<Result<Vec<_>, _>>()
        };
        let find = |name: &[u8]| Ok::<_, ImportError>(all(name)?.pop());
        let mut map: Vec<u64> = Vec::new();
        let size;
        if header.entry_type().is_gnu_sparse() {
            let gnu = header.as_gnu();
            let gnu = gnu.ok_or_else(|| damaged("a sparse member has no map", at))?;
            size = number(gnu.real_size(), at)?;
            let mut add = |entries: &[GnuSparseHeader]| {
                for entry in entries.iter().filter(|entry| !entry.is_empty()) {
                    map.extend([number(entry.offset(), at)?, number(entry.length(), at)?]);
                }
                Ok::<(), ImportError>(())
            };
            add(&gnu.sparse)?;
            let mut goes_on = gnu.is_extended();
            while goes_on {
                let mut more = GnuExtSparseHeader::new();
                self.read(more.as_mut_bytes())?;
                add(more.sparse())?;
                goes_on = more.is_extended();
            }
        } else if let Some(real) = find(b"GNU.sparse.realsize")?.or(find(b"GNU.sparse.size")?) {
            size = real;
            if find(b"GNU.sparse.major")?.is_some_and(|major| major > 0) {
                let start = self.at;
                map = self.map_in_front(stored)?;
                stored -= self.at - start;
            } else if let Some((_, list)) = records.iter().rfind(|(key, _)| key == MAP) {
                let numbers = list.split(|byte| *byte == b',');
                map = numbers
                    .map(|text| decimal(text, at))
                    .collect::<Result<_, _>>()?;
            } else {
                let (offsets, lens) = (all(b"GNU.sparse.offset")?, all(b"GNU.sparse.numbytes")?);
                let pairs = offsets.into_iter().zip(lens);
                map.extend(pairs.flat_map(|(offset, len)| [offset, len]));
            }
        } else {
            size = stored;
            map = vec![0, stored];
        }
        let stretches = laid_out(&map, size, self.at, stored);
        let stretches = stretches.ok_or_else(|| damaged("a map of a sparse file is wrong", at))?;
        self.pass(stored)?;
        Ok((size, stretches))
    }

    /// Reads the map that stands before a sparse file's contents (pax form 1.0): a count and as many
    /// offsets and lengths, each on a line of its own, filled up to a whole block.
    fn map_in_front(&mut self, stored: u64) -> Result<Vec<u64>, ImportError> {
        let at = self.at;
        let (mut text, mut numbers, mut wanted) = (Vec::new(), Vec::new(), 1);
        while numbers.len() < wanted {
            if text.len() as u64 + BLOCK_LEN as u64 > stored.min(EXTENSION_LEN_MAX) {
                return Err(damaged("a map of a sparse file has no end", at));
            }
            let mut block = [0; BLOCK_LEN];
            self.read(&mut block)?;
            for byte in block {
                if byte == b'\n' && numbers.len() < wanted {
                    numbers.push(decimal(&text, at)?);
                    text.clear();
                    if numbers.len() == 1 {
                        let count = usize::try_from(numbers[0]).ok();
                        let count = count.and_then(|count| count.checked_mul(2)?.checked_add(1));
                        wanted = count.ok_or_else(|| damaged("a map is too long", at))?;
                    }
                } else {
                    text.push(byte);
                }
            }
            if self.at - at > EXTENSION_LEN_MAX.min(stored) {
                return Err(damaged("a map of a sparse file has no end", at));
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }

    /// The next header; nothing at the end mark.
    fn header(&mut self) -> Result<Option<Header>, ImportError> {
        let at = self.at;
        let mut header = Header::new_old();
        self.read(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !is_header(header.as_bytes()) {
            return Err(damaged("what should be a header is none", at));
        }
        Ok(Some(header))
    }

    /// The contents of a header that is about the next member.
    fn extension(&mut self, len: u64) -> Result<Vec<u8>, ImportError> {
        if len > EXTENSION_LEN_MAX {
            return Err(damaged("an extended header is too long", self.at));
        }
        let mut bytes = vec![0; len as usize];
        let start = self.at;
        self.read(&mut bytes)?;
        self.at = start;
        self.pass(len)?;
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), ImportError> {
        let end = self.at.saturating_add(bytes.len() as u64);
        if end > self.len {
            return Err(damaged(CUT_SHORT, self.len));
        }
        let read = self.source.read_exact_at(bytes, self.at);
        read.map_err(ImportError::Source)?;
        self.at = end;
        Ok(())
    }

    /// Goes on behind contents, which fill whole blocks.
    fn pass(&mut self, len: u64) -> Result<(), ImportError> {
        match self.at.checked_add(len) {
            Some(end) if end <= self.len => {
                self.at = end.next_multiple_of(BLOCK_LEN as u64);
                Ok(())
            }
            _ => Err(damaged(CUT_SHORT, self.len)),
        }
    }
}

/// Tells whether a block is the header of a member, by its checksum.
pub(super) fn is_header(block: &[u8; BLOCK_LEN]) -> bool {
    let claimed = Header::from_byte_slice(block).cksum();
    let around = |byte: (usize, &u8)| match byte.0 {
        148..156 => u32::from(b' '),
        _ => u32::from(*byte.1),
    };
    let sum: u32 = block.iter().enumerate().map(around).sum();
    claimed.is_ok_and(|claimed| claimed == sum)
}

/// Lays contents that are stored one behind the other out; nothing if the map is none.
fn laid_out(map: &[u64], size: u64, mut position: u64, stored: u64) -> Option<Vec<Stretch>> {
    let (pairs, rest) = map.as_chunks::<2>();
    let stored_end = position.checked_add(stored)?;
    let (mut end, mut stretches) = (0, Vec::with_capacity(pairs.len()));
    for &[offset, len] in pairs {
        let stretch_end = offset.checked_add(len)?;
        let position_end = position.checked_add(len)?;
        if offset < end || stretch_end > size || position_end > stored_end {
            return None;
        }
        if len > 0 {
            stretches.push(Stretch {
                offset,
                len,
                position,
            });
        }
        (end, position) = (stretch_end, position_end);
    }
    rest.is_empty().then_some(stretches)
}

/// Reads pax records: a length in decimal digits, a space, a name, `=`, a value and a line end each.
fn records(mut bytes: &[u8], at: u64) -> Result<Records, ImportError> {
    let mut records = Records::new();
    while !bytes.is_empty() {
        let record = || {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            Some((
                len,
                record[..equals].to_vec(),
                record[equals + 1..].to_vec(),
            ))
        };
        let (len, name, value) = record().ok_or_else(|| damaged("a record is none", at))?;
        records.push((name, value));
        bytes = &bytes[len..];
    }
    Ok(records)
}

/// A name that fills an extended header, up to its first NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.iter().position(|byte| *byte == 0);
    bytes.truncate(len.unwrap_or(bytes.len()));
    bytes
}

/// Reads seconds with a decimal fraction.
fn time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
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

fn decimal(text: &[u8], at: u64) -> Result<u64, ImportError> {
    let number = std::str::from_utf8(text).ok();
    let number = number.and_then(|number| number.parse().ok());
    number.ok_or_else(|| damaged("a number is none", at))
}

fn number<T>(field: io::Result<T>, at: u64) -> Result<T, ImportError> {
    field.map_err(|_| damaged("a number is none", at))
}

fn damaged(what: &'static str, at: u64) -> ImportError {
    ImportError::Archive { what, at }
}

/// Archives come in blocks of this many bytes.
pub(super) const BLOCK_LEN: usize = 512;
const MAP: &[u8] = b"GNU.sparse.map";
const CUT_SHORT: &str = "it was cut short";
const NAMES_IN_ACL: &str = "without its access list, which names people instead of numbers; make the tar with --numeric-owner";
/// Longest extended header: the map of a sparse file of many pieces.
const EXTENSION_LEN_MAX: u64 = 16 * 1024 * 1024;
/// Global records: archives have one or two.
const GLOBALS_MAX: usize = 10_000;
