//! Where objects come from, with a remote that can lie.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use img_seal::HomeSecret;
use img_types::KeyEpoch;
use img_types::limits::CACHE_LEN_DEFAULT;
use img_types::object::ObjectKind;

use super::*;

/// A home with some objects, which counts what it is asked for.
#[derive(Default)]
struct Shelf {
    objects: Mutex<HashMap<ObjectId, Bytes>>,
    asked: AtomicUsize,
}

impl Remote for Shelf {
    fn fetch(&self, ids: Vec<ObjectId>, _: Class) -> BoxStream<'static, Arrival> {
        self.asked.fetch_add(ids.len(), Ordering::Relaxed);
        let objects = lock(&self.objects);
        let found: Vec<Arrival> = ids
            .into_iter()
            .map(|id| Ok((id, objects.get(&id).cloned())))
            .collect();
        stream::iter(found).boxed()
    }

    fn reachable(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

struct Table {
    dir: tempfile::TempDir,
    shelf: Arc<Shelf>,
    keys: KeyRing,
}

impl Table {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            shelf: Arc::default(),
            keys: KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([1; 32])),
        }
    }

    /// A daemon over the same disk and home, with nothing in memory.
    fn objects(&self) -> Arc<Objects> {
        let cache = Cache::open(self.dir.path(), CACHE_LEN_DEFAULT).unwrap();
        let remote = Arc::clone(&self.shelf) as Arc<dyn Remote>;
        Objects::new(cache, remote, Keys::new(self.keys.clone()))
    }

    fn seal(&self, content: &[u8]) -> Sealed {
        let sealed = self.keys.sealer().seal(ObjectKind::Block, content);
        sealed.unwrap()
    }

    fn shelve(&self, sealed: &Sealed) {
        let bytes = Bytes::from(sealed.bytes.clone());
        lock(&self.shelf.objects).insert(sealed.reference.id, bytes);
    }

    fn asked(&self) -> usize {
        self.shelf.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_comes_before_the_disk_and_the_disk_before_the_home() {
    let table = Table::new();
    let (here, there) = (table.seal(b"here"), table.seal(b"there"));
    table.shelve(&there);
    let objects = table.objects();
    objects.keep(&here, Keep::Evictable).unwrap();
    for (sealed, content) in [(&here, "here"), (&there, "there")] {
        for _ in 0..2 {
            let found = objects
                .block(&sealed.reference, Class::Demand)
                .await
                .unwrap();
            assert_eq!(found, content);
        }
    }
    assert_eq!(table.asked(), 1);
    assert_eq!(objects.fetched(), (1, there.bytes.len() as u64));
    assert_eq!(objects.block_at_hand(&here.reference).unwrap(), "here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_on_the_disk_is_fetched_again() {
    let table = Table::new();
    let (good, other) = (table.seal(b"good"), table.seal(b"other"));
    table.shelve(&good);
    let objects = table.objects();
    // What stands under the id is another object.
    let damaged = Sealed {
        reference: good.reference,
        bytes: other.bytes,
    };
    objects.keep(&damaged, Keep::Evictable).unwrap();
    assert_eq!(objects.block_local(&good.reference).await.unwrap(), None);
    assert!(!objects.is_local(&good.reference.id));
    let found = objects.block(&good.reference, Class::Demand).await.unwrap();
    assert_eq!(found, "good");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_home_exchanged_is_never_handed_on() {
    let table = Table::new();
    let (good, other) = (table.seal(b"good"), table.seal(b"other"));
    let exchanged = Sealed {
        reference: good.reference,
        bytes: other.bytes,
    };
    table.shelve(&exchanged);
    let objects = table.objects();
    let outcome = objects.block(&good.reference, Class::Demand).await;
    assert!(matches!(outcome, Err(FetchError::Corrupt(id)) if id == good.reference.id));
    let absent = table.seal(b"absent");
    let outcome = objects.block(&absent.reference, Class::Demand).await;
    assert!(matches!(outcome, Err(FetchError::Missing(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_survives_a_restart_until_it_is_released() {
    let table = Table::new();
    let sealed = table.seal(b"work");
    let checkout = CheckoutId::from_bytes([2; 32]);
    let objects = table.objects();
    objects.keep(&sealed, Keep::Outbox(checkout)).unwrap();
    objects.sync().unwrap();
    drop(objects);
    let objects = table.objects();
    assert_eq!(objects.outbox(checkout), [sealed.reference.id]);
    assert_eq!(
        objects.object_bytes(&sealed.reference.id).unwrap(),
        sealed.bytes
    );
    objects.release(checkout, &[sealed.reference.id]).unwrap();
    assert!(objects.outbox(checkout).is_empty());
}
