//! Writes a new tree beside an old one, all levels at once, from left to right.
//!
//! Every level merges the sequence of its old entries with what changes: at level 0 the edits, above
//! it the nodes that the level below has cut. It is *in step* while it stands at the left edge of an
//! old node with no entry of a new node open: then the old nodes to the right can stay as they are,
//! and the level moves past them without looking. A change ends that: the level goes to the left edge
//! of the old node in which the change falls, copies, adds and drops entries, and cuts by the rules,
//! until a cut coincides with an old one and it is in step again. What it has written in between takes
//! the place of the old nodes that it has gone over, one level up.
//!
//! An old node may have ended only because of the entry that follows, its neighbour's first. If that
//! one changes, the scan starts one node further left; a node that ended by its own last entry is
//! safe. Likewise a cut in front of an old entry counts only when that entry is known to stay.

use std::sync::Arc;

use img_seal::{BlockKey, Reference, Sealer};
use img_types::ObjectId;
use img_types::bytes::Reader;
use img_types::limits::NODE_LEVEL_MAX;
use img_types::object::ObjectKind;

use crate::apply::ApplyError;
use crate::boundary::{Rules, entry_size};
use crate::cursor::Cursor;
use crate::node::{Node, OpenNode};
use crate::tree::{Absent, NodeSink, NodeSource, ReadError, root_node};

mod level;

pub(crate) use level::Bound;
use level::{Level, Likeness, Place, Trouble};

/// What happens to a node that has been cut.
pub(crate) enum Pen<'a> {
    /// Nothing: cuts depend on keys only, so a dry run meets the same nodes as a real one.
    Dry,
    /// It is sealed.
    Seal {
        sealer: &'a mut Sealer,
        sink: &'a mut dyn NodeSink,
    },
}

pub(crate) struct Writer<'a> {
    rules: Rules,
    source: &'a dyn NodeSource,
    pen: Pen<'a>,
    old_root: Option<Reference>,
    /// The old tree, unless it is empty.
    old: Option<(Reference, Arc<Node>)>,
    levels: Vec<Level>,
    trouble: Trouble,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(
        rules: Rules,
        source: &'a dyn NodeSource,
        old_root: Option<&Reference>,
        pen: Pen<'a>,
    ) -> Result<Self, ReadError> {
        let mut writer = Self::from_nothing(rules, source, pen);
        writer.old_root = old_root.copied();
        if let Some(reference) = old_root {
            let root = root_node(source, reference)?;
            if !root.is_empty() {
                writer.levels = (0..=usize::from(root.level()))
                    .map(|level| Level::new(level, Place::Start))
                    .collect();
                writer.old = Some((*reference, root));
            }
        }
        Ok(writer)
    }

    pub(crate) fn from_nothing(rules: Rules, source: &'a dyn NodeSource, pen: Pen<'a>) -> Self {
        Self {
            rules,
            source,
            pen,
            old_root: None,
            old: None,
            levels: vec![Level::new(0, Place::End)],
            trouble: Trouble::default(),
        }
    }

    pub(crate) fn leaf_ends_before(&self, open: &OpenNode, next: &[u8], size: usize) -> bool {
        open.last().is_some_and(|(last, _)| {
            let node_size = open.size();
            self.rules.cuts_before(0, last, node_size, next, size)
        })
    }

    pub(crate) fn leaf_ends_after(&self, open: &OpenNode, last: &[u8], size: usize) -> bool {
        self.rules.cuts_after(0, last, size, open.size())
    }

    /// Writes a leaf that was filled elsewhere and returns its last key and its reference.
    pub(crate) fn seal_leaf(
        &mut self,
        open: &mut OpenNode,
    ) -> Result<(Vec<u8>, Reference), ApplyError> {
        let last = open.last().map_or_else(Vec::new, |(key, _)| key.to_vec());
        std::mem::swap(&mut self.levels[0].open, open);
        let reference = self.seal(0);
        std::mem::swap(&mut self.levels[0].open, open);
        Ok((last, reference?))
    }

    /// Adds a leaf that was written by [`Self::seal_leaf`].
    pub(crate) fn add_leaf(&mut self, last: &[u8], leaf: &Reference) -> Result<(), ApplyError> {
        self.add_above(0, last, leaf)
    }

    /// Says what was absent so far.
    pub(crate) fn complete(&mut self) -> Result<(), ApplyError> {
        if let Some(id) = self.trouble.misplaced {
            return Err(ApplyError::Misplaced(id));
        }
        if !self.trouble.absent.is_empty() {
            return Err(Absent(std::mem::take(&mut self.trouble.absent)).into());
        }
        Ok(())
    }

    /// Brings all old entries below `key` into the new sequence and goes out of step; false if that
    /// cannot be done because a node is absent.
    pub(crate) fn advance(&mut self, l: usize, key: &[u8]) -> Result<bool, ApplyError> {
        loop {
            let level = &mut self.levels[l];
            if !level.in_step && level.node.is_none() && level.open.is_empty() {
                self.fall_in_step(l)?;
                continue;
            }
            if level.in_step && !self.leave_step(l, key)? {
                return Ok(false);
            }
            let Some(node) = self.load(l) else {
                return Ok(matches!(self.levels[l].place, Place::End));
            };
            if node.key(self.levels[l].next) >= key {
                return Ok(true);
            }
            if !self.copy(l, &node, true)? {
                return Ok(false);
            }
        }
    }

    /// Adds an entry behind what has been brought into the new sequence. True if it was the next old
    /// entry already, which has then been taken over.
    pub(crate) fn append(
        &mut self,
        l: usize,
        key: &[u8],
        value: &[u8],
        size: usize,
    ) -> Result<bool, ApplyError> {
        if l == self.levels.len() {
            self.levels.push(Level::new(l, Place::End));
        }
        let level = &mut self.levels[l];
        level.in_step = false;
        if let Some(node) = &level.node
            && node.raw_entry(level.next) == (key, value)
        {
            let node = node.clone();
            self.copy(l, &node, false)?;
            return Ok(true);
        }
        self.cut_before(l, key, size)?;
        let level = &mut self.levels[l];
        level.likeness = Likeness::None;
        level.open.push(key, value, size);
        self.cut_after(l, key, size)?;
        Ok(false)
    }

    /// Leaves old entries out of the new sequence. Nodes that are covered as a whole are not loaded.
    pub(crate) fn remove(&mut self, l: usize, bound: Bound<'_>) -> Result<(), ApplyError> {
        let Some(level) = self.levels.get_mut(l) else {
            return Ok(());
        };
        level.in_step = false;
        loop {
            let level = &mut self.levels[l];
            if let Some(node) = level.node.clone() {
                let next = node.partition(level.next..node.len(), |key| bound.covers(key));
                if next > level.next && matches!(level.likeness, Likeness::Beginning) {
                    level.likeness = Likeness::None;
                }
                level.next = next;
                if next < node.len() {
                    break;
                }
                let last = node.key(next - 1);
                if !self.step(l) {
                    return Ok(());
                }
                if !bound.reaches_beyond(last) {
                    break;
                }
            } else {
                let Place::At(cursor) = &mut level.place else {
                    break;
                };
                if !bound.covers(cursor.last_key()) {
                    if self.load(l).is_none() {
                        return Ok(());
                    }
                } else if bound.covers(cursor.last_key_of_level()) {
                    level.place = Place::End;
                } else if let Bound::Before(key) | Bound::Through(key) = bound {
                    let moved = cursor.seek(self.source, key);
                    if self.trouble.unless(moved).is_none() {
                        self.levels[l].abandon();
                        return Ok(());
                    }
                    if let Place::At(cursor) = &self.levels[l].place
                        && bound.covers(cursor.last_key())
                        && !self.step(l)
                    {
                        return Ok(());
                    }
                }
            }
        }
        let level = &self.levels[l];
        if level.open.is_empty() && level.at_left_edge() {
            self.fall_in_step(l)?;
        }
        Ok(())
    }

    /// Ends all levels and returns the root.
    pub(crate) fn finish(&mut self) -> Result<Reference, ApplyError> {
        let level = &self.levels[0];
        let untouched = level.in_step && !level.cut && matches!(level.place, Place::Start);
        if let (Some(root), true) = (self.old_root, untouched) {
            return Ok(root);
        }
        for l in 0.. {
            self.settle(l)?;
            if !self.trouble.known.is_empty() || self.trouble.misplaced.is_some() {
                break;
            }
            match self.count_above(l) {
                Count::Many => {}
                Count::None => return self.seal(0),
                Count::One(root) if self.levels[l].sealed => return Ok(root),
                Count::One(root) => return Ok(self.without_single_children(l, root)),
            }
        }
        Ok(placeholder())
    }
}

/// How many entries a level of the new tree has.
enum Count {
    None,
    One(Reference),
    Many,
}

impl Writer<'_> {
    /// Goes to the left edge of the old node in which `key` falls, and out of step.
    fn leave_step(&mut self, l: usize, key: &[u8]) -> Result<bool, ApplyError> {
        let source = self.source;
        let level = &mut self.levels[l];
        let found = match (&level.place, &self.old) {
            (Place::At(cursor), _) => {
                let mut cursor = cursor.clone();
                cursor.seek(source, key).map(|()| cursor)
            }
            (Place::Start, Some((reference, root))) => {
                Cursor::new(source, root, reference, l as u8, key)
            }
            _ => {
                level.in_step = false;
                return Ok(true);
            }
        };
        let found = found.and_then(|cursor| Ok((cursor.node(source)?, cursor)));
        let Some((mut node, mut cursor)) = self.trouble.unless(found) else {
            return Ok(false);
        };
        let level = &self.levels[l];
        if level.is_moved_by(&cursor) && node.first_key().is_some_and(|first| key <= first) {
            let before = self.unsure_neighbour(l, &cursor);
            if let Some(Some(before)) = self.trouble.unless(before) {
                (node, cursor) = before;
            }
        }
        let above = cursor.parent();
        let level = &mut self.levels[l];
        level.kept |= level.is_moved_by(&cursor);
        level.place = Place::At(cursor);
        level.node = Some(node);
        level.next = 0;
        level.likeness = Likeness::None;
        level.in_step = false;
        if let Some((parent, position)) = above {
            self.advance(l + 1, parent.key(position))?;
        }
        Ok(true)
    }

    /// The old node before, unless it ends by its own last entry.
    fn unsure_neighbour(
        &self,
        l: usize,
        cursor: &Cursor,
    ) -> Result<Option<(Arc<Node>, Cursor)>, ReadError> {
        let mut before = cursor.clone();
        if !before.previous(self.source)? {
            return Ok(None);
        }
        if l > 0 {
            // Only a last node is below its minimum, and all entries of a key have one size.
            let key = before.last_key();
            let size = entry_size(key.len(), Reference::LEN, 1);
            if self.rules.cuts_after(l as u8, key, size, usize::MAX) {
                return Ok(None);
            }
        }
        let node = before.node(self.source)?;
        let last = node.len() - 1;
        let (key, size) = (node.key(last), node.entry_size(last));
        let sure = self.rules.cuts_after(l as u8, key, size, node.size());
        Ok((!sure).then_some((node, before)))
    }

    /// Looks into the old node at the place; nothing if there is none, or if it is absent.
    fn load(&mut self, l: usize) -> Option<Arc<Node>> {
        let level = &mut self.levels[l];
        if level.node.is_none()
            && let Place::At(cursor) = &level.place
        {
            level.node = self.trouble.unless(cursor.node(self.source));
            if level.node.is_none() {
                level.abandon();
            }
        }
        level.node.clone()
    }

    /// Goes to the next old node; false if that cannot be done.
    fn step(&mut self, l: usize) -> bool {
        let level = &mut self.levels[l];
        level.node = None;
        level.next = 0;
        if let Place::At(cursor) = &mut level.place {
            match self.trouble.unless(cursor.next(self.source)) {
                Some(true) => {}
                Some(false) => level.place = Place::End,
                None => {
                    level.abandon();
                    return false;
                }
            }
        }
        true
    }

    /// Takes the next old entry over. If `stop` is set and a cut in front of it brings the level in
    /// step, it is left. False if the node after is needed and absent.
    fn copy(&mut self, l: usize, node: &Arc<Node>, stop: bool) -> Result<bool, ApplyError> {
        let next = self.levels[l].next;
        let (key, value) = node.raw_entry(next);
        let size = node.entry_size(next);
        if self.cut_before(l, key, size)? && next == 0 && stop {
            self.fall_in_step(l)?;
            return Ok(true);
        }
        let level = &mut self.levels[l];
        level.likeness = match level.likeness {
            _ if next == 0 && level.open.is_empty() => Likeness::Beginning,
            Likeness::Beginning => Likeness::Beginning,
            _ => Likeness::None,
        };
        level.open.push(key, value, size);
        level.next += 1;
        if level.next == node.len() {
            if let (Likeness::Beginning, Place::At(cursor)) = (level.likeness, &level.place) {
                level.likeness = Likeness::Whole(cursor.reference());
            }
            if !self.step(l) {
                return Ok(false);
            }
        }
        self.cut_after(l, key, size)?;
        let level = &self.levels[l];
        if level.node.is_none() && level.open.is_empty() {
            self.fall_in_step(l)?;
        }
        Ok(true)
    }

    fn cut_before(&mut self, l: usize, next: &[u8], size: usize) -> Result<bool, ApplyError> {
        let open = &self.levels[l].open;
        let cuts = open.last().is_some_and(|(last, _)| {
            self.rules
                .cuts_before(l as u8, last, open.size(), next, size)
        });
        if cuts {
            self.cut(l)?;
        }
        Ok(cuts)
    }

    fn cut_after(&mut self, l: usize, key: &[u8], size: usize) -> Result<(), ApplyError> {
        let node_size = self.levels[l].open.size();
        if self.rules.cuts_after(l as u8, key, size, node_size) {
            self.cut(l)?;
        }
        Ok(())
    }

    /// Ends the open node and adds it to the level above.
    fn cut(&mut self, l: usize) -> Result<(), ApplyError> {
        let level = &mut self.levels[l];
        let Some((last, _)) = level.open.last() else {
            return Ok(());
        };
        let key = last.to_vec();
        level.cut = true;
        let reference = match level.likeness {
            Likeness::Whole(reference) => {
                level.open.clear();
                reference
            }
            Likeness::None | Likeness::Beginning => self.seal(l)?,
        };
        self.levels[l].likeness = Likeness::None;
        self.add_above(l, &key, &reference)
    }

    fn add_above(&mut self, l: usize, last_key: &[u8], node: &Reference) -> Result<(), ApplyError> {
        let mut value = Vec::with_capacity(Reference::LEN);
        node.encode(&mut value);
        let size = entry_size(last_key.len(), value.len(), 1);
        self.append(l + 1, last_key, &value, size)?;
        Ok(())
    }

    fn seal(&mut self, l: usize) -> Result<Reference, ApplyError> {
        let level = &mut self.levels[l];
        level.sealed = true;
        if l > usize::from(NODE_LEVEL_MAX) {
            return Err(ApplyError::TooLarge);
        }
        let Pen::Seal { sealer, sink } = &mut self.pen else {
            level.open.clear();
            return Ok(placeholder());
        };
        let (node, children) = level.open.finish()?;
        let sealed =
            sealer.seal_with_children(ObjectKind::Node, node.level(), children, node.raw())?;
        let reference = sealed.reference;
        sink.put(sealed, Arc::new(node));
        Ok(reference)
    }

    /// Says that from here on the old nodes stay, and that those gone over are replaced.
    fn fall_in_step(&mut self, l: usize) -> Result<(), ApplyError> {
        let level = &mut self.levels[l];
        level.in_step = true;
        level.node = None;
        level.next = 0;
        level.likeness = Likeness::None;
        let above = match &level.place {
            Place::At(cursor) => cursor.parent(),
            Place::Start => None,
            Place::End => return self.remove(l + 1, Bound::End),
        };
        match above {
            Some((parent, position)) => self.remove(l + 1, Bound::Before(parent.key(position))),
            None => Ok(()),
        }
    }

    /// Copies until the level is in step.
    fn settle(&mut self, l: usize) -> Result<(), ApplyError> {
        while !self.levels[l].in_step {
            let level = &self.levels[l];
            if level.open.is_empty() && level.at_left_edge() {
                self.fall_in_step(l)?;
            } else if let Some(node) = self.load(l) {
                self.copy(l, &node, true)?;
            } else if matches!(self.levels[l].place, Place::End) {
                self.cut(l)?;
                self.fall_in_step(l)?;
            }
        }
        // Nothing above the old root knows of it.
        if let Place::At(cursor) = &self.levels[l].place
            && cursor.parent().is_none()
        {
            let (key, reference) = (cursor.last_key().to_vec(), cursor.reference());
            self.add_above(l, &key, &reference)?;
        }
        Ok(())
    }

    /// Counts the entries above a level that has settled: its nodes.
    fn count_above(&mut self, l: usize) -> Count {
        let Some(level) = self.levels.get(l + 1) else {
            return Count::None;
        };
        if level.cut || level.kept {
            return Count::Many;
        }
        let Place::At(cursor) = &level.place else {
            return match (level.open.len(), level.open.last()) {
                (0, _) | (_, None) => Count::None,
                (1, Some((_, value))) => Count::One(decoded(value)),
                _ => Count::Many,
            };
        };
        // At least one old entry follows.
        if !level.open.is_empty() || !cursor.is_last() {
            return Count::Many;
        }
        let next = level.next;
        let node = match &level.node {
            Some(node) => Some(node.clone()),
            None => self.trouble.unless(cursor.node(self.source)),
        };
        match node {
            Some(node) if next + 1 == node.len() => Count::One(node.child(next)),
            _ => Count::Many,
        }
    }

    /// Goes down from an old node as long as it has a single child: the root is the first level with
    /// one node.
    fn without_single_children(&mut self, mut l: usize, mut root: Reference) -> Reference {
        while l > 0 {
            let loaded = root_node(self.source, &root);
            match self.trouble.unless(loaded) {
                Some(node) if node.level() > 0 && node.len() == 1 => root = node.child(0),
                _ => break,
            }
            l -= 1;
        }
        root
    }
}

fn decoded(value: &[u8]) -> Reference {
    Reference::decode(&mut Reader::new(value))
        .expect("a level above another is only given references")
}

/// Stands for a node that a dry run does not seal.
fn placeholder() -> Reference {
    Reference {
        id: ObjectId::from_bytes([0; 32]),
        key: BlockKey::from_bytes([0; 32]),
        len: 0,
    }
}
