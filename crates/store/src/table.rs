//! The table at the end of a file that takes no more objects: packs and sealed cache segments.
//!
//! | bytes | field |
//! |---|---|
//! | 0..t | objects |
//! | t..t+40·n | entries in ascending order of ids: id 32, offset of the object 4, its length 4 |
//! | then 0..8 | t, where the table begins |
//! | 8..12 | n, the number of entries |
//! | 12..16 | zero |
//! | 16..48 | BLAKE3 over the entries and bytes 0..16 of this footer |
//! | 48..56 | magic, which names the kind of file and its version |

use img_types::ObjectId;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::OBJECT_LEN_MAX;

/// Length of the footer behind the entries.
pub(crate) const FOOTER_LEN: usize = 56;
/// Length of one entry.
pub(crate) const ENTRY_LEN: usize = 40;

/// Where an object lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Offset of the object's first byte.
    pub offset: u64,
    /// Length of the object in bytes.
    pub len: u32,
}

impl Place {
    /// Offset behind the object's last byte.
    pub fn end(self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// Objects of one file with their places, in ascending order of ids, each id once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    entries: Vec<(ObjectId, Place)>,
}

/// Where a table lies, as its footer says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footer {
    pub(crate) start: u64,
    pub(crate) count: u32,
    check: [u8; 32],
}

impl Table {
    /// Sorts entries; of two with one id the first stays.
    pub fn new(mut entries: Vec<(ObjectId, Place)>) -> Self {
        entries.sort_by_key(|(id, _)| *id);
        entries.dedup_by_key(|(id, _)| *id);
        Self { entries }
    }

    /// The entries in ascending order of ids.
    pub fn entries(&self) -> &[(ObjectId, Place)] {
        &self.entries
    }

    /// Length of entries and footer in bytes.
    pub(crate) fn encoded_len(&self) -> usize {
        self.entries.len() * ENTRY_LEN + FOOTER_LEN
    }

    /// The bytes of entries and footer, for a file whose objects end at `start`.
    pub(crate) fn encode(&self, start: u64, magic: [u8; 8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        for (id, place) in &self.entries {
            bytes.extend_from_slice(id.as_bytes());
            bytes.put_u32(u32::try_from(place.offset).expect("files are cut at 64 MiB"));
            bytes.put_u32(place.len);
        }
        let count = self.entries.len();
        bytes.put_u64(start);
        bytes.put_u32(u32::try_from(count).expect("an entry has 40 bytes of a file below 4 GiB"));
        bytes.put_u32(0);
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        bytes.extend_from_slice(&magic);
        bytes
    }

    /// Reads the entries that `footer` announces.
    ///
    /// # Errors
    /// The checksum differs, or an entry lies outside the objects or out of order.
    pub(crate) fn decode(footer: Footer, entries: &[u8]) -> Result<Self, DecodeError> {
        if entries.len() as u64 != footer.entries_len() {
            return Err(DecodeError("table has another length"));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(entries);
        hasher.update(&footer.start.to_le_bytes());
        hasher.update(&footer.count.to_le_bytes());
        hasher.update(&[0; 4]);
        if *hasher.finalize().as_bytes() != footer.check {
            return Err(DecodeError("table checksum differs"));
        }
        let mut reader = Reader::new(entries);
        let mut table = Self::default();
        for _ in 0..footer.count {
            let id = ObjectId::from_bytes(reader.array()?);
            let place = Place {
                offset: u64::from(reader.u32()?),
                len: reader.u32()?,
            };
            if place.len as usize > OBJECT_LEN_MAX || place.end() > footer.start {
                return Err(DecodeError("table entry out of range"));
            }
            if table.entries.last().is_some_and(|(last, _)| *last >= id) {
                return Err(DecodeError("table out of order"));
            }
            table.entries.push((id, place));
        }
        reader.finish()?;
        Ok(table)
    }
}

impl Footer {
    /// Reads the footer at the end of a file of `file_len` bytes.
    ///
    /// # Errors
    /// The magic is another, or the table does not fill the file from its start to this footer.
    pub(crate) fn decode(
        bytes: &[u8; FOOTER_LEN],
        file_len: u64,
        magic: [u8; 8],
    ) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let start = reader.u64()?;
        let count = reader.u32()?;
        let zero = reader.u32()?;
        let check = reader.array()?;
        let footer = Self {
            start,
            count,
            check,
        };
        if reader.array()? != magic || zero != 0 {
            return Err(DecodeError("no table here"));
        }
        let end = start.checked_add(footer.entries_len() + FOOTER_LEN as u64);
        if end == Some(file_len) {
            Ok(footer)
        } else {
            Err(DecodeError("table out of range"))
        }
    }

    /// Length of the entries in bytes.
    pub(crate) fn entries_len(self) -> u64 {
        u64::from(self.count) * ENTRY_LEN as u64
    }
}
