//! Seals over real object stores: several devices, each with its own disk cache, and one home.

mod chains;
mod lost;
mod model;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use img_index::{
    Attributes, Boundary, Extent, FileKind, Inode, Key, KeyParts, KeyRange, ReadError, Timestamp,
    Value,
};
use img_overlay::{Change, GenerationId, Overlay};
use img_proto::Class;
use img_seal::{HomeSecret, KeyRing, Reference};
use img_store::Cache;
use img_types::limits::BLOCK_SIZE;
use img_types::object::{ObjectKind, Parsed};
use img_types::{CheckoutId, KeyEpoch, ObjectId};
use tempfile::TempDir;

use imgd::arena::Arena;
use imgd::block::{load_block, read_block};
use imgd::identity::Keys;
use imgd::objects::{Arrival, FetchError, Objects, Remote};
use imgd::seal::{SealError, SealedRoot, seal_generation};
use imgd::tree::Closed;

const CHECKOUT: CheckoutId = CheckoutId::from_bytes([1; 32]);
const BLOCK: u64 = BLOCK_SIZE as u64;

fn boundary() -> Boundary {
    Boundary::from_bytes([9; 32])
}

/// What has streamed home, and which blocks and patches were asked for.
#[derive(Default)]
struct Home {
    objects: Mutex<BTreeMap<ObjectId, Bytes>>,
    contents_asked: Mutex<u64>,
}

impl Remote for Home {
    fn fetch(&self, ids: Vec<ObjectId>, _: Class) -> BoxStream<'static, Arrival> {
        let objects = self.objects.lock().unwrap();
        let found: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let bytes = objects.get(&id).cloned();
                let kind = bytes
                    .as_ref()
                    .map(|bytes| Parsed::decode(bytes).unwrap().header.kind);
                if matches!(kind, Some(ObjectKind::Block | ObjectKind::Patch)) {
                    *self.contents_asked.lock().unwrap() += 1;
                }
                Ok((id, bytes))
            })
            .collect();
        stream::iter(found).boxed()
    }

    fn reachable(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Home {
    /// How many blocks and patches were asked for since the last call.
    fn contents_asked(&self) -> u64 {
        std::mem::take(&mut *self.contents_asked.lock().unwrap())
    }
}

/// One device: an empty cache in front of the home.
struct Device {
    home: Arc<Home>,
    objects: Arc<Objects>,
    _dir: TempDir,
}

impl Device {
    fn new(home: &Arc<Home>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1 << 30).unwrap();
        let keys = Keys::new(KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([3; 32])));
        Self {
            home: Arc::clone(home),
            objects: Objects::new(cache, Arc::clone(home) as Arc<dyn Remote>, keys),
            _dir: dir,
        }
    }

    /// Seals a generation; blocks and patches must not be fetched for it.
    async fn seal(&self, closed: &Closed) -> SealedRoot {
        self.home.contents_asked();
        let sealed = self.try_seal(closed).await.unwrap();
        assert_eq!(
            self.home.contents_asked(),
            0,
            "a seal needs no content from home"
        );
        sealed
    }

    async fn try_seal(&self, closed: &Closed) -> Result<SealedRoot, SealError> {
        seal_generation(&self.objects, closed, &boundary(), CHECKOUT).await
    }

    /// Brings the outbox home.
    fn stream(&self) {
        for id in self.objects.outbox(CHECKOUT) {
            let bytes = self.objects.object_bytes(&id).unwrap();
            self.home.objects.lock().unwrap().insert(id, bytes);
        }
    }

    /// Everything that a root holds.
    async fn read_all(&self, root: Reference) -> BTreeMap<Key, Value> {
        loop {
            match img_index::range(&*self.objects, &root, &KeyRange::all(), usize::MAX) {
                Ok(entries) => return entries.into_iter().collect(),
                Err(ReadError::Absent(absent)) => {
                    let fetching = self.objects.fetch_nodes(&absent.0, Class::Demand);
                    fetching.await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The image as a root has it: attributes and contents of every inode.
    async fn read_image(&self, root: Reference) -> Image {
        let mut image = Image::default();
        for (key, value) in self.read_all(root).await {
            match (key.parts(), value) {
                (KeyParts::Attributes(inode), Value::Attributes(attributes)) => {
                    let content = vec![0; attributes.size as usize];
                    image.files.insert(inode, (attributes, content));
                }
                (KeyParts::Inline(inode), Value::Inline(content)) => {
                    let (attributes, target) = image.files.get_mut(&inode).expect("has attributes");
                    assert!(attributes.size <= 2048, "inline contents are small");
                    target[..content.len()].copy_from_slice(&content);
                    image.inline.push(inode);
                }
                (KeyParts::Extent { inode, offset }, Value::Extent(extent)) => {
                    let (attributes, target) = image.files.get_mut(&inode).expect("has attributes");
                    assert!(offset < attributes.size, "no extent lies behind the size");
                    assert!(
                        !image.inline.contains(&inode),
                        "inline or extents, never both"
                    );
                    let content = read_block(&self.objects, &extent, Class::Demand)
                        .await
                        .unwrap();
                    assert_eq!(content.len(), BLOCK_SIZE);
                    let len = target.len().min((offset + BLOCK) as usize) - offset as usize;
                    target[offset as usize..][..len].copy_from_slice(&content[..len]);
                    assert!(
                        content[len..].iter().all(|byte| *byte == 0),
                        "what lies behind the size is zero"
                    );
                    image.extents.insert((inode, offset), extent);
                }
                (KeyParts::Fact(_), value) => image.facts.push(value),
                _ => {}
            }
        }
        for (inode, (attributes, _)) in &image.files {
            let extents = image.extents.keys().filter(|(of, _)| of == inode);
            let mut counted = *attributes;
            counted.count_extents(extents.count() as u64);
            assert_eq!(attributes.extents, counted.extents, "{inode:?}");
        }
        image
    }
}

#[derive(Debug, Default, PartialEq)]
struct Image {
    files: BTreeMap<Inode, (Attributes, Vec<u8>)>,
    extents: BTreeMap<(Inode, u64), Extent>,
    inline: Vec<Inode>,
    /// Next inode, then totals.
    facts: Vec<Value>,
}

/// Changes to an image: an overlay with its arenas, and the contents that its files should have.
struct Changes {
    overlay: Overlay,
    arenas: BTreeMap<GenerationId, Arc<Arena>>,
    files: BTreeMap<Inode, Vec<u8>>,
    dir: TempDir,
}

impl Changes {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = GenerationId(1);
        let arena = Arc::new(Arena::create(dir.path(), first).unwrap());
        Self {
            overlay: Overlay::new(first),
            arenas: BTreeMap::from([(first, arena)]),
            files: BTreeMap::new(),
            dir,
        }
    }

    fn create(&mut self, inode: Inode) {
        self.files.insert(inode, Vec::new());
        self.put_attributes(inode);
    }

    fn put_attributes(&mut self, inode: Inode) {
        let value = Value::Attributes(attributes(self.files[&inode].len() as u64));
        self.overlay
            .apply(Change::Put(Key::attributes(inode), value));
    }

    fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) {
        let content = self.files.get_mut(&inode).unwrap();
        let end = offset as usize + bytes.len();
        content.resize(content.len().max(end), 0);
        content[offset as usize..end].copy_from_slice(bytes);
        let arena = Arc::clone(&self.arenas[&self.overlay.top().id()]);
        for (range, place) in self.overlay.place(inode, offset, bytes.len() as u64) {
            let part = &bytes[(range.start - offset) as usize..(range.end - offset) as usize];
            let arena = match place {
                Some(position) => {
                    arena.write_at(part, position).unwrap();
                    position
                }
                None => arena.append(part).unwrap(),
            };
            self.overlay.apply(Change::Write {
                inode,
                offset: range.start,
                len: part.len() as u64,
                arena,
            });
        }
        self.put_attributes(inode);
    }

    fn zero(&mut self, inode: Inode, offset: u64, len: u64) {
        let content = self.files.get_mut(&inode).unwrap();
        let end = (offset.saturating_add(len)).min(content.len() as u64) as usize;
        content[(offset as usize).min(end)..end].fill(0);
        self.overlay.apply(Change::Zero { inode, offset, len });
        self.put_attributes(inode);
    }

    fn truncate(&mut self, inode: Inode, size: u64) {
        let content = self.files.get_mut(&inode).unwrap();
        let shrinks = size < content.len() as u64;
        content.resize(size as usize, 0);
        if shrinks {
            self.overlay.apply(Change::Zero {
                inode,
                offset: size,
                len: img_overlay::INFINITY,
            });
        }
        self.put_attributes(inode);
    }

    /// Copies a block by reference, if the file that it comes from fills it.
    fn copy(&mut self, from: Inode, to: Inode, offset: u64, extent: &Extent) {
        let end = (offset + BLOCK) as usize;
        let Some(content) = self.files[&from].get(offset as usize..end) else {
            return;
        };
        let content = content.to_vec();
        let target = self.files.get_mut(&to).unwrap();
        target.resize(target.len().max(end), 0);
        target[offset as usize..end].copy_from_slice(&content);
        let value = Value::Extent(extent.clone());
        self.overlay
            .apply(Change::Put(Key::extent(to, offset), value));
        self.put_attributes(to);
    }

    fn drop_inode(&mut self, inode: Inode) {
        self.files.remove(&inode);
        self.overlay.apply(Change::DropInode(inode));
    }

    fn freeze(&mut self) {
        let next = self.overlay.freeze().next();
        let arena = Arena::create(self.dir.path(), next).unwrap();
        self.arenas.insert(next, Arc::new(arena));
    }

    fn closed(&self, base: Option<Reference>) -> Closed {
        let generation = Arc::clone(self.overlay.closed().next().unwrap());
        let arena = Arc::clone(&self.arenas[&generation.id()]);
        Closed {
            generation,
            arena,
            base,
            removed: Default::default(),
        }
    }

    /// Closes the top generation, seals it on a device and brings the outbox home.
    async fn seal_on(&mut self, device: &Device, base: Option<Reference>) -> SealedRoot {
        self.freeze();
        let closed = self.closed(base);
        let sealed = device.seal(&closed).await;
        self.overlay.drop_oldest(closed.generation.id());
        device.stream();
        sealed
    }
}

fn attributes(size: u64) -> Attributes {
    let time = Timestamp {
        seconds: 1,
        nanos: 2,
    };
    Attributes {
        kind: FileKind::File,
        mode: 0o644,
        uid: 1,
        gid: 1,
        nlink: 1,
        size,
        mtime: time,
        ctime: time,
        rdev: 0,
        extents: None,
    }
}

/// Bytes without a pattern, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; len];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}
