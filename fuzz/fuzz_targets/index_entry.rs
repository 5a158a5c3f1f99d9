//! A key of the index and the value that belongs to it.
#![no_main]

use img_index::{Key, KeyParts, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (key, value) = img_fuzz::split(bytes);
    let Ok(key) = Key::decode(key).inspect(|decoded| assert_eq!(decoded.as_bytes(), key)) else {
        return;
    };
    let rebuilt = match key.parts() {
        KeyParts::Fact(fact) => Key::fact(fact),
        KeyParts::OpenUnlinked(inode) => Key::open_unlinked(inode),
        KeyParts::Attributes(inode) => Key::attributes(inode),
        KeyParts::Entry { parent, hash, name } => Key::entry(parent, hash, name),
        KeyParts::Symlink(inode) => Key::symlink(inode),
        KeyParts::Xattr { inode, name } => Key::xattr(inode, name),
        KeyParts::Inline(inode) => Key::inline(inode),
        KeyParts::Extent { inode, offset } => Key::extent(inode, offset),
        KeyParts::Bound => unreachable!("no bound is decoded as a key"),
    };
    assert_eq!(rebuilt, key);
    if let Ok(decoded) = Value::decode(&key, value) {
        let mut record = Vec::new();
        decoded.encode(&mut record);
        assert_eq!(record, value);
    }
});
