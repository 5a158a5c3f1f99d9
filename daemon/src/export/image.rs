//! An image as a thread reads it that may wait: what is absent is fetched before it goes on.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use img_index::{
    Absent, Attributes, Boundary, Extent, Fact, FileKind, Inode, Key, KeyParts, KeyRange, Patch,
    ReadError, Value, Xattr, get, name_hash, range,
};
use img_proto::Class;
use img_seal::Reference;
use img_types::limits::BLOCK_SIZE;
use tokio::runtime::Handle;

use super::ExportError;
use crate::objects::Objects;

pub(super) struct Image<'a> {
    objects: &'a Arc<Objects>,
    runtime: &'a Handle,
    root: Reference,
    boundary: Boundary,
}

/// A name of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: Vec<u8>,
    pub(super) inode: Inode,
    pub(super) kind: FileKind,
}

/// All of an inode but its contents.
#[derive(Debug, Clone)]
pub(super) struct Metadata {
    pub(super) attributes: Attributes,
    pub(super) symlink: Vec<u8>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Contents of a file, where there are some.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// The beginning of the file.
    Inline(Vec<u8>),
    /// The block at an offset.
    Block(u64, Extent),
}

impl Piece {
    /// Where in the file it begins.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Self::Inline(_) => 0,
            Self::Block(offset, _) => *offset,
        }
    }
}

impl<'a> Image<'a> {
    pub(super) fn new(
        objects: &'a Arc<Objects>,
        runtime: &'a Handle,
        root: Reference,
        boundary: Boundary,
    ) -> Self {
        Self {
            objects,
            runtime,
            root,
            boundary,
        }
    }

    /// What stands at a path from the image's top.
    pub(super) fn find(&self, path: &Path) -> Result<Found, ExportError> {
        let mut found = Found {
            name: Vec::new(),
            inode: Inode::ROOT,
            kind: FileKind::Directory,
        };
        let names = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
        for name in names.filter(|name| !matches!(name, [] | [b'.'])) {
            let key = Key::entry(found.inode, name_hash(&self.boundary, name), name);
            let Some(Value::Entry { inode, kind }) = self.value(&key)? else {
                return Err(ExportError::NoSuchPath);
            };
            found = Found {
                name: name.to_vec(),
                inode,
                kind,
            };
        }
        Ok(found)
    }

    /// The file in a folder that holds nothing else.
    pub(super) fn only_file(&self, folder: &Found) -> Result<Option<Found>, ExportError> {
        let (mut entries, _) = self.entries(folder.inode, None, 2)?;
        let only = if entries.len() == 1 {
            entries.pop()
        } else {
            None
        };
        Ok(only.filter(|entry| entry.kind == FileKind::File))
    }

    /// Entries of a folder, behind those that a call before ended with, and where they end; nothing if
    /// there are no more.
    pub(super) fn entries(
        &self,
        folder: Inode,
        after: Option<Key>,
        limit: usize,
    ) -> Result<(Vec<Found>, Option<Key>), ExportError> {
        let mut wanted = KeyRange::entries(folder);
        if let Some(after) = after {
            wanted.start = after;
        }
        let listed = self.range(&wanted, limit)?;
        let end = match listed.last() {
            Some((last, _)) if listed.len() == limit => Some(last.successor()),
            _ => None,
        };
        let entries = listed.into_iter().filter_map(|(key, value)| {
            let (KeyParts::Entry { name, .. }, Value::Entry { inode, kind }) = (key.parts(), value)
            else {
                return None;
            };
            let name = name.to_vec();
            Some(Found { name, inode, kind })
        });
        Ok((entries.collect(), end))
    }

    pub(super) fn metadata(&self, of: &Found) -> Result<Option<Metadata>, ExportError> {
        let Some(Value::Attributes(attributes)) = self.value(&Key::attributes(of.inode))? else {
            return Ok(None);
        };
        let symlink = match attributes.kind {
            FileKind::Symlink => match self.value(&Key::symlink(of.inode))? {
                Some(Value::Symlink(target)) => target,
                _ => return Ok(None),
            },
            _ => Vec::new(),
        };
        let mut xattrs = Vec::new();
        for (key, value) in self.range(&KeyRange::xattrs(of.inode), XATTRS_MAX)? {
            if let (KeyParts::Xattr { name, .. }, Value::Xattr(value)) = (key.parts(), value) {
                let value = match value {
                    Xattr::Inline(value) => value,
                    Xattr::Block(reference) => self.object(&reference)?.to_vec(),
                };
                xattrs.push((name.to_vec(), value));
            }
        }
        Ok(Some(Metadata {
            attributes,
            symlink,
            xattrs,
        }))
    }

    /// Pieces of a file from an offset on, and where to go on.
    pub(super) fn pieces(
        &self,
        file: Inode,
        after: Option<Key>,
        limit: usize,
    ) -> Result<(Vec<Piece>, Option<Key>), ExportError> {
        let mut wanted = KeyRange::data(file);
        if let Some(after) = after {
            wanted.start = after;
        }
        let listed = self.range(&wanted, limit)?;
        let end = match listed.last() {
            Some((last, _)) if listed.len() == limit => Some(last.successor()),
            _ => None,
        };
        let pieces = listed
            .into_iter()
            .filter_map(|(key, value)| match (key.parts(), value) {
                (KeyParts::Inline(_), Value::Inline(content)) => Some(Piece::Inline(content)),
                (KeyParts::Extent { offset, .. }, Value::Extent(extent)) => {
                    Some(Piece::Block(offset, extent))
                }
                _ => None,
            });
        Ok((pieces.collect(), end))
    }

    /// The contents of pieces, in order; zeros follow each up to the block's end. What is absent is fetched
    /// together, and nothing stays in memory.
    pub(super) fn contents(&self, pieces: &[Piece]) -> Result<Vec<Bytes>, ExportError> {
        let plain = |piece: &Piece| match piece {
            Piece::Block(_, extent) if extent.patches.is_empty() => extent.base,
            _ => None,
        };
        let references: Vec<_> = pieces.iter().filter_map(plain).collect();
        let sealed = self.objects.sealed(&references, Class::Hydrate);
        let mut sealed = self.runtime.block_on(sealed)?.into_iter();
        let contents = pieces.iter().map(|piece| match (piece, plain(piece)) {
            (Piece::Inline(content), _) => Ok(Bytes::copy_from_slice(content)),
            (Piece::Block(_, extent), None) => self.block(extent),
            (Piece::Block(..), Some(reference)) => {
                let sealed = sealed.next().unwrap_or_default();
                match self.objects.open_block(&reference, &sealed) {
                    Some(content) => Ok(content),
                    // Damaged on this disk, perhaps: then it is fetched anew.
                    None => self.object(&reference),
                }
            }
        });
        contents.collect()
    }

    /// The contents of a block; zeros follow up to its end.
    pub(super) fn block(&self, extent: &Extent) -> Result<Bytes, ExportError> {
        let base = match &extent.base {
            Some(base) => self.object(base)?,
            None => Bytes::new(),
        };
        if extent.patches.is_empty() {
            return Ok(base);
        }
        let mut block = Box::new([0; BLOCK_SIZE]);
        block[..base.len()].copy_from_slice(&base);
        for patch in &extent.patches {
            let content = self.object(&patch.reference)?;
            Patch::decode(&content)?.apply(patch.section, &mut block)?;
        }
        Ok(Bytes::copy_from_slice(&block[..]))
    }

    /// Sum of the sizes of all files.
    pub(super) fn logical_bytes(&self) -> Result<u64, ExportError> {
        match self.value(&Key::fact(Fact::Totals))? {
            Some(Value::Totals { logical_bytes, .. }) => Ok(logical_bytes),
            _ => Ok(0),
        }
    }

    fn object(&self, reference: &Reference) -> Result<Bytes, ExportError> {
        if let Some(content) = self.objects.load_block(reference) {
            return Ok(content);
        }
        let fetched = self.objects.block(reference, Class::Hydrate);
        Ok(self.runtime.block_on(fetched)?)
    }

    fn value(&self, key: &Key) -> Result<Option<Value>, ExportError> {
        self.with_nodes(|| get(self.objects.as_ref(), &self.root, key))
    }

    fn range(&self, wanted: &KeyRange, limit: usize) -> Result<Vec<(Key, Value)>, ExportError> {
        self.with_nodes(|| range(self.objects.as_ref(), &self.root, wanted, limit))
    }

    /// Repeats a call until all nodes that it needs are at hand.
    fn with_nodes<T>(&self, call: impl Fn() -> Result<T, ReadError>) -> Result<T, ExportError> {
        loop {
            match call() {
                Ok(found) => return Ok(found),
                Err(ReadError::Misplaced(id)) => return Err(ExportError::Misplaced(id)),
                Err(ReadError::Absent(Absent(nodes))) => {
                    let fetched = self.objects.fetch_nodes(&nodes, Class::Hydrate);
                    self.runtime.block_on(fetched)?;
                }
            }
        }
    }
}

/// Extended attributes of one inode: the kernel lists no more than 64 KiB of names.
const XATTRS_MAX: usize = 64 * 1024;
