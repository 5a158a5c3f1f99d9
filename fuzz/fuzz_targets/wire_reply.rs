//! A reply, as a home that lies may send it.
#![no_main]

use img_proto::Reply;
use img_proto::frame::REPLY_LEN_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    img_fuzz::message::<Reply>(bytes, REPLY_LEN_MAX);
});
