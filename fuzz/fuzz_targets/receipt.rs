//! The signed record of a receipt.
#![no_main]

use img_records::Receipt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    img_fuzz::signed::<Receipt>(bytes);
});
