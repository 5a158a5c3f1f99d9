//! A joining device's request.
#![no_main]

use img_records::JoinRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = JoinRequest::decode(bytes) {
        assert_eq!(record.encode(), bytes);
    }
});
