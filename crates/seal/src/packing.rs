//! What is encrypted: content, compressed if that makes it smaller, and padded.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | method: 0 the content as it is, 1 one zstd frame |
//! | then | the content or the frame |
//! | then | zeros up to a Padmé length, see [`img_types::padding`] |
//!
//! zstd's output differs between versions and levels. Both belong to the object format, so the
//! workspace pins the crate and a test the library. Safety does not rest on that: keys come from
//! the packed bytes.

use std::cell::RefCell;

use img_types::padding::padded_len;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CParameter};

const STORED: u8 = 0;
const ZSTD: u8 = 1;
const ZSTD_LEVEL: i32 = 1;

/// Packs contents, one after the other, with the same contexts and buffers.
pub(crate) struct Packer {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    frame: Vec<u8>,
    check: Vec<u8>,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self {
            compressor: compressor(ZSTD_LEVEL),
            decompressor: decompressor(),
            frame: Vec::new(),
            check: Vec::new(),
        }
    }

    /// Length of what [`Self::pack`] appends at most for `raw_len` bytes.
    pub(crate) fn packed_len_max(raw_len: usize) -> usize {
        padded_len(1 + raw_len)
    }

    /// Appends the packed form of `raw`; false if the compressor lost something.
    ///
    /// What is compressed is decompressed and compared at once: a wrong compressor, or a flipped
    /// bit in memory, must not become a lost file.
    pub(crate) fn pack(&mut self, raw: &[u8], packed: &mut Vec<u8>) -> bool {
        let start = packed.len();
        if self.compress(raw) {
            self.check.clear();
            self.check.reserve(raw.len());
            let decompressed = self
                .decompressor
                .decompress_to_buffer(&self.frame, &mut self.check);
            if decompressed.is_err() || self.check != raw {
                return false;
            }
            packed.push(ZSTD);
            packed.extend_from_slice(&self.frame);
        } else {
            packed.push(STORED);
            packed.extend_from_slice(raw);
        }
        let padded = padded_len(packed.len() - start);
        packed.resize(start + padded, 0);
        true
    }

    /// Compresses into the frame buffer and says whether that is smaller.
    fn compress(&mut self, raw: &[u8]) -> bool {
        self.frame.clear();
        self.frame.reserve(zstd_safe::compress_bound(raw.len()));
        match self.compressor.compress_to_buffer(raw, &mut self.frame) {
            Ok(len) => len < raw.len(),
            Err(_) => false,
        }
    }
}

/// Takes the content of `raw_len` bytes out of its packed form.
///
/// # Errors
/// The bytes are not the packed form of a content of that length.
pub(crate) fn unpack(mut packed: Vec<u8>, raw_len: usize) -> Result<Vec<u8>, &'static str> {
    let (&method, payload) = packed.split_first().ok_or("packed content is empty")?;
    let payload_len = match method {
        STORED => raw_len,
        ZSTD => frame_len(payload, raw_len)?,
        _ => return Err("unknown compression method"),
    };
    if padded_len(1 + payload_len) != packed.len() {
        return Err("packed content has another length");
    }
    let (payload, padding) = payload.split_at(payload_len);
    if padding.iter().any(|&byte| byte != 0) {
        return Err("padding is not zero");
    }
    if method == ZSTD {
        return decompress(payload, raw_len);
    }
    packed.truncate(1 + payload_len);
    packed.remove(0);
    Ok(packed)
}

/// Length of the frame at the start of `payload`, which must announce `raw_len` bytes of content
/// and be shorter than that.
fn frame_len(payload: &[u8], raw_len: usize) -> Result<usize, &'static str> {
    let announced = zstd_safe::get_frame_content_size(payload);
    if !matches!(announced, Ok(Some(len)) if len == raw_len as u64) {
        return Err("compressed content announces another length");
    }
    match zstd_safe::find_frame_compressed_size(payload) {
        Ok(len) if len < raw_len => Ok(len),
        _ => Err("compressed content is malformed"),
    }
}

fn decompress(frame: &[u8], raw_len: usize) -> Result<Vec<u8>, &'static str> {
    thread_local! {
        // Making a context costs about as much as opening a small block.
        static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::new(decompressor());
    }
    let mut raw = Vec::with_capacity(raw_len);
    let result = DECOMPRESSOR.with_borrow_mut(|one| one.decompress_to_buffer(frame, &mut raw));
    match result {
        Ok(len) if len == raw_len => Ok(raw),
        _ => Err("compressed content is malformed"),
    }
}

fn compressor(level: i32) -> Compressor<'static> {
    let mut compressor = Compressor::new(level).expect("level and memory are small");
    for parameter in [
        CParameter::ContentSizeFlag(true),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ] {
        compressor
            .set_parameter(parameter)
            .expect("flags can be set before the first frame");
    }
    compressor
}

fn decompressor() -> Decompressor<'static> {
    Decompressor::new().expect("a context without dictionary needs little memory")
}

#[cfg(test)]
pub(crate) fn pack_with_level(raw: &[u8], level: i32) -> Vec<u8> {
    let mut packer = Packer {
        compressor: compressor(level),
        ..Packer::new()
    };
    let mut packed = Vec::new();
    assert!(packer.pack(raw, &mut packed));
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(raw: &[u8]) -> Vec<u8> {
        pack_with_level(raw, ZSTD_LEVEL)
    }

    #[test]
    fn the_compressor_is_the_one_of_the_format() {
        assert_eq!(zstd_safe::version_number(), 10_507, "a new object version");
    }

    #[test]
    fn small_contents_are_stored_and_large_ones_compressed() {
        assert_eq!(pack(b""), [0; 256]);
        let packed = pack(b"hello");
        assert_eq!((&packed[..6], packed.len()), (&b"\0hello"[..], 256));
        let packed = pack(&[7; 65_536]);
        assert_eq!((packed[0], packed.len()), (ZSTD, 256));
    }

    #[test]
    fn a_used_packer_packs_like_a_new_one() {
        let mut packer = Packer::new();
        let text = "a log line, repeated with a number "
            .repeat(2_000)
            .into_bytes();
        for len in [65_536, 3, 0, 40_000, 300, 65_536, 1] {
            let mut packed = Vec::new();
            assert!(packer.pack(&text[..len], &mut packed));
            assert_eq!(packed, pack(&text[..len]), "{len}");
        }
    }

    #[test]
    fn only_the_one_packed_form_is_accepted() {
        let raw = [1; 3_000];
        let good = pack(&raw);
        assert_eq!(unpack(good.clone(), 3_000).as_deref(), Ok(&raw[..]));
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packed = good.clone();
            change(&mut packed);
            unpack(packed, 3_000)
        };
        assert!(changed(&|p| p[255] = 1).is_err(), "padding");
        assert!(changed(&|p| p.resize(272, 0)).is_err(), "more padding");
        assert!(changed(&|p| p[0] = 2).is_err(), "method");
        assert!(changed(&|p| p.clear()).is_err(), "nothing");
        for len in [0, 1, 254, 2_999, 3_001, usize::MAX - 1] {
            assert!(unpack(good.clone(), len).is_err(), "{len}");
        }
        let skippable = [&[ZSTD, 0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], &[0; 247]].concat();
        assert!(unpack(skippable.clone(), 0).is_err());
        assert!(unpack(skippable, 3_000).is_err());
    }

    proptest! {
        #[test]
        fn round_trips(
            unit in proptest::collection::vec(any::<u8>(), 0..400),
            times in 1usize..100,
        ) {
            let raw = unit.repeat(times);
            let packed = pack(&raw);
            prop_assert!(packed.len() <= Packer::packed_len_max(raw.len()));
            prop_assert_eq!(unpack(packed, raw.len()), Ok(raw));
        }

        #[test]
        fn unpacking_never_panics(
            method in 0u8..3,
            frame in proptest::bool::ANY,
            mut bytes in proptest::collection::vec(any::<u8>(), 255..256),
            len in 0usize..70_000,
        ) {
            if frame {
                bytes[..4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
            }
            bytes.insert(0, method);
            let _ = unpack(bytes, len);
        }
    }
}
