//! An inviter's answer.
#![no_main]

use img_records::JoinAnswer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = JoinAnswer::decode(bytes) {
        assert_eq!(record.encode(), bytes);
    }
});
