//! Tells what a source is by what it holds.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use super::members::{BLOCK_LEN, is_header};
use super::{ImportError, SourceKind};

/// Looks at a source before anything is made of it.
///
/// # Errors
/// It cannot be read, is not what was said, or is nothing that an image can be made of.
pub fn look(from: &Path, said: Option<SourceKind>) -> Result<SourceKind, ImportError> {
    let metadata = std::fs::metadata(from).map_err(ImportError::Source)?;
    // Opening a pipe would wait for whoever writes to it, perhaps for ever.
    let kind = metadata.file_type();
    if !(kind.is_dir() || kind.is_file() || kind.is_block_device()) {
        return Err(ImportError::OtherKind("a folder, file or block device"));
    }
    let source = File::open(from).map_err(ImportError::Source)?;
    of(&source, said)
}

/// What a source is, or is to be read as.
pub(super) fn of(source: &File, said: Option<SourceKind>) -> Result<SourceKind, ImportError> {
    let metadata = source.metadata().map_err(ImportError::Source)?;
    let is_folder = metadata.is_dir();
    let kind = match said {
        Some(kind) => kind,
        None if is_folder => SourceKind::Tree,
        None => of_file(source, &metadata)?,
    };
    let is_empty = metadata.is_file() && metadata.len() == 0;
    match kind {
        SourceKind::Tree if !is_folder => Err(ImportError::OtherKind("a folder")),
        SourceKind::Disk if is_folder => Err(ImportError::OtherKind("a disk image")),
        SourceKind::Tar if is_folder => Err(ImportError::OtherKind("a tar")),
        SourceKind::Disk | SourceKind::Tar if is_empty => Err(ImportError::EmptyDisk),
        kind => Ok(kind),
    }
}

fn of_file(source: &File, metadata: &Metadata) -> Result<SourceKind, ImportError> {
    if metadata.is_file() && metadata.len() == 0 {
        return Ok(SourceKind::Disk);
    }
    let mut start = [0; BLOCK_LEN];
    let len = read(source, &mut start).map_err(ImportError::Source)?;
    let start = &start[..len];
    if let Ok(block) = start.try_into()
        && is_header(block)
    {
        return Ok(SourceKind::Tar);
    }
    // Of a device nothing else can be made.
    if !metadata.is_file() {
        return Ok(SourceKind::Disk);
    }
    if let Some((_, what, hint)) = FORMS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return Err(ImportError::Form { what, hint });
    }
    if metadata.len() <= EMPTY_TAR_LEN_MAX as u64 && is_empty_tar(source)? {
        return Ok(SourceKind::Tar);
    }
    let is_text = std::str::from_utf8(start).is_ok_and(|text| {
        !text.contains(|letter: char| letter.is_control() && !letter.is_whitespace())
    });
    if is_text || !metadata.len().is_multiple_of(BLOCK_LEN as u64) {
        return Err(ImportError::Form {
            what: "neither a folder nor a tar, and does not look like a raw disk",
            hint: "With --as disk it becomes the image's only file, disk.img; to keep it as it is, import the folder it lies in.",
        });
    }
    Ok(SourceKind::Disk)
}

/// Whether a file is an archive of nothing: end marks only.
fn is_empty_tar(source: &File) -> Result<bool, ImportError> {
    let mut all = [0; EMPTY_TAR_LEN_MAX];
    let len = read(source, &mut all).map_err(ImportError::Source)?;
    Ok(len.is_multiple_of(BLOCK_LEN) && all[..len].iter().all(|byte| *byte == 0))
}

/// Reads the beginning of a file, as much as there is.
fn read(source: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Zeros up to this length are an archive of nothing, as tars are filled up to whole records; a disk is larger.
const EMPTY_TAR_LEN_MAX: usize = 64 * 1024;
const UNPACK: &str =
    "Unpack it first and import what comes out, or keep it as it is with --as disk.";
const CONVERT: &str = "Make a raw disk of it first: qemu-img convert -O raw FROM TO. With --as disk it is kept as it is.";
/// How files begin that are often taken for a tar or a raw disk, what they are, and the way out.
const FORMS: [(&[u8], &str, &str); 9] = [
    (b"\x1f\x8b", "compressed with gzip", UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (b"BZh", "compressed with bzip2", UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"QFI\xfb", "a disk image in qcow2 form", CONVERT),
    (b"KDMV", "a disk image in VMDK form", CONVERT),
];
