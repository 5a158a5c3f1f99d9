//! The sealed part of a commit, after it was opened.
#![no_main]

use img_records::CommitPrivate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(private) = CommitPrivate::decode(bytes) {
        assert_eq!(private.encode()[..], *bytes);
    }
});
