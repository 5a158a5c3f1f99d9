use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, BoxStream, StreamExt};
use img_index::{
    Boundary, Edit, Extent, Key, Node, NodeSink, NodeSource, Patch, PatchPart, PatchRange,
    Timestamp, Value, Xattr, apply, name_hash,
};
use img_proto::Class;
use img_seal::{HomeSecret, KeyRing, Sealed};
use img_store::Cache;
use img_types::KeyEpoch;
use img_types::object::ObjectKind;

use super::*;
use crate::identity::Keys;
use crate::objects::{Arrival, Remote};

const BOUNDARY: Boundary = Boundary::from_bytes([3; 32]);

fn keys() -> KeyRing {
    KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([9; 32]))
}

/// A home that counts what is asked of it.
#[derive(Default)]
struct Home {
    objects: Mutex<BTreeMap<ObjectId, Bytes>>,
    nodes: Mutex<BTreeMap<Reference, Arc<Node>>>,
    asked: Mutex<usize>,
}

impl Remote for Home {
    fn fetch(&self, ids: Vec<ObjectId>, _: Class) -> BoxStream<'static, Arrival> {
        *self.asked.lock().unwrap() += ids.len();
        let objects = self.objects.lock().unwrap();
        let found: Vec<_> = ids
            .into_iter()
            .map(|id| Ok((id, objects.get(&id).cloned())))
            .collect();
        stream::iter(found).boxed()
    }

    fn reachable(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

struct Sink<'a>(&'a Home);

impl NodeSink for Sink<'_> {
    fn put(&mut self, sealed: Sealed, node: Arc<Node>) {
        self.0.keep(&sealed);
        self.0.nodes.lock().unwrap().insert(sealed.reference, node);
    }
}

impl NodeSource for Home {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.nodes.lock().unwrap().get(reference).cloned()
    }
}

impl Home {
    fn keep(&self, sealed: &Sealed) -> Reference {
        let bytes = Bytes::copy_from_slice(&sealed.bytes);
        let mut objects = self.objects.lock().unwrap();
        objects.insert(sealed.reference.id, bytes);
        sealed.reference
    }

    fn block(&self, kind: ObjectKind, content: &[u8]) -> Reference {
        self.keep(&keys().sealer().seal(kind, content).unwrap())
    }

    fn root(&self, image: &Image) -> Reference {
        let edits = image.0.iter();
        let edits = edits.map(|(key, value)| Edit::Put(key.clone(), value.clone()));
        self.edited(None, edits)
    }

    fn edited(&self, root: Option<&Reference>, edits: impl Iterator<Item = Edit>) -> Reference {
        let mut sealer = keys().sealer();
        apply(self, &mut Sink(self), &mut sealer, &BOUNDARY, root, edits).unwrap()
    }

    /// What a device with an empty cache is told, each as a line, and how many objects it fetched.
    fn told(self: &Arc<Self>, before: Reference, after: Reference) -> (Vec<String>, usize) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1 << 30).unwrap();
        let home: Arc<Self> = Arc::clone(self);
        let objects = {
            let _within = runtime.enter();
            Objects::new(cache, home, Keys::new(keys()))
        };
        *self.asked.lock().unwrap() = 0;
        let mut lines = Vec::new();
        let mut tell = |change: Change| {
            lines.push(line(&change));
            Ok(())
        };
        let cancel = Cancel::default();
        diff(
            &objects,
            runtime.handle(),
            before,
            after,
            &cancel,
            &mut tell,
        )
        .unwrap();
        let asked = *self.asked.lock().unwrap();
        (lines, asked)
    }

    /// What is told of two images, in both directions.
    fn both(self: &Arc<Self>, before: &Image, after: &Image) -> (Vec<String>, Vec<String>) {
        let (before, after) = (self.root(before), self.root(after));
        (self.told(before, after).0, self.told(after, before).0)
    }
}

fn line(change: &Change) -> String {
    let path = change.path.display();
    let words = |what: &What| what.words().collect::<Vec<_>>().join(" ");
    match &change.how {
        How::Added => format!("A {path}"),
        How::Removed => format!("D {path}"),
        How::Modified(what) => format!("M {path}: {}", words(what)),
        How::Renamed(from, what) => format!("R {} -> {path}: {}", from.display(), words(what)),
    }
}

#[derive(Clone)]
struct Image(BTreeMap<Key, Value>);

impl Image {
    fn new() -> Self {
        let mut image = Self(BTreeMap::new());
        image.attributes(1, FileKind::Directory, |_| {});
        image
    }

    fn attributes(&mut self, inode: u64, kind: FileKind, change: impl FnOnce(&mut Attributes)) {
        let time = Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        };
        let mut attributes = Attributes {
            kind,
            mode: 0o644,
            uid: 1,
            gid: 2,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            size: 0,
            mtime: time,
            ctime: time,
            rdev: 0,
            extents: None,
        };
        change(&mut attributes);
        let key = Key::attributes(Inode(inode));
        self.0.insert(key, Value::Attributes(attributes));
    }

    fn change(&mut self, inode: u64, change: impl FnOnce(&mut Attributes)) {
        let key = Key::attributes(Inode(inode));
        let Some(Value::Attributes(attributes)) = self.0.get_mut(&key) else {
            panic!("no inode {inode}");
        };
        change(attributes);
    }

    fn name(&mut self, parent: u64, name: &str, inode: u64, kind: FileKind) {
        let inode = Inode(inode);
        self.0
            .insert(entry_key(parent, name), Value::Entry { inode, kind });
    }

    fn unname(&mut self, parent: u64, name: &str) {
        self.0.remove(&entry_key(parent, name)).unwrap();
    }

    fn folder(&mut self, parent: u64, name: &str, inode: u64) {
        self.attributes(inode, FileKind::Directory, |_| {});
        self.name(parent, name, inode, FileKind::Directory);
    }

    fn file(&mut self, parent: u64, name: &str, inode: u64, content: &str) {
        self.attributes(inode, FileKind::File, |file| {
            file.size = content.len() as u64
        });
        self.name(parent, name, inode, FileKind::File);
        self.inline(inode, content);
    }

    fn inline(&mut self, inode: u64, content: &str) {
        let value = Value::Inline(content.as_bytes().to_vec());
        self.0.insert(Key::inline(Inode(inode)), value);
    }

    fn extent(&mut self, inode: u64, base: Option<Reference>, patches: Vec<PatchPart>) {
        let key = Key::extent(Inode(inode), 0);
        self.0.insert(key, Value::Extent(Extent { base, patches }));
    }
}

fn entry_key(parent: u64, name: &str) -> Key {
    let hash = name_hash(&BOUNDARY, name.as_bytes());
    Key::entry(Inode(parent), hash, name.as_bytes())
}

/// `/a/one`, `/a/two`, `/b/three`, as an import numbers them.
fn small() -> Image {
    let mut image = Image::new();
    image.folder(1, "a", 2);
    image.file(2, "one", 3, "1");
    image.file(2, "two", 4, "2");
    image.folder(1, "b", 5);
    image.file(5, "three", 6, "3");
    image
}

#[test]
fn each_kind_of_change_is_told_by_path() {
    let home = Arc::new(Home::default());
    let before = small();
    let mut after = before.clone();
    after.file(2, "new", 7, "new");
    after.unname(2, "two");
    after.0.remove(&Key::attributes(Inode(4)));
    after.0.remove(&Key::inline(Inode(4)));
    after.change(2, |folder| folder.mtime.seconds += 1);
    after.inline(6, "4");
    after.change(6, |file| (file.mtime.seconds, file.mode) = (1, 0o600));
    after.change(3, |file| (file.uid, file.ctime.seconds) = (7, 1));
    after.0.insert(
        Key::xattr(Inode(5), b"user.x"),
        Value::Xattr(Xattr::Inline(b"x".to_vec())),
    );
    let (there, back) = home.both(&before, &after);
    assert_eq!(
        there,
        [
            "A a/new",
            "M a/one: owner",
            "D a/two",
            "M b: xattrs",
            "M b/three: content mode times"
        ]
    );
    assert_eq!(
        back,
        [
            "D a/new",
            "M a/one: owner",
            "A a/two",
            "M b: xattrs",
            "M b/three: content mode times"
        ]
    );
    assert_eq!(home.both(&before, &before).0, [""; 0]);
}

#[test]
fn what_was_moved_or_replaced_is_told_once() {
    let home = Arc::new(Home::default());
    let before = small();
    let mut after = before.clone();
    // A folder with all that is in it, and a change below.
    after.unname(1, "b");
    after.name(2, "below", 5, FileKind::Directory);
    after.inline(6, "changed");
    after.change(6, |file| file.size = 7);
    // Saved as programs do: a new file takes the name.
    after.0.remove(&Key::attributes(Inode(3)));
    after.0.remove(&Key::inline(Inode(3)));
    after.file(2, "one", 8, "saved");
    // Moved away, and another file has its name.
    after.unname(2, "two");
    after.name(1, "two.old", 4, FileKind::File);
    after.file(2, "two", 9, "2");
    let (there, _) = home.both(&before, &after);
    assert_eq!(
        there,
        [
            "R b -> a/below: ",
            "M a/below/three: content",
            "M a/one: content",
            "A a/two",
            "R a/two -> two.old: ",
        ]
    );
    // Exchanged with each other.
    let mut after = before.clone();
    after.name(2, "one", 4, FileKind::File);
    after.name(2, "two", 3, FileKind::File);
    let (there, back) = home.both(&before, &after);
    assert_eq!(there, ["R a/two -> a/one: ", "R a/one -> a/two: "]);
    assert_eq!(there, back);
    // A folder instead of a file.
    let mut after = before.clone();
    after.0.remove(&Key::attributes(Inode(3)));
    after.0.remove(&Key::inline(Inode(3)));
    after.folder(2, "one", 10);
    after.file(10, "in", 11, "");
    let (there, back) = home.both(&before, &after);
    assert!(there[0].starts_with("M a/one: kind"), "{there:?}");
    assert_eq!(there[1..], ["A a/one/in"]);
    assert_eq!(back[1..], ["D a/one/in"]);
}

#[test]
fn every_name_of_a_changed_file_is_told_and_nameless_ones_are_not() {
    let home = Arc::new(Home::default());
    let mut before = small();
    before.change(3, |file| file.nlink = 2);
    before.name(5, "link", 3, FileKind::File);
    // Open, and unlinked before.
    before.attributes(12, FileKind::File, |file| file.nlink = 0);
    before.0.insert(Key::open_unlinked(Inode(12)), Value::Mark);
    let mut after = before.clone();
    after.inline(3, "changed");
    after.change(3, |file| (file.size, file.nlink) = (7, 3));
    after.name(1, "another", 3, FileKind::File);
    after.change(12, |file| file.size = 9);
    // Unlinked while open: gone for whoever looks.
    after.unname(2, "two");
    after.change(4, |file| file.nlink = 0);
    after.0.insert(Key::open_unlinked(Inode(4)), Value::Mark);
    let (there, back) = home.both(&before, &after);
    assert_eq!(
        there,
        [
            "M a/one: content",
            "D a/two",
            "A another",
            "M b/link: content"
        ]
    );
    assert_eq!(
        back,
        [
            "M a/one: content",
            "A a/two",
            "D another",
            "M b/link: content"
        ]
    );
}

#[test]
fn other_references_to_the_same_contents_are_no_difference() {
    let home = Arc::new(Home::default());
    let old = home.block(ObjectKind::Block, &[1; 5_000]);
    let new = home.block(
        ObjectKind::Block,
        &[[1; 4_000].as_slice(), &[2; 1_000]].concat(),
    );
    let range = PatchRange {
        offset: 4_000,
        len: 1_000,
        bytes: Some(vec![2; 1_000]),
    };
    let sections = vec![vec![range]];
    let patch = Patch { sections }.encode().unwrap();
    let patch = PatchPart {
        reference: home.block(ObjectKind::Patch, &patch),
        section: 0,
    };
    let with = |base, patches| {
        let mut image = small();
        image.0.remove(&Key::inline(Inode(3)));
        image.change(3, |file| file.size = 5_000);
        image.extent(3, Some(base), patches);
        image
    };
    let (whole, patched) = (with(new, Vec::new()), with(old, vec![patch]));
    assert_eq!(home.both(&whole, &patched).0, [""; 0]);
    let unlike = with(old, Vec::new());
    assert_eq!(home.both(&unlike, &patched).0, ["M a/one: content"]);
    assert_eq!(home.both(&unlike, &whole).0, ["M a/one: content"]);
    // A small file is inline or a block, as it was at hand when it was sealed.
    let mut block = small();
    block.0.remove(&Key::inline(Inode(3)));
    block.extent(3, Some(home.block(ObjectKind::Block, b"1")), Vec::new());
    assert_eq!(home.both(&small(), &block).0, [""; 0]);
    block.extent(3, Some(home.block(ObjectKind::Block, b"2")), Vec::new());
    let (there, back) = home.both(&small(), &block);
    assert_eq!(there, ["M a/one: content"]);
    assert_eq!(back, there);
}

#[test]
fn time_goes_with_the_difference_and_not_with_the_image() {
    let home = Arc::new(Home::default());
    let mut image = Image::new();
    for folder in 0..1_000 {
        let inode = 2 + folder * 101;
        image.folder(1, &format!("folder-{folder}"), inode);
        for file in 1..=100 {
            image.attributes(inode + file, FileKind::File, |_| {});
            image.name(inode, &format!("file-{file}"), inode + file, FileKind::File);
        }
    }
    let before = home.root(&image);
    let all = home.nodes.lock().unwrap().len();
    let (of_7, of_900) = (2 + 7 * 101, 2 + 900 * 101);
    let mut after = image.clone();
    after.change(of_7 + 50, |file| file.mode = 0o600);
    after.change(of_900 + 100, |file| file.size = 9);
    after.unname(of_900, "file-3");
    after.0.remove(&Key::attributes(Inode(of_900 + 3)));
    after.file(of_7, "new", 200_000, "new");
    after.folder(of_7, "below", 200_001);
    after.file(200_001, "deep", 200_002, "new");
    let edits = after
        .0
        .iter()
        .filter(|(key, value)| image.0.get(*key) != Some(*value))
        .map(|(key, value)| Edit::Put(key.clone(), value.clone()));
    let gone = image.0.keys().filter(|key| !after.0.contains_key(*key));
    let mut edits: Vec<_> = edits
        .chain(gone.map(|key| Edit::Delete(key.clone())))
        .collect();
    edits.sort_by(|a, b| a.start().cmp(b.start()));
    let after = home.edited(Some(&before), edits.into_iter());
    let (told, asked) = home.told(before, after);
    assert_eq!(
        told,
        [
            "A folder-7/below",
            "A folder-7/below/deep",
            "M folder-7/file-50: mode",
            "A folder-7/new",
            "M folder-900/file-100: content",
            "D folder-900/file-3",
        ]
    );
    // A walk would fetch every node.
    assert!(all > 300 && asked < 60, "{asked} of {all}");
    assert_eq!(home.told(before, before).1, 0);
}
