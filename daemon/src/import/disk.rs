//! Reads a raw disk: one large file, its holes left out.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use img_index::{Attributes, FileKind, Inode};
use rustix::fs::{FileType, fstat};

use super::feed::{Content, Ended, Feed, Item, Name, Node, Stamp};
use super::folder::attributes_of;
use super::{DISK_NAME, ImportError};

/// Hands on a root folder with the disk in it.
pub(super) fn read(feed: &mut Feed<'_>, mut disk: File) -> Result<(), ImportError> {
    let stat = fstat(&disk).map_err(|error| ImportError::Source(error.into()))?;
    let mut attributes = attributes_of(&stat, FileKind::File);
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file {
        // A device has no size of its own; what cannot be measured is no disk.
        attributes.size = disk.seek(SeekFrom::End(0)).map_err(ImportError::Source)?;
        attributes.mode = 0o600;
    }
    if attributes.size == 0 {
        return Err(ImportError::EmptyDisk);
    }
    feed.shared.set_total(attributes.size);
    let is_sparse = is_file && (stat.st_blocks as u64).saturating_mul(512) < attributes.size;
    // Nobody listens any more: whoever ended the import knows why.
    let _ended = hand_on(feed, disk, attributes, is_sparse, is_file);
    Ok(())
}

fn hand_on(
    feed: &mut Feed<'_>,
    disk: File,
    attributes: Attributes,
    is_sparse: bool,
    is_file: bool,
) -> Result<(), Ended> {
    let root = feed.number();
    feed.send(Item::Node(Box::new(Node {
        inode: root,
        name: None,
        attributes: Attributes {
            kind: FileKind::Directory,
            mode: 0o755,
            size: 0,
            ..attributes
        },
        symlink: None,
        xattrs: Vec::new(),
        content: Content::None,
        path: PathBuf::new(),
    })))?;
    let inode: Inode = feed.number();
    feed.send(Item::Node(Box::new(Node {
        inode,
        name: Some(Name {
            parent: root,
            name: DISK_NAME.as_bytes().into(),
        }),
        attributes,
        symlink: None,
        xattrs: Vec::new(),
        content: Content::Parts,
        path: PathBuf::from(DISK_NAME),
    })))?;
    let disk = Arc::new(disk);
    feed.parts(&disk, attributes.size, is_sparse)?;
    let stamp = Stamp {
        file: disk,
        attributes,
    };
    feed.send(Item::End(is_file.then_some(stamp)))
}
