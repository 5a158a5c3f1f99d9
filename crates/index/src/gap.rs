//! Gaps of a tree: nodes that are lost, what their keys can be, and the tree without them.
//!
//! A parent says which keys lie below each of its children. So a lost node can be cut out of the map without being
//! read: everything above it stays, and the result is the tree that would have been made without those keys. What
//! the map says is another one then, which is why only contents are cut out here: whoever does it knows by the
//! metadata whose they were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use img_seal::{BlockKey, Reference, Sealer};
use img_types::ObjectId;
use img_types::bytes::DecodeError;

use crate::apply::{ApplyError, Edit, apply_by};
use crate::boundary::{Boundary, Rules, entry_size};
use crate::key::{Inode, Key, KeyParts, KeyRange};
use crate::node::{Node, OpenNode};
use crate::tree::{NodeSink, NodeSource, child_node, root_node};
use crate::value::{Extent, Value};

/// A lost node with all that lies below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The lost node.
    pub node: ObjectId,
    level: u8,
    /// The last key before it; nothing if it is the first.
    after: Option<Key>,
    /// Its own last key.
    last: Key,
}

impl Gap {
    /// Finds the lost nodes below a root, as far as the nodes above them are at hand. A lost root has no parent that
    /// says anything about it, and is not found.
    pub fn find(source: &dyn NodeSource, root: &Reference, lost: &BTreeSet<ObjectId>) -> Vec<Self> {
        let mut gaps = Vec::new();
        if let Ok(root) = root_node(source, root) {
            search(source, &root, None, lost, &mut gaps);
        }
        gaps
    }

    /// All keys that the node and its neighbours leave to it.
    pub fn range(&self) -> KeyRange {
        KeyRange {
            start: match &self.after {
                Some(after) => after.successor(),
                None => KeyRange::all().start,
            },
            end: self.last.successor(),
        }
    }

    /// The first and the last inode whose contents may be in it; nothing if it may hold more than contents. Of the
    /// first there may be nothing in it, of the last there is.
    pub fn contents(&self) -> Option<(Inode, Inode)> {
        let last = owner(&self.last)?;
        match self.after.as_ref().map(owner) {
            Some(Some(first)) => Some((first, last)),
            // A leaf never holds two zones.
            _ if self.level == 0 => Some((Inode(0), last)),
            _ => None,
        }
    }

    /// The inodes next to it, which say where in the image it is: of the last key before it, and of its own last.
    pub fn neighbours(&self) -> (Option<Inode>, Option<Inode>) {
        let inode = |key: &Key| match key.parts() {
            KeyParts::Attributes(inode)
            | KeyParts::Symlink(inode)
            | KeyParts::Xattr { inode, .. }
            | KeyParts::Inline(inode)
            | KeyParts::Extent { inode, .. } => Some(inode),
            KeyParts::Entry { parent, .. } => Some(parent),
            KeyParts::OpenUnlinked(_) | KeyParts::Fact(_) | KeyParts::Bound => None,
        };
        (self.after.as_ref().and_then(inode), inode(&self.last))
    }

    /// The bytes of a file's blocks that may be in it: start and exclusive end, `u64::MAX` if it has none.
    pub fn blocks_of(&self, inode: Inode) -> (u64, u64) {
        let behind = |key: &Key| match key.parts() {
            KeyParts::Extent { inode: of, offset } if of == inode => Some(offset + BLOCK),
            KeyParts::Inline(of) if of == inode => Some(BLOCK),
            _ => None,
        };
        let start = self.after.as_ref().and_then(behind);
        let end = behind(&self.last);
        (start.unwrap_or(0), end.unwrap_or(u64::MAX))
    }

    /// A node for each level from the leaf to the lost one, each with one entry: the last key.
    fn stand_ins(&self, number: u32) -> Result<Vec<Arc<Node>>, ApplyError> {
        if self.contents().is_none() {
            return Err(DecodeError("a gap that may hold metadata").into());
        }
        let key = self.last.as_bytes();
        let mut value = Vec::new();
        match self.last.parts() {
            KeyParts::Inline(_) => Value::Inline(vec![1]).encode(&mut value),
            _ => Value::Extent(Extent {
                base: Some(nowhere(number, u8::MAX)),
                patches: Vec::new(),
            })
            .encode(&mut value),
        }
        let mut nodes = Vec::new();
        for level in 0..=self.level {
            let mut open = OpenNode::new(level);
            open.push(key, &value, entry_size(key.len(), value.len(), 1));
            nodes.push(Arc::new(open.finish()?.0));
            value.clear();
            nowhere(number, level).encode(&mut value);
        }
        Ok(nodes)
    }
}

/// Makes the tree without the keys of gaps, which are in order and hold nothing but contents.
///
/// # Errors
/// Other nodes are absent, or as [`apply`](crate::apply()); the old tree stands.
pub fn cut_out(
    gaps: &[Gap],
    source: &dyn NodeSource,
    sink: &mut dyn NodeSink,
    sealer: &mut Sealer,
    boundary: &Boundary,
    root: &Reference,
) -> Result<Reference, ApplyError> {
    cut_out_by(Rules::new(boundary), gaps, source, sink, sealer, root)
}

pub(crate) fn cut_out_by(
    rules: Rules,
    gaps: &[Gap],
    source: &dyn NodeSource,
    sink: &mut dyn NodeSink,
    sealer: &mut Sealer,
    root: &Reference,
) -> Result<Reference, ApplyError> {
    let mut nodes = BTreeMap::new();
    for (number, gap) in (0..).zip(gaps) {
        let levels = gap.stand_ins(number)?;
        if let Some(lost) = levels.last() {
            nodes.insert(gap.node, Arc::clone(lost));
        }
        let below = (0..).zip(levels);
        nodes.extend(below.map(|(level, node)| (nowhere(number, level).id, node)));
    }
    let source = StandIns { source, nodes };
    let edits = gaps.iter().map(|gap| Edit::Clear(gap.range()));
    apply_by(rules, &source, sink, sealer, Some(root), edits)
}

fn search(
    source: &dyn NodeSource,
    node: &Node,
    before: Option<&[u8]>,
    lost: &BTreeSet<ObjectId>,
    gaps: &mut Vec<Gap>,
) {
    if node.level() == 0 {
        return;
    }
    for position in 0..node.len() {
        let after = match position.checked_sub(1) {
            Some(previous) => Some(node.key(previous)),
            None => before,
        };
        let child = node.child(position);
        if lost.contains(&child.id) {
            gaps.push(Gap {
                node: child.id,
                level: node.level() - 1,
                after: after.map(Key::from_checked),
                last: Key::from_checked(node.key(position)),
            });
        } else if node.level() > 1
            && let Ok(child) = child_node(source, node, position)
        {
            search(source, &child, after, lost, gaps);
        }
    }
}

/// The file whose contents a key holds.
fn owner(key: &Key) -> Option<Inode> {
    match key.parts() {
        KeyParts::Inline(inode) | KeyParts::Extent { inode, .. } => Some(inode),
        _ => None,
    }
}

/// A source that has nodes in place of lost ones. All their entries are cleared, so that no new node names them.
struct StandIns<'a> {
    source: &'a dyn NodeSource,
    nodes: BTreeMap<ObjectId, Arc<Node>>,
}

impl NodeSource for StandIns<'_> {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        match self.nodes.get(&reference.id) {
            Some(node) => Some(Arc::clone(node)),
            None => self.source.node(reference),
        }
    }
}

/// Stands for an object that nobody has: ids of objects are hashes.
fn nowhere(gap: u32, level: u8) -> Reference {
    let mut id = [u8::MAX; 32];
    id[..4].copy_from_slice(&gap.to_le_bytes());
    id[4] = level;
    Reference {
        id: ObjectId::from_bytes(id),
        key: BlockKey::from_bytes([0; 32]),
        len: 1,
    }
}

const BLOCK: u64 = img_types::limits::BLOCK_SIZE as u64;
