use std::collections::BTreeMap;

use img_testkit::object;
use img_types::ObjectId;
use object_store::memory::InMemory;

use super::*;
use crate::{Pack, Spool};

fn pack(seeds: std::ops::Range<u64>) -> (Pack, Vec<(ObjectId, Bytes)>) {
    let folder = img_testkit::folder().unwrap();
    let mut spool = Spool::create(&folder.path().join("spool")).unwrap();
    let objects: Vec<_> = seeds.map(|seed| object(seed, 2_000)).collect();
    let mut places = Vec::new();
    for (id, bytes) in &objects {
        places.push((*id, spool.append(*id, bytes).unwrap()));
    }
    // An object that was uploaded twice is packed once.
    places.push((
        objects[0].0,
        spool.append(objects[0].0, &objects[0].1).unwrap(),
    ));
    (Pack::build(&spool.reader(), &places).unwrap(), objects)
}

async fn holds_packs(packs: Packs) {
    let (first, objects) = pack(0..20);
    assert_eq!(pack(0..20).0.id, first.id, "one spool gives one pack");
    packs.put(first.id, first.bytes.clone()).await.unwrap();
    packs.put(first.id, first.bytes.clone()).await.unwrap();

    let table = packs.table(first.id).await.unwrap();
    assert_eq!(table, first.table);
    assert_eq!(table.entries().len(), objects.len());
    let objects: BTreeMap<_, _> = objects.into_iter().collect();
    for (id, place) in table.entries() {
        let found = packs.read_object(first.id, *place).await.unwrap();
        assert_eq!(found, objects[id]);
    }

    let absent = pack(22..24).0.id;
    let missing = packs.table(absent).await;
    assert!(matches!(missing, Err(PackError::Missing(id)) if id == absent));
}

#[tokio::test]
async fn a_folder_holds_packs() {
    let folder = img_testkit::folder().unwrap();
    holds_packs(Packs::local(folder.path()).unwrap()).await;
}

#[tokio::test]
async fn a_pack_that_was_damaged_is_whole_after_it_is_put_again() {
    let folder = img_testkit::folder().unwrap();
    let packs = Packs::local(folder.path()).unwrap();
    let (pack, _) = pack(0..3);
    packs.put(pack.id, pack.bytes.clone()).await.unwrap();
    let file = folder.path().join(FOLDER).join(pack.id.to_string());
    std::fs::write(&file, &pack.bytes[..700]).unwrap();
    assert!(packs.table(pack.id).await.is_err());
    packs.put(pack.id, pack.bytes.clone()).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), pack.bytes);
    assert_eq!(packs.table(pack.id).await.unwrap(), pack.table);
}

#[tokio::test]
async fn a_store_in_memory_holds_packs() {
    holds_packs(Packs::new(Arc::new(InMemory::new()))).await;
}

#[tokio::test]
async fn every_damaged_bit_of_a_table_is_noticed() {
    let store = Arc::new(InMemory::new());
    let packs = Packs::new(store.clone());
    let (pack, _) = pack(0..3);
    let start = pack.bytes.len() - (3 * 40 + 56);
    for bit in start * 8..pack.bytes.len() * 8 {
        let mut bytes = pack.bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        store.put(&location(pack.id), bytes.into()).await.unwrap();
        let table = packs.table(pack.id).await;
        assert!(matches!(table, Err(PackError::Corrupt { .. })), "bit {bit}");
    }
    store
        .put(&location(pack.id), Bytes::from_static(b"short").into())
        .await
        .unwrap();
    assert!(matches!(
        packs.table(pack.id).await,
        Err(PackError::Corrupt { .. })
    ));
}

#[test]
fn a_full_store_is_told_from_a_broken_one() {
    let generic = |kind| object_store::Error::Generic {
        store: "test",
        source: Box::new(io::Error::from(kind)),
    };
    let id = PackId::from_bytes([1; 32]);
    let outcome = failed(id, generic(io::ErrorKind::StorageFull));
    assert!(matches!(outcome, PackError::NoRoom));
    let outcome = failed(id, generic(io::ErrorKind::PermissionDenied));
    assert!(matches!(outcome, PackError::Store(_)));
}
