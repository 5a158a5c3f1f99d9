//! The signed record of an image descriptor.
#![no_main]

use img_records::Descriptor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(signed) = img_fuzz::signed::<Descriptor>(bytes) {
        let clear = signed.record.clear_bytes();
        assert!(signed.record_bytes().starts_with(&clear));
    }
});
