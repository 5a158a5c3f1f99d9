//! Patch objects: small changes to blocks of one data leaf, kept together in one object.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version, 1 |
//! | 1..3 | count of sections |
//! | then | sections: count of ranges u16 ‖ ranges |
//!
//! A range is offset u16 ‖ length − 1 u16 ‖ 0 for bytes or 1 for zeros, u8 ‖ the bytes, if any. A
//! section holds the ranges of one block; they rise and do not overlap. The extent of a block names
//! its section, so a copied reference holds under another inode or offset.

use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{BLOCK_SIZE, PATCH_LEN_MAX};

/// The content of a patch object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {
    /// Ranges of one block each; none is empty.
    pub sections: Vec<Vec<PatchRange>>,
}

/// A changed range of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchRange {
    /// Where it starts in the block, in bytes.
    pub offset: u32,
    /// Its length in bytes, at least 1.
    pub len: u32,
    /// What it holds, exactly `len` bytes; nothing stands for zeros.
    pub bytes: Option<Vec<u8>>,
}

impl PatchRange {
    /// Length of the encoded range in bytes.
    pub fn encoded_len(&self) -> usize {
        RANGE_OVERHEAD + self.bytes.as_ref().map_or(0, Vec::len)
    }

    fn check(&self, from: u32) -> Result<(), DecodeError> {
        let fits = self.len > 0
            && self.offset >= from
            && u64::from(self.offset) + u64::from(self.len) <= BLOCK_SIZE as u64
            && self
                .bytes
                .as_ref()
                .is_none_or(|bytes| bytes.len() == self.len as usize);
        if fits {
            Ok(())
        } else {
            Err(DecodeError("patched ranges out of order"))
        }
    }
}

impl Patch {
    /// Length of the encoded patch in bytes.
    pub fn encoded_len(&self) -> usize {
        let ranges = |section: &Vec<PatchRange>| {
            SECTION_OVERHEAD + section.iter().map(PatchRange::encoded_len).sum::<usize>()
        };
        PREFIX_LEN + self.sections.iter().map(ranges).sum::<usize>()
    }

    /// The content to seal.
    ///
    /// # Errors
    /// Ranges are empty, overlap or leave their block, or all is longer than [`PATCH_LEN_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        if self.encoded_len() > PATCH_LEN_MAX {
            return Err(DecodeError("patch too long"));
        }
        let mut record = Vec::with_capacity(self.encoded_len());
        record.put_u8(PATCH_VERSION);
        record.put_u16(count(self.sections.len())?);
        for section in &self.sections {
            if section.is_empty() {
                return Err(DecodeError("empty section of a patch"));
            }
            record.put_u16(count(section.len())?);
            let mut from = 0;
            for range in section {
                range.check(from)?;
                from = range.offset + range.len;
                record.put_u16(range.offset as u16);
                record.put_u16((range.len - 1) as u16);
                record.put_u8(u8::from(range.bytes.is_none()));
                record.extend_from_slice(range.bytes.as_deref().unwrap_or_default());
            }
        }
        Ok(record)
    }

    /// Reads a patch.
    ///
    /// # Errors
    /// The bytes are malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > PATCH_LEN_MAX {
            return Err(DecodeError("patch too long"));
        }
        let mut reader = Reader::new(bytes);
        if reader.u8()? != PATCH_VERSION {
            return Err(DecodeError("unknown version of a patch"));
        }
        let mut sections = Vec::new();
        for _ in 0..reader.u16()? {
            sections.push(decode_section(&mut reader)?);
        }
        reader.finish()?;
        Ok(Self { sections })
    }

    /// Writes the ranges of a section into its block.
    ///
    /// # Errors
    /// There is no such section.
    pub fn apply(&self, section: u16, block: &mut [u8; BLOCK_SIZE]) -> Result<(), DecodeError> {
        let ranges = self
            .sections
            .get(usize::from(section))
            .ok_or(DecodeError("a patch has no such section"))?;
        for range in ranges {
            range.check(0)?;
            let target = &mut block[range.offset as usize..(range.offset + range.len) as usize];
            match &range.bytes {
                Some(bytes) => target.copy_from_slice(bytes),
                None => target.fill(0),
            }
        }
        Ok(())
    }
}

fn decode_section(reader: &mut Reader<'_>) -> Result<Vec<PatchRange>, DecodeError> {
    let ranges = reader.u16()?;
    if ranges == 0 {
        return Err(DecodeError("empty section of a patch"));
    }
    let mut section = Vec::new();
    let mut from = 0;
    for _ in 0..ranges {
        let offset = u32::from(reader.u16()?);
        let len = u32::from(reader.u16()?) + 1;
        let bytes = match reader.u8()? {
            0 => Some(reader.take(len as usize)?.to_vec()),
            1 => None,
            _ => return Err(DecodeError("unknown form of a patched range")),
        };
        let range = PatchRange { offset, len, bytes };
        range.check(from)?;
        from = offset + len;
        section.push(range);
    }
    Ok(section)
}

fn count(len: usize) -> Result<u16, DecodeError> {
    u16::try_from(len).map_err(|_| DecodeError("too many parts of a patch"))
}

const PATCH_VERSION: u8 = 1;
const PREFIX_LEN: usize = 3;
const SECTION_OVERHEAD: usize = 2;
const RANGE_OVERHEAD: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_section() -> impl Strategy<Value = Vec<PatchRange>> {
        let range = (0u32..500, 1u32..100, any::<bool>(), any::<u8>());
        proptest::collection::vec(range, 1..20).prop_map(|parts| {
            let mut from = 0;
            let ranges = parts.into_iter().map(|(gap, len, zeros, byte)| {
                let offset = from + gap;
                from = offset + len;
                let bytes = (!zeros).then(|| vec![byte; len as usize]);
                PatchRange { offset, len, bytes }
            });
            ranges.collect()
        })
    }

    proptest! {
        #[test]
        fn patches_are_read_back_and_change_what_they_say(
            sections in proptest::collection::vec(any_section(), 1..6),
        ) {
            let patch = Patch { sections };
            let bytes = patch.encode().unwrap();
            prop_assert_eq!(bytes.len(), patch.encoded_len());
            prop_assert_eq!(Patch::decode(&bytes), Ok(patch.clone()));
            for (number, section) in patch.sections.iter().enumerate() {
                let mut block = [0xee; BLOCK_SIZE];
                patch.apply(number as u16, &mut block).unwrap();
                let mut expected = vec![0xee; BLOCK_SIZE];
                for range in section {
                    for at in range.offset..range.offset + range.len {
                        expected[at as usize] = range.bytes.as_ref().map_or(0, |bytes| bytes[0]);
                    }
                }
                prop_assert!(block[..] == expected[..]);
            }
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(patch) = Patch::decode(&bytes) {
                prop_assert_eq!(patch.encode(), Ok(bytes));
            }
        }
    }

    #[test]
    fn ranges_stay_in_their_block_and_do_not_overlap() {
        let range = |offset, len| PatchRange {
            offset,
            len,
            bytes: None,
        };
        let encoded = |ranges| {
            let sections = vec![ranges];
            Patch { sections }.encode()
        };
        assert!(encoded(vec![range(0, 1 << 16)]).is_ok());
        assert!(encoded(vec![range(1, 1 << 16)]).is_err());
        assert!(encoded(vec![range(0, 0)]).is_err());
        assert!(encoded(vec![range(0, 5), range(4, 1)]).is_err());
        assert!(encoded(vec![]).is_err());
        let patch = Patch::default();
        assert!(patch.apply(0, &mut [0; BLOCK_SIZE]).is_err());
    }
}
