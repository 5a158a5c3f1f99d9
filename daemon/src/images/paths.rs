//! Paths in JSON, without loss.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Value, json};

/// Adds a path to an object: as text, escaped where it is not UTF-8, and then its bytes as well.
pub(crate) fn with_path(mut object: Value, path: &Path) -> Value {
    let bytes = path.as_os_str().as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) => object["path"] = json!(text),
        Err(_) => {
            object["path"] = json!(escape(bytes));
            object["path_b64"] = json!(data_encoding::BASE64.encode(bytes));
        }
    }
    object
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn paths_that_are_not_utf_8_are_escaped_and_exact() {
        let found = with_path(json!({}), Path::new("grün\\x"));
        assert_eq!(found, json!({ "path": "grün\\x" }));
        let path = Path::new(OsStr::from_bytes(b"a\\b\xff"));
        let found = with_path(json!({}), path);
        assert_eq!(found["path"], "a\\\\b\\xff");
        assert_eq!(found["path_b64"], "YVxi/w==");
    }
}
