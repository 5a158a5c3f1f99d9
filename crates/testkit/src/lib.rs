//! What tests of several crates make their inputs with.
//!
//! Everything here is deterministic: one seed gives one input on every machine. It is a development
//! dependency only and knows no keys; an object made here has a valid form and id, and nothing
//! inside. [`home`] is a whole home without its wire and its disks.

pub mod home;

use std::io;
use std::path::Path;

use bytes::Bytes;
use img_types::object::{Header, ObjectKind, TAG_LEN};
use img_types::padding::padded_len;
use img_types::{KeyEpoch, ObjectId};
use tempfile::TempDir;

/// A temporary folder in memory where the machine has such a place: a sync costs nothing there, so that a
/// test may crash and recover thousands of times.
///
/// # Errors
/// No folder can be made.
pub fn folder() -> io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
}

/// Pseudo-random bytes that do not compress.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A well-formed block object whose sealed part has `len` bytes or a little more, and its id.
pub fn object(seed: u64, len: usize) -> (ObjectId, Bytes) {
    let header = Header::leaf(ObjectKind::Block, KeyEpoch(0));
    let ciphertext = bytes(seed, padded_len(len) + TAG_LEN);
    let id = header.object_id(&ciphertext);
    (id, [header.encode(), ciphertext].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_types::object::verify;

    #[test]
    fn one_seed_gives_one_valid_object() {
        let (id, object) = object(7, 1_000);
        assert_eq!(verify(id, &object).map(|parsed| parsed.id()), Ok(id));
        assert_eq!(super::object(7, 1_000).0, id);
        assert_ne!(super::object(8, 1_000).0, id);
    }
}
