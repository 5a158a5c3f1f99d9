//! Seals contents into stored objects and opens them again.
//!
//! ```text
//! p   = packed content (method, zstd frame or content, padding)
//! aad = clear header ‖ children ‖ len(raw) as u32
//! K   = BLAKE3_keyed(C_n, len(aad) as u64 ‖ aad ‖ p)
//! ct  = ChaCha20-Poly1305(K, nonce 0, aad, p), tag at the end
//! id  = see img_types::object
//! ```
//!
//! K is a hash of exactly what is encrypted, under a key that only devices have. So no two messages
//! ever share a key and the fixed nonce is safe, equal contents give equal objects within one home,
//! and nobody without `C_n` can test a guess. The bulk cipher is ring's, for its speed; the tests
//! compare it with the chacha20poly1305 crate.

use img_types::bytes::Write;
use img_types::limits::{
    BLOCK_SIZE, NODE_CHILDREN_MAX, NODE_LEN_MAX, NODE_LEVEL_MAX, PATCH_LEN_MAX, TRACE_LEN_MAX,
};
use img_types::object::{self, Header, ObjectKind, TAG_LEN, VerifyError};
use img_types::{KeyEpoch, ObjectId};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::keys::{ContentKey, KeyRing};
use crate::packing::{Packer, unpack};
use crate::reference::{BlockKey, Reference};

/// A sealed object: what is stored, and what opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Names and opens the object.
    pub reference: Reference,
    /// The stored bytes: clear header, children, ciphertext.
    pub bytes: Vec<u8>,
}

/// An opened object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The clear part.
    pub header: Header,
    /// The content.
    pub raw: Vec<u8>,
}

/// Says why a content cannot be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The content or the list of children is beyond what this kind of object holds.
    #[error("an object of this kind does not hold that much")]
    TooLong,
    /// What was compressed does not decompress to what it was: memory or the compressor is broken.
    #[error("compressed content differs from the original; nothing was written")]
    Compressor,
}

/// Says why stored bytes do not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// They are not the object that the reference names: whoever delivered them altered them.
    #[error(transparent)]
    Stored(#[from] VerifyError),
    /// They were sealed under a home secret that this device has not got (yet).
    #[error("the object is sealed under key epoch {0}, which this device does not know")]
    KeyEpochUnknown(KeyEpoch),
    /// They are what was stored, but no device that keeps to the format made them.
    #[error("the object is not what its reference says: {0}")]
    Forged(&'static str),
}

/// Seals contents under one key epoch, reusing its compressor and buffers.
pub struct Sealer {
    content: ContentKey,
    epoch: KeyEpoch,
    packer: Packer,
}

impl Sealer {
    /// Starts a sealer.
    pub fn new(content: ContentKey, epoch: KeyEpoch) -> Self {
        Self {
            content,
            epoch,
            packer: Packer::new(),
        }
    }

    /// Seals a content that names no other objects.
    ///
    /// # Errors
    /// It is too long for its kind, or the compressor fails.
    pub fn seal(&mut self, kind: ObjectKind, raw: &[u8]) -> Result<Sealed, SealError> {
        self.seal_with_children(kind, 0, Vec::new(), raw)
    }

    /// Seals a node or trace, whose children have been sealed before.
    ///
    /// # Errors
    /// Content, level or children are beyond the limits of the kind, or the compressor fails.
    pub fn seal_with_children(
        &mut self,
        kind: ObjectKind,
        level: u8,
        children: Vec<ObjectId>,
        raw: &[u8],
    ) -> Result<Sealed, SealError> {
        let (level_max, children_max) = match kind {
            ObjectKind::Block | ObjectKind::Patch => (0, 0),
            ObjectKind::Node => (NODE_LEVEL_MAX, NODE_CHILDREN_MAX),
            ObjectKind::Trace => (0, TRACE_LEN_MAX),
        };
        if raw.len() > raw_len_max(kind) || level > level_max || children.len() > children_max {
            return Err(SealError::TooLong);
        }
        let header = Header {
            kind,
            level,
            key_epoch: self.epoch,
            children,
        };
        let len = u32::try_from(raw.len()).expect("checked against the kind's limit");
        let clear = header.encode();
        let mut bytes =
            Vec::with_capacity(clear.len() + Packer::packed_len_max(raw.len()) + TAG_LEN);
        bytes.extend_from_slice(&clear);
        if !self.packer.pack(raw, &mut bytes) {
            return Err(SealError::Compressor);
        }
        let aad = associated(clear, len);
        let packed_at = aad.len() - 4;
        let key = block_key(&self.content, &aad, &bytes[packed_at..]);
        let tag = cipher(&key)
            .seal_in_place_separate_tag(nonce(), Aad::from(&aad), &mut bytes[packed_at..])
            .expect("the cipher takes messages of up to 256 GiB");
        bytes.extend_from_slice(tag.as_ref());
        let id = header.object_id(&bytes[packed_at..]);
        Ok(Sealed {
            reference: Reference { id, key, len },
            bytes,
        })
    }
}

/// Opens stored bytes: checks id, tag, key, length and padding.
///
/// # Errors
/// The bytes are not the reference's object, or not an object that a device made by the rules.
pub fn open(keys: &KeyRing, reference: &Reference, bytes: &[u8]) -> Result<Opened, OpenError> {
    let object::Parsed { header, ciphertext } = object::verify(reference.id, bytes)?;
    let content = keys
        .content(header.key_epoch)
        .ok_or(OpenError::KeyEpochUnknown(header.key_epoch))?;
    let raw_len = reference.len as usize;
    if raw_len > raw_len_max(header.kind) {
        return Err(OpenError::Forged("length beyond its kind"));
    }
    let aad = associated(header.encode(), reference.len);
    let mut packed = ciphertext.to_vec();
    let packed_len = cipher(&reference.key)
        .open_in_place(nonce(), Aad::from(&aad), &mut packed)
        .map_err(|_| OpenError::Forged("wrong tag"))?
        .len();
    packed.truncate(packed_len);
    if block_key(content, &aad, &packed) != reference.key {
        return Err(OpenError::Forged("key is not its content's"));
    }
    let raw = unpack(packed, raw_len).map_err(OpenError::Forged)?;
    Ok(Opened { header, raw })
}

/// Longest content of each kind. A node's own limit counts its children too and is the index's to
/// check; a trace's content is at most a reference's key and length for each object it lists.
fn raw_len_max(kind: ObjectKind) -> usize {
    match kind {
        ObjectKind::Block => BLOCK_SIZE,
        ObjectKind::Patch => PATCH_LEN_MAX,
        ObjectKind::Node => 2 * NODE_LEN_MAX,
        ObjectKind::Trace => TRACE_LEN_MAX * Reference::LEN,
    }
}

fn associated(mut clear: Vec<u8>, raw_len: u32) -> Vec<u8> {
    clear.put_u32(raw_len);
    clear
}

fn block_key(content: &ContentKey, aad: &[u8], packed: &[u8]) -> BlockKey {
    let mut hasher = blake3::Hasher::new_keyed(content.as_bytes());
    hasher.update(&(aad.len() as u64).to_le_bytes());
    hasher.update(aad);
    hasher.update(packed);
    BlockKey::from_bytes(*hasher.finalize().as_bytes())
}

fn cipher(key: &BlockKey) -> LessSafeKey {
    let key = Zeroizing::new(*key.as_bytes());
    let key = UnboundKey::new(&CHACHA20_POLY1305, &*key).expect("the cipher's keys have 32 bytes");
    LessSafeKey::new(key)
}

/// Zero: every key encrypts one message only.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests;
