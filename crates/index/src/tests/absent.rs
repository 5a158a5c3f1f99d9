//! Trees whose nodes come when they are asked for.

use super::memory::{Memory, Written};
use super::samples::{Numbers, edit_model};
use crate::{ApplyError, KeyRange, ReadError, diff, get, range};

fn absent_of(error: ReadError) -> crate::Absent {
    match error {
        ReadError::Absent(absent) => absent,
        error => panic!("{error}"),
    }
}

fn absent_of_apply(error: ApplyError) -> crate::Absent {
    match error {
        ApplyError::Absent(absent) => absent,
        error => panic!("{error}"),
    }
}

#[test]
fn apply_asks_level_by_level_and_writes_only_when_it_has_all() {
    let mut numbers = Numbers(11);
    let mut memory = Memory::small();
    let mut model = numbers.entries(8_000);
    let mut root = memory.root_of(&model);
    let levels = memory.open_all(&root);
    assert!(levels.len() > 3 && levels[0] > 100, "{levels:?}");
    for round in 0..60 {
        let count = [1, 10, 300][round % 3];
        let edits = numbers.edits(count);
        let (_, rounds) = memory.until_at_hand(
            |memory| {
                let mut written = Written::default();
                let result = memory.try_apply(Some(&root), &edits, &mut written);
                assert!(result.is_ok() || written.0.is_empty(), "written too early");
                result
            },
            absent_of_apply,
        );
        // Down all levels, then the neighbours to the left and right of what changes.
        assert!(
            rounds <= levels.len() + 5,
            "{rounds} rounds for {count} edits"
        );
        root = memory.apply(Some(&root), &edits).0;
        edit_model(&mut model, &edits);
        assert_eq!(root, memory.root_of(&model));
    }
}

#[test]
fn reads_ask_level_by_level() {
    let mut numbers = Numbers(12);
    let mut memory = Memory::small();
    let model = numbers.entries(8_000);
    let root = memory.root_of(&model);
    let height = memory.open_all(&root).len();

    let (key, value) = model.iter().nth(model.len() / 2).unwrap();
    let (found, rounds) = memory.until_at_hand(|memory| get(memory, &root, key), absent_of);
    assert_eq!(found.as_ref(), Some(value));
    assert_eq!(rounds, height);

    let all = KeyRange::all();
    let list = |memory: &mut Memory| range(memory, &root, &all, usize::MAX);
    let (entries, rounds) = memory.until_at_hand(list, absent_of);
    assert_eq!(entries.len(), model.len());
    assert_eq!(rounds, height);

    let list = |memory: &mut Memory| range(memory, &root, &all, 10);
    let (entries, _) = memory.until_at_hand(list, absent_of);
    assert_eq!(entries.len(), 10);
    let (_, asked) = memory.asked_by(|memory| range(memory, &root, &all, 10).unwrap());
    assert!(asked <= height + 2);
}

#[test]
fn diff_asks_for_what_differs_together() {
    let mut numbers = Numbers(13);
    let mut memory = Memory::small();
    let model = numbers.entries(8_000);
    let before = memory.root_of(&model);
    let (after, _) = memory.apply(Some(&before), &numbers.edits(40));
    let compare = |memory: &mut Memory| {
        let all = KeyRange::all();
        diff(memory, &before, &after, &all, usize::MAX)
    };
    let expected = compare(&mut memory).unwrap();
    assert!(expected.differences.len() > 20);
    let (found, rounds) = memory.until_at_hand(compare, absent_of);
    assert_eq!(found, expected);
    assert!(rounds < expected.differences.len(), "{rounds}");
}
