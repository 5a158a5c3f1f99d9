//! The format of a pack: the objects of one spool behind each other, then their table.
//!
//! A pack is immutable and named after its table, so that building one twice from the same spool gives the
//! same pack. Objects lie in it in the order of their upload, which is the order in which they are read
//! together. The magic of its footer is `imgpack1`; see `docs/formats.md` for the table.

use std::fmt;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use img_types::ObjectId;
use img_types::bytes::DecodeError;

use crate::StoreError;
use crate::spool::SpoolReader;
use crate::table::{FOOTER_LEN, Footer, Place, Table};

pub(crate) const MAGIC: [u8; 8] = *b"imgpack1";

const ID_CONTEXT: &str = "imgctl pack id v1";

/// Names a pack: the derive-hash of its table and footer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 32]);

/// A pack that has been built and not been put yet.
#[derive(Debug, Clone)]
pub struct Pack {
    /// Its name.
    pub id: PackId,
    /// All of it.
    pub bytes: Bytes,
    /// Where its objects are.
    pub table: Table,
}

impl Pack {
    /// Builds a pack from objects of a spool; of two with one id the first is taken.
    ///
    /// # Errors
    /// The spool cannot be read.
    pub fn build(spool: &SpoolReader, objects: &[(ObjectId, Place)]) -> Result<Self, StoreError> {
        let wanted = Table::new(objects.to_vec());
        let mut in_order = wanted.entries().to_vec();
        in_order.sort_by_key(|(_, place)| place.offset);
        let len: u64 = in_order.iter().map(|(_, place)| u64::from(place.len)).sum();
        let mut bytes = Vec::with_capacity(
            usize::try_from(len).expect("a spool fits memory") + wanted.encoded_len(),
        );
        let mut places = Vec::with_capacity(in_order.len());
        for (id, place) in in_order {
            let offset = bytes.len() as u64;
            bytes.extend_from_slice(&spool.read(place)?);
            places.push((
                id,
                Place {
                    offset,
                    len: place.len,
                },
            ));
        }
        let table = Table::new(places);
        let tail = table.encode(bytes.len() as u64, MAGIC);
        bytes.extend_from_slice(&tail);
        Ok(Self {
            id: PackId(blake3::derive_key(ID_CONTEXT, &tail)),
            bytes: bytes.into(),
            table,
        })
    }
}

impl PackId {
    /// Takes the bytes as they are.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({})", HEXLOWER.encode(&self.0[..5]))
    }
}

/// Reads the footer at the end of a pack of `file_len` bytes.
pub(crate) fn footer(bytes: &[u8], file_len: u64) -> Result<Footer, DecodeError> {
    let bytes: &[u8; FOOTER_LEN] = bytes.try_into().map_err(|_| DecodeError("ends early"))?;
    Footer::decode(bytes, file_len, MAGIC)
}

/// Reads a pack's table and checks that it belongs to the pack's name.
pub(crate) fn table(id: PackId, file_len: u64, tail: &[u8]) -> Result<Table, DecodeError> {
    let (entries, footer_bytes) = tail
        .split_last_chunk::<FOOTER_LEN>()
        .ok_or(DecodeError("ends early"))?;
    if blake3::derive_key(ID_CONTEXT, tail) != id.0 {
        return Err(DecodeError("pack has another id"));
    }
    Table::decode(footer(footer_bytes, file_len)?, entries)
}
