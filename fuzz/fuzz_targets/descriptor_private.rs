//! The sealed part of a descriptor, after it was opened.
#![no_main]

use img_records::DescriptorPrivate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(private) = DescriptorPrivate::decode(bytes) {
        assert_eq!(private.encode(), bytes);
    }
});
