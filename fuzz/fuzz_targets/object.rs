//! The clear form of a stored object, and proofs about its children.
#![no_main]

use img_types::bytes::Reader;
use img_types::object::{ChildProof, Parsed, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(object) = Parsed::decode(bytes) else {
        return;
    };
    assert_eq!(
        [&object.header.encode()[..], object.ciphertext].concat(),
        bytes
    );
    let id = object.id();
    assert_eq!(verify(id, bytes).as_ref(), Ok(&object));

    let children = &object.header.children;
    let position = usize::from(object.ciphertext[0]);
    match children.get(position) {
        Some(child) => {
            let proof = ChildProof::new(&object, position as u32).expect("the child exists");
            let mut record = Vec::new();
            proof.encode(&mut record);
            let decoded = ChildProof::decode(&mut Reader::new(&record));
            assert_eq!(decoded.as_ref(), Ok(&proof));
            assert!(proof.verify(id, *child));
        }
        None => assert!(ChildProof::new(&object, position as u32).is_err()),
    }
});
