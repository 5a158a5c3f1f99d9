//! What it takes to fetch and open an object: its id, its key and its length.

use std::fmt;

use img_types::ObjectId;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::OBJECT_LEN_MAX;

/// The key of one object, derived from its content; gives away that content and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// Takes the bytes as they are.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the bytes, to seal them into a record.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockKey(..)")
    }
}

/// Names a sealed object together with what opens it. 68 bytes: id, key, raw length as u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Where the stored bytes are.
    pub id: ObjectId,
    /// What opens them.
    pub key: BlockKey,
    /// Length of the raw content in bytes.
    pub len: u32,
}

impl Reference {
    /// Length of the encoded reference in bytes.
    pub const LEN: usize = 68;

    /// Appends the reference's bytes.
    pub fn encode(&self, record: &mut Vec<u8>) {
        record.extend_from_slice(self.id.as_bytes());
        record.extend_from_slice(self.key.as_bytes());
        record.put_u32(self.len);
    }

    /// Reads a reference.
    ///
    /// # Errors
    /// The bytes end early, or the length is beyond any object.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = ObjectId::from_bytes(reader.array()?);
        let key = BlockKey(reader.array()?);
        let len = reader.u32()?;
        if len as usize > OBJECT_LEN_MAX {
            return Err(DecodeError("reference to more than an object can hold"));
        }
        Ok(Self { id, key, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_is_the_inverse_and_bounded(bytes in any::<[[u8; 17]; 4]>()) {
            let bytes = bytes.as_flattened();
            let mut reader = Reader::new(bytes);
            match Reference::decode(&mut reader) {
                Ok(reference) => {
                    let mut record = Vec::new();
                    reference.encode(&mut record);
                    prop_assert_eq!(record, bytes);
                    prop_assert!(reference.len as usize <= OBJECT_LEN_MAX);
                }
                Err(_) => prop_assert!(bytes[66] > 0 || bytes[67] > 0),
            }
        }
    }

    #[test]
    fn debug_does_not_tell_the_key() {
        let reference = Reference {
            id: ObjectId::from_bytes([1; 32]),
            key: BlockKey::from_bytes([0xcd; 32]),
            len: 5,
        };
        assert_eq!(
            format!("{reference:?}"),
            "Reference { id: ObjectId(0101010101), key: BlockKey(..), len: 5 }"
        );
    }
}
