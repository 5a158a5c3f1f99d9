//! Puts what a walker met and the sealers sealed together into an index.
//!
//! Data goes into the index as it comes, inode by inode. Metadata is kept until the end: a folder's entries
//! are sorted by their hashes, and whether a file is left out is known only when it has been read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

use img_index::{
    Attributes, Boundary, Extent, Fact, FileKind, Inode, Key, Loader, NameHash, NodeSink, Value,
    Xattr, name_hash,
};
use img_seal::{Reference, Sealer};
use img_types::limits::INLINE_LEN_MAX;
use img_types::object::ObjectKind;

use super::feed::{Content, Item, Name, Node, PartError, Stamp};
use super::folder::attributes_of;
use super::sealers::Shared;
use super::{Cancel, ImportError, Imported, Skipped};

pub(super) struct Assembler<'a> {
    loader: Loader<'a>,
    sealer: &'a mut Sealer,
    boundary: &'a Boundary,
    shared: &'a Shared<'a>,
    strict: bool,
    inodes: BTreeMap<Inode, Attributes>,
    entries: Vec<Entry>,
    /// Symlinks and extended attributes.
    others: Vec<(Key, Value)>,
    skipped: Vec<Skipped>,
    /// The file whose parts come.
    reading: Option<Reading>,
}

struct Entry {
    parent: Inode,
    hash: NameHash,
    name: Box<[u8]>,
    inode: Inode,
}

struct Reading {
    node: Box<Node>,
    blocks: Vec<(u64, Reference)>,
    problem: Option<std::io::Error>,
}

impl<'a> Assembler<'a> {
    pub(super) fn new(
        nodes: &'a mut dyn NodeSink,
        leaves: &'a mut Sealer,
        values: &'a mut Sealer,
        boundary: &'a Boundary,
        shared: &'a Shared<'a>,
        strict: bool,
    ) -> Self {
        Self {
            loader: Loader::new(nodes, leaves, boundary),
            sealer: values,
            boundary,
            shared,
            strict,
            inodes: BTreeMap::new(),
            entries: Vec::new(),
            others: Vec::new(),
            skipped: Vec::new(),
            reading: None,
        }
    }

    /// Takes all items and writes the root.
    pub(super) fn run(
        mut self,
        items: Receiver<Item>,
        cancel: &Cancel,
    ) -> Result<Imported, ImportError> {
        let mut complete = false;
        for item in items {
            match item {
                Item::Node(node) => self.node(node)?,
                Item::Part(sealed) => {
                    // Without a sealer there is no answer; one that panicked is reported as such.
                    let sealed = sealed.recv().map_err(|_| ImportError::Cancelled)?;
                    self.part(sealed)?;
                }
                Item::End(stamp) => self.end(stamp)?,
                Item::Link { name, inode, path } => self.link(name, inode, path)?,
                Item::Skip(skipped) => self.skip(skipped)?,
                Item::Complete => complete = true,
            }
        }
        // Without its end, a walk has been ended or has failed.
        if cancel.is_cancelled() || !complete {
            return Err(ImportError::Cancelled);
        }
        self.finish()
    }

    fn node(&mut self, mut node: Box<Node>) -> Result<(), ImportError> {
        match std::mem::replace(&mut node.content, Content::None) {
            Content::None => self.keep(*node),
            Content::Inline(content) => {
                let inode = node.inode;
                self.keep(*node)?;
                if content.iter().any(|byte| *byte != 0) {
                    self.loader
                        .put(&Key::inline(inode), &Value::Inline(content))?;
                }
                Ok(())
            }
            Content::Parts => {
                self.reading = Some(Reading {
                    node,
                    blocks: Vec::new(),
                    problem: None,
                });
                Ok(())
            }
        }
    }

    fn part(&mut self, sealed: super::feed::Sealed) -> Result<(), ImportError> {
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        match sealed {
            Ok(mut blocks) => reading.blocks.append(&mut blocks),
            Err(PartError::Read(error)) => reading.problem = Some(error),
            Err(PartError::Fatal(error)) => return Err(error),
        }
        Ok(())
    }

    fn end(&mut self, stamp: Option<Stamp>) -> Result<(), ImportError> {
        let Some(Reading {
            mut node,
            blocks,
            problem,
        }) = self.reading.take()
        else {
            return Ok(());
        };
        if let Some(problem) = problem {
            return self.skip(Skipped {
                path: node.path,
                reason: format!("could not be read: {problem}"),
            });
        }
        if stamp.is_some_and(|stamp| stamp.has_changed()) {
            self.skip(Skipped {
                path: node.path.clone(),
                reason: "changed while it was read; the image has what was read".into(),
            })?;
        }
        node.attributes.count_extents(blocks.len() as u64);
        for (offset, block) in blocks {
            let extent = Extent {
                base: Some(block),
                patches: Vec::new(),
            };
            let key = Key::extent(node.inode, offset);
            self.loader.put(&key, &Value::Extent(extent))?;
        }
        self.keep(*node)
    }

    fn link(&mut self, name: Name, inode: Inode, path: PathBuf) -> Result<(), ImportError> {
        if self.inodes.contains_key(&inode) {
            self.entry(name, inode);
            return Ok(());
        }
        self.skip(Skipped {
            path,
            reason: "is a hard link to a file that was left out".into(),
        })
    }

    fn skip(&mut self, skipped: Skipped) -> Result<(), ImportError> {
        if self.strict {
            return Err(ImportError::Strict(skipped));
        }
        self.skipped.push(skipped);
        Ok(())
    }

    fn keep(&mut self, node: Node) -> Result<(), ImportError> {
        if let Some(target) = node.symlink {
            self.others
                .push((Key::symlink(node.inode), Value::Symlink(target)));
        }
        for (name, value) in node.xattrs {
            let key = Key::xattr(node.inode, &name);
            let value = self.xattr(value)?;
            self.others.push((key, Value::Xattr(value)));
        }
        self.inodes.insert(node.inode, node.attributes);
        if let Some(name) = node.name {
            self.entry(name, node.inode);
        }
        if node.attributes.kind != FileKind::Directory {
            self.shared.files(1);
        }
        Ok(())
    }

    fn xattr(&mut self, value: Vec<u8>) -> Result<Xattr, ImportError> {
        if value.len() <= INLINE_LEN_MAX {
            return Ok(Xattr::Inline(value));
        }
        let sealed = self.sealer.seal(ObjectKind::Block, &value)?;
        Ok(Xattr::Block(self.shared.push(sealed)?))
    }

    fn entry(&mut self, name: Name, inode: Inode) {
        self.entries.push(Entry {
            parent: name.parent,
            hash: name_hash(self.boundary, &name.name),
            name: name.name,
            inode,
        });
    }

    /// Writes metadata and facts, now that all is known.
    fn finish(mut self) -> Result<Imported, ImportError> {
        self.entries
            .sort_unstable_by(|a, b| (a.parent, a.hash, &a.name).cmp(&(b.parent, b.hash, &b.name)));
        self.others.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.count_links();

        let (mut files, mut logical_bytes) = (0u64, 0u64);
        for attributes in self.inodes.values() {
            match attributes.kind {
                FileKind::Directory => {}
                FileKind::File => {
                    files += 1;
                    logical_bytes = logical_bytes.saturating_add(attributes.size);
                }
                _ => files += 1,
            }
        }
        let last = self.inodes.keys().next_back().copied();
        let next_inode = last.map_or(Inode::ROOT.0, |last| last.0) + 1;
        let put = |loader: &mut Loader<'_>, fact, value| loader.put(&Key::fact(fact), &value);
        put(&mut self.loader, Fact::NextInode, Value::Number(next_inode))?;
        let totals = Value::Totals {
            files,
            logical_bytes,
        };
        put(&mut self.loader, Fact::Totals, totals)?;
        if let Some(Attributes { uid, gid, .. }) = self.inodes.get(&Inode::ROOT).copied() {
            put(&mut self.loader, Fact::Owner, Value::Owner { uid, gid })?;
        }

        let mut entries = self.entries.iter().peekable();
        let mut others = self.others.iter().peekable();
        for (inode, attributes) in &self.inodes {
            let key = Key::attributes(*inode);
            self.loader.put(&key, &Value::Attributes(*attributes))?;
            while let Some(entry) = entries.next_if(|entry| entry.parent <= *inode) {
                let child = self.inodes.get(&entry.inode);
                let Some(child) = child.filter(|_| entry.parent == *inode) else {
                    continue;
                };
                let value = Value::Entry {
                    inode: entry.inode,
                    kind: child.kind,
                };
                let key = Key::entry(entry.parent, entry.hash, &entry.name);
                self.loader.put(&key, &value)?;
            }
            let end = Key::attributes(Inode(inode.0 + 1));
            while let Some((key, value)) = others.next_if(|(key, _)| *key < end) {
                self.loader.put(key, value)?;
            }
        }
        let root = self.loader.finish()?;
        self.shared.check_open()?;
        let (sealed_bytes, objects) = self.shared.sealed();
        Ok(Imported {
            root,
            files,
            logical_bytes,
            sealed_bytes,
            objects,
            skipped: self.skipped,
        })
    }

    /// Links are counted by the names that are in the image: the source may have others elsewhere.
    fn count_links(&mut self) {
        for attributes in self.inodes.values_mut() {
            attributes.nlink = match attributes.kind {
                FileKind::Directory => 2,
                _ => 0,
            };
        }
        for entry in &self.entries {
            let Some(child) = self.inodes.get_mut(&entry.inode) else {
                continue;
            };
            let counted = match child.kind {
                FileKind::Directory => entry.parent,
                _ => entry.inode,
            };
            if let Some(attributes) = self.inodes.get_mut(&counted) {
                attributes.nlink = attributes.nlink.saturating_add(1);
            }
        }
    }
}

impl Stamp {
    fn has_changed(&self) -> bool {
        let Ok(stat) = rustix::fs::fstat(&self.file) else {
            return true;
        };
        let now = attributes_of(&stat, self.attributes.kind);
        (now.size, now.mtime) != (self.attributes.size, self.attributes.mtime)
    }
}
