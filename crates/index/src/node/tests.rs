use img_types::KeyEpoch;
use img_types::limits::BLOCK_SIZE;
use proptest::prelude::*;

use super::*;
use crate::key::{Inode, NameHash};
use crate::tests::samples::{any_entry, attributes, block, reference};

/// The bytes of a node of any entries, and the header that goes with them.
fn node(level: u8, entries: &[(Vec<u8>, Vec<u8>)]) -> (Vec<u8>, Header) {
    let mut raw = vec![NODE_VERSION, level];
    raw.put_u16(entries.len() as u16);
    let mut children = Children::default();
    for (key, value) in entries {
        raw.put_u16(key.len() as u16);
        raw.put_u16(value.len() as u16);
        raw.extend_from_slice(key);
        raw.extend_from_slice(value);
        let _ = children.add(level, key, value);
    }
    let header = Header {
        kind: ObjectKind::Node,
        level,
        key_epoch: KeyEpoch(0),
        children: children.ids,
    };
    (raw, header)
}

fn entry(key: &Key, value: &Value) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    (key.as_bytes().to_vec(), bytes)
}

fn child(key: &Key, number: u64) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = Vec::new();
    reference(number).encode(&mut bytes);
    (key.as_bytes().to_vec(), bytes)
}

fn refusal(level: u8, entries: &[(Vec<u8>, Vec<u8>)]) -> NodeError {
    let (raw, header) = node(level, entries);
    Node::open(raw, &header).unwrap_err()
}

fn file(inode: u64) -> Key {
    Key::attributes(Inode(inode))
}

proptest! {
    #[test]
    fn opened_nodes_show_their_entries(entries in proptest::collection::vec(any_entry(), 0..40)) {
        let zone = entries.first().map_or(0, |(key, _)| key.as_bytes()[0]);
        let mut entries = entries;
        entries.retain(|(key, _)| key.as_bytes()[0] == zone);
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(a, _), (b, _)| a == b);
        let (raw, header) = node(0, &entries.iter().map(|(k, v)| entry(k, v)).collect::<Vec<_>>());
        match Node::open(raw, &header) {
            Ok(node) => {
                prop_assert_eq!(node.len(), entries.len());
                for (position, entry) in entries.iter().enumerate() {
                    prop_assert_eq!(&node.entry(position), entry);
                    prop_assert_eq!(node.lower_bound(entry.0.as_bytes()), position);
                    let above = entry.0.successor();
                    prop_assert_eq!(node.lower_bound(above.as_bytes()), position + 1);
                }
                let sizes: usize = (0..node.len()).map(|position| node.entry_size(position)).sum();
                prop_assert_eq!(sizes, node.size());
            }
            Err(error) => prop_assert_eq!(error, NodeError::TooLarge),
        }
    }

    #[test]
    fn opening_never_panics(
        mut raw in proptest::collection::vec(any::<u8>(), 0..200),
        good in any_entry(),
        flip in any::<(u16, u8)>(),
    ) {
        let header = Header::leaf(ObjectKind::Node, KeyEpoch(0));
        let _ = Node::open(raw.clone(), &header);
        if let Some(first) = raw.first_mut() {
            *first = NODE_VERSION;
        }
        let _ = Node::open(raw, &header);
        let (mut raw, header) = node(0, &[entry(&good.0, &good.1)]);
        let at = usize::from(flip.0) % raw.len();
        raw[at] ^= flip.1;
        let _ = Node::open(raw, &header);
    }
}

#[test]
fn names_that_leave_a_directory_are_refused() {
    let value = Value::Entry {
        inode: Inode(5),
        kind: crate::FileKind::File,
    };
    let long = [b'a'; 256];
    for name in [&b""[..], b".", b"..", b"a/b", b"/etc", b"a\0", &long] {
        let key = Key::entry(Inode::ROOT, NameHash::new(9), name);
        let error = refusal(0, &[entry(&key, &value)]);
        assert!(matches!(error, NodeError::Malformed(_)), "{name:?}");
    }
}

#[test]
fn entries_out_of_order_are_refused() {
    let value = attributes(1);
    let (one, two) = (entry(&file(1), &value), entry(&file(2), &value));
    assert_eq!(refusal(0, &[two.clone(), one.clone()]), NodeError::Order);
    assert_eq!(refusal(0, &[one.clone(), one.clone()]), NodeError::Order);
    let data = entry(&Key::extent(Inode(1), 0), &block(1));
    assert_eq!(refusal(0, &[one, data]), NodeError::Order);
    let (a, b) = (child(&file(1), 1), child(&Key::inline(Inode(1)), 2));
    let (raw, header) = node(1, &[a, b]);
    assert!(Node::open(raw, &header).is_ok(), "zones meet above level 0");
    assert_eq!(refusal(1, &[]), NodeError::Order);
}

#[test]
fn headers_must_list_exactly_what_entries_name() {
    let extents: Vec<_> = [7, 8, 7]
        .iter()
        .zip(0u64..)
        .map(|(number, at)| entry(&Key::extent(Inode(1), at << 16), &block(*number)))
        .collect();
    let (raw, header) = node(0, &extents);
    assert_eq!(header.children, [reference(7).id, reference(8).id]);
    assert!(Node::open(raw.clone(), &header).is_ok());
    let other = reference(9).id;
    let (seven, eight) = (header.children[0], header.children[1]);
    for children in [
        vec![],
        vec![seven],
        vec![eight, seven],
        vec![seven, eight, seven],
        vec![seven, eight, other],
        vec![seven, other],
    ] {
        let header = Header {
            children,
            ..header.clone()
        };
        let opened = Node::open(raw.clone(), &header);
        assert_eq!(opened.unwrap_err(), NodeError::Children);
    }
}

#[test]
fn headers_must_be_those_of_a_node_of_its_level() {
    let (raw, header) = node(1, &[child(&file(1), 1)]);
    assert!(Node::open(raw.clone(), &header).is_ok());
    for (kind, level) in [(ObjectKind::Node, 2), (ObjectKind::Trace, 1)] {
        let header = Header {
            kind,
            level,
            ..header.clone()
        };
        let opened = Node::open(raw.clone(), &header);
        assert_eq!(opened.unwrap_err(), NodeError::Level);
    }
    let (mut raw, header) = node(0, &[]);
    assert!(Node::open(raw.clone(), &header).unwrap().is_empty());
    raw[0] = 2;
    assert!(Node::open(raw, &header).is_err());
}

#[test]
fn oversized_nodes_are_refused() {
    let value = Value::Inline(vec![1; 2_000]);
    let entries = |count| {
        let keys = (1..=count).map(|inode| Key::inline(Inode(inode)));
        keys.map(|key| entry(&key, &value)).collect::<Vec<_>>()
    };
    assert_eq!(refusal(0, &entries(40)), NodeError::TooLarge);
    let (raw, header) = node(0, &entries(30));
    assert!(Node::open(raw, &header).is_ok());

    // Below 64 KiB of bytes, but not with 32 for each child.
    let extents: Vec<_> = (0..600)
        .map(|at| entry(&Key::extent(Inode(1), at * BLOCK_SIZE as u64), &block(at)))
        .collect();
    let (raw, _) = node(0, &extents);
    assert!(raw.len() < NODE_LEN_MAX);
    assert_eq!(refusal(0, &extents), NodeError::TooLarge);
}

#[test]
fn cut_short_or_longer_bytes_are_refused() {
    let entries = [
        entry(&file(1), &attributes(1)),
        entry(&file(2), &attributes(2)),
    ];
    let (raw, header) = node(0, &entries);
    for len in 0..raw.len() {
        assert!(Node::open(raw[..len].to_vec(), &header).is_err(), "{len}");
    }
    let longer = [&raw[..], &[0]].concat();
    assert!(Node::open(longer, &header).is_err());
    let mut more = raw;
    more[2] = 200;
    assert!(Node::open(more, &header).is_err());
}
