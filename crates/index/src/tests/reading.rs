//! Trees that were put together wrongly.

use std::sync::Arc;

use img_seal::Reference;
use img_types::object::ObjectKind;

use super::memory::Memory;
use super::samples::attributes;
use crate::node::OpenNode;
use crate::{ApplyError, Edit, Inode, Key, KeyRange, ReadError, Value, diff, get, range};

impl Memory {
    /// Stores a node that no rule has cut.
    fn forge(&mut self, level: u8, entries: &[(&Key, Vec<u8>)]) -> Reference {
        let mut open = OpenNode::new(level);
        for (key, value) in entries {
            open.push(key.as_bytes(), value, 0);
        }
        let (node, children) = open.finish().unwrap();
        let sealed = self
            .sealer
            .seal_with_children(ObjectKind::Node, level, children, node.raw())
            .unwrap();
        let reference = sealed.reference;
        self.objects.insert(reference.id, (sealed, Arc::new(node)));
        reference
    }
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

fn child(reference: Reference) -> Vec<u8> {
    let mut bytes = Vec::new();
    reference.encode(&mut bytes);
    bytes
}

#[test]
fn sound_nodes_in_the_wrong_place_are_noticed() {
    let mut memory = Memory::small();
    let key = |inode| Key::attributes(Inode(inode));
    let (one, two, three) = (key(1), key(2), key(3));
    let value = encoded(&attributes(1));
    let leaf = memory.forge(0, &[(&one, value.clone()), (&two, value.clone())]);
    let second = memory.forge(0, &[(&two, value.clone()), (&three, value)]);
    let other_last_key = memory.forge(1, &[(&three, child(leaf))]);
    let overlapping = memory.forge(1, &[(&two, child(leaf)), (&three, child(second))]);
    let level_left_out = memory.forge(2, &[(&two, child(leaf))]);
    for (root, misplaced) in [
        (other_last_key, leaf),
        (overlapping, second),
        (level_left_out, leaf),
    ] {
        memory.open_all_alone(&root);
        let misplaced = misplaced.id;
        let wanted = if root == level_left_out { &two } else { &three };
        assert_eq!(
            get(&memory, &root, wanted),
            Err(ReadError::Misplaced(misplaced))
        );
        let all = KeyRange::all();
        assert_eq!(
            range(&memory, &root, &all, 10),
            Err(ReadError::Misplaced(misplaced))
        );
        let (empty, _) = memory.apply(None, &[]);
        assert_eq!(
            diff(&memory, &root, &empty, &all, 10),
            Err(ReadError::Misplaced(misplaced))
        );
        let edit = Edit::Put(wanted.clone(), attributes(9));
        let written = &mut Default::default();
        assert_eq!(
            memory.try_apply(Some(&root), &[edit], written),
            Err(ApplyError::Misplaced(misplaced))
        );
        assert!(written.0.is_empty());
    }
}

impl Memory {
    /// The node itself opens: only its place is wrong.
    fn open_all_alone(&self, root: &Reference) {
        let (sealed, _) = &self.objects[&root.id];
        crate::open_node(&self.keys, root, &sealed.bytes).unwrap();
    }
}
