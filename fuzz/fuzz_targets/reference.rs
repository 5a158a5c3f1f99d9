//! A reference: what it takes to fetch and open an object.
#![no_main]

use img_seal::Reference;
use img_types::bytes::Reader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(reference) = Reference::decode(&mut Reader::new(bytes)) {
        let mut record = Vec::new();
        reference.encode(&mut record);
        assert_eq!(record, bytes[..Reference::LEN]);
    }
});
