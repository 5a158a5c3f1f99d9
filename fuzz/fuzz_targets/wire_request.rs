//! A request, as any machine that reaches the home may send it.
#![no_main]

use img_proto::Request;
use img_proto::frame::REQUEST_LEN_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    img_fuzz::message::<Request>(bytes, REQUEST_LEN_MAX);
});
