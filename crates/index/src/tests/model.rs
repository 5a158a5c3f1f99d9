//! The same map has the same root, whatever the order and the batches of its edits.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::memory::{Memory, Written};
use super::samples::{Numbers, any_entry, attributes, edit, edit_model, in_order};
use crate::{ApplyError, Edit, Inode, Key, KeyRange, Loader, Value, get, range};

#[test]
fn a_hundred_thousand_random_operations_agree_with_a_sorted_map() {
    let mut operations = 0;
    for seed in 0..6 {
        let mut numbers = Numbers(seed);
        let mut memory = Memory::small();
        let mut model = BTreeMap::new();
        let (mut root, _) = memory.apply(None, &[]);
        let mut levels = 0;
        while operations < 17_000 * (seed + 1) {
            let count = [3, 20, 400][numbers.next() as usize % 3];
            let edits = numbers.edits(count);
            operations += edits.len() as u64;
            edit_model(&mut model, &edits);
            root = memory.apply(Some(&root), &edits).0;
            if numbers.next().is_multiple_of(8) {
                assert_eq!(root, memory.root_of(&model));
                assert_eq!(memory.entries(&root), model);
                levels = levels.max(memory.open_all(&root).len());
            }
            for _ in 0..10 {
                let (key, _) = numbers.entry();
                assert_eq!(get(&memory, &root, &key).unwrap(), model.get(&key).cloned());
                let (end, _) = numbers.entry();
                let part = KeyRange { start: key, end };
                let expected: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| part.contains(key))
                    .take(20)
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                assert_eq!(range(&memory, &root, &part, 20).unwrap(), expected);
            }
        }
        assert_eq!(root, memory.root_of(&model));
        assert!(levels > 2, "trees that are worth it");
    }
    assert!(operations >= 100_000);
}

fn any_batches() -> impl Strategy<Value = Vec<Vec<Edit>>> {
    let edit = (any::<u8>(), any_entry(), any_entry())
        .prop_map(|(what, first, second)| edit(what, first, second));
    let batch = proptest::collection::vec(edit, 0..150).prop_map(in_order);
    proptest::collection::vec(batch, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn history_leaves_no_trace(batches in any_batches()) {
        let mut memory = Memory::small();
        let mut model = BTreeMap::new();
        let (mut root, _) = memory.apply(None, &[]);
        for edits in &batches {
            edit_model(&mut model, edits);
            root = memory.apply(Some(&root), edits).0;
            prop_assert_eq!(root, memory.root_of(&model));
        }
        prop_assert_eq!(memory.entries(&root), model);
        memory.open_all(&root);
    }

    #[test]
    fn one_edit_at_a_time_gives_the_root_of_all_at_once(
        edits in proptest::collection::vec(any_entry(), 1..80),
        order in any::<u64>(),
    ) {
        let mut memory = Memory::small();
        let model: BTreeMap<Key, Value> = edits.into_iter().collect();
        let mut single: Vec<_> = model
            .iter()
            .map(|(key, value)| Edit::Put(key.clone(), value.clone()))
            .collect();
        let mut numbers = Numbers(order);
        single.sort_by_cached_key(|_| numbers.next());
        let (mut root, _) = memory.apply(None, &[]);
        for edit in single {
            root = memory.apply(Some(&root), &[edit]).0;
        }
        prop_assert_eq!(root, memory.root_of(&model));
    }
}

/// Every second leaf or so ends because the next entry is too large for it: the cuts that depend on
/// what follows.
#[test]
fn cuts_in_front_of_large_entries_follow_them() {
    let mut memory = Memory::small();
    let mut numbers = Numbers(1);
    let mut model = BTreeMap::new();
    let (mut root, _) = memory.apply(None, &[]);
    for _ in 0..1_500 {
        let key = Key::xattr(
            Inode(1 + numbers.next() % 4),
            &[1 + (numbers.next() % 200) as u8],
        );
        let value = Value::Xattr(crate::Xattr::Inline(vec![
            7;
            numbers.next() as usize % 2_048
        ]));
        let edits = match numbers.next() % 3 {
            0 => vec![Edit::Delete(key)],
            _ => vec![Edit::Put(key, value)],
        };
        edit_model(&mut model, &edits);
        root = memory.apply(Some(&root), &edits).0;
        assert_eq!(root, memory.root_of(&model));
    }
}

#[test]
fn an_edit_in_front_of_the_only_leaf_keeps_it() {
    let mut memory = Memory::small();
    let put = |inode| Edit::Put(Key::attributes(Inode(inode)), attributes(inode));
    let (root, _) = memory.apply(None, &[put(5), put(6)]);
    let absent = Edit::Delete(Key::attributes(Inode(4)));
    assert_eq!(memory.apply(Some(&root), &[absent]).0, root);
    // Large enough to be a leaf of its own.
    let large = Edit::Put(
        Key::fact(crate::Fact::Manifest),
        Value::Manifest(vec![1; 8_192]),
    );
    let (root, _) = memory.apply(Some(&root), std::slice::from_ref(&large));
    let (expected, _) = memory.apply(None, &[large, put(5), put(6)]);
    assert_eq!(root, expected);
}

#[test]
fn loading_the_zones_side_by_side_gives_the_same_root() {
    for count in [0, 1, 5, 300, 8_000] {
        let mut memory = Memory::small();
        let model = Numbers(count).entries(count);
        let mut sealer = Memory::small().sealer;
        let mut written = Written::default();
        let mut loader = Loader::by(memory.rules, &mut written, &mut sealer);
        let zone = |zone: u8| {
            let entries = model.iter();
            entries.filter(move |(key, _)| key.as_bytes()[0] == zone)
        };
        let (mut facts, mut metadata, mut data) = (zone(0), zone(1), zone(2));
        loop {
            let next = [data.next(), metadata.next(), facts.next()];
            if next.iter().flatten().count() == 0 {
                break;
            }
            for (key, value) in next.into_iter().flatten() {
                loader.put(key, value).unwrap();
            }
        }
        let root = loader.finish().unwrap();
        assert_eq!(root, memory.root_of(&model));
        let kept: BTreeSet<_> = memory.objects.keys().copied().collect();
        let ids: BTreeSet<_> = written
            .0
            .iter()
            .map(|(sealed, _)| sealed.reference.id)
            .collect();
        assert_eq!(ids, kept, "nothing is written twice or in vain");
    }
    let (mut memory, mut written) = (Memory::small(), Written::default());
    let mut loader = Loader::by(memory.rules, &mut written, &mut memory.sealer);
    loader
        .put(&Key::attributes(Inode(2)), &attributes(1))
        .unwrap();
    let again = loader.put(&Key::attributes(Inode(2)), &attributes(1));
    assert_eq!(again, Err(ApplyError::Unsorted));
}

#[test]
fn growing_and_shrinking_ends_at_the_empty_leaf() {
    let mut memory = Memory::small();
    let (empty, _) = memory.apply(None, &[]);
    let put = |inode| Edit::Put(Key::attributes(Inode(inode)), attributes(inode));
    let all: Vec<_> = (1..=20_000).map(put).collect();
    let (full, _) = memory.apply(Some(&empty), &all);
    assert!(memory.open_all(&full).len() > 2);
    for left in [10_000, 300, 30, 1] {
        let cleared = Edit::Clear(KeyRange {
            start: Key::attributes(Inode(left + 1)),
            end: KeyRange::all().end,
        });
        let (root, _) = memory.apply(Some(&full), &[cleared]);
        let (expected, _) = memory.apply(None, &all[..left as usize]);
        assert_eq!(root, expected);
        let cleared = Edit::Clear(KeyRange {
            start: KeyRange::all().start,
            end: Key::attributes(Inode(20_001 - left)),
        });
        let (root, _) = memory.apply(Some(&full), &[cleared]);
        let (expected, _) = memory.apply(None, &all[20_000 - left as usize..]);
        assert_eq!(root, expected);
    }
    let (root, _) = memory.apply(Some(&full), &[Edit::Clear(KeyRange::all())]);
    assert_eq!(root, empty);
}

#[test]
fn edits_that_change_nothing_write_nothing() {
    let mut memory = Memory::small();
    let mut numbers = Numbers(3);
    let model = numbers.entries(3_000);
    let root = memory.root_of(&model);
    for _ in 0..200 {
        let (key, _) = numbers.entry();
        let edit = match model.get(&key) {
            Some(value) => Edit::Put(key, value.clone()),
            None => Edit::Delete(key),
        };
        let (same, written) = memory.apply(Some(&root), &[edit]);
        assert_eq!(same, root);
        assert!(written.is_empty(), "{written:?}");
    }
}

#[test]
fn what_no_map_can_hold_is_refused() {
    let mut memory = Memory::small();
    let (root, _) = memory.apply(None, &[]);
    let mut refused = |edits: &[Edit]| {
        let mut written = Written::default();
        let error = memory
            .try_apply(Some(&root), edits, &mut written)
            .unwrap_err();
        assert!(written.0.is_empty());
        error
    };
    let put = |inode| Edit::Put(Key::attributes(Inode(inode)), attributes(1));
    assert_eq!(refused(&[put(2), put(1)]), ApplyError::Unsorted);
    assert_eq!(refused(&[put(2), put(2)]), ApplyError::Unsorted);
    let clear = Edit::Clear(KeyRange::inode_metadata(Inode(2)));
    assert_eq!(refused(&[clear, put(2)]), ApplyError::Unsorted);
    for edit in [
        Edit::Put(Key::attributes(Inode(2)), Value::Mark),
        Edit::Put(Key::attributes(Inode(0)), attributes(1)),
        Edit::Put(Key::inline(Inode(2)), Value::Inline(vec![1; 2_049])),
        Edit::Put(Key::symlink(Inode(2)), Value::Symlink(Vec::new())),
    ] {
        assert!(matches!(refused(&[edit]), ApplyError::Invalid(_)));
    }
}
