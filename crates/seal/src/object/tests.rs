use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use img_types::object::HEADER_LEN;
use proptest::prelude::*;

use super::*;
use crate::keys::HomeSecret;
use crate::packing::pack_with_level;

fn ring() -> KeyRing {
    KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([3; 32]))
}

fn samples() -> Vec<Sealed> {
    let mut sealer = ring().sealer();
    let text = b"to be or not to be ".repeat(200);
    let block = sealer.seal(ObjectKind::Block, &text).unwrap();
    let patch = sealer.seal(ObjectKind::Patch, b"few bytes").unwrap();
    let children = vec![block.reference.id, patch.reference.id];
    let node = sealer
        .seal_with_children(ObjectKind::Node, 1, children.clone(), b"node")
        .unwrap();
    let trace = sealer
        .seal_with_children(ObjectKind::Trace, 0, children, b"")
        .unwrap();
    vec![block, patch, node, trace]
}

#[test]
fn every_bit_flip_is_caught_by_the_id_alone() {
    for mut sealed in samples() {
        let id = sealed.reference.id;
        for bit in 0..sealed.bytes.len() * 8 {
            sealed.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(object::verify(id, &sealed.bytes).is_err(), "bit {bit}");
            sealed.bytes[bit / 8] ^= 1 << (bit % 8);
        }
        object::verify(id, &sealed.bytes).unwrap();
    }
}

#[test]
fn equal_contents_meet_within_a_home_and_nowhere_else() {
    let other = KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([4; 32]));
    let later = KeyRing::new(KeyEpoch(1), HomeSecret::from_bytes([3; 32]));
    let seal = |ring: &KeyRing| ring.sealer().seal(ObjectKind::Block, b"content").unwrap();
    assert_eq!(seal(&ring()), seal(&ring()));
    assert_ne!(seal(&ring()).reference.id, seal(&other).reference.id);
    assert_ne!(seal(&ring()).reference.key, seal(&other).reference.key);
    assert_ne!(seal(&ring()).reference.id, seal(&later).reference.id);
}

#[test]
fn kind_level_and_children_separate_equal_contents() {
    let mut sealer = ring().sealer();
    let child = ObjectId::from_bytes([1; 32]);
    let mut keys = vec![
        sealer.seal(ObjectKind::Block, b"x").unwrap().reference.key,
        sealer.seal(ObjectKind::Patch, b"x").unwrap().reference.key,
    ];
    for (level, children) in [
        (0, vec![]),
        (1, vec![]),
        (1, vec![child]),
        (1, vec![child; 2]),
    ] {
        let node = sealer.seal_with_children(ObjectKind::Node, level, children, b"x");
        keys.push(node.unwrap().reference.key);
    }
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count);
}

/// The reason for taking the key from the packed bytes: were it taken from the raw content, two
/// compressors would encrypt two messages under one key and one nonce.
#[test]
fn two_settings_of_the_compressor_never_meet_under_one_key() {
    let ring = ring();
    let content = ring.content(KeyEpoch(0)).unwrap();
    let words = ["lease ", "home ", "block ", "commit ", "roster ", "index "];
    let text: String = (0..9_000usize).map(|n| words[n * n % 7 % 6]).collect();
    let raw = &text.as_bytes()[..40_000];
    let aad = associated(
        Header::leaf(ObjectKind::Block, KeyEpoch(0)).encode(),
        40_000,
    );
    let packed: Vec<_> = [-5, 1, 3, 6, 12, 19]
        .iter()
        .map(|&level| pack_with_level(raw, level))
        .collect();
    let mut different = 0;
    for (n, one) in packed.iter().enumerate() {
        for other in &packed[..n] {
            let same_key = block_key(content, &aad, one) == block_key(content, &aad, other);
            assert_eq!(same_key, one == other);
            different += usize::from(one != other);
        }
    }
    assert!(
        different >= 5,
        "the levels must differ for this to mean anything"
    );
}

#[test]
fn ring_and_the_reference_cipher_give_the_same_bytes() {
    for sealed in samples() {
        let Reference { key, len, .. } = sealed.reference;
        let parsed = object::Parsed::decode(&sealed.bytes).unwrap();
        let aad = associated(parsed.header.encode(), len);
        let reference = ChaCha20Poly1305::new(key.as_bytes().into());
        let zero = [0; 12].into();
        let msg = parsed.ciphertext;
        let packed = reference
            .decrypt(&zero, Payload { msg, aad: &aad })
            .unwrap();
        let again = reference.encrypt(
            &zero,
            Payload {
                msg: &packed,
                aad: &aad,
            },
        );
        assert_eq!(again.unwrap(), parsed.ciphertext);
    }
}

/// Seals `packed` as a member who does not keep to the format could.
fn forge(packed: &[u8], len: u32, key: Option<BlockKey>) -> (Reference, Vec<u8>) {
    let ring = ring();
    let header = Header::leaf(ObjectKind::Block, KeyEpoch(0));
    let aad = associated(header.encode(), len);
    let key = key.unwrap_or_else(|| block_key(ring.content(KeyEpoch(0)).unwrap(), &aad, packed));
    let mut bytes = [header.encode(), packed.to_vec()].concat();
    let tag = cipher(&key)
        .seal_in_place_separate_tag(nonce(), Aad::from(&aad), &mut bytes[HEADER_LEN..])
        .unwrap();
    bytes.extend_from_slice(tag.as_ref());
    let id = header.object_id(&bytes[HEADER_LEN..]);
    (Reference { id, key, len }, bytes)
}

#[test]
fn forged_objects_are_refused_for_the_right_reason() {
    let refused = |packed: &[u8], len, key| {
        let (reference, bytes) = forge(packed, len, key);
        open(&ring(), &reference, &bytes).unwrap_err()
    };
    let good = pack_with_level(b"hello", 1);
    let (reference, bytes) = forge(&good, 5, None);
    assert_eq!(open(&ring(), &reference, &bytes).unwrap().raw, b"hello");
    assert_eq!(
        refused(&good, 5, Some(BlockKey::from_bytes([9; 32]))),
        OpenError::Forged("key is not its content's")
    );
    assert_eq!(
        refused(&good, 4, None),
        OpenError::Forged("padding is not zero")
    );
    assert_eq!(
        refused(&good, 70_000, None),
        OpenError::Forged("length beyond its kind")
    );
    let mut reference = reference;
    reference.len = 6;
    assert_eq!(
        open(&ring(), &reference, &bytes),
        Err(OpenError::Forged("wrong tag"))
    );
}

#[test]
fn other_keys_and_other_bytes_are_told_apart() {
    let sealed = &samples()[0];
    let later = KeyRing::new(KeyEpoch(1), HomeSecret::from_bytes([3; 32]));
    assert_eq!(
        open(&later, &sealed.reference, &sealed.bytes),
        Err(OpenError::KeyEpochUnknown(KeyEpoch(0)))
    );
    assert!(matches!(
        open(&ring(), &sealed.reference, &samples()[1].bytes),
        Err(OpenError::Stored(VerifyError::Mismatch))
    ));
    assert!(matches!(
        open(&ring(), &sealed.reference, b""),
        Err(OpenError::Stored(VerifyError::Malformed(_)))
    ));
}

#[test]
fn limits_of_each_kind() {
    let mut sealer = ring().sealer();
    let mut fits = |kind, level, children: usize, len: usize| {
        let children = vec![ObjectId::from_bytes([0; 32]); children];
        let sealed = sealer.seal_with_children(kind, level, children, &vec![0; len]);
        if let Ok(sealed) = &sealed {
            let opened = open(&ring(), &sealed.reference, &sealed.bytes).unwrap();
            assert_eq!(opened.raw.len(), len);
        }
        sealed.is_ok()
    };
    assert!(fits(ObjectKind::Block, 0, 0, BLOCK_SIZE));
    assert!(!fits(ObjectKind::Block, 0, 0, BLOCK_SIZE + 1));
    assert!(!fits(ObjectKind::Block, 1, 0, 1));
    assert!(!fits(ObjectKind::Patch, 0, 1, 1));
    assert!(fits(ObjectKind::Patch, 0, 0, PATCH_LEN_MAX));
    assert!(fits(
        ObjectKind::Node,
        NODE_LEVEL_MAX,
        NODE_CHILDREN_MAX,
        NODE_LEN_MAX
    ));
    assert!(!fits(ObjectKind::Node, NODE_LEVEL_MAX + 1, 0, 1));
    assert!(!fits(ObjectKind::Node, 1, NODE_CHILDREN_MAX + 1, 1));
    assert!(fits(ObjectKind::Trace, 0, TRACE_LEN_MAX, 0));
    assert!(!fits(ObjectKind::Trace, 0, TRACE_LEN_MAX + 1, 0));
}

proptest! {
    #[test]
    fn round_trips(
        unit in proptest::collection::vec(any::<u8>(), 0..700),
        times in 1usize..90,
        children in 0usize..40,
    ) {
        let raw = unit.repeat(times);
        let children = vec![ObjectId::from_bytes([8; 32]); children];
        let mut sealer = ring().sealer();
        let sealed = sealer
            .seal_with_children(ObjectKind::Node, 2, children.clone(), &raw)
            .unwrap();
        let opened = open(&ring(), &sealed.reference, &sealed.bytes).unwrap();
        prop_assert_eq!(opened.raw, raw);
        prop_assert_eq!(opened.header.children, children);
        prop_assert_eq!(opened.header.level, 2);
    }

    #[test]
    fn opening_never_panics(
        packed in proptest::collection::vec(any::<u8>(), 256),
        method in 0u8..3,
        len in 0u32..70_000,
    ) {
        let mut packed = packed;
        packed[0] = method;
        let (reference, bytes) = forge(&packed, len, None);
        let _ = open(&ring(), &reference, &bytes);
    }
}
