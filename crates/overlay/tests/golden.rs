//! Compares the journal's records of changes with the bytes in `tests/fixtures/overlay.json`.
//!
//! Those bytes are the format: a change here is a new version beside the old one, and the old
//! vectors stay. `GOLDEN=write` writes the file for a version that is being added.

use std::path::Path;

use data_encoding::HEXLOWER;
use img_index::{
    Extent, Fact, FileKind, Inode, Key, KeyRange, NameHash, PatchPart, Timestamp, Value, Xattr,
};
use img_overlay::{Change, INFINITY};
use img_seal::{BlockKey, Reference};
use img_types::ObjectId;
use serde_json::{Value as Json, json};

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/overlay.json"
);

fn reference(id: u8) -> Reference {
    Reference {
        id: ObjectId::from_bytes([id; 32]),
        key: BlockKey::from_bytes([id ^ 0xff; 32]),
        len: 65_536,
    }
}

/// Every kind of change, and every form of a bound.
fn changes() -> Vec<(&'static str, Change)> {
    let file = Inode(2);
    let hash = NameHash::new(0x0123_4567_89ab_cdef);
    let entry = Key::entry(Inode::ROOT, hash, b"\xffname");
    let clear = Change::ClearKeys;
    let extent = Extent {
        base: Some(reference(0x31)),
        patches: vec![PatchPart {
            reference: reference(0x41),
            section: 3,
        }],
    };
    let time = Timestamp {
        seconds: -1,
        nanos: 500,
    };
    let attributes = img_index::Attributes {
        kind: FileKind::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        nlink: 3,
        size: 4,
        mtime: time,
        ctime: time,
        rdev: 0,
        extents: None,
    };
    vec![
        (
            "put next inode",
            Change::Put(Key::fact(Fact::NextInode), Value::Number(9)),
        ),
        (
            "put attributes",
            Change::Put(Key::attributes(file), Value::Attributes(attributes)),
        ),
        (
            "put entry",
            Change::Put(
                entry.clone(),
                Value::Entry {
                    inode: file,
                    kind: FileKind::File,
                },
            ),
        ),
        (
            "put attribute in a block",
            Change::Put(
                Key::xattr(file, b"user.large"),
                Value::Xattr(Xattr::Block(reference(0x21))),
            ),
        ),
        (
            "put extent",
            Change::Put(Key::extent(file, 65_536), Value::Extent(extent)),
        ),
        (
            "put mark",
            Change::Put(Key::open_unlinked(file), Value::Mark),
        ),
        ("delete entry", Change::Delete(entry.clone())),
        ("delete extent", Change::Delete(Key::extent(file, 0))),
        ("clear entries", clear(KeyRange::entries(Inode::ROOT))),
        (
            "clear entries from a hash",
            clear(KeyRange::entries_from(Inode::ROOT, hash)),
        ),
        ("clear attributes", clear(KeyRange::xattrs(file))),
        ("clear metadata", clear(KeyRange::inode_metadata(file))),
        ("clear data", clear(KeyRange::data(file))),
        (
            "clear extents",
            clear(KeyRange::extents(file, 65_536, INFINITY)),
        ),
        ("clear marks", clear(KeyRange::open_unlinked())),
        (
            "clear one key",
            clear(KeyRange {
                end: entry.successor(),
                start: entry,
            }),
        ),
        (
            "write",
            Change::Write {
                inode: file,
                offset: 65_535,
                len: 3,
                arena: 1 << 40,
            },
        ),
        (
            "zero",
            Change::Zero {
                inode: file,
                offset: 1,
                len: 2,
            },
        ),
        (
            "zero to infinity",
            Change::Zero {
                inode: file,
                offset: 7,
                len: INFINITY,
            },
        ),
        ("drop inode", Change::DropInode(Inode(u64::MAX))),
    ]
}

fn written() -> Json {
    changes()
        .into_iter()
        .map(|(name, change)| {
            let mut record = Vec::new();
            change.encode(&mut record);
            json!({"name": name, "bytes": HEXLOWER.encode(&record)})
        })
        .collect()
}

fn fixture() -> Json {
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let fixture = json!({"changes": written()});
        let text = serde_json::to_string_pretty(&fixture).unwrap() + "\n";
        std::fs::write(Path::new(FIXTURE), text).unwrap();
        return fixture;
    }
    serde_json::from_str(&std::fs::read_to_string(Path::new(FIXTURE)).unwrap()).unwrap()
}

#[test]
fn changes_are_written_as_the_bytes_of_the_format() {
    assert_eq!(fixture()["changes"], written());
}

#[test]
fn the_bytes_of_changes_are_read() {
    let fixture = fixture();
    let records = fixture["changes"].as_array().unwrap();
    assert_eq!(records.len(), changes().len());
    for (record, (name, change)) in records.iter().zip(changes()) {
        let bytes = HEXLOWER.decode(record["bytes"].as_str().unwrap().as_bytes());
        assert_eq!(Change::decode(&bytes.unwrap()), Ok(change), "{name}");
    }
}
