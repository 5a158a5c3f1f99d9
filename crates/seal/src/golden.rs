//! Compares every derivation and every sealed form with the bytes in `tests/fixtures/seal.json`.
//!
//! Those bytes are the format: a change here is a new version beside the old one, and the old
//! vectors stay. `GOLDEN=write` writes the file for a version that is being added.

use std::path::Path;

use data_encoding::HEXLOWER;
use img_types::object::ObjectKind;
use img_types::{EntryId, HomeId, ImageId, KeyEpoch, ObjectId};
use serde_json::{Value, json};

use crate::field::seal_salted;
use crate::keys::{context, derive};
use crate::{
    FieldKey, HomeSecret, KemSecret, KeyRing, RecoverySecret, Reference, WrapInfo, open,
    open_field, open_previous, unwrap_secret, wrap_secret,
};

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/seal.json"
);
const SECRET: [u8; 32] = *b"home secret of the test vectors.";
const INFO: WrapInfo = WrapInfo {
    home: HomeId::from_bytes([0x11; 32]),
    previous: EntryId::from_bytes([0x22; 32]),
    epoch: KeyEpoch(0),
};

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn ring() -> KeyRing {
    KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes(SECRET))
}

fn contexts() -> Value {
    [
        context::OBJECTS,
        context::IMAGE_RECORDS,
        context::ROSTER_FIELDS,
        context::NAME_TAGS,
        context::COMMITMENT,
        context::PREVIOUS_SECRET,
        context::INVITE_FIELDS,
        context::FIELD_ENCRYPTION,
        context::FIELD_NONCE,
        context::RECOVERY_SIGNING,
        context::RECOVERY_RECEIVING,
    ]
    .into_iter()
    .map(|context| (context.to_owned(), json!(hex(&derive(context, &[&SECRET])))))
    .collect::<serde_json::Map<_, _>>()
    .into()
}

fn derived() -> Value {
    let ring = ring();
    let image = ImageId::from_bytes([0x33; 32]);
    let epoch = KeyEpoch(0);
    let recovery = RecoverySecret::from_bytes(SECRET);
    json!({
        "content": hex(ring.content(epoch).unwrap().as_bytes()),
        "record": hex(ring.record(epoch, &image).unwrap().as_bytes()),
        "roster": hex(ring.roster(epoch).unwrap().as_bytes()),
        "name_tag": ring.name_tag("blender-session").unwrap().to_string(),
        "commitment": hex(&HomeSecret::from_bytes(SECRET).commitment()),
        "invite": hex(FieldKey::of_invite(&[0x44; 16]).as_bytes()),
        "recovery_words": *recovery.words(),
        "recovery_signing_seed": hex(&*recovery.signing_seed()),
        "recovery_receiving_public": hex(&recovery.kem().public()),
    })
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_derive_key("imgctl test noise")
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn contents() -> Vec<(&'static str, ObjectKind, u8, usize, Vec<u8>)> {
    let text = b"All of it is one sorted map. ".repeat(2_300)[..65_536].to_vec();
    vec![
        ("empty block", ObjectKind::Block, 0, 0, Vec::new()),
        ("short block", ObjectKind::Block, 0, 0, b"hello".to_vec()),
        ("full block of text", ObjectKind::Block, 0, 0, text),
        ("block of noise", ObjectKind::Block, 0, 0, noise(1_000)),
        ("patch", ObjectKind::Patch, 0, 0, noise(300)),
        ("leaf", ObjectKind::Node, 0, 2, b"entries ".repeat(40)),
        ("inner node", ObjectKind::Node, 1, 5, b"children".to_vec()),
        ("trace", ObjectKind::Trace, 0, 3, b"".to_vec()),
    ]
}

fn objects() -> Value {
    let mut sealer = ring().sealer();
    contents()
        .into_iter()
        .map(|(name, kind, level, children, raw)| {
            let children = (0..children as u8)
                .map(|n| ObjectId::from_bytes([n; 32]))
                .collect();
            let sealed = sealer
                .seal_with_children(kind, level, children, &raw)
                .unwrap();
            let mut reference = Vec::new();
            sealed.reference.encode(&mut reference);
            json!({"name": name, "reference": hex(&reference), "bytes": hex(&sealed.bytes)})
        })
        .collect()
}

fn field() -> Value {
    let key = ring().roster(KeyEpoch(0)).unwrap();
    json!(hex(&seal_salted(
        &key,
        "device name",
        b"clear",
        b"laptop",
        [0x55; 16]
    )))
}

fn previous() -> Value {
    let newer = HomeSecret::from_bytes([0x66; 32]);
    let key = newer.previous_key();
    let clear = 1u32.to_le_bytes();
    json!(hex(&seal_salted(
        &key,
        "previous home secret",
        &clear,
        &SECRET,
        [0x77; 16]
    )))
}

/// HPKE draws its own randomness, so that the wrap cannot be made again, only opened.
fn wrap(known: Option<&Value>) -> Value {
    known.cloned().unwrap_or_else(|| {
        let receiver = KemSecret::from_bytes([0x88; 32]).public();
        let wrapped = wrap_secret(&receiver, INFO, &HomeSecret::from_bytes(SECRET));
        json!(hex(&wrapped.unwrap()))
    })
}

fn fixture() -> Value {
    let known = std::fs::read_to_string(Path::new(FIXTURE)).unwrap_or_default();
    let known: Value = serde_json::from_str(&known).unwrap_or_default();
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let written = json!({
            "contexts": contexts(),
            "derived": derived(),
            "objects": objects(),
            "field": field(),
            "previous": previous(),
            "wrap": wrap(known.get("wrap")),
        });
        let text = serde_json::to_string_pretty(&written).unwrap() + "\n";
        std::fs::write(Path::new(FIXTURE), text).unwrap();
        return written;
    }
    known
}

fn bytes(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

#[test]
fn sealing_gives_the_bytes_of_the_format() {
    let fixture = fixture();
    assert_eq!(fixture["contexts"], contexts());
    assert_eq!(fixture["derived"], derived());
    assert_eq!(fixture["objects"], objects());
    assert_eq!(fixture["field"], field());
    assert_eq!(fixture["previous"], previous());
}

#[test]
fn the_bytes_of_the_format_open() {
    let fixture = fixture();
    let objects = fixture["objects"].as_array().unwrap();
    assert_eq!(objects.len(), contents().len());
    for (object, (name, kind, level, children, raw)) in objects.iter().zip(contents()) {
        let reference = bytes(&object["reference"]);
        let reference = Reference::decode(&mut img_types::bytes::Reader::new(&reference)).unwrap();
        let opened = open(&ring(), &reference, &bytes(&object["bytes"])).unwrap();
        assert_eq!(opened.raw, raw, "{name}");
        let header = opened.header;
        assert_eq!((header.kind, header.level), (kind, level));
        assert_eq!(header.children.len(), children);
    }
    let key = ring().roster(KeyEpoch(0)).unwrap();
    let name = open_field(&key, "device name", b"clear", &bytes(&fixture["field"]));
    assert_eq!(*name.unwrap(), b"laptop");
    let newer = HomeSecret::from_bytes([0x66; 32]);
    let older = open_previous(&newer, KeyEpoch(1), &bytes(&fixture["previous"])).unwrap();
    assert_eq!(*older.to_bytes(), SECRET);
    let receiver = KemSecret::from_bytes([0x88; 32]);
    let secret = unwrap_secret(&receiver, INFO, &bytes(&fixture["wrap"])).unwrap();
    assert_eq!(*secret.to_bytes(), SECRET);
}
