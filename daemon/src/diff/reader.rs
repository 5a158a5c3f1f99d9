//! Two states as a thread reads them that may wait: what is absent is fetched before it goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use img_index::{
    Absent, Attributes, Difference, Extent, FileKind, Inode, Key, KeyParts, KeyRange, ReadError,
    Value, Xattr,
};
use img_proto::Class;
use img_seal::Reference;
use img_types::KeyEpoch;
use tokio::runtime::Handle;

use super::DiffError;
use crate::block::read_block;
use crate::import::Cancel;
use crate::objects::Objects;

pub(super) struct Reader<'a> {
    objects: &'a Arc<Objects>,
    runtime: &'a Handle,
    cancel: &'a Cancel,
    class: Class,
    /// Whether equal contents have equal references: they have within one key epoch.
    one_epoch: bool,
}

/// A part of a file's contents, zeros behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Zeros,
    Inline(Vec<u8>),
    Block(Extent),
}

impl Part {
    pub(super) fn of(value: Option<Value>) -> Self {
        match value {
            Some(Value::Inline(content)) => Self::Inline(content),
            Some(Value::Extent(extent)) => Self::Block(extent),
            _ => Self::Zeros,
        }
    }

    /// The object that is the whole part.
    fn plain(&self) -> Option<&Reference> {
        match self {
            Self::Block(extent) if extent.patches.is_empty() => extent.base.as_ref(),
            _ => None,
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        objects: &'a Arc<Objects>,
        runtime: &'a Handle,
        cancel: &'a Cancel,
        class: Class,
    ) -> Self {
        Self {
            objects,
            runtime,
            cancel,
            class,
            one_epoch: objects.keyring().newest() == KeyEpoch(0),
        }
    }

    /// Attributes of an inode that has a name.
    pub(super) fn attributes(
        &self,
        root: &Reference,
        inode: Inode,
    ) -> Result<Option<Attributes>, DiffError> {
        Ok(named(self.value(root, &Key::attributes(inode))?))
    }

    pub(super) fn range(
        &self,
        root: &Reference,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Value)>, DiffError> {
        self.with_nodes(|| img_index::range(self.objects.as_ref(), root, range, limit))
    }

    /// The differences of a range, one after the other.
    pub(super) fn differences(
        &'a self,
        before: Reference,
        after: Reference,
        range: KeyRange,
    ) -> Differences<'a> {
        Differences {
            reader: self,
            before,
            after,
            rest: Some(range),
            ready: VecDeque::new(),
        }
    }

    /// Whether two parts of one place have the same content. Only what may be the same by other references is read.
    pub(super) fn same(&self, before: &Part, after: &Part) -> Result<bool, DiffError> {
        if before == after {
            return Ok(true);
        }
        if self.one_epoch && before.plain().is_some() && after.plain().is_some() {
            return Ok(false);
        }
        let (before, after) = (self.content(before)?, self.content(after)?);
        let both = before.len().min(after.len());
        let zeros = |rest: &[u8]| rest.iter().all(|byte| *byte == 0);
        Ok(before[..both] == after[..both] && zeros(&before[both..]) && zeros(&after[both..]))
    }

    pub(super) fn same_xattr(&self, before: &Value, after: &Value) -> Result<bool, DiffError> {
        let (Value::Xattr(Xattr::Block(before)), Value::Xattr(Xattr::Block(after))) =
            (before, after)
        else {
            return Ok(before == after);
        };
        let block = |base: &Reference| {
            Part::Block(Extent {
                base: Some(*base),
                patches: Vec::new(),
            })
        };
        Ok(before.len == after.len && self.same(&block(before), &block(after))?)
    }

    /// Whether two inodes have the same extended attributes.
    pub(super) fn same_xattrs(
        &self,
        before: (&Reference, Inode),
        after: (&Reference, Inode),
    ) -> Result<bool, DiffError> {
        let of = |(root, inode)| self.range(root, &KeyRange::xattrs(inode), XATTRS_MAX);
        let (before, after) = (of(before)?, of(after)?);
        if before.len() != after.len() {
            return Ok(false);
        }
        for ((was_key, was), (is_key, is)) in before.iter().zip(&after) {
            // The inode in the keys differs.
            let same_name = match (was_key.parts(), is_key.parts()) {
                (KeyParts::Xattr { name: was, .. }, KeyParts::Xattr { name: is, .. }) => was == is,
                _ => false,
            };
            if !same_name || !self.same_xattr(was, is)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether two inodes of one kind and size have the same contents, or lead to the same place.
    pub(super) fn same_contents(
        &self,
        before: (&Reference, Inode),
        after: (&Reference, Inode),
        kind: FileKind,
    ) -> Result<bool, DiffError> {
        match kind {
            FileKind::Symlink => {
                let of = |(root, inode)| self.value(root, &Key::symlink(inode));
                Ok(of(before)? == of(after)?)
            }
            FileKind::File => self.same_files(before, after),
            _ => Ok(true),
        }
    }

    fn same_files(
        &self,
        before: (&Reference, Inode),
        after: (&Reference, Inode),
    ) -> Result<bool, DiffError> {
        let (mut was, mut is) = (Parts::new(self, before), Parts::new(self, after));
        loop {
            let at = match (was.offset()?, is.offset()?) {
                (None, None) => return Ok(true),
                (Some(at), None) | (None, Some(at)) => at,
                (Some(was), Some(is)) => was.min(is),
            };
            if !self.same(&was.take(at), &is.take(at))? {
                return Ok(false);
            }
        }
    }

    fn value(&self, root: &Reference, key: &Key) -> Result<Option<Value>, DiffError> {
        self.with_nodes(|| img_index::get(self.objects.as_ref(), root, key))
    }

    fn content(&self, part: &Part) -> Result<Bytes, DiffError> {
        Ok(match part {
            Part::Zeros => Bytes::new(),
            Part::Inline(content) => Bytes::copy_from_slice(content),
            Part::Block(extent) => {
                let read = read_block(self.objects, extent, self.class);
                self.runtime.block_on(read)?
            }
        })
    }

    /// Repeats a call until all nodes that it needs are at hand.
    fn with_nodes<T>(&self, call: impl Fn() -> Result<T, ReadError>) -> Result<T, DiffError> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(DiffError::Cancelled);
            }
            match call() {
                Ok(found) => return Ok(found),
                Err(ReadError::Misplaced(id)) => return Err(DiffError::Misplaced(id)),
                Err(ReadError::Absent(Absent(nodes))) => {
                    let fetched = self.objects.fetch_nodes(&nodes, self.class);
                    self.runtime.block_on(fetched)?;
                }
            }
        }
    }
}

/// Differences in the order of their keys; a bounded number is in memory.
pub(super) struct Differences<'a> {
    reader: &'a Reader<'a>,
    before: Reference,
    after: Reference,
    rest: Option<KeyRange>,
    ready: VecDeque<Difference>,
}

impl Differences<'_> {
    pub(super) fn peek(&mut self) -> Result<Option<&Difference>, DiffError> {
        while self.ready.is_empty()
            && let Some(range) = self.rest.take()
        {
            let objects = self.reader.objects.as_ref();
            let (before, after) = (&self.before, &self.after);
            let page = self.reader.with_nodes(|| {
                img_index::diff(objects, before, after, &range, DIFFERENCES_AT_ONCE)
            })?;
            self.ready = page.differences.into();
            self.rest = page.next.map(|start| KeyRange { start, ..range });
        }
        Ok(self.ready.front())
    }

    /// The next one, if `wanted` says so of its key.
    pub(super) fn next_if(
        &mut self,
        wanted: impl FnOnce(&Key) -> bool,
    ) -> Result<Option<Difference>, DiffError> {
        let is_wanted = self.peek()?.is_some_and(|next| wanted(&next.key));
        Ok(if is_wanted {
            self.ready.pop_front()
        } else {
            None
        })
    }
}

/// The parts of one file, in order; a bounded number is in memory.
struct Parts<'a> {
    reader: &'a Reader<'a>,
    root: &'a Reference,
    rest: Option<KeyRange>,
    ready: VecDeque<(u64, Part)>,
}

impl<'a> Parts<'a> {
    fn new(reader: &'a Reader<'a>, (root, inode): (&'a Reference, Inode)) -> Self {
        Self {
            reader,
            root,
            rest: Some(KeyRange::data(inode)),
            ready: VecDeque::new(),
        }
    }

    /// Where the next part begins.
    fn offset(&mut self) -> Result<Option<u64>, DiffError> {
        while self.ready.is_empty()
            && let Some(range) = self.rest.take()
        {
            let page = self.reader.range(self.root, &range, DIFFERENCES_AT_ONCE)?;
            if page.len() == DIFFERENCES_AT_ONCE
                && let Some((last, _)) = page.last()
            {
                let start = last.successor();
                self.rest = Some(KeyRange { start, ..range });
            }
            let parts = page.into_iter().map(|(key, value)| match key.parts() {
                KeyParts::Extent { offset, .. } => (offset, Part::of(Some(value))),
                _ => (0, Part::of(Some(value))),
            });
            self.ready = parts.collect();
        }
        Ok(self.ready.front().map(|(offset, _)| *offset))
    }

    /// The part at an offset.
    fn take(&mut self, at: u64) -> Part {
        match self.ready.front() {
            Some((offset, _)) if *offset == at => {
                let taken = self.ready.pop_front();
                taken.map_or(Part::Zeros, |(_, part)| part)
            }
            _ => Part::Zeros,
        }
    }
}

/// The attributes of what can be found by a name.
pub(super) fn named(value: Option<Value>) -> Option<Attributes> {
    match value {
        Some(Value::Attributes(attributes)) if attributes.nlink > 0 => Some(attributes),
        _ => None,
    }
}

/// All metadata of an image.
pub(super) fn metadata() -> KeyRange {
    KeyRange {
        start: KeyRange::open_unlinked().end,
        end: KeyRange::data(Inode(0)).start,
    }
}

/// Contents of all files.
pub(super) fn data() -> KeyRange {
    KeyRange {
        start: metadata().end,
        end: KeyRange::all().end,
    }
}

/// Differences, or parts of a file, that are looked for together: some hundred kilobytes.
const DIFFERENCES_AT_ONCE: usize = 1_024;
/// Extended attributes of one inode: the kernel lists no more than 64 KiB of names.
const XATTRS_MAX: usize = 64 * 1024;
