//! The text of an invite, as people paste it.
#![no_main]

use data_encoding::BASE64URL_NOPAD;
use img_records::AnyInvite;
use libfuzzer_sys::fuzz_target;

const PREFIXES: [&str; 2] = ["imgctl-invite-", "imgctl-found-"];

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, body)) = bytes.split_first() else {
        return;
    };
    match PREFIXES.get(usize::from(kind)) {
        Some(prefix) => read(&line(prefix, body)),
        None => {
            if let Ok(text) = std::str::from_utf8(body) {
                read(text);
            }
        }
    }
});

/// A line whose check holds.
fn line(prefix: &str, body: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("imgctl invite check v1");
    hasher.update(prefix.as_bytes()).update(body);
    let check = hasher.finalize();
    let body = [body, &check.as_bytes()[..4]].concat();
    format!("{prefix}{}", BASE64URL_NOPAD.encode(&body))
}

fn read(text: &str) {
    if let Ok(invite) = text.parse::<AnyInvite>() {
        assert_eq!(invite.to_string(), text.trim());
    }
}
