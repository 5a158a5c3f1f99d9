//! An entry of the home's log.
#![no_main]

use img_records::LogEntry;
use img_types::bytes::Reader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    if let Ok(entry) = LogEntry::decode(&mut reader) {
        assert_eq!(bytes.len() - reader.remaining(), LogEntry::LEN);
        let mut record = Vec::new();
        entry.encode(&mut record);
        assert_eq!(record, bytes[..LogEntry::LEN]);
    }
});
