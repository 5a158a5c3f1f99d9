//! Reading a tree whose nodes come one by one.

use std::sync::Arc;

use img_seal::{KeyRing, Reference, Sealed, open};
use img_types::ObjectId;

use crate::key::{Key, KeyRange};
use crate::node::{Node, NodeError};
use crate::value::Value;

/// Has opened nodes at hand.
pub trait NodeSource {
    /// Gives the node, or nothing if it is not at hand.
    ///
    /// A call that was told [`Absent`] is repeated from its beginning, so what has been fetched for
    /// it must stay at hand until then. [`apply`](crate::apply()) reads every node that it touches,
    /// each at least twice: behind it belongs a source that can read the disk.
    fn node(&self, reference: &Reference) -> Option<Arc<Node>>;
}

/// Takes the nodes that [`apply`](crate::apply()) writes, children before their parents.
pub trait NodeSink {
    /// Takes one node, sealed and opened.
    fn put(&mut self, sealed: Sealed, node: Arc<Node>);
}

/// Names the nodes that must be at hand before the call can be repeated; distinct, never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} nodes of the index are not at hand", .0.len())]
pub struct Absent(pub Vec<Reference>);

/// Says why a tree could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nodes must be fetched first.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// The object is a sound node in a place where it does not belong: corruption.
    #[error("object {0} is not the node that its parent says")]
    Misplaced(ObjectId),
}

/// Opens a stored node and checks it.
///
/// # Errors
/// The bytes are not the reference's object, or that is no node; either is corruption, except for a
/// key epoch that this device does not know yet.
pub fn open_node(keys: &KeyRing, reference: &Reference, bytes: &[u8]) -> Result<Node, NodeError> {
    let opened = open(keys, reference, bytes)?;
    Node::open(opened.raw, &opened.header)
}

/// Finds the value of a key.
///
/// # Errors
/// A node on the way is absent or misplaced.
pub fn get(
    source: &dyn NodeSource,
    root: &Reference,
    key: &Key,
) -> Result<Option<Value>, ReadError> {
    let mut node = root_node(source, root)?;
    loop {
        let position = node.lower_bound(key.as_bytes());
        if position == node.len() {
            return Ok(None);
        }
        if node.level() == 0 {
            let found = node.key(position) == key.as_bytes();
            return Ok(found.then(|| node.value(position)));
        }
        node = child_node(source, &node, position)?;
    }
}

/// Lists the first `limit` entries of a range, in order.
///
/// # Errors
/// A node is misplaced, or absent; all are named that are known to be needed, as far as the limit
/// is expected to reach.
pub fn range(
    source: &dyn NodeSource,
    root: &Reference,
    range: &KeyRange,
    limit: usize,
) -> Result<Vec<(Key, Value)>, ReadError> {
    let mut listing = Listing {
        source,
        range,
        limit,
        entries: Vec::new(),
        absent: Vec::new(),
        expected: 0,
    };
    if !range.is_empty() && limit > 0 {
        match root_node(source, root) {
            Ok(node) => listing.visit(&node)?,
            Err(ReadError::Absent(Absent(mut absent))) => listing.absent.append(&mut absent),
            Err(error) => return Err(error),
        }
    }
    if listing.absent.is_empty() {
        Ok(listing.entries)
    } else {
        Err(Absent(listing.absent).into())
    }
}

struct Listing<'a> {
    source: &'a dyn NodeSource,
    range: &'a KeyRange,
    limit: usize,
    entries: Vec<(Key, Value)>,
    absent: Vec<Reference>,
    /// How many entries are expected from the first absent node on.
    expected: usize,
}

impl Listing<'_> {
    fn visit(&mut self, node: &Node) -> Result<(), ReadError> {
        let end = self.range.end.as_bytes();
        for position in node.lower_bound(self.range.start.as_bytes())..node.len() {
            if self.entries.len().saturating_add(self.expected) >= self.limit {
                break;
            }
            if node.level() == 0 {
                if node.key(position) >= end {
                    break;
                }
                // Behind an absent node only other absent nodes are of interest.
                if self.absent.is_empty() {
                    self.entries.push(node.entry(position));
                } else {
                    self.expected = self.expected.saturating_add(1);
                }
                continue;
            }
            match child_node(self.source, node, position) {
                Ok(child) => self.visit(&child)?,
                Err(ReadError::Absent(Absent(mut absent))) => {
                    self.absent.append(&mut absent);
                    self.expected = self.expected.saturating_add(entries_expected(node.level()));
                }
                Err(error) => return Err(error),
            }
            if node.key(position) >= end {
                break;
            }
        }
        Ok(())
    }
}

/// Loads the root.
pub(crate) fn root_node(source: &dyn NodeSource, root: &Reference) -> Result<Arc<Node>, ReadError> {
    source.node(root).ok_or_else(|| Absent(vec![*root]).into())
}

/// Loads a child and checks that it belongs where its parent says.
///
/// A node's own bytes were checked when it was opened. That it is the right one for its place is
/// only seen here: one level down, with the last key that the parent says and no key that belongs to
/// the child before.
pub(crate) fn child_node(
    source: &dyn NodeSource,
    parent: &Node,
    position: usize,
) -> Result<Arc<Node>, ReadError> {
    let reference = parent.child(position);
    let child = source
        .node(&reference)
        .ok_or_else(|| Absent(vec![reference]))?;
    let above_the_one_before = position == 0
        || child
            .first_key()
            .is_some_and(|first| first > parent.key(position - 1));
    if child.level() + 1 == parent.level()
        && child.last_key() == Some(parent.key(position))
        && above_the_one_before
    {
        Ok(child)
    } else {
        Err(ReadError::Misplaced(reference.id))
    }
}

/// How many entries the subtree of a child of a node of this level is expected to hold at least.
fn entries_expected(parent_level: u8) -> usize {
    let levels = u32::from(parent_level.saturating_sub(1));
    64usize.saturating_pow(levels + 1)
}
