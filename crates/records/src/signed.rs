//! What all signed records have in common: bytes as received, signature, id.
//!
//! A signed record is its bytes and a signature of 64 bytes behind them. The signature is over
//! `"imgctl <name> v1\0" ‖ home id ‖ bytes`; the id is the derive-hash of the same message, without
//! the signature. Bytes are never encoded again before they are verified; a decoder accepts exactly
//! the bytes that encoding gives.

use img_types::HomeId;
use img_types::bytes::{DecodeError, Reader};

use crate::device::{SignatureError, SigningSecret, verify};

const ID_CONTEXT: &str = "imgctl record id v1";
const SIGNATURE_LEN: usize = 64;

/// A record that can be signed.
pub trait Record: Sized {
    /// The record's name in the message that is signed.
    const NAME: &'static str;
    /// Most bytes, signature included.
    const LEN_MAX: usize;

    /// Appends the record's bytes, which begin with a version.
    fn encode(&self, bytes: &mut Vec<u8>);

    /// Reads a record.
    ///
    /// # Errors
    /// The bytes end early or hold what the format does not allow.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// A record with its signature, which may not have been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<R> {
    /// The record.
    pub record: R,
    bytes: Vec<u8>,
    signature: [u8; SIGNATURE_LEN],
}

impl<R: Record> Signed<R> {
    /// Signs a record.
    pub fn sign(record: R, home: &HomeId, secret: &SigningSecret) -> Self {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let signature = secret.sign(&message::<R>(home, &bytes));
        Self {
            record,
            bytes,
            signature,
        }
    }

    /// Takes received bytes apart without verifying the signature.
    ///
    /// # Errors
    /// They are too long, malformed or not what encoding the record gives.
    pub fn decode(signed: &[u8]) -> Result<Self, DecodeError> {
        if signed.len() > R::LEN_MAX {
            return Err(DecodeError("record too long"));
        }
        let (bytes, signature) = signed
            .split_last_chunk::<SIGNATURE_LEN>()
            .ok_or(DecodeError("ends early"))?;
        let mut reader = Reader::new(bytes);
        let record = R::decode(&mut reader)?;
        reader.finish()?;
        let mut canonical = Vec::with_capacity(bytes.len());
        record.encode(&mut canonical);
        if canonical != bytes {
            return Err(DecodeError("not canonical"));
        }
        Ok(Self {
            record,
            bytes: canonical,
            signature: *signature,
        })
    }

    /// Checks that the holder of a key signed this record for this home.
    ///
    /// # Errors
    /// The signature is another key's, or for another home, kind of record or content.
    pub fn verify(&self, home: &HomeId, public: &[u8; 32]) -> Result<(), SignatureError> {
        verify(public, &message::<R>(home, &self.bytes), &self.signature)
    }

    /// The record's id within a home, independent of the signature.
    pub fn id(&self, home: &HomeId) -> [u8; 32] {
        *blake3::Hasher::new_derive_key(ID_CONTEXT)
            .update(&message::<R>(home, &self.bytes))
            .finalize()
            .as_bytes()
    }

    /// The bytes to store and send: record, then signature.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.bytes[..], &self.signature].concat()
    }

    /// The bytes that were signed for, without the signature.
    pub fn record_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn message<R: Record>(home: &HomeId, bytes: &[u8]) -> Vec<u8> {
    [
        b"imgctl ",
        R::NAME.as_bytes(),
        b" v1\0",
        home.as_bytes(),
        bytes,
    ]
    .concat()
}

/// Reads a version byte, which must be the one that is known.
pub(crate) fn version(reader: &mut Reader<'_>, known: u8) -> Result<(), DecodeError> {
    if reader.u8()? == known {
        Ok(())
    } else {
        Err(DecodeError("unknown version"))
    }
}

/// Reads what a presence byte announces: 0 nothing, 1 a value.
pub(crate) fn optional<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match reader.u8()? {
        0 => Ok(None),
        1 => read(reader).map(Some),
        _ => Err(DecodeError("presence is neither 0 nor 1")),
    }
}

/// Reads a text behind its length.
pub(crate) fn text(reader: &mut Reader<'_>, max: usize) -> Result<String, DecodeError> {
    let bytes = reader.bytes(max)?;
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError("text is not UTF-8"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_types::bytes::Write;

    #[derive(Debug, PartialEq, Eq, Clone)]
    struct Note(u8);

    impl Record for Note {
        const NAME: &'static str = "note";
        const LEN_MAX: usize = 2 + SIGNATURE_LEN;

        fn encode(&self, bytes: &mut Vec<u8>) {
            bytes.put_u8(1);
            bytes.put_u8(self.0);
        }

        fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
            version(reader, 1)?;
            // Not injective on purpose: only the comparison with the encoding refuses 0x80.
            Ok(Self(reader.u8()? & 0x7f))
        }
    }

    #[derive(Debug, PartialEq, Eq, Clone)]
    struct Memo(Note);

    impl Record for Memo {
        const NAME: &'static str = "memo";
        const LEN_MAX: usize = Note::LEN_MAX;

        fn encode(&self, bytes: &mut Vec<u8>) {
            self.0.encode(bytes);
        }

        fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
            Note::decode(reader).map(Self)
        }
    }

    #[test]
    fn home_kind_key_and_content_are_bound() {
        let secret = SigningSecret::from_bytes([1; 32]);
        let home = HomeId::from_bytes([2; 32]);
        let elsewhere = HomeId::from_bytes([3; 32]);
        let signed = Signed::sign(Note(5), &home, &secret);
        let received = Signed::<Note>::decode(&signed.to_bytes()).unwrap();
        assert_eq!(received, signed);
        assert_eq!(received.verify(&home, &secret.public()), Ok(()));
        assert!(received.verify(&elsewhere, &secret.public()).is_err());
        assert_ne!(received.id(&home), received.id(&elsewhere));
        let memo = Signed::<Memo>::decode(&signed.to_bytes()).unwrap();
        assert!(memo.verify(&home, &secret.public()).is_err());
        assert_ne!(memo.id(&home), signed.id(&home));
        let mut changed = signed.to_bytes();
        changed[1] = 6;
        let changed = Signed::<Note>::decode(&changed).unwrap();
        assert!(changed.verify(&home, &secret.public()).is_err());
    }

    #[test]
    fn only_canonical_bytes_within_the_limit_are_taken() {
        let decode = |record: &[u8]| {
            Signed::<Note>::decode(&[record, &[0; SIGNATURE_LEN]].concat()).map(|note| note.record)
        };
        assert_eq!(decode(&[1, 5]), Ok(Note(5)));
        assert_eq!(decode(&[1, 0x85]), Err(DecodeError("not canonical")));
        assert_eq!(decode(&[2, 5]), Err(DecodeError("unknown version")));
        assert_eq!(decode(&[1, 5, 0]), Err(DecodeError("record too long")));
        assert_eq!(decode(&[1]), Err(DecodeError("ends early")));
        assert!(Signed::<Note>::decode(&[1; 63]).is_err());
    }
}
