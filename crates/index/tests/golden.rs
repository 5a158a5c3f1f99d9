//! Compares keys, values, patches, nodes and proofs with the bytes in `tests/fixtures/index.json`.
//!
//! `tests/fixtures/attributes.json` has the attributes of files that came later.
//!
//! Those bytes are the format: a change here is a new version beside the old one, and the old
//! vectors stay. `GOLDEN=write` writes the file for a version that is being added.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use img_index::{
    Attributes, Boundary, Edit, Extent, Fact, FileKind, Inode, Key, KeyRange, Node, NodeSink,
    NodeSource, Patch, PatchPart, PatchRange, Proof, Timestamp, Value, Xattr, apply, name_hash,
    open_node, prove, range,
};
use img_seal::{BlockKey, HomeSecret, KeyRing, Reference, Sealed, open};
use img_types::bytes::Reader;
use img_types::limits::BLOCK_SIZE;
use img_types::object::{ObjectKind, Step};
use img_types::{KeyEpoch, ObjectId};
use serde_json::{Value as Json, json};

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/index.json"
);
const ATTRIBUTES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/attributes.json"
);
const BOUNDARY: Boundary = Boundary::from_bytes(*b"boundary of the index's vectors.");
const SEED: [u8; 32] = *b"challenge of the proof's vector.";
const BLOCK: u64 = BLOCK_SIZE as u64;

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn bytes(value: &Json) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn ring() -> KeyRing {
    KeyRing::new(
        KeyEpoch(0),
        HomeSecret::from_bytes(*b"home secret of the test vectors."),
    )
}

fn reference(id: u8, len: u32) -> Reference {
    Reference {
        id: ObjectId::from_bytes([id; 32]),
        key: BlockKey::from_bytes([id ^ 0xff; 32]),
        len,
    }
}

fn reference_bytes(reference: &Reference) -> Vec<u8> {
    let mut bytes = Vec::new();
    reference.encode(&mut bytes);
    bytes
}

fn attributes(kind: FileKind, size: u64, seconds: i64, rdev: u32) -> Value {
    let (nanos, early) = (999_999_999, 1);
    Value::Attributes(Attributes {
        kind,
        mode: 0o6755,
        uid: 1_000,
        gid: 100,
        nlink: 2,
        size,
        mtime: Timestamp { seconds, nanos },
        ctime: Timestamp {
            seconds: seconds + 1,
            nanos: early,
        },
        rdev,
        extents: None,
    })
}

fn entry(parent: Inode, name: &[u8], inode: u64, kind: FileKind) -> (Key, Value) {
    let key = Key::entry(parent, name_hash(&BOUNDARY, name), name);
    let inode = Inode(inode);
    (key, Value::Entry { inode, kind })
}

fn extent(inode: Inode, block: u64, base: Option<Reference>) -> (Key, Value) {
    let patches = Vec::new();
    let value = Value::Extent(Extent { base, patches });
    (Key::extent(inode, block * BLOCK), value)
}

/// A map with every kind of key and every form of value, and a name for each entry.
fn map() -> Vec<(&'static str, (Key, Value))> {
    let root = Inode::ROOT;
    let file = Inode(2);
    let base = Some(reference(0x31, 65_536));
    let patch = |id, section| PatchPart {
        reference: reference(id, 1_024 * 1_024),
        section,
    };
    let patched = |block, base, patches| {
        let value = Value::Extent(Extent { base, patches });
        (Key::extent(file, block * BLOCK), value)
    };
    let fact = |fact, value| (Key::fact(fact), value);
    let of = |inode, kind, size, seconds, rdev| {
        let key = Key::attributes(Inode(inode));
        (key, attributes(kind, size, seconds, rdev))
    };
    let xattr = |name: &[u8], value| (Key::xattr(file, name), Value::Xattr(value));
    let (files, logical_bytes) = (7, 1 << 40);
    let (uid, gid) = (1_000, 100);
    let manifest = b"[run]\ncommand = \"blender\"\n".to_vec();
    let target = b"../there".to_vec();
    vec![
        ("next inode", fact(Fact::NextInode, Value::Number(10))),
        ("manifest", fact(Fact::Manifest, Value::Manifest(manifest))),
        (
            "totals",
            fact(
                Fact::Totals,
                Value::Totals {
                    files,
                    logical_bytes,
                },
            ),
        ),
        ("owner", fact(Fact::Owner, Value::Owner { uid, gid })),
        (
            "open but unlinked",
            (Key::open_unlinked(Inode(9)), Value::Mark),
        ),
        ("directory", of(1, FileKind::Directory, 0, 1_700_000_000, 0)),
        (
            "file before 1970",
            of(2, FileKind::File, 5 * BLOCK + 17, -2, 0),
        ),
        ("FIFO", of(4, FileKind::Fifo, 0, 1, 0)),
        ("symlink", of(5, FileKind::Symlink, 8, 1, 0)),
        ("character device", of(6, FileKind::CharDevice, 0, 1, 0x103)),
        (
            "block device",
            of(u64::MAX, FileKind::BlockDevice, 0, i64::MIN, u32::MAX),
        ),
        (
            "entry",
            entry(root, "Gemälde.blend".as_bytes(), 2, FileKind::File),
        ),
        (
            "entry that is not UTF-8",
            entry(root, b"\xff\x01", 3, FileKind::Directory),
        ),
        (
            "entry with the longest name",
            entry(root, &[b'x'; 255], 4, FileKind::Fifo),
        ),
        (
            "target of a symlink",
            (Key::symlink(Inode(5)), Value::Symlink(target)),
        ),
        (
            "attribute",
            xattr(b"user.comment", Xattr::Inline(b"kept \0".to_vec())),
        ),
        (
            "empty attribute",
            xattr(b"user.empty", Xattr::Inline(Vec::new())),
        ),
        (
            "attribute in a block",
            xattr(b"user.large", Xattr::Block(reference(0x21, 65_536))),
        ),
        ("block", extent(file, 0, base)),
        ("patch over zeros", patched(1, None, vec![patch(0x41, 0)])),
        (
            "block and patches",
            patched(5, base, vec![patch(0x41, 1), patch(0x42, 0xfffe)]),
        ),
        (
            "inline contents",
            (
                Key::inline(Inode(7)),
                Value::Inline(b"a small file\n".to_vec()),
            ),
        ),
    ]
}

fn entries() -> Json {
    map()
        .into_iter()
        .map(|(name, (key, value))| {
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            json!({"name": name, "key": hex(key.as_bytes()), "value": hex(&bytes)})
        })
        .collect()
}

fn patch() -> Patch {
    let bytes = |offset, bytes: &[u8]| PatchRange {
        offset,
        len: bytes.len() as u32,
        bytes: Some(bytes.to_vec()),
    };
    let zeros = |offset, len| PatchRange {
        offset,
        len,
        bytes: None,
    };
    Patch {
        sections: vec![
            vec![bytes(0, b"first"), zeros(5, 1), bytes(65_535, b"!")],
            vec![zeros(0, 65_536)],
        ],
    }
}

/// Nodes in the order in which they are written: children before parents.
#[derive(Default)]
struct Tree {
    sealed: Vec<Sealed>,
    nodes: BTreeMap<ObjectId, Arc<Node>>,
}

impl NodeSink for Tree {
    fn put(&mut self, sealed: Sealed, node: Arc<Node>) {
        self.nodes.insert(sealed.reference.id, node);
        self.sealed.push(sealed);
    }
}

impl NodeSource for Tree {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.nodes.get(&reference.id).cloned()
    }
}

fn write(entries: impl IntoIterator<Item = (Key, Value)>) -> (Reference, Tree) {
    let entries: BTreeMap<_, _> = entries.into_iter().collect();
    let put = |(key, value)| Edit::Put(key, value);
    let edits: Vec<_> = entries.into_iter().map(put).collect();
    let (nothing, mut tree) = (Tree::default(), Tree::default());
    let mut sealer = ring().sealer();
    let root = apply(&nothing, &mut tree, &mut sealer, &BOUNDARY, None, &edits);
    (root.unwrap(), tree)
}

/// One leaf for each zone and their parent; then the empty map.
fn nodes() -> Json {
    let (_, tree) = write(map().into_iter().map(|(_, entry)| entry));
    let (_, empty) = write([]);
    tree.sealed
        .iter()
        .chain(&empty.sealed)
        .map(|sealed| {
            let opened = open(&ring(), &sealed.reference, &sealed.bytes).unwrap();
            json!({
                "level": opened.header.level,
                "reference": hex(&reference_bytes(&sealed.reference)),
                "raw": hex(&opened.raw),
                "bytes": hex(&sealed.bytes),
            })
        })
        .collect()
}

/// Where many entries are cut: the root's id binds every node below it.
fn cuts() -> Json {
    let files = (2..1_500).flat_map(|inode| {
        let name = format!("frame-{inode:04}.exr");
        let blocks = (0..inode % 5).map(move |block| {
            let base = reference(inode as u8, 1 + block as u32);
            extent(Inode(inode), block, Some(base))
        });
        let attributes = attributes(FileKind::File, inode % 5 * BLOCK, inode as i64, 0);
        blocks.chain([
            entry(Inode::ROOT, name.as_bytes(), inode, FileKind::File),
            (Key::attributes(Inode(inode)), attributes),
        ])
    });
    let (root, tree) = write(files);
    let mut levels = BTreeMap::new();
    for node in tree.nodes.values() {
        *levels.entry(node.level()).or_insert(0) += 1;
    }
    let levels: Vec<_> = levels.into_values().collect();
    json!({"root": hex(&reference_bytes(&root)), "nodes of each level": levels})
}

/// The walk of a challenge from a node over a leaf to a block.
fn proof() -> Json {
    let mut sealer = ring().sealer();
    let mut seal = |content: &[u8]| sealer.seal(ObjectKind::Block, content).unwrap();
    let blocks = [seal(b"one"), seal(b"two"), seal(b"three")];
    let extents = blocks
        .iter()
        .zip(0..)
        .map(|(block, number)| extent(Inode(2), number, Some(block.reference)));
    // The leaf of the metadata names an object too, so that every way has two steps.
    let large = Value::Xattr(Xattr::Block(blocks[0].reference));
    let (root, tree) = write(extents.chain([(Key::xattr(Inode(2), b"user.large"), large)]));
    let proof = prove(root.id, &SEED, |id| {
        let mut objects = tree.sealed.iter().chain(&blocks);
        let found = objects.find(|sealed| sealed.reference.id == *id);
        found.map(|sealed| sealed.bytes.clone())
    })
    .unwrap();
    let steps: Vec<_> = proof
        .steps
        .iter()
        .map(|step| {
            let mut record = Vec::new();
            step.encode(&mut record);
            hex(&record)
        })
        .collect();
    json!({
        "root": root.id.to_string(),
        "seed": hex(&SEED),
        "steps": steps,
        "object": hex(&proof.object),
    })
}

/// Kinds and forms of attributes that the first map has not.
fn later_attributes() -> Vec<(&'static str, Value)> {
    let with_extents = |size, extents| {
        let Value::Attributes(attributes) = attributes(FileKind::File, size, 1, 0) else {
            unreachable!("attributes are attributes");
        };
        let extents = Some(extents);
        Value::Attributes(Attributes {
            extents,
            ..attributes
        })
    };
    vec![
        ("socket", attributes(FileKind::Socket, 0, 1, 0)),
        ("one hole", with_extents(2 * BLOCK + 1, 2)),
        (
            "hole to the end of numbers",
            with_extents(i64::MAX as u64, 0),
        ),
    ]
}

fn later_fixture() -> Json {
    let path = Path::new(ATTRIBUTES);
    if writes() {
        let written = later_attributes().into_iter().map(|(name, value)| {
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            json!({"name": name, "value": hex(&bytes)})
        });
        let written = Json::from_iter(written);
        let text = serde_json::to_string_pretty(&written).unwrap() + "\n";
        std::fs::write(path, text).unwrap();
        return written;
    }
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn writes() -> bool {
    std::env::var_os("GOLDEN").is_some_and(|value| value == "write")
}

fn fixture() -> Json {
    if writes() {
        let written = json!({
            "entries": entries(),
            "patch": hex(&patch().encode().unwrap()),
            "nodes": nodes(),
            "cuts": cuts(),
            "proof": proof(),
        });
        let text = serde_json::to_string_pretty(&written).unwrap() + "\n";
        std::fs::write(Path::new(FIXTURE), text).unwrap();
        return written;
    }
    serde_json::from_str(&std::fs::read_to_string(Path::new(FIXTURE)).unwrap()).unwrap()
}

#[test]
fn the_index_writes_the_bytes_of_the_format() {
    let fixture = fixture();
    assert_eq!(fixture["entries"], entries());
    assert_eq!(fixture["patch"], hex(&patch().encode().unwrap()));
    assert_eq!(fixture["nodes"], nodes());
    assert_eq!(fixture["cuts"], cuts());
    assert_eq!(fixture["proof"], proof());
}

#[test]
fn the_bytes_of_entries_and_patches_are_read() {
    let fixture = fixture();
    let entries = fixture["entries"].as_array().unwrap();
    assert_eq!(entries.len(), map().len());
    for (entry, (name, (key, value))) in entries.iter().zip(map()) {
        let read = Key::decode(&bytes(&entry["key"])).unwrap();
        assert_eq!(read, key, "{name}");
        let read = Value::decode(&read, &bytes(&entry["value"])).unwrap();
        assert_eq!(read, value, "{name}");
    }
    assert_eq!(Patch::decode(&bytes(&fixture["patch"])), Ok(patch()));
}

#[test]
fn the_bytes_of_later_attributes_are_written_and_read() {
    let fixture = later_fixture();
    let entries = fixture.as_array().unwrap();
    assert_eq!(entries.len(), later_attributes().len());
    let key = Key::attributes(Inode(2));
    for (entry, (name, value)) in entries.iter().zip(later_attributes()) {
        let mut written = Vec::new();
        value.encode(&mut written);
        assert_eq!(entry["value"], hex(&written), "{name}");
        assert_eq!(Value::decode(&key, &written), Ok(value), "{name}");
    }
}

#[test]
fn a_count_of_extents_stands_only_where_there_are_holes() {
    let key = Key::attributes(Inode(2));
    let decode = |kind, size, extents| {
        let mut bytes = Vec::new();
        attributes(kind, size, 1, 0).encode(&mut bytes);
        bytes.extend_from_slice(&u64::to_le_bytes(extents));
        Value::decode(&key, &bytes)
    };
    assert!(decode(FileKind::File, 3 * BLOCK, 2).is_ok());
    for (kind, size, extents) in [
        (FileKind::File, 3 * BLOCK, 3),
        (FileKind::File, 3 * BLOCK, u64::MAX),
        (FileKind::File, 2_048, 0),
        (FileKind::Directory, 3 * BLOCK, 0),
    ] {
        assert!(decode(kind, size, extents).is_err(), "{kind:?} {size}");
    }
}

#[test]
fn the_bytes_of_nodes_open() {
    let fixture = fixture();
    let mut tree = Tree::default();
    let mut references = Vec::new();
    for node in fixture["nodes"].as_array().unwrap() {
        let reference = bytes(&node["reference"]);
        let reference = Reference::decode(&mut Reader::new(&reference)).unwrap();
        let opened = open_node(&ring(), &reference, &bytes(&node["bytes"])).unwrap();
        assert_eq!(u64::from(opened.level()), node["level"].as_u64().unwrap());
        tree.nodes.insert(reference.id, opened.into());
        references.push(reference);
    }
    let &[_, _, _, root, empty] = references.as_slice() else {
        panic!("a leaf for each zone, their parent, the empty map");
    };
    let entries = |root| range(&tree, root, &KeyRange::all(), usize::MAX).unwrap();
    let expected: BTreeMap<_, _> = map().into_iter().map(|(_, entry)| entry).collect();
    assert_eq!(entries(&root), Vec::from_iter(expected));
    assert_eq!(entries(&empty), []);
}

#[test]
fn the_bytes_of_a_proof_hold() {
    let fixture = &fixture()["proof"];
    let steps = fixture["steps"].as_array().unwrap();
    let steps = steps.iter().map(|step| {
        let step = bytes(step);
        let mut reader = Reader::new(&step);
        let read = Step::decode(&mut reader).unwrap();
        reader.finish().unwrap();
        read
    });
    let proof = Proof {
        steps: steps.collect(),
        object: bytes(&fixture["object"]),
    };
    let root = ObjectId::from_slice(&bytes(&fixture["root"])).unwrap();
    let seed = bytes(&fixture["seed"]).try_into().unwrap();
    let end = proof.verify(root, &seed).unwrap();
    assert_eq!(proof.steps.len(), 2);
    assert_eq!(proof.steps[1].child, end);
}
