//! The table and footer of a pack, read through the object store.
//!
//! The first two bytes say how many bytes of objects lie in front. An odd number takes the rest as
//! table and footer, an even one as entries, for which a footer is computed.
#![no_main]

use std::sync::Arc;

use img_store::{PackId, Packs};
use img_types::bytes::Write;
use libfuzzer_sys::fuzz_target;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

const ENTRY_LEN: usize = 40;

fuzz_target!(|bytes: &[u8]| {
    let Some((start, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let start = u16::from_le_bytes(*start);
    let tail = if start % 2 == 0 {
        with_footer(start, rest)
    } else {
        rest.to_vec()
    };
    let id = PackId::from_bytes(blake3::derive_key("imgctl pack id v1", &tail));
    let file = [&vec![0; usize::from(start)][..], &tail].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let table = runtime.expect("a runtime without drivers").block_on(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = Path::from_iter(["packs", &id.to_string()]);
        store
            .put(&path, file.into())
            .await
            .expect("memory takes it");
        Packs::new(store).table(id).await
    });
    if let Ok(table) = table {
        let mut entries = Vec::new();
        for (id, place) in table.entries() {
            entries.extend_from_slice(id.as_bytes());
            entries.put_u32(place.offset as u32);
            entries.put_u32(place.len);
            assert_eq!(table.find(id), Some(*place));
            assert!(place.end() <= u64::from(start));
        }
        assert_eq!(with_footer(start, &entries), tail);
    }
});

fn with_footer(start: u16, entries: &[u8]) -> Vec<u8> {
    let mut tail = entries.to_vec();
    tail.put_u64(start.into());
    tail.put_u32((entries.len() / ENTRY_LEN) as u32);
    tail.put_u32(0);
    let check = blake3::hash(&tail);
    tail.extend_from_slice(check.as_bytes());
    tail.extend_from_slice(b"imgpack1");
    tail
}
