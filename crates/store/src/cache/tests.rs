use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;

use img_testkit::object;
use img_types::limits::CACHE_FREE_MIN;
use proptest::prelude::*;

use super::segment::SegmentNumber;
use super::*;

const SEGMENT_LEN: u64 = 4 * 1024;
const ROOMY: u64 = 1024 * 1024;

fn checkout(n: u8) -> CheckoutId {
    CheckoutId::from_bytes([n; 32])
}

fn open(folder: &Path, limit: u64) -> Cache {
    Cache::open_with(folder, limit, SEGMENT_LEN).unwrap()
}

fn put(cache: &Cache, seed: u64, keep: Keep) -> ObjectId {
    let (id, bytes) = object(seed, 300);
    cache.put(&id, &bytes, keep).unwrap();
    id
}

fn release_all(cache: &Cache, checkout: CheckoutId) {
    cache.release(checkout, &cache.outbox(checkout)).unwrap();
}

fn holds(cache: &Cache, seed: u64) -> bool {
    let (id, bytes) = object(seed, 300);
    let found = cache.get(&id);
    assert_eq!(found.is_some(), cache.contains(&id));
    assert!(found.is_none_or(|found| found == bytes));
    cache.contains(&id)
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into(), fs::read(entry.path()).unwrap()))
        .collect()
}

fn write_files(folder: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn a_crash_at_any_byte_leaves_what_was_synced() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    for seed in 0..14 {
        put(&cache, seed, Keep::Outbox(checkout(1)));
    }
    cache.release(checkout(1), &[object(3, 300).0]).unwrap();
    cache.sync().unwrap();
    let synced = files(folder.path());
    for seed in 14..22 {
        put(&cache, seed, Keep::Outbox(checkout(1)));
    }
    cache.release(checkout(1), &[object(4, 300).0]).unwrap();
    drop(cache);
    let last = files(folder.path());

    // Each file may have got any part of what was written after the sync.
    let crashed = img_testkit::folder().unwrap();
    let mut crashes = 0;
    for (name, bytes) in &last {
        let durable = synced.get(name).map_or(0, Vec::len);
        for len in durable..=bytes.len() {
            let mut state = last.clone();
            state.insert(name.clone(), bytes[..len].to_vec());
            write_files(crashed.path(), &state);
            let cache = open(crashed.path(), ROOMY);
            for seed in 0..14 {
                assert!(holds(&cache, seed), "{name:?} cut at {len}: object {seed}");
            }
            let outbox = cache.outbox(checkout(1));
            for seed in (0..14).filter(|seed| ![3, 4].contains(seed)) {
                assert!(
                    outbox.contains(&object(seed, 300).0),
                    "{name:?} cut at {len}"
                );
            }
            assert!(!outbox.contains(&object(3, 300).0));
            let written: Vec<_> = (14..22).filter(|seed| holds(&cache, *seed)).collect();
            put(&cache, 50, Keep::Evictable);
            drop(cache);
            let cache = open(crashed.path(), ROOMY);
            assert!(holds(&cache, 50));
            assert!(written.iter().all(|seed| holds(&cache, *seed)));
            crashes += 1;
        }
    }
    assert!(crashes > 3_000);
}

#[test]
fn a_full_segment_without_its_table_is_read_record_by_record() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    for seed in 0..14 {
        put(&cache, seed, Keep::Evictable);
    }
    drop(cache);
    let whole = files(folder.path());
    let first = SegmentNumber(0).path(Path::new(""));
    let sealed_len = whole[&first].len();
    let objects_in_first = (sealed_len - 56) / (300 + 28 + 40);
    for len in sealed_len - 56 - 40 * objects_in_first / 2..sealed_len {
        let mut state = whole.clone();
        state.insert(first.clone(), whole[&first][..len].to_vec());
        write_files(folder.path(), &state);
        let cache = open(folder.path(), ROOMY);
        assert!((0..14).all(|seed| holds(&cache, seed)), "cut at {len}");
        drop(cache);
        assert_eq!(
            files(folder.path())[&first],
            whole[&first],
            "the table is back"
        );
    }
}

#[test]
fn the_oldest_segments_go_and_what_is_kept_is_copied_forward() {
    let folder = img_testkit::folder().unwrap();
    let limit = 8 * SEGMENT_LEN;
    let cache = open(folder.path(), limit);
    put(&cache, 0, Keep::Outbox(checkout(1)));
    put(&cache, 1, Keep::Evictable);
    for seed in 2..200 {
        put(&cache, seed, Keep::Evictable);
        assert!(cache.usage().bytes <= limit);
    }
    assert!(holds(&cache, 0));
    assert!(!holds(&cache, 1));
    assert!(holds(&cache, 199));
    drop(cache);
    let cache = open(folder.path(), limit);
    assert_eq!(cache.outbox(checkout(1)), [object(0, 300).0]);
    release_all(&cache, checkout(1));
    assert_eq!(cache.usage().kept_bytes, 0);
    for seed in 200..400 {
        put(&cache, seed, Keep::Evictable);
    }
    assert!(!holds(&cache, 0));
}

#[test]
fn the_outbox_may_exceed_the_limit_and_then_nothing_evictable_is_taken() {
    let folder = img_testkit::folder().unwrap();
    let limit = 4 * SEGMENT_LEN;
    let cache = open(folder.path(), limit);
    for seed in 0..100 {
        put(&cache, seed, Keep::Outbox(checkout(1)));
    }
    assert!((0..100).all(|seed| holds(&cache, seed)));
    assert!(cache.usage().bytes > limit);
    put(&cache, 100, Keep::Evictable);
    assert!(!holds(&cache, 100));
    release_all(&cache, checkout(1));
    put(&cache, 101, Keep::Evictable);
    assert!(holds(&cache, 101));
    assert!(cache.usage().bytes <= limit);
}

#[test]
fn what_two_checkouts_keep_stays_until_both_released_it() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    let id = put(&cache, 0, Keep::Evictable);
    let absent = object(1, 300).0;
    assert_eq!(cache.keep(checkout(1), &[id, absent]).unwrap(), [absent]);
    put(&cache, 0, Keep::Outbox(checkout(2)));
    let kept = cache.usage().kept_bytes;
    cache.release(checkout(1), &[id, absent]).unwrap();
    assert_eq!(cache.usage().kept_bytes, kept);
    cache.release(checkout(1), &[id]).unwrap();
    assert_eq!(cache.usage().kept_bytes, kept);
    cache.release(checkout(2), &[id]).unwrap();
    assert_eq!(cache.usage().kept_bytes, 0);
    assert!(cache.outbox(checkout(2)).is_empty());
}

#[test]
fn a_smaller_limit_holds_from_the_next_start_on() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    for seed in 0..100 {
        put(&cache, seed, Keep::Evictable);
    }
    drop(cache);
    let cache = open(folder.path(), 3 * SEGMENT_LEN);
    put(&cache, 100, Keep::Outbox(checkout(1)));
    assert!(cache.usage().bytes <= 3 * SEGMENT_LEN);
    assert!(holds(&cache, 99));
    drop(cache);
    let cache = open(folder.path(), SEGMENT_LEN / 2);
    put(&cache, 101, Keep::Evictable);
    assert!(cache.usage().bytes <= SEGMENT_LEN / 2);
    assert!(
        holds(&cache, 100),
        "also the growing segment can go, but not what is kept"
    );
}

#[test]
fn a_full_disk_gives_up_nothing_that_is_kept_and_comes_back_when_it_is_released() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    for seed in 0..40 {
        put(&cache, seed, Keep::Outbox(checkout(1)));
    }
    cache.sync().unwrap();
    let bytes = cache.usage().bytes;
    let full = Arc::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
    cache.lock().replace_active_file(full);
    let (id, object) = object(99, 300);
    let outcome = cache.put(&id, &object, Keep::Outbox(checkout(1)));
    assert!(matches!(outcome, Err(StoreError::NoRoom)));
    assert_eq!(cache.usage().bytes, bytes);
    release_all(&cache, checkout(1));
    let log = fs::metadata(folder.path().join("keeps")).unwrap();
    assert_eq!(log.len(), 0, "this took no room");
    cache.put(&id, &object, Keep::Outbox(checkout(1))).unwrap();
    assert_eq!(cache.get(&id), Some(object));
}

#[test]
fn a_damaged_object_is_forgotten_and_can_be_put_again() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    let id = put(&cache, 0, Keep::Outbox(checkout(1)));
    assert!(cache.get_verified(&id).is_some());
    let path = SegmentNumber(0).path(folder.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(cache.get(&id).is_some(), "reading alone does not check");
    assert_eq!(cache.get_verified(&id), None);
    assert!(!cache.contains(&id));
    assert_eq!(cache.usage().kept_bytes, 0);
    put(&cache, 0, Keep::Outbox(checkout(1)));
    assert!(cache.get_verified(&id).is_some());
    drop(cache);
    let cache = open(folder.path(), ROOMY);
    assert!(cache.get_verified(&id).is_some(), "the newest copy counts");
}

#[test]
fn the_table_of_a_segment_names_the_copy_that_replaced_a_damaged_one() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    let id = put(&cache, 0, Keep::Outbox(checkout(1)));
    let path = SegmentNumber(0).path(folder.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(cache.get_verified(&id), None);
    put(&cache, 0, Keep::Outbox(checkout(1)));
    for seed in 1..20 {
        put(&cache, seed, Keep::Evictable);
    }
    drop(cache);
    let cache = open(folder.path(), ROOMY);
    assert!(cache.get_verified(&id).is_some());
    assert_eq!(cache.outbox(checkout(1)), [id]);
}

#[test]
fn a_damaged_keep_costs_no_other_its_claim() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    let ids: Vec<_> = (0..3)
        .map(|seed| put(&cache, seed, Keep::Outbox(checkout(1))))
        .collect();
    drop(cache);
    let path = folder.path().join("keeps");
    let mut log = fs::read(&path).unwrap();
    log[73 + 40] ^= 1;
    fs::write(&path, log).unwrap();
    let outbox = open(folder.path(), ROOMY).outbox(checkout(1));
    assert_eq!(
        BTreeSet::from_iter(outbox),
        BTreeSet::from([ids[0], ids[2]])
    );
}

#[test]
fn a_full_disk_is_an_error_that_changes_nothing() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    put(&cache, 0, Keep::Outbox(checkout(2)));
    let before = cache.usage();
    let full = Arc::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let file = cache.lock().replace_active_file(full);
    let (id, bytes) = object(1, 300);
    let outcome = cache.put(&id, &bytes, Keep::Outbox(checkout(1)));
    assert!(matches!(outcome, Err(StoreError::NoRoom)));
    assert_eq!(cache.usage(), before);
    assert!(cache.outbox(checkout(1)).is_empty());
    cache.lock().replace_active_file(file);
    cache.put(&id, &bytes, Keep::Outbox(checkout(1))).unwrap();
    assert!(holds(&cache, 0) && holds(&cache, 1));
}

#[test]
fn a_full_disk_takes_the_room_of_what_is_evictable() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    for seed in 0..40 {
        put(&cache, seed, Keep::Evictable);
    }
    let segments = files(folder.path()).len();
    let full = Arc::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
    cache.lock().replace_active_file(full);
    put(&cache, 99, Keep::Outbox(checkout(1)));
    assert!(holds(&cache, 99));
    assert!(files(folder.path()).len() < segments);
}

/// Bytes on the disk, whatever the cache believes.
fn disk_bytes(folder: &Path) -> u64 {
    files(folder).values().map(|bytes| bytes.len() as u64).sum()
}

#[test]
fn on_a_small_disk_what_is_evictable_leaves_the_reserve_and_more() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    let room = 8 * SEGMENT_LEN;
    cache.lock().pretend_disk(CACHE_FREE_MIN + room);
    for seed in 0..200 {
        put(&cache, seed, Keep::Evictable);
        assert!(disk_bytes(folder.path()) <= room, "object {seed}");
    }
    assert!(holds(&cache, 199), "the newest are here");
    for seed in 200..400 {
        put(&cache, seed, Keep::Outbox(checkout(1)));
    }
    assert!((200..400).all(|seed| holds(&cache, seed)));
    assert!(
        !(0..200).any(|seed| holds(&cache, seed)),
        "the outbox takes the place of all others"
    );
    put(&cache, 400, Keep::Evictable);
    assert!(!holds(&cache, 400), "there is no room left for it");
}

#[test]
fn others_who_fill_the_disk_get_the_cache_s_room() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    for seed in 0..100 {
        put(&cache, seed, Keep::Evictable);
    }
    put(&cache, 100, Keep::Outbox(checkout(1)));
    cache.lock().pretend_disk(CACHE_FREE_MIN - SEGMENT_LEN);
    put(&cache, 101, Keep::Evictable);
    assert!((0..100).all(|seed| !holds(&cache, seed)));
    assert!(!holds(&cache, 101) && holds(&cache, 100));
    assert!(disk_bytes(folder.path()) <= SEGMENT_LEN);
}

#[test]
fn what_is_asked_back_is_given_and_not_taken_again_at_once() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    for seed in 0..100 {
        let mine = seed % 3 == 0;
        let keep = Keep::Outbox(checkout(1));
        put(&cache, seed, if mine { keep } else { Keep::Evictable });
    }
    let before = disk_bytes(folder.path());
    let evictable = cache.evictable();
    assert!(evictable > before / 2);
    let given = cache.give_back(2 * SEGMENT_LEN).unwrap();
    assert!(given >= 2 * SEGMENT_LEN);
    assert!(disk_bytes(folder.path()) <= before - 2 * SEGMENT_LEN);
    for seed in 200..250 {
        put(&cache, seed, Keep::Evictable);
    }
    assert!(disk_bytes(folder.path()) <= before - 2 * SEGMENT_LEN);

    cache.give_back(u64::MAX).unwrap();
    assert_eq!(cache.evictable(), 0);
    assert_eq!(cache.give_back(1).unwrap(), 0);
    let usage = cache.usage();
    assert!(usage.kept_bytes * 8 >= usage.bytes * 7);
    assert!((0..100).step_by(3).all(|seed| holds(&cache, seed)));
}

#[test]
fn an_evicted_segment_s_room_is_free_before_the_next_sync() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    let (id, bytes) = object(0, 300);
    // Past the call that syncs a full segment.
    while !cache.lock().put(id, &bytes, Keep::Evictable).unwrap() {
        cache.forget(&id);
    }
    cache.give_back(u64::MAX).unwrap();
    let mine = folder.path().to_owned();
    let open_files = fs::read_dir("/proc/self/fd").unwrap();
    let deleted = open_files
        .filter_map(|file| fs::read_link(file.unwrap().path()).ok())
        .filter(|path| path.starts_with(&mine))
        .filter(|path| path.to_string_lossy().ends_with("(deleted)"));
    assert_eq!(deleted.count(), 0);
}

#[test]
fn a_limit_that_is_set_holds_at_once_and_after_a_restart() {
    let folder = img_testkit::folder().unwrap();
    let cache = Cache::open(folder.path(), ROOMY).unwrap();
    for seed in 0..100 {
        put(&cache, seed, Keep::Evictable);
    }
    for seed in 100..140 {
        put(&cache, seed, Keep::Outbox(checkout(1)));
    }
    cache.set_limit(10_000).unwrap();
    let usage = cache.usage();
    assert_eq!((usage.limit, usage.evictable_bytes), (10_000, 0));
    assert!(usage.bytes > 10_000, "what is kept stays");
    assert!((100..140).all(|seed| holds(&cache, seed)));
    drop(cache);
    let cache = Cache::open(folder.path(), ROOMY).unwrap();
    assert_eq!(cache.usage().limit, 10_000);
    release_all(&cache, checkout(1));
    assert!(cache.usage().bytes <= 10_000, "the limit is hard");

    fs::create_dir(folder.path().join("limit.new")).unwrap();
    assert!(cache.set_limit(ROOMY).is_err());
    assert_eq!(cache.usage().limit, 10_000, "it could not be made durable");
    fs::write(folder.path().join("limit"), "much").unwrap();
    drop(cache);
    let cache = Cache::open(folder.path(), ROOMY).unwrap();
    assert_eq!(cache.usage().limit, ROOMY, "a damaged file costs the limit");
}

#[test]
fn an_interrupted_eviction_is_harmless() {
    let folder = img_testkit::folder().unwrap();
    let limit = 4 * SEGMENT_LEN;
    let cache = open(folder.path(), limit);
    put(&cache, 0, Keep::Outbox(checkout(1)));
    let first = SegmentNumber(0).path(Path::new(""));
    for seed in 1..12 {
        put(&cache, seed, Keep::Evictable);
    }
    let old = files(folder.path())[&first].clone();
    let mut seed = 12;
    while folder.path().join(&first).exists() {
        put(&cache, seed, Keep::Evictable);
        seed += 1;
    }
    drop(cache);
    fs::write(folder.path().join(&first), old).unwrap();
    let cache = open(folder.path(), limit);
    assert!(holds(&cache, 0));
    assert_eq!(cache.outbox(checkout(1)), [object(0, 300).0]);
    for seed in 100..200 {
        put(&cache, seed, Keep::Evictable);
    }
    assert!(holds(&cache, 0));
    assert!(cache.usage().bytes <= limit);
}

#[test]
fn many_releases_do_not_make_the_log_of_keeps_grow() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), ROOMY);
    let ids: Vec<_> = (0..100)
        .map(|seed| put(&cache, seed, Keep::Evictable))
        .collect();
    let stays = put(&cache, 100, Keep::Outbox(checkout(2)));
    for _ in 0..1_000 {
        cache.keep(checkout(1), &ids).unwrap();
        release_all(&cache, checkout(1));
    }
    let log = File::open(folder.path().join("keeps")).unwrap();
    assert!(log.metadata().unwrap().len() < 100_000 * 73);
    cache.sync().unwrap();
    drop(cache);
    let cache = open(folder.path(), ROOMY);
    assert_eq!(cache.outbox(checkout(2)), [stays]);
    assert!(cache.outbox(checkout(1)).is_empty());
}

#[test]
fn readers_and_writers_work_side_by_side() {
    let folder = img_testkit::folder().unwrap();
    let cache = open(folder.path(), 6 * SEGMENT_LEN);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for seed in 0..300 {
                    put(cache, thread * 1_000 + seed, Keep::Evictable);
                    let (id, bytes) = object((thread + 1) % 4 * 1_000 + seed, 300);
                    assert!(cache.get(&id).is_none_or(|found| found == bytes));
                    if seed % 50 == 0 {
                        cache.sync().unwrap();
                    }
                }
            });
        }
    });
}

#[derive(Debug, Clone)]
enum Op {
    Put(u64, Option<u8>),
    Keep(u8, u64),
    Release(u8, u64),
    ReleaseAll(u8),
    Forget(u64),
    Sync,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let seed = 0u64..60;
    let checkout = 1u8..4;
    prop_oneof![
        10 => (seed.clone(), proptest::option::of(checkout.clone())).prop_map(|(s, c)| Op::Put(s, c)),
        2 => (checkout.clone(), seed.clone()).prop_map(|(c, s)| Op::Keep(c, s)),
        3 => (checkout.clone(), seed.clone()).prop_map(|(c, s)| Op::Release(c, s)),
        1 => checkout.prop_map(Op::ReleaseAll),
        1 => seed.prop_map(Op::Forget),
        1 => Just(Op::Sync),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn behaves_like_a_set_of_keeps(ops in proptest::collection::vec(op(), 1..150)) {
        let folder = img_testkit::folder().unwrap();
        let limit = 3 * SEGMENT_LEN;
        let mut cache = open(folder.path(), limit);
        let mut kept: BTreeSet<(u8, u64)> = BTreeSet::new();
        let mut lost: BTreeSet<u64> = BTreeSet::new();
        for op in ops {
            match op {
                Op::Put(seed, None) => {
                    put(&cache, seed, Keep::Evictable);
                    if holds(&cache, seed) {
                        lost.remove(&seed);
                    }
                }
                Op::Put(seed, Some(c)) => {
                    put(&cache, seed, Keep::Outbox(checkout(c)));
                    prop_assert!(holds(&cache, seed));
                    lost.remove(&seed);
                    kept.insert((c, seed));
                }
                Op::Keep(c, seed) => {
                    let here = holds(&cache, seed);
                    let id = object(seed, 300).0;
                    let absent = cache.keep(checkout(c), &[id]).unwrap();
                    prop_assert_eq!(absent.is_empty(), here);
                    if here {
                        kept.insert((c, seed));
                    }
                }
                Op::Release(c, seed) => {
                    cache.release(checkout(c), &[object(seed, 300).0]).unwrap();
                    kept.remove(&(c, seed));
                }
                Op::ReleaseAll(c) => {
                    release_all(&cache, checkout(c));
                    kept.retain(|(other, _)| *other != c);
                }
                Op::Forget(seed) => {
                    cache.forget(&object(seed, 300).0);
                    lost.insert(seed);
                }
                Op::Sync => cache.sync().unwrap(),
                Op::Reopen => {
                    drop(cache);
                    cache = open(folder.path(), limit);
                    // A forgotten object may be found again in its segment.
                    lost.clear();
                    kept.retain(|(_, seed)| holds(&cache, *seed));
                }
            }
            for (_, seed) in &kept {
                prop_assert!(lost.contains(seed) || holds(&cache, *seed), "object {}", seed);
            }
            for c in 1..4 {
                let expected: BTreeSet<_> = kept
                    .iter()
                    .filter(|(owner, _)| *owner == c)
                    .map(|(_, seed)| object(*seed, 300).0)
                    .collect();
                let found: BTreeSet<_> = cache.outbox(checkout(c)).into_iter().collect();
                prop_assert_eq!(found, expected);
            }
            let usage = cache.usage();
            let kept_bytes: u64 = kept
                .iter()
                .map(|(_, seed)| *seed)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .filter(|seed| holds(&cache, *seed))
                .map(|seed| 48 + object(seed, 300).1.len() as u64)
                .sum();
            prop_assert_eq!(usage.kept_bytes, kept_bytes);
        }
    }
}
