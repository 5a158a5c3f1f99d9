//! What the targets have in common: the property that a decoder must keep.
//!
//! Each target feeds arbitrary bytes to one decoder of `docs/formats.md`. A decoder may refuse them;
//! it may not panic, and what it takes must encode to exactly the bytes that it read. Where a
//! checksum or an id would refuse every invented input, the target computes it.

use img_records::{Record, Signed};
use img_types::bytes::DecodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Checks a signed record: canonical bytes only, and no two forms of one record.
pub fn signed<R: Record>(bytes: &[u8]) -> Option<Signed<R>> {
    match Signed::<R>::decode(bytes) {
        Ok(signed) => {
            assert_eq!(signed.to_bytes(), bytes);
            Some(signed)
        }
        Err(error) => {
            // The comparison inside is the last line of defence: the fields' decoders come first.
            assert_ne!(error, DecodeError("not canonical"));
            None
        }
    }
}

/// Checks a message of the wire. Its integers may be longer than needed, so it is the message that
/// comes back, from bytes that are never more than what was read.
pub fn message<M>(bytes: &[u8], max: usize)
where
    M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    use img_proto::frame::{PREFIX_LEN, decode, encode};
    let Ok(message) = decode::<M>(bytes) else {
        return;
    };
    let frame = match encode(&message, max) {
        Ok(frame) => frame,
        Err(_) => {
            assert!(bytes.len() > max);
            return;
        }
    };
    let again = &frame[PREFIX_LEN..];
    assert!(again.len() <= bytes.len());
    assert_eq!(decode::<M>(again).as_ref(), Ok(&message));
}

/// Takes a byte string behind its 16-bit little-endian length, or all that is there.
pub fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return (bytes, &[]);
    };
    let len = usize::from(u16::from_le_bytes(*len));
    rest.split_at(len.min(rest.len()))
}
