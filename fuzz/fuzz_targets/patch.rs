//! The content of a patch object.
#![no_main]

use img_index::Patch;
use img_types::limits::BLOCK_SIZE;
use libfuzzer_sys::fuzz_target;

/// Sections that are laid over a block; each takes 64 KiB of work.
const APPLIED_MAX: u16 = 4;

fuzz_target!(|bytes: &[u8]| {
    let Ok(patch) = Patch::decode(bytes) else {
        return;
    };
    assert_eq!(patch.encoded_len(), bytes.len());
    assert_eq!(patch.encode().as_deref(), Ok(bytes));
    let mut block = Box::new([0xee; BLOCK_SIZE]);
    for section in 0..=APPLIED_MAX {
        let exists = usize::from(section) < patch.sections.len();
        assert_eq!(patch.apply(section, &mut block).is_ok(), exists);
    }
});
