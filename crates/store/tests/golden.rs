//! Compares a spool and the pack made of it with the bytes in `tests/fixtures/store.json`.
//!
//! Those bytes are the format: a change here is a new version beside the old one, and the old
//! vectors stay. `GOLDEN=write` writes the file for a version that is being added. The device's cache
//! has `tests/fixtures/cache.json`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use img_store::{Pack, PackId, Packs, Place, Spool};
use img_testkit::object;
use img_types::ObjectId;
use object_store::memory::InMemory;
use serde_json::{Value, json};

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/store.json"
);

fn bytes(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

/// Two objects, and the first once more, as when it was uploaded twice.
fn objects() -> [(ObjectId, Bytes); 3] {
    [object(1, 256), object(2, 300), object(1, 256)]
}

fn spool(path: &Path) -> (Spool, Vec<(ObjectId, Place)>) {
    let mut spool = Spool::create(path).unwrap();
    let mut places = Vec::new();
    for (id, bytes) in objects() {
        places.push((id, spool.append(id, &bytes).unwrap()));
    }
    (spool, places)
}

fn written() -> Value {
    let folder = img_testkit::folder().unwrap();
    let path = folder.path().join("spool");
    let (spool, places) = spool(&path);
    let pack = Pack::build(&spool.reader(), &places).unwrap();
    json!({
        "spool": HEXLOWER.encode(&fs::read(&path).unwrap()),
        "pack": {"id": pack.id.to_string(), "bytes": HEXLOWER.encode(&pack.bytes)},
    })
}

fn fixture() -> Value {
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let fixture = written();
        let text = serde_json::to_string_pretty(&fixture).unwrap() + "\n";
        fs::write(FIXTURE, text).unwrap();
        return fixture;
    }
    serde_json::from_str(&fs::read_to_string(FIXTURE).unwrap()).unwrap()
}

#[test]
fn spools_and_packs_are_written_as_the_bytes_of_the_format() {
    assert_eq!(fixture(), written());
}

#[test]
fn the_bytes_of_a_spool_are_recovered() {
    let folder = img_testkit::folder().unwrap();
    let path = folder.path().join("spool");
    fs::write(&path, bytes(&fixture()["spool"])).unwrap();
    let (spool, places) = Spool::recover(&path, 0).unwrap();
    assert_eq!(places.len(), objects().len());
    for ((id, place), (expected, object)) in places.into_iter().zip(objects()) {
        assert_eq!(id, expected);
        assert_eq!(spool.reader().read(place).unwrap(), object);
    }
}

#[tokio::test]
async fn the_bytes_of_a_pack_are_read() {
    let fixture = &fixture()["pack"];
    let id: PackId = PackId::from_bytes(bytes(&fixture["id"]).try_into().unwrap());
    let packs = Packs::new(Arc::new(InMemory::new()));
    packs
        .put(id, bytes(&fixture["bytes"]).into())
        .await
        .unwrap();
    let table = packs.table(id).await.unwrap();
    assert_eq!(table.entries().len(), 2);
    for (object, expected) in objects() {
        let found = table.entries().iter().find(|(id, _)| *id == object);
        let (_, place) = found.unwrap();
        assert_eq!(packs.read_object(id, *place).await.unwrap(), expected);
    }
}
