//! A step of a proof of possession, as a home answers it.
#![no_main]

use img_index::Proof;
use img_types::ObjectId;
use img_types::bytes::Reader;
use img_types::object::Step;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    let Ok(step) = Step::decode(&mut reader) else {
        return;
    };
    let mut record = Vec::new();
    step.encode(&mut record);
    let (read, object) = bytes.split_at(bytes.len() - reader.remaining());
    assert_eq!(record, read);

    // Nobody can invent a parent's id: no such proof may hold.
    let parent = ObjectId::from_bytes([0; 32]);
    assert!(!step.proof.verify(parent, step.child));
    let proof = Proof {
        steps: vec![step],
        object: object.to_vec(),
    };
    assert!(proof.verify(parent, &[0; 32]).is_err());
});
