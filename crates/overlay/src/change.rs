//! One change to the top generation; at the same time the journal's record.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | tag: 1 put, 2 delete, 3 clear keys, 4 write, 5 zero, 6 drop inode |
//! | put | key (32-bit length, bytes), value (32-bit length, bytes) |
//! | delete | key |
//! | clear keys | first key, exclusive end key |
//! | write | inode u64, offset u64, len u64, arena position u64 |
//! | zero | inode u64, offset u64, len u64 (all ones: to infinity) |
//! | drop inode | inode u64 |

use img_index::{Inode, Key, KeyParts, KeyRange, NameHash, Value};
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{INDEX_KEY_LEN_MAX, INDEX_VALUE_LEN_MAX};

/// What an operation does to the image. A journal replays these in order, with the freezes between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a key. Of zone 2 only extents are set, each replacing its whole block.
    Put(Key, Value),
    /// Deletes a key. Deleting an extent makes its block zero.
    Delete(Key),
    /// Deletes every key of a range that lies within one zone. Clearing extents makes their bytes zero.
    ClearKeys(KeyRange),
    /// Says that bytes of a file now lie in the top generation's arena.
    Write {
        /// The file.
        inode: Inode,
        /// First byte in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// First byte in the arena.
        arena: u64,
    },
    /// Makes bytes of a file zero. The file's size is a matter of its attributes.
    Zero {
        /// The file.
        inode: Inode,
        /// First byte in the file.
        offset: u64,
        /// How many bytes; [`crate::INFINITY`] for all that follow.
        len: u64,
    },
    /// Deletes an inode's metadata and data, not the directory entries that name it.
    DropInode(Inode),
}

impl Change {
    /// Appends the change's bytes.
    pub fn encode(&self, record: &mut Vec<u8>) {
        record.put_u8(VERSION);
        match self {
            Self::Put(key, value) => {
                record.put_u8(1);
                record.put_bytes(key.as_bytes());
                let mut bytes = Vec::new();
                value.encode(&mut bytes);
                record.put_bytes(&bytes);
            }
            Self::Delete(key) => {
                record.put_u8(2);
                record.put_bytes(key.as_bytes());
            }
            Self::ClearKeys(range) => {
                record.put_u8(3);
                record.put_bytes(range.start.as_bytes());
                record.put_bytes(range.end.as_bytes());
            }
            Self::Write {
                inode,
                offset,
                len,
                arena,
            } => {
                record.put_u8(4);
                for number in [inode.0, *offset, *len, *arena] {
                    record.put_u64(number);
                }
            }
            Self::Zero { inode, offset, len } => {
                record.put_u8(5);
                for number in [inode.0, *offset, *len] {
                    record.put_u64(number);
                }
            }
            Self::DropInode(inode) => {
                record.put_u8(6);
                record.put_u64(inode.0);
            }
        }
    }

    /// Reads one change that fills `record` exactly.
    ///
    /// # Errors
    /// The bytes are malformed.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(record);
        if reader.u8()? != VERSION {
            return Err(DecodeError("unknown version of a change"));
        }
        let change = match reader.u8()? {
            1 => {
                let key = Key::decode(reader.bytes(INDEX_KEY_LEN_MAX)?)?;
                let value = Value::decode(&key, reader.bytes(INDEX_VALUE_LEN_MAX)?)?;
                Self::Put(not_inline(key)?, value)
            }
            2 => Self::Delete(not_inline(Key::decode(reader.bytes(INDEX_KEY_LEN_MAX)?)?)?),
            3 => Self::ClearKeys(KeyRange {
                start: bound(reader.bytes(INDEX_KEY_LEN_MAX)?)?,
                end: bound(reader.bytes(INDEX_KEY_LEN_MAX)?)?,
            }),
            4 => {
                let inode = Inode(reader.u64()?);
                let (offset, len, arena) = (reader.u64()?, reader.u64()?, reader.u64()?);
                if offset.checked_add(len).is_none() || arena.checked_add(len).is_none() {
                    return Err(DecodeError("a write beyond the end of numbers"));
                }
                Self::Write {
                    inode,
                    offset,
                    len,
                    arena,
                }
            }
            5 => Self::Zero {
                inode: Inode(reader.u64()?),
                offset: reader.u64()?,
                len: reader.u64()?,
            },
            6 => Self::DropInode(Inode(reader.u64()?)),
            _ => return Err(DecodeError("unknown kind of change")),
        };
        reader.finish()?;
        Ok(change)
    }
}

/// Refuses the key of inline contents: bytes are written and zeroed, and a seal decides where they go.
fn not_inline(key: Key) -> Result<Key, DecodeError> {
    match key.parts() {
        KeyParts::Inline(_) => Err(DecodeError("inline contents are no change")),
        _ => Ok(key),
    }
}

/// Reads the bound of a key range: a key, the one right behind a key, or where a kind of key begins
/// or ends.
fn bound(bytes: &[u8]) -> Result<Key, DecodeError> {
    if let Ok(key) = Key::decode(bytes) {
        return Ok(key);
    }
    if let Some((0, before)) = bytes.split_last()
        && let Ok(key) = Key::decode(before)
    {
        return Ok(key.successor());
    }
    let mut reader = Reader::new(bytes);
    reader.u8()?;
    let inode = Inode(reader.array().map_or(0, u64::from_be_bytes));
    reader.u8().ok();
    let hash = NameHash::new(reader.array().map_or(0, u64::from_be_bytes));
    [
        KeyRange::entries(inode),
        KeyRange::entries_from(inode, hash),
        KeyRange::xattrs(inode),
        KeyRange::inode_metadata(inode),
        KeyRange::data(inode),
        KeyRange::extents(inode, 0, crate::INFINITY),
        KeyRange::open_unlinked(),
    ]
    .into_iter()
    .flat_map(|range| [range.start, range.end])
    .find(|key| key.as_bytes() == bytes)
    .ok_or(DecodeError("no bound of keys"))
}

/// Version of the journal's record of a change.
const VERSION: u8 = 1;
