//! Hydration into a cache that is too small, or full of other things.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use img_index::{Boundary, Edit, Extent, Inode, Key, Node, NodeSink, Value};
use img_seal::{HomeSecret, KeyRing, Sealed};
use img_store::{Cache, Keep};
use img_types::limits::BLOCK_SIZE;
use img_types::object::ObjectKind;
use img_types::{KeyEpoch, ObjectId};

use super::*;
use crate::identity::Keys;
use crate::objects::{Arrival, Remote};

const MIB: usize = 1024 * 1024;

/// A home that counts the bytes it sends.
#[derive(Default)]
struct Shelf {
    objects: Mutex<HashMap<ObjectId, Bytes>>,
    sent: AtomicU64,
}

impl Shelf {
    fn put(&self, sealed: Sealed) {
        let mut objects = self.objects.lock().unwrap();
        objects.insert(sealed.reference.id, sealed.bytes.into());
    }
}

impl Remote for Shelf {
    fn fetch(&self, ids: Vec<ObjectId>, _: Class) -> BoxStream<'static, Arrival> {
        let objects = self.objects.lock().unwrap();
        let found: Vec<Arrival> = ids
            .into_iter()
            .map(|id| Ok((id, objects.get(&id).cloned())))
            .inspect(|arrival| {
                if let Ok((_, Some(bytes))) = arrival {
                    self.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                }
            })
            .collect();
        stream::iter(found).boxed()
    }

    fn reachable(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

impl NodeSink for &Shelf {
    fn put(&mut self, sealed: Sealed, _: Arc<Node>) {
        Shelf::put(self, sealed);
    }
}

struct Nothing;

impl NodeSource for Nothing {
    fn node(&self, _: &Reference) -> Option<Arc<Node>> {
        None
    }
}

struct Place {
    shelf: Arc<Shelf>,
    keys: KeyRing,
    objects: Arc<Objects>,
    _folder: tempfile::TempDir,
}

impl Place {
    fn new(limit: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([1; 32]));
        let shelf = Arc::<Shelf>::default();
        let cache = Cache::open(folder.path(), limit as u64).unwrap();
        let remote = Arc::clone(&shelf) as Arc<dyn Remote>;
        Self {
            objects: Objects::new(cache, remote, Keys::new(keys.clone())),
            shelf,
            keys,
            _folder: folder,
        }
    }

    fn blocks(&self, seed: u64, len: usize) -> Vec<Sealed> {
        let content = img_testkit::bytes(seed, len);
        let blocks = content.chunks(BLOCK_SIZE);
        let seal = |block| self.keys.sealer().seal(ObjectKind::Block, block).unwrap();
        blocks.map(seal).collect()
    }

    fn keep(&self, blocks: &[Sealed]) {
        for block in blocks {
            self.objects.keep(block, Keep::Evictable).unwrap();
        }
    }

    /// An image of one file, at the home.
    fn image(&self, blocks: &[Sealed]) -> Reference {
        let edits = blocks.iter().enumerate().map(|(number, block)| {
            let extent = Extent {
                base: Some(block.reference),
                patches: Vec::new(),
            };
            let key = Key::extent(Inode(2), (number * BLOCK_SIZE) as u64);
            Edit::Put(key, Value::Extent(extent))
        });
        let root = img_index::apply(
            &Nothing,
            &mut &*self.shelf,
            &mut self.keys.sealer(),
            &Boundary::from_bytes([7; 32]),
            None,
            edits,
        );
        for block in blocks {
            self.shelf.put(block.clone());
        }
        root.unwrap()
    }

    async fn hydrate(&self, root: Reference) -> Result<(u64, u64), FetchError> {
        Hydration::default().run(&self.objects, root).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_gives_up_on_the_way_is_fetched_again() {
    let place = Place::new(12 * MIB);
    let blocks = place.blocks(1, 6 * MIB);
    let root = place.image(&blocks);
    // The oldest objects of a full cache are half of the image.
    place.keep(&blocks[..48]);
    place.keep(&place.blocks(2, 8 * MIB));
    assert!(place.objects.is_local(&blocks[0].reference.id));
    place.hydrate(root).await.unwrap();
    assert!(place.objects.usage().evictions > 0);
    for (number, block) in blocks.iter().enumerate() {
        assert!(
            place.objects.is_local(&block.reference.id),
            "block {number}"
        );
    }
    assert!(place.shelf.sent.load(Ordering::SeqCst) < 7 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_fit_is_said_so_before_it_was_fetched_over_and_over() {
    let place = Place::new(4 * MIB);
    let root = place.image(&place.blocks(1, 16 * MIB));
    let outcome = place.hydrate(root).await;
    assert!(matches!(
        outcome,
        Err(FetchError::Store(StoreError::NoRoom))
    ));
    assert!(place.shelf.sent.load(Ordering::SeqCst) < 16 * MIB as u64);
    assert!(place.objects.usage().bytes <= 4 * MIB as u64);
    let error = explain(&outcome.unwrap_err(), "vm");
    assert_eq!(error.kind.codes().1, 9);
}
