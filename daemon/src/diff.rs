//! What differs between two states of an image, by path.
//!
//! Reads the two indexes and nothing that they share, so that time goes with the difference and not with the image;
//! contents only where their references do not tell. Memory is bounded: differences come in pages, and are told in
//! batches whose paths are looked for together ([`names`]). It knows nothing of commits and checkouts: a state is the
//! root of an index. Blocks: for a thread that may, within a runtime that fetches.

mod moves;
mod names;
mod reader;
#[cfg(test)]
mod tests;
mod touched;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use img_index::{Attributes, Difference, FileKind, Inode, KeyParts, KeyRange};
use img_proto::Class;
use img_seal::Reference;
use img_types::ObjectId;
use tokio::runtime::Handle;

use crate::import::Cancel;
use crate::objects::{FetchError, Objects};
pub use touched::touched;

use moves::{Moves, Target, entry};
use names::{Name, Names};
use reader::{Differences, Part, Reader, data, metadata, named};

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// In the second state; of what was removed, in the first. From the image's top, without a slash.
    pub path: PathBuf,
    /// In the second state; of what was removed, in the first.
    pub kind: FileKind,
    /// What became of it.
    pub how: How,
}

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Only the second state has it.
    Added,
    /// Only the first state has it.
    Removed,
    /// Both have it, not alike.
    Modified(What),
    /// The same file has another path than this one in the first state; and perhaps it is not alike.
    Renamed(PathBuf, What),
}

/// In what something differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct What {
    /// It is of another kind: a folder instead of a file.
    pub kind: bool,
    /// Contents of a file, target of a symlink, number of a device.
    pub content: bool,
    /// Permissions.
    pub mode: bool,
    /// User or group.
    pub owner: bool,
    /// When the contents changed last.
    pub times: bool,
    /// Extended attributes, access lists among them.
    pub xattrs: bool,
}

/// Why a comparison ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A part of a state cannot be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A state does not verify.
    #[error("object {0} is not the node that its parent says")]
    Misplaced(ObjectId),
    /// A state does not hang together.
    #[error("inode {0} is in no folder")]
    Nameless(u64),
    /// Nobody listens any more.
    #[error("the comparison was ended")]
    Cancelled,
}

/// Tells what differs between two roots. A batch is in the order of its paths; most comparisons are one batch.
///
/// What is open but has no name any more is not told of. A folder whose only change is that things came or went in it
/// is not either: they are.
///
/// # Errors
/// A part of a state cannot be had or does not verify, or `tell` says that nobody listens.
pub fn diff(
    objects: &Arc<Objects>,
    runtime: &Handle,
    before: Reference,
    after: Reference,
    cancel: &Cancel,
    tell: &mut dyn FnMut(Change) -> Result<(), DiffError>,
) -> Result<(), DiffError> {
    let reader = Reader::new(objects, runtime, cancel, Class::Hydrate);
    Comparison {
        moves: Moves::find(&reader, before, after)?,
        reader: &reader,
        before,
        after,
        found: Vec::new(),
    }
    .run(tell)
}

struct Comparison<'a> {
    reader: &'a Reader<'a>,
    before: Reference,
    after: Reference,
    moves: Moves,
    /// What is to be told, without its paths.
    found: Vec<Found>,
}

/// A difference whose paths are not known yet.
enum Found {
    Added(Name, FileKind),
    Removed(Name, FileKind),
    Renamed(Name, Name, FileKind, What),
    /// The name stands for something else now.
    Replaced(Name, FileKind, What),
    /// Every name of an inode that it had before.
    Modified(Inode, Attributes, What),
}

impl Comparison<'_> {
    fn run(
        mut self,
        tell: &mut dyn FnMut(Change) -> Result<(), DiffError>,
    ) -> Result<(), DiffError> {
        let mut meta = self.reader.differences(self.before, self.after, metadata());
        let mut contents = self.reader.differences(self.before, self.after, data());
        loop {
            let next = [meta.peek()?, contents.peek()?];
            let next = next.into_iter().flatten().filter_map(inode_of).min();
            let Some(inode) = next else {
                return self.tell_found(tell);
            };
            self.inode(inode, &mut meta, &mut contents, tell)?;
        }
    }

    /// Goes through all differences of one inode.
    fn inode(
        &mut self,
        inode: Inode,
        meta: &mut Differences<'_>,
        contents: &mut Differences<'_>,
        tell: &mut dyn FnMut(Change) -> Result<(), DiffError>,
    ) -> Result<(), DiffError> {
        let of = |range: KeyRange| move |key: &img_index::Key| range.contains(key);
        let of_meta = of(KeyRange::inode_metadata(inode));
        let of_contents = of(KeyRange::data(inode));
        let mut attributes = None;
        let (mut entries, mut others) = (false, What::default());
        while let Some(difference) = meta.next_if(&of_meta)? {
            match difference.key.parts() {
                KeyParts::Attributes(_) => {
                    attributes = Some((named(difference.before), named(difference.after)));
                }
                KeyParts::Entry { .. } => {
                    entries = true;
                    if let Some((name, was, is)) = entry(&difference) {
                        self.entry(name, was, is)?;
                    }
                    if self.found.len() >= FOUND_MAX {
                        self.tell_found(tell)?;
                    }
                }
                KeyParts::Xattr { .. } => {
                    others.xattrs = others.xattrs || !self.same_xattr(&difference)?;
                }
                _ => others.content = true,
            }
        }
        let (was, is) = match attributes {
            Some(both) => both,
            None => {
                let is = self.reader.attributes(&self.after, inode)?;
                (is, is)
            }
        };
        let (Some(was), Some(is)) = (was, is) else {
            // Its entries tell that it came or went, or it has no name.
            while contents.next_if(&of_contents)?.is_some() {}
            return Ok(());
        };
        let mut what = What::between(&was, &is).and(others);
        if self.differ(contents, &of_contents, what.content)? {
            what.content = true;
        }
        if entries && is.kind == FileKind::Directory {
            what.times = false;
        }
        if what != What::default() {
            self.found.push(Found::Modified(inode, is, what));
        }
        if self.found.len() >= FOUND_MAX {
            self.tell_found(tell)?;
        }
        Ok(())
    }

    /// Takes the differences of a file's contents; tells whether any is one. Nothing is read if that is `known`.
    fn differ(
        &self,
        contents: &mut Differences<'_>,
        of: &dyn Fn(&img_index::Key) -> bool,
        known: bool,
    ) -> Result<bool, DiffError> {
        let mut differ = known;
        // A small file's contents may have moved from or to the extent that follows here.
        let mut inline = (Part::Zeros, Part::Zeros);
        while let Some(difference) = contents.next_if(of)? {
            if differ {
                continue;
            }
            let is_inline = matches!(difference.key.parts(), KeyParts::Inline(_));
            let mut parts = (Part::of(difference.before), Part::of(difference.after));
            if is_inline {
                inline = parts;
                continue;
            }
            let (was, is) = std::mem::replace(&mut inline, (Part::Zeros, Part::Zeros));
            if parts.0 == Part::Zeros {
                parts.0 = was;
            }
            if parts.1 == Part::Zeros {
                parts.1 = is;
            }
            differ = !self.reader.same(&parts.0, &parts.1)?;
        }
        Ok(differ || !self.reader.same(&inline.0, &inline.1)?)
    }

    /// A directory entry came, went, or names something else now.
    fn entry(&mut self, name: Name, was: Target, is: Target) -> Result<(), DiffError> {
        let gone = was.filter(|(inode, _)| self.moves.to(*inode, &name).is_none());
        if let Some((inode, kind)) = is
            && let Some(from) = self.moves.from(inode, &name).cloned()
        {
            let what = self.between(inode, inode)?;
            self.found.push(Found::Renamed(from, name, kind, what));
            return Ok(());
        }
        match (gone, is) {
            (Some((before, _)), Some((after, kind))) => {
                let what = self.between(before, after)?;
                if what != What::default() {
                    self.found.push(Found::Replaced(name, kind, what));
                }
            }
            (Some((_, kind)), None) => self.found.push(Found::Removed(name, kind)),
            (None, Some((_, kind))) => self.found.push(Found::Added(name, kind)),
            (None, None) => {}
        }
        Ok(())
    }

    /// In what an inode of the second state differs from one of the first.
    fn between(&self, before: Inode, after: Inode) -> Result<What, DiffError> {
        let reader = self.reader;
        let was = reader.attributes(&self.before, before)?;
        let is = reader.attributes(&self.after, after)?;
        let (Some(was), Some(is)) = (was, is) else {
            return Ok(What::default());
        };
        let mut what = What::between(&was, &is);
        if what.kind {
            return Ok(what);
        }
        if before == after {
            let mut meta = reader.differences(self.before, self.after, KeyRange::xattrs(after));
            while !what.xattrs
                && let Some(difference) = meta.next_if(|_| true)?
            {
                what.xattrs = !self.same_xattr(&difference)?;
            }
            if !what.content {
                let mut contents =
                    reader.differences(self.before, self.after, KeyRange::data(after));
                what.content = self.differ(&mut contents, &|_| true, false)?;
            }
            if is.kind == FileKind::Directory {
                // Where its parent is stands in the line itself, and what came or went in it in others.
                what.times = false;
            }
            return Ok(what);
        }
        what.xattrs = !reader.same_xattrs((&self.before, before), (&self.after, after))?;
        what.content = what.content
            || !reader.same_contents((&self.before, before), (&self.after, after), is.kind)?;
        Ok(what)
    }

    fn same_xattr(&self, difference: &Difference) -> Result<bool, DiffError> {
        match (&difference.before, &difference.after) {
            (Some(before), Some(after)) => self.reader.same_xattr(before, after),
            _ => Ok(false),
        }
    }

    /// Finds the paths of what was found, and tells it.
    fn tell_found(
        &mut self,
        tell: &mut dyn FnMut(Change) -> Result<(), DiffError>,
    ) -> Result<(), DiffError> {
        let found = std::mem::take(&mut self.found);
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        for found in &found {
            match found {
                Found::Added(name, _) | Found::Replaced(name, ..) => {
                    after.entry(name.parent).or_insert(1);
                }
                Found::Removed(name, _) => {
                    before.entry(name.parent).or_insert(1);
                }
                Found::Renamed(from, to, ..) => {
                    before.entry(from.parent).or_insert(1);
                    after.entry(to.parent).or_insert(1);
                }
                Found::Modified(inode, attributes, _) => {
                    after.insert(*inode, names_of(attributes));
                }
            }
        }
        let before = Names::find(self.reader, &self.before, &self.moves.gone, &before)?;
        let after = Names::find(self.reader, &self.after, &self.moves.come, &after)?;
        let path = |names: &Names, name: &Name| {
            let path = names.path(name);
            path.ok_or(DiffError::Nameless(name.parent.0))
        };
        let mut changes = Vec::with_capacity(found.len());
        for found in found {
            let (path, kind, how) = match found {
                Found::Added(name, kind) => (path(&after, &name)?, kind, How::Added),
                Found::Removed(name, kind) => (path(&before, &name)?, kind, How::Removed),
                Found::Replaced(name, kind, what) => {
                    (path(&after, &name)?, kind, How::Modified(what))
                }
                Found::Renamed(from, to, kind, what) => {
                    let from = path(&before, &from)?;
                    (path(&after, &to)?, kind, How::Renamed(from, what))
                }
                Found::Modified(inode, attributes, what) => {
                    let kind = attributes.kind;
                    if inode == Inode::ROOT {
                        let (path, how) = (PathBuf::from("."), How::Modified(what));
                        changes.push(Change { path, kind, how });
                    } else if after.of(inode).next().is_none() {
                        return Err(DiffError::Nameless(inode.0));
                    }
                    // A name that is new has a line of its own.
                    for name in after
                        .of(inode)
                        .filter(|name| !self.moves.has_come(inode, name))
                    {
                        let (path, how) = (path(&after, name)?, How::Modified(what));
                        changes.push(Change { path, kind, how });
                    }
                    continue;
                }
            };
            changes.push(Change { path, kind, how });
        }
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes.into_iter().try_for_each(tell)
    }
}

impl What {
    /// In what attributes differ. A number of links follows from the entries, and that an inode changed at all from
    /// the rest.
    fn between(was: &Attributes, is: &Attributes) -> Self {
        let sized = is.kind == FileKind::File;
        Self {
            kind: was.kind != is.kind,
            content: was.rdev != is.rdev || (sized && was.size != is.size),
            mode: was.mode != is.mode,
            owner: (was.uid, was.gid) != (is.uid, is.gid),
            times: was.mtime != is.mtime,
            xattrs: false,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            kind: self.kind || other.kind,
            content: self.content || other.content,
            mode: self.mode || other.mode,
            owner: self.owner || other.owner,
            times: self.times || other.times,
            xattrs: self.xattrs || other.xattrs,
        }
    }

    /// Words for it.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        let words = [
            (self.kind, "kind"),
            (self.content, "content"),
            (self.mode, "mode"),
            (self.owner, "owner"),
            (self.times, "times"),
            (self.xattrs, "xattrs"),
        ];
        words
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, word)| word)
    }
}

/// How many names an inode has; of the root, none that could be found.
fn names_of(attributes: &Attributes) -> usize {
    match attributes.kind {
        FileKind::Directory => 1,
        _ => usize::try_from(attributes.nlink).unwrap_or(usize::MAX),
    }
}

fn inode_of(difference: &Difference) -> Option<Inode> {
    match difference.key.parts() {
        KeyParts::Attributes(inode)
        | KeyParts::Symlink(inode)
        | KeyParts::Inline(inode)
        | KeyParts::Xattr { inode, .. }
        | KeyParts::Extent { inode, .. } => Some(inode),
        KeyParts::Entry { parent, .. } => Some(parent),
        KeyParts::Fact(_) | KeyParts::OpenUnlinked(_) | KeyParts::Bound => None,
    }
}

/// Differences whose paths are looked for together: some megabytes.
const FOUND_MAX: usize = 16_384;
