//! The framing of objects in an append-only file: spools and cache segments.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `imgr` |
//! | 4..8 | length of the object |
//! | 8..40 | id of the object |
//! | 40..48 | first 8 bytes of BLAKE3 over bytes 0..40 |
//! | 48.. | the object |
//!
//! The header has a checksum of its own so that a damaged object is skipped while the records behind it are
//! still found; the object needs none, since its id is one. The first header that does not hold is the end
//! of the file: a crash cut the write there, and nothing behind it was ever synced.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use img_types::ObjectId;
use img_types::limits::OBJECT_LEN_MAX;
use img_types::object;

use crate::table::Place;

/// Length of the header in front of every object.
pub(crate) const HEADER_LEN: usize = 48;

const MAGIC: [u8; 4] = *b"imgr";
/// Reading ahead by this much makes a scan sequential on any disk.
const SCAN_BUFFER: usize = 1024 * 1024;

/// What a file of records holds.
pub(crate) struct Scan {
    /// Whole objects in the order in which they were written.
    pub(crate) records: Vec<(ObjectId, Place)>,
    /// Where the next record goes; whatever lies behind is torn.
    pub(crate) end: u64,
    /// Objects that do not match their id.
    pub(crate) corrupt: usize,
}

/// Writes one record at `end` with one call and returns the object's place. Nothing before `end` changes,
/// and after a failure the next record overwrites what was written.
pub(crate) fn append(
    file: &File,
    end: u64,
    id: ObjectId,
    object: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<Place> {
    let len = u32::try_from(object.len())
        .ok()
        .filter(|len| *len as usize <= OBJECT_LEN_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "object too long"))?;
    buffer.clear();
    buffer.extend_from_slice(&header(id, len));
    buffer.extend_from_slice(object);
    file.write_all_at(buffer, end)?;
    Ok(Place {
        offset: end + HEADER_LEN as u64,
        len,
    })
}

/// Reads one object.
pub(crate) fn read(file: &File, place: Place) -> io::Result<Bytes> {
    let mut object = vec![0; place.len as usize];
    file.read_exact_at(&mut object, place.offset)?;
    Ok(object.into())
}

/// Reads all records from the beginning and checks every object against its id.
pub(crate) fn scan(file: &File) -> io::Result<Scan> {
    let file_len = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(SCAN_BUFFER, ReadAt { file, at: 0 });
    let mut scan = Scan {
        records: Vec::new(),
        end: 0,
        corrupt: 0,
    };
    let mut object = Vec::new();
    while scan.end + HEADER_LEN as u64 <= file_len {
        let mut bytes = [0; HEADER_LEN];
        reader.read_exact(&mut bytes)?;
        let Some((id, len)) = parse(&bytes) else {
            break;
        };
        let place = Place {
            offset: scan.end + HEADER_LEN as u64,
            len,
        };
        if place.end() > file_len {
            break;
        }
        object.resize(len as usize, 0);
        reader.read_exact(&mut object)?;
        if object::verify(id, &object).is_ok() {
            scan.records.push((id, place));
        } else {
            scan.corrupt += 1;
        }
        scan.end = place.end();
    }
    Ok(scan)
}

fn header(id: ObjectId, len: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..40].copy_from_slice(id.as_bytes());
    let check = blake3::hash(&header[..40]);
    header[40..].copy_from_slice(&check.as_bytes()[..8]);
    header
}

fn parse(bytes: &[u8; HEADER_LEN]) -> Option<(ObjectId, u32)> {
    let len = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
    let id = ObjectId::from_slice(&bytes[8..40])?;
    let sound = len as usize <= OBJECT_LEN_MAX && *bytes == header(id, len);
    sound.then_some((id, len))
}

/// Reads a file from its beginning without moving the position that others share.
struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buffer, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}
