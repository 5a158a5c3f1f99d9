//! The signed record of a roster entry.
#![no_main]

use img_records::RosterEntry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    img_fuzz::signed::<RosterEntry>(bytes);
});
