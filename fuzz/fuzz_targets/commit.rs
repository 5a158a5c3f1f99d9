//! The signed record of a commit.
#![no_main]

use img_records::Commit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(signed) = img_fuzz::signed::<Commit>(bytes) {
        let clear = signed.record.clear_bytes();
        assert!(signed.record_bytes().starts_with(&clear));
    }
});
