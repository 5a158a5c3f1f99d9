//! Random entries and edits.

use std::collections::BTreeMap;

use img_seal::{BlockKey, Reference};
use img_types::ObjectId;
use img_types::limits::BLOCK_SIZE;
use proptest::prelude::*;

use crate::boundary::{Boundary, name_hash};
use crate::{
    Attributes, Edit, Extent, Fact, FileKind, Inode, Key, KeyRange, PatchPart, Timestamp, Value,
    Xattr,
};

pub(crate) const BOUNDARY: Boundary = Boundary::from_bytes([0xb0; 32]);

/// A reference to a block that nobody has.
pub(crate) fn reference(number: u64) -> Reference {
    let hash = *blake3::hash(&number.to_le_bytes()).as_bytes();
    Reference {
        id: ObjectId::from_bytes(hash),
        key: BlockKey::from_bytes(*blake3::hash(&hash).as_bytes()),
        len: 1 + (number % BLOCK_SIZE as u64) as u32,
    }
}

pub(crate) fn attributes(size: u64) -> Value {
    let time = Timestamp {
        seconds: 1_700_000_000 + size as i64,
        nanos: (size % 1_000_000_000) as u32,
    };
    Value::Attributes(Attributes {
        kind: FileKind::File,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        nlink: 1,
        size,
        mtime: time,
        ctime: time,
        rdev: 0,
        extents: None,
    })
}

pub(crate) fn block(number: u64) -> Value {
    Value::Extent(Extent {
        base: Some(reference(number)),
        patches: Vec::new(),
    })
}

pub(crate) fn entry_key(parent: u64, name: &[u8]) -> Key {
    Key::entry(Inode(parent), name_hash(&BOUNDARY, name), name)
}

/// A key and a value of its kind, chosen by numbers: few different keys, many different values.
pub(crate) fn entry(kind: u8, inode: u64, place: u64, content: u64) -> (Key, Value) {
    let number = Inode(1 + inode % 40);
    let bytes = |max: u64| {
        let len = 1 + content.wrapping_mul(0x9e37_79b9_7f4a_7c15) % max;
        (0..len)
            .map(|at| (content + at) as u8 | 1)
            .collect::<Vec<_>>()
    };
    match kind % 12 {
        0 => (Key::attributes(number), attributes(content)),
        1..=3 => {
            let len = if place.is_multiple_of(4) { 240 } else { 3 };
            let name = format!("{:0len$}", place % 60);
            let inode = Inode(1 + content % 1000);
            let kind = FileKind::Directory;
            (
                entry_key(number.0, name.as_bytes()),
                Value::Entry { inode, kind },
            )
        }
        4 => (Key::symlink(number), Value::Symlink(bytes(300))),
        5 => {
            let name = format!("user.{}", place % 20);
            let value = if content.is_multiple_of(5) {
                Xattr::Block(reference(content % 30))
            } else {
                Xattr::Inline(bytes(900))
            };
            (Key::xattr(number, name.as_bytes()), Value::Xattr(value))
        }
        6 => (Key::inline(number), Value::Inline(bytes(2048))),
        7..=9 => {
            let offset = BLOCK_SIZE as u64 * (place % 100);
            (Key::extent(number, offset), block(content % 50))
        }
        10 => {
            let offset = BLOCK_SIZE as u64 * (place % 100);
            let patches = (0..content % 8).map(|patch| PatchPart {
                reference: reference(100 + patch % 5),
                section: patch as u16,
            });
            let extent = Extent {
                base: (content.is_multiple_of(8) || content.is_multiple_of(3))
                    .then(|| reference(content % 50)),
                patches: patches.collect(),
            };
            (Key::extent(number, offset), Value::Extent(extent))
        }
        _ => match place % 5 {
            0 => (Key::fact(Fact::NextInode), Value::Number(content)),
            1 => (Key::fact(Fact::Manifest), Value::Manifest(bytes(8192))),
            2 => (
                Key::fact(Fact::Totals),
                Value::Totals {
                    files: content,
                    logical_bytes: place,
                },
            ),
            3 => (Key::fact(Fact::Owner), Value::Owner { uid: 1, gid: 2 }),
            _ => (Key::open_unlinked(number), Value::Mark),
        },
    }
}

pub(crate) fn any_entry() -> impl Strategy<Value = (Key, Value)> {
    any::<(u8, u64, u64, u32)>()
        .prop_map(|(kind, inode, place, content)| entry(kind, inode, place, content.into()))
}

/// An edit, by numbers; one in twelve clears a range.
pub(crate) fn edit(what: u8, first: (Key, Value), second: (Key, Value)) -> Edit {
    let inode = match first.0.parts() {
        crate::KeyParts::Inline(inode) | crate::KeyParts::Extent { inode, .. } => inode,
        _ => Inode(1 + u64::from(what) % 40),
    };
    match what % 36 {
        0 => Edit::Clear(KeyRange {
            start: first.0.clone().min(second.0.clone()),
            end: first.0.max(second.0),
        }),
        1 => Edit::Clear(KeyRange::data(inode)),
        2 => Edit::Clear(KeyRange::entries(inode)),
        3..16 => Edit::Delete(first.0),
        _ => Edit::Put(first.0, first.1),
    }
}

/// Sorts edits and leaves out those that overlap one before.
pub(crate) fn in_order(mut edits: Vec<Edit>) -> Vec<Edit> {
    edits.sort_by(|a, b| a.start().cmp(b.start()));
    let mut reached: Option<Key> = None;
    edits.retain(|edit| {
        if reached
            .as_ref()
            .is_some_and(|reached| edit.start() < reached)
        {
            return false;
        }
        reached = Some(match edit {
            Edit::Clear(range) if !range.is_empty() => range.end.clone(),
            Edit::Clear(range) => range.start.clone(),
            Edit::Put(key, _) | Edit::Delete(key) => key.successor(),
        });
        true
    });
    edits
}

/// What the map is after the edits.
pub(crate) fn edit_model(model: &mut BTreeMap<Key, Value>, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Put(key, value) => {
                model.insert(key.clone(), value.clone());
            }
            Edit::Delete(key) => {
                model.remove(key);
            }
            Edit::Clear(range) => model.retain(|key, _| !range.contains(key)),
        }
    }
}

/// A small generator of numbers, the same at every run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn entry(&mut self) -> (Key, Value) {
        let content = self.next() % 100_000;
        entry(self.next() as u8, self.next(), self.next(), content)
    }

    /// A large map.
    pub(crate) fn entries(&mut self, count: u64) -> BTreeMap<Key, Value> {
        (0..count).map(|_| self.entry()).collect()
    }

    pub(crate) fn edits(&mut self, count: u64) -> Vec<Edit> {
        let edits = (0..count).map(|_| edit(self.next() as u8, self.entry(), self.entry()));
        in_order(edits.collect())
    }
}
