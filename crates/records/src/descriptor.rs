//! The image descriptor: an image's sealed name and options; replaced by a rename.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 32 | image |
//! | 8 + 32 | number of this descriptor, id of the one before (zeros for number 0) |
//! | 32 | tag of the name, by which the home refuses a second image of that name |
//! | 4 + 32 | key epoch of the sealed part, device |
//! | 4 + n | sealed part: a [`DescriptorPrivate`] |
//! | 64 | signature of the device |

use std::fmt;

use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{NAME_LEN_MAX, SEALED_FIELD_LEN_MAX};
use img_types::{DeviceId, ImageId, KeyEpoch, NameTag};

use crate::signed::{Record, Signed, text, version};

const VERSION: u8 = 1;
/// Longest options inside a descriptor's sealed part.
pub const OPTIONS_LEN_MAX: usize = 4 * 1024;

/// A descriptor with its signature.
pub type SignedDescriptor = Signed<Descriptor>;

/// What the home knows of an image's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Which image.
    pub image: ImageId,
    /// Counts the image's descriptors, from 0.
    pub seq: u64,
    /// Id of the descriptor before; zeros for the first.
    pub previous: [u8; 32],
    /// Keyed hash of the name.
    pub tag: NameTag,
    /// Which home secret the sealed part is under.
    pub key_epoch: KeyEpoch,
    /// Who signs.
    pub device: DeviceId,
    /// A [`DescriptorPrivate`], sealed with [`Self::clear_bytes`] as associated data.
    pub sealed: Vec<u8>,
}

impl Descriptor {
    /// All bytes before the sealed part: what it is bound to.
    pub fn clear_bytes(&self) -> Vec<u8> {
        let mut clear = Vec::with_capacity(141);
        clear.put_u8(VERSION);
        clear.extend_from_slice(self.image.as_bytes());
        clear.put_u64(self.seq);
        clear.extend_from_slice(&self.previous);
        clear.extend_from_slice(self.tag.as_bytes());
        clear.put_u32(self.key_epoch.0);
        clear.extend_from_slice(self.device.as_bytes());
        clear
    }
}

impl Record for Descriptor {
    const NAME: &'static str = "descriptor";
    const LEN_MAX: usize = SEALED_FIELD_LEN_MAX + 512;

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.clear_bytes());
        bytes.put_bytes(&self.sealed);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        version(reader, VERSION)?;
        let descriptor = Self {
            image: ImageId::from_bytes(reader.array()?),
            seq: reader.u64()?,
            previous: reader.array()?,
            tag: NameTag::from_bytes(reader.array()?),
            key_epoch: KeyEpoch(reader.u32()?),
            device: DeviceId::from_bytes(reader.array()?),
            sealed: reader.bytes(SEALED_FIELD_LEN_MAX)?.to_vec(),
        };
        if (descriptor.seq == 0) == (descriptor.previous == [0; 32]) {
            Ok(descriptor)
        } else {
            Err(DecodeError("number and predecessor do not fit"))
        }
    }
}

/// What a descriptor tells only to devices.
///
/// Bytes: version 1 (1), boundary (32), name and options (4 + n each).
#[derive(Clone, PartialEq, Eq)]
pub struct DescriptorPrivate {
    /// The image's name.
    pub name: String,
    /// Random value that decides where index nodes end; branches inherit it.
    pub boundary: [u8; 32],
    /// The image's options, as the daemon encodes them.
    pub options: Vec<u8>,
}

impl DescriptorPrivate {
    /// The bytes to seal.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.boundary);
        bytes.put_bytes(self.name.as_bytes());
        bytes.put_bytes(&self.options);
        bytes
    }

    /// Reads what was sealed.
    ///
    /// # Errors
    /// The bytes are malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        version(&mut reader, VERSION)?;
        let private = Self {
            boundary: reader.array()?,
            name: text(&mut reader, 4 * NAME_LEN_MAX)?,
            options: reader.bytes(OPTIONS_LEN_MAX)?.to_vec(),
        };
        reader.finish()?;
        Ok(private)
    }
}

impl fmt::Debug for DescriptorPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DescriptorPrivate").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::SigningSecret;
    use img_types::HomeId;
    use proptest::prelude::*;

    const HOME: HomeId = HomeId::from_bytes([1; 32]);

    proptest! {
        #[test]
        fn descriptors_round_trip(
            image: [u8; 32], seq in 0u64..3, previous: [u8; 32], key_epoch: u32,
            sealed in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let descriptor = Descriptor {
                image: ImageId::from_bytes(image),
                seq,
                previous: if seq == 0 { [0; 32] } else { previous },
                tag: NameTag::from_bytes(previous),
                key_epoch: KeyEpoch(key_epoch),
                device: DeviceId::from_bytes(image),
                sealed,
            };
            let signed = Signed::sign(descriptor, &HOME, &SigningSecret::from_bytes([2; 32]));
            let bytes = signed.to_bytes();
            prop_assert_eq!(SignedDescriptor::decode(&bytes), Ok(signed));
            prop_assert!(SignedDescriptor::decode(&bytes[1..]).is_err());
        }

        #[test]
        fn private_parts_round_trip(
            boundary: [u8; 32], name in "[a-zß_.-]{1,100}",
            options in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let private = DescriptorPrivate { name, boundary, options };
            let bytes = private.encode();
            prop_assert_eq!(DescriptorPrivate::decode(&bytes), Ok(private));
            for len in 0..bytes.len() {
                prop_assert!(DescriptorPrivate::decode(&bytes[..len]).is_err());
            }
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = SignedDescriptor::decode(&bytes);
            let _ = DescriptorPrivate::decode(&bytes);
        }
    }

    #[test]
    fn the_first_descriptor_alone_has_no_predecessor() {
        let good = crate::golden::descriptor();
        for (seq, previous, fits) in [
            (0, [0; 32], true),
            (1, [7; 32], true),
            (0, [7; 32], false),
            (1, [0; 32], false),
        ] {
            let descriptor = Descriptor {
                seq,
                previous,
                ..good.clone()
            };
            let signed = Signed::sign(descriptor, &HOME, &SigningSecret::from_bytes([2; 32]));
            let decoded = SignedDescriptor::decode(&signed.to_bytes());
            assert_eq!(decoded.is_ok(), fits);
        }
    }
}
