//! The content of an index node, under the header that its entries ask for.
#![no_main]

use img_index::{Key, Node, NodeError, Value};
use img_seal::Reference;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::object::{Header, ObjectKind};
use img_types::{KeyEpoch, ObjectId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    let mut header = Header {
        kind: ObjectKind::Node,
        level: raw.get(1).copied().unwrap_or(0),
        key_epoch: KeyEpoch(0),
        children: named(raw).unwrap_or_default(),
    };
    let Ok(node) = Node::open(raw.to_vec(), &header) else {
        return;
    };
    assert_eq!(encode(&node, raw), raw);
    header.children.push(ObjectId::from_bytes([0x5a; 32]));
    assert_eq!(Node::open(raw.to_vec(), &header), Err(NodeError::Children));
});

/// The distinct ids that the entries name, by first occurrence.
fn named(raw: &[u8]) -> Result<Vec<ObjectId>, DecodeError> {
    let mut ids = Vec::new();
    entries(raw, |level, key, value| {
        let references = if level == 0 {
            let value = Value::decode(&Key::decode(key)?, value)?;
            value.references().copied().collect()
        } else {
            vec![Reference::decode(&mut Reader::new(value))?]
        };
        for reference in references {
            if !ids.contains(&reference.id) {
                ids.push(reference.id);
            }
        }
        Ok(())
    })?;
    Ok(ids)
}

/// Writes an opened node again; keys of children are not shown, so they come from `raw`.
fn encode(node: &Node, raw: &[u8]) -> Vec<u8> {
    let mut record = vec![1, node.level()];
    record.put_u16(node.len() as u16);
    let mut position = 0;
    entries(raw, |level, key, _| {
        let mut value = Vec::new();
        let key = if level == 0 {
            let (key, decoded) = node.entry(position);
            decoded.encode(&mut value);
            key.as_bytes().to_vec()
        } else {
            node.child(position).encode(&mut value);
            key.to_vec()
        };
        record.put_u16(key.len() as u16);
        record.put_u16(value.len() as u16);
        record.extend_from_slice(&key);
        record.extend_from_slice(&value);
        position += 1;
        Ok(())
    })
    .expect("the node was opened from these bytes");
    assert_eq!(position, node.len());
    record
}

fn entries(
    raw: &[u8],
    mut each: impl FnMut(u8, &[u8], &[u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let mut reader = Reader::new(raw);
    reader.u8()?;
    let level = reader.u8()?;
    for _ in 0..reader.u16()? {
        let key_len = usize::from(reader.u16()?);
        let value_len = usize::from(reader.u16()?);
        let key = reader.take(key_len)?;
        each(level, key, reader.take(value_len)?)?;
    }
    Ok(())
}
