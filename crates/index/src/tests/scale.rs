//! Work grows with the change, not with the image. What is counted are nodes, not seconds.

use std::collections::BTreeMap;

use img_types::limits::BLOCK_SIZE;

use super::memory::{Memory, Written};
use super::samples::{Numbers, attributes, block, entry_key};
use crate::apply::apply_by;
use crate::{Edit, FileKind, Inode, Key, KeyRange, Value, get, range};

/// Keeps nodes, but not their sealed bytes.
fn load(memory: &mut Memory, edits: impl Iterator<Item = Edit>) -> img_seal::Reference {
    let mut written = Written::default();
    let mut sealer = Memory::full_size().sealer;
    let root = apply_by(memory.rules, memory, &mut written, &mut sealer, None, edits).unwrap();
    for (sealed, node) in written.0 {
        memory.objects.insert(sealed.reference.id, (sealed, node));
    }
    root
}

/// One directory with a file for each number.
fn directory(files: u64) -> impl Iterator<Item = Edit> {
    let mut entries: Vec<_> = (0..files)
        .map(|number| {
            let name = format!("file-{number:07}");
            let value = Value::Entry {
                inode: Inode(2 + number),
                kind: FileKind::File,
            };
            Edit::Put(entry_key(1, name.as_bytes()), value)
        })
        .collect();
    entries.sort_by(|a, b| a.start().cmp(b.start()));
    let files =
        (0..files).map(|number| Edit::Put(Key::attributes(Inode(2 + number)), attributes(number)));
    entries.into_iter().chain(files)
}

#[test]
fn an_image_of_a_million_files() {
    let files = 1_000_000;
    let mut memory = Memory::full_size();
    let root = load(&mut memory, directory(files));
    let nodes = memory.objects.len();
    assert!(nodes < 6_000, "{nodes} nodes");
    let height = usize::from(memory.objects[&root.id].1.level()) + 1;
    assert!(height <= 4, "{height} levels");

    let key = entry_key(1, b"file-0500000");
    let (found, asked) = memory.asked_by(|memory| get(memory, &root, &key).unwrap());
    assert!(matches!(
        found,
        Some(Value::Entry {
            inode: Inode(500_002),
            ..
        })
    ));
    assert_eq!(asked, height);

    let (_, written) = memory.apply(
        Some(&root),
        &[Edit::Put(Key::attributes(Inode(700_000)), attributes(1))],
    );
    assert_eq!(written.values().sum::<usize>(), height);
    let asked = memory.asked.borrow().len();
    assert!(asked <= 3 * height, "{asked} nodes asked for");
}

#[test]
fn a_sparse_file_of_a_hundred_gigabytes() {
    let (size, stride) = (100u64 << 30, 1 << 20);
    let offsets = (0..size / stride).map(|number| number * stride);
    let file = Inode(2);
    let mut memory = Memory::full_size();
    let extents = offsets.map(|offset| Edit::Put(Key::extent(file, offset), block(offset)));
    let head = Edit::Put(Key::attributes(file), attributes(size));
    let tail = Edit::Put(Key::inline(Inode(3)), Value::Inline(vec![1]));
    let root = load(
        &mut memory,
        std::iter::once(head).chain(extents).chain([tail]),
    );
    let height = usize::from(memory.objects[&root.id].1.level()) + 1;
    assert!(height <= 4, "{height} levels");

    let middle = KeyRange::extents(file, size / 2, size / 2 + 10 * BLOCK_SIZE as u64);
    let (found, asked) = memory.asked_by(|memory| range(memory, &root, &middle, 10).unwrap());
    assert_eq!(found.len(), 1);
    assert!(asked <= height + 1);

    // Dropping all of it, or all but its ends, looks at the edges only.
    for (range, left) in [
        (KeyRange::data(file), 0),
        (KeyRange::extents(file, stride, size - stride), 2),
    ] {
        memory.asked.borrow_mut().clear();
        let (cleared, written) = memory.apply(Some(&root), &[Edit::Clear(range)]);
        let asked = memory.asked.borrow().len();
        assert!(asked <= 4 * height, "{asked} nodes asked for");
        assert!(written.values().sum::<usize>() <= 2 * height);
        let data = KeyRange::data(file);
        assert_eq!(
            crate::range(&memory, &cleared, &data, 10).unwrap().len(),
            left
        );
    }
}

/// Means over many single edits: how many nodes of each level are written beyond one.
#[test]
fn an_edit_writes_few_nodes_more_than_one_per_level() {
    type Name = fn(u64) -> String;
    let long = |number: u64| format!("{number:0250}");
    let short = |number: u64| number.to_string();
    let alike = |number: u64| "a".repeat(1 + (number % 250) as usize) + &number.to_string();
    let names: [(&str, Name); 3] = [("long", long), ("short", short), ("alike", alike)];
    for (what, name) in names {
        let mut memory = Memory::full_size();
        let put = |number: u64| {
            let inode = Inode(2 + number);
            let kind = FileKind::File;
            Edit::Put(
                entry_key(1, name(number).as_bytes()),
                Value::Entry { inode, kind },
            )
        };
        let mut edits: Vec<_> = (0..20_000).map(|number| put(2 * number)).collect();
        edits.sort_by(|a, b| a.start().cmp(b.start()));
        let (root, _) = memory.apply(None, &edits);
        let mut numbers = Numbers(5);
        let mut total: BTreeMap<u8, usize> = BTreeMap::new();
        let rounds = 400;
        for round in 0..rounds {
            let number = numbers.next() % 20_000;
            let edit = if round % 2 == 0 {
                put(2 * number + 1)
            } else {
                Edit::Delete(put(2 * number).start().clone())
            };
            let (_, written) = memory.apply(Some(&root), &[edit]);
            for (level, count) in written {
                *total.entry(level).or_default() += count;
            }
        }
        for (level, count) in total {
            let extra = count as f64 / f64::from(rounds) - 1.0;
            assert!(extra <= 4.0, "{what}: {extra} more at level {level}");
        }
    }
}
