//! Segment files of the cache: records while a segment grows, a table behind them once it is full.
//!
//! A segment without a table, or with one that does not verify, is read record by record. The magic of its
//! footer is `imgsegm1`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use img_types::ObjectId;

use crate::StoreError;
use crate::record::{self, HEADER_LEN};
use crate::spool::sync_parent;
use crate::table::{ENTRY_LEN, FOOTER_LEN, Footer, Place, Table};

const MAGIC: [u8; 8] = *b"imgsegm1";
const EXTENSION: &str = "segment";

/// Numbers of segments rise with their age; the numbers of removed ones are not used again while the
/// process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SegmentNumber(pub(super) u32);

/// A segment as it was found on disk.
pub(super) struct Found {
    pub(super) file: File,
    pub(super) records: Vec<(ObjectId, Place)>,
    /// Length of the file.
    pub(super) len: u64,
    pub(super) sealed: bool,
}

impl SegmentNumber {
    pub(super) fn path(self, folder: &Path) -> PathBuf {
        folder.join(format!("{:08x}.{EXTENSION}", self.0))
    }
}

/// The segments in a folder, oldest first.
pub(super) fn list(folder: &Path) -> io::Result<Vec<SegmentNumber>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| u32::from_str_radix(stem, 16).ok());
        if let (Some(number), true) = (number, path.extension() == Some(EXTENSION.as_ref())) {
            numbers.push(SegmentNumber(number));
        }
    }
    numbers.sort();
    Ok(numbers)
}

pub(super) fn create(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    sync_parent(path)?;
    Ok(file)
}

/// Opens a segment and cuts what a crash has torn.
pub(super) fn open(path: &Path) -> Result<Found, StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    if let Some(table) = read_table(&file)? {
        return Ok(Found {
            file,
            records: table.entries().to_vec(),
            len,
            sealed: true,
        });
    }
    let scan = record::scan(&file)?;
    if scan.corrupt > 0 {
        tracing::warn!(path = %path.display(), objects = scan.corrupt, "damaged objects in the cache");
    }
    file.set_len(scan.end)?;
    Ok(Found {
        file,
        records: scan.records,
        len: scan.end,
        sealed: false,
    })
}

/// Writes the table behind the records; returns the file's new length.
pub(super) fn seal(file: &File, end: u64, table: &Table) -> io::Result<u64> {
    let tail = table.encode(end, MAGIC);
    file.write_all_at(&tail, end)?;
    Ok(end + tail.len() as u64)
}

/// The table of a sealed segment; nothing if there is none that verifies.
pub(super) fn read_table(file: &File) -> io::Result<Option<Table>> {
    let len = file.metadata()?.len();
    let mut bytes = [0; FOOTER_LEN];
    let Some(footer_start) = len.checked_sub(FOOTER_LEN as u64) else {
        return Ok(None);
    };
    file.read_exact_at(&mut bytes, footer_start)?;
    let Ok(footer) = Footer::decode(&bytes, len, MAGIC) else {
        return Ok(None);
    };
    let entries_len = usize::try_from(footer.entries_len()).expect("checked against the file");
    let mut entries = vec![0; entries_len];
    file.read_exact_at(&mut entries, footer.start)?;
    Ok(Table::decode(footer, &entries).ok())
}

/// Bytes of an object and its header.
pub(super) fn record_len(object_len: usize) -> u64 {
    (HEADER_LEN + object_len) as u64
}

/// Bytes that an object adds to a segment, its entry in the table included.
pub(super) fn room_for(object_len: usize) -> u64 {
    record_len(object_len) + ENTRY_LEN as u64
}

/// Bytes of a table.
pub(super) fn table_len(entries: usize) -> u64 {
    (entries * ENTRY_LEN + FOOTER_LEN) as u64
}
