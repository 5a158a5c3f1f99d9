//! Differences between trees.

use std::collections::{BTreeMap, BTreeSet};

use super::memory::Memory;
use super::samples::{Numbers, attributes, block, edit_model};
use crate::{Diff, Difference, Edit, Inode, Key, KeyRange, Value, diff};

fn expected(
    before: &BTreeMap<Key, Value>,
    after: &BTreeMap<Key, Value>,
    range: &KeyRange,
) -> Vec<Difference> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter(|key| range.contains(key) && before.get(key) != after.get(key))
        .map(|key| Difference {
            key: key.clone(),
            before: before.get(key).cloned(),
            after: after.get(key).cloned(),
        })
        .collect()
}

#[test]
fn differences_are_those_of_the_maps() {
    let mut numbers = Numbers(21);
    let mut memory = Memory::small();
    for count in [0, 1, 30, 1_000] {
        let before = numbers.entries(4_000);
        let mut after = before.clone();
        edit_model(&mut after, &numbers.edits(count));
        let (a, b) = (memory.root_of(&before), memory.root_of(&after));
        for range in [
            KeyRange::all(),
            KeyRange::data(Inode(5)),
            KeyRange::entries(Inode(6)),
        ] {
            let all = diff(&memory, &a, &b, &range, usize::MAX).unwrap();
            assert_eq!(all.differences, expected(&before, &after, &range));
            assert_eq!(all.next, None);

            let mut pieces = Vec::new();
            let mut rest = range;
            loop {
                let Diff { differences, next } = diff(&memory, &a, &b, &rest, 7).unwrap();
                assert!(differences.len() == 7 || next.is_none());
                pieces.extend(differences);
                let Some(next) = next else { break };
                rest.start = next;
            }
            assert_eq!(pieces, all.differences);
        }
    }
}

#[test]
fn time_is_that_of_the_difference() {
    let mut memory = Memory::full_size();
    let put = |inode| Edit::Put(Key::attributes(Inode(inode)), attributes(inode));
    let edits: Vec<_> = (1..=100_000).map(put).collect();
    let (before, _) = memory.apply(None, &edits);
    let all = KeyRange::all();
    let (_, asked) = memory.asked_by(|memory| diff(memory, &before, &before, &all, 9).unwrap());
    assert_eq!(asked, 0);

    let change = Edit::Put(Key::attributes(Inode(50_000)), attributes(7));
    let (after, _) = memory.apply(Some(&before), &[change]);
    let (found, asked) = memory.asked_by(|memory| diff(memory, &before, &after, &all, 9).unwrap());
    assert_eq!(found.differences.len(), 1);
    let height = memory.open_all(&after).len();
    assert_eq!(asked, 2 * height);

    let appended: Vec<_> = (0..500)
        .map(|n| Edit::Put(Key::extent(Inode(7), n << 16), block(n)))
        .collect();
    let (after, written) = memory.apply(Some(&before), &appended);
    let (found, asked) =
        memory.asked_by(|memory| diff(memory, &before, &after, &all, 999).unwrap());
    assert_eq!(found.differences.len(), 500);
    let written: usize = written.values().sum();
    assert!(asked <= written + 2 * height, "{asked} of {written}");
}
