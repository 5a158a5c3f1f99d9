//! Between the disk in memory and a folder of this machine.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Attributes, Body, Bytes, Disk, Entry, Names, Node, ROOT};

impl Disk {
    /// Copies a folder; all of it is durable.
    ///
    /// # Errors
    /// It cannot be read, or holds what is neither file, folder nor link.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut disk = Self {
            entries: BTreeMap::new(),
            changes: Vec::new(),
            next: ROOT,
        };
        disk.take(folder)?;
        Ok(disk)
    }

    fn take(&mut self, path: &Path) -> Result<Node> {
        let metadata = path
            .symlink_metadata()
            .with_context(|| path.display().to_string())?;
        let node = self.next;
        self.next += 1;
        let kind = metadata.file_type();
        let body = if kind.is_dir() {
            let mut now = BTreeMap::new();
            for child in fs::read_dir(path)? {
                let child = child?;
                now.insert(child.file_name(), self.take(&child.path())?);
            }
            let durable = now.clone();
            Body::Folder(Names { now, durable })
        } else if kind.is_file() {
            let now = fs::read(path)?;
            let durable = now.clone();
            let pending = Vec::new();
            Body::File(Bytes {
                now,
                durable,
                pending,
            })
        } else if kind.is_symlink() {
            Body::Link(fs::read_link(path)?)
        } else {
            bail!("{} is of a kind that no state has", path.display());
        };
        let entry = Entry {
            attributes: attributes(&metadata)?,
            name: path.file_name().unwrap_or(OsStr::new("/")).to_owned(),
            body,
        };
        self.entries.insert(node, entry);
        Ok(node)
    }
}

fn attributes(metadata: &Metadata) -> Result<Attributes> {
    Ok(Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.modified()?,
    })
}
