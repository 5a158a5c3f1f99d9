//! A change, as the journal of a checkout holds it.
#![no_main]

use img_overlay::Change;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(change) = Change::decode(bytes) {
        let mut record = Vec::new();
        change.encode(&mut record);
        assert_eq!(record, bytes);
    }
});
