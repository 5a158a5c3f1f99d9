//! Compares segments and the log of keeps with the bytes in `tests/fixtures/cache.json`.
//!
//! Those bytes are the format: a change here is a new version beside the old one, and the old
//! vectors stay. `GOLDEN=write` writes the file for a version that is being added.

use std::collections::BTreeMap;
use std::fs;

use data_encoding::HEXLOWER;
use img_testkit::object;

use super::*;

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/cache.json"
);
const LIMIT: u64 = 1024 * 1024;
/// Two objects fill a segment.
const SEGMENT_LEN: u64 = 512;

const FIRST: CheckoutId = CheckoutId::from_bytes([0x11; 32]);
const SECOND: CheckoutId = CheckoutId::from_bytes([0x22; 32]);

/// Name of each file and its bytes.
type Files = BTreeMap<String, String>;

/// A full segment, a growing one, and the log of who keeps what.
fn written() -> Files {
    let folder = img_testkit::folder().unwrap();
    let cache = Cache::open_with(folder.path(), LIMIT, SEGMENT_LEN).unwrap();
    let [first, second, third] = [1, 2, 3].map(|seed| object(seed, 256));
    cache.put(&first.0, &first.1, Keep::Outbox(FIRST)).unwrap();
    cache.put(&second.0, &second.1, Keep::Evictable).unwrap();
    cache.put(&third.0, &third.1, Keep::Outbox(FIRST)).unwrap();
    assert_eq!(cache.keep(SECOND, &[third.0]).unwrap(), []);
    cache.release(FIRST, &[first.0]).unwrap();
    cache.sync().unwrap();
    fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, HEXLOWER.encode(&fs::read(entry.path()).unwrap()))
        })
        .collect()
}

fn fixture() -> Files {
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let files = written();
        let text = serde_json::to_string_pretty(&files).unwrap() + "\n";
        fs::write(FIXTURE, text).unwrap();
        return files;
    }
    serde_json::from_str(&fs::read_to_string(FIXTURE).unwrap()).unwrap()
}

#[test]
fn a_cache_is_written_as_the_bytes_of_the_format() {
    let names: Vec<_> = fixture().into_keys().collect();
    assert_eq!(names, ["00000000.segment", "00000001.segment", "keeps"]);
    assert_eq!(fixture(), written());
}

#[test]
fn the_bytes_of_a_cache_are_read() {
    let folder = img_testkit::folder().unwrap();
    for (name, bytes) in fixture() {
        let bytes = HEXLOWER.decode(bytes.as_bytes()).unwrap();
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let full = fs::File::open(folder.path().join("00000000.segment")).unwrap();
    assert!(segment::read_table(&full).unwrap().is_some());
    let cache = Cache::open_with(folder.path(), LIMIT, SEGMENT_LEN).unwrap();
    for seed in 1..=3 {
        let (id, bytes) = object(seed, 256);
        assert_eq!(cache.get(&id), Some(bytes));
    }
    let third = object(3, 256).0;
    assert_eq!(cache.outbox(FIRST), [third]);
    assert_eq!(cache.outbox(SECOND), [third]);
}
