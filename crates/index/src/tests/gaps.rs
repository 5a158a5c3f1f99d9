//! Trees of which nodes are lost.

use std::collections::BTreeSet;

use img_seal::Reference;

use super::memory::{Memory, Written};
use super::samples::{attributes, block};
use crate::{Gap, Inode, Key, Value};

/// Files with a few blocks each, and one with many.
fn files() -> std::collections::BTreeMap<Key, Value> {
    let mut model = std::collections::BTreeMap::new();
    for inode in 2..400_u64 {
        let blocks = if inode == 200 { 900 } else { inode % 4 };
        model.insert(Key::attributes(Inode(inode)), attributes(blocks << 16));
        if blocks == 0 {
            model.insert(Key::inline(Inode(inode)), Value::Inline(vec![7; 9]));
        }
        for number in 0..blocks {
            let key = Key::extent(Inode(inode), number << 16);
            model.insert(key, block(inode << 20 | number));
        }
    }
    model
}

/// All nodes of a tree but the root.
fn nodes(memory: &Memory, root: &Reference, found: &mut Vec<Reference>) {
    let node = &memory.objects[&root.id].1;
    if node.level() > 0 {
        for position in 0..node.len() {
            found.push(node.child(position));
            nodes(memory, &node.child(position), found);
        }
    }
}

#[test]
fn a_tree_without_a_lost_node_is_the_tree_of_the_other_keys() {
    let mut memory = Memory::small();
    let model = files();
    let root = memory.root_of(&model);
    let mut all = Vec::new();
    nodes(&memory, &root, &mut all);
    let (mut leaves, mut inner, mut refused) = (0, 0, 0);
    for lost in all {
        let found = Gap::find(&memory, &root, &BTreeSet::from([lost.id]));
        let [gap] = &found[..] else {
            panic!("{found:?}");
        };
        let within = |key: &&Key| gap.range().contains(key);
        let below = memory.entries(&root);
        let below: Vec<_> = below.keys().filter(within).cloned().collect();
        let at_hand = memory.objects.keys().filter(|id| **id != lost.id);
        let at_hand = at_hand.copied().collect();
        *memory.at_hand.borrow_mut() = Some(at_hand);
        let mut written = Written::default();
        let cut = memory.cut_out(&found, &root, &mut written);
        *memory.at_hand.borrow_mut() = None;
        let Some((first, last)) = gap.contents() else {
            assert!(cut.is_err());
            refused += 1;
            continue;
        };
        for key in &below {
            let (start, end) = match key.parts() {
                crate::KeyParts::Inline(inode) => (inode, 0),
                crate::KeyParts::Extent { inode, offset } => (inode, offset),
                parts => panic!("{parts:?}"),
            };
            assert!(first <= start && start <= last);
            let blocks = gap.blocks_of(start);
            assert!(blocks.0 <= end && end < blocks.1);
        }
        if memory.objects[&lost.id].1.level() == 0 {
            leaves += 1;
        } else {
            inner += 1;
        }
        let mut left = model.clone();
        left.retain(|key, _| !gap.range().contains(key));
        assert_eq!(left.len() + below.len(), model.len());
        assert_eq!(cut.unwrap(), memory.root_of(&left));
    }
    assert!(
        leaves > 10 && inner > 1 && refused > 3,
        "{leaves} {inner} {refused}"
    );
}

#[test]
fn a_lost_root_is_no_gap() {
    let mut memory = Memory::small();
    let root = memory.root_of(&files());
    assert_eq!(Gap::find(&memory, &root, &BTreeSet::from([root.id])), []);
}

#[test]
fn lost_neighbours_are_cut_out_together() {
    let mut memory = Memory::small();
    let model = files();
    let root = memory.root_of(&model);
    let mut all = Vec::new();
    nodes(&memory, &root, &mut all);
    all.retain(|lost| memory.objects[&lost.id].1.level() == 0);
    let lost: BTreeSet<_> = all.iter().rev().take(20).map(|lost| lost.id).collect();
    let gaps = Gap::find(&memory, &root, &lost);
    assert_eq!(gaps.len(), lost.len());
    let at_hand = memory.objects.keys().filter(|id| !lost.contains(id));
    *memory.at_hand.borrow_mut() = Some(at_hand.copied().collect());
    let mut written = Written::default();
    let cut = memory.cut_out(&gaps, &root, &mut written);
    *memory.at_hand.borrow_mut() = None;
    let mut left = model;
    left.retain(|key, _| !gaps.iter().any(|gap| gap.range().contains(key)));
    assert_eq!(cut.unwrap(), memory.root_of(&left));
}
