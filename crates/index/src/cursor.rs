//! A place among the nodes of one level of a tree.

use std::sync::Arc;

use img_seal::Reference;

use crate::node::Node;
use crate::tree::{NodeSource, ReadError, child_node};

/// Stands at one node of a level, which need not be at hand itself.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    level: u8,
    root: Arc<Node>,
    root_reference: Reference,
    /// From the root down to the parent of the node, each with the position of the child. Empty if
    /// the level is the root's.
    path: Vec<(Arc<Node>, usize)>,
}

impl Cursor {
    /// Stands at the first node of `level` whose last key is at least `key`, or at the last node.
    /// The level is at most the root's.
    pub(crate) fn new(
        source: &dyn NodeSource,
        root: &Arc<Node>,
        root_reference: &Reference,
        level: u8,
        key: &[u8],
    ) -> Result<Self, ReadError> {
        let mut cursor = Self {
            level,
            root: root.clone(),
            root_reference: *root_reference,
            path: Vec::new(),
        };
        cursor.seek(source, key)?;
        Ok(cursor)
    }

    /// Loads the node.
    pub(crate) fn node(&self, source: &dyn NodeSource) -> Result<Arc<Node>, ReadError> {
        match self.path.last() {
            Some((parent, position)) => child_node(source, parent, *position),
            None => Ok(self.root.clone()),
        }
    }

    /// The node's reference.
    pub(crate) fn reference(&self) -> Reference {
        match self.path.last() {
            Some((parent, position)) => parent.child(*position),
            None => self.root_reference,
        }
    }

    /// The node's last key, without loading it.
    pub(crate) fn last_key(&self) -> &[u8] {
        match self.path.last() {
            Some((parent, position)) => parent.key(*position),
            None => self.last_key_of_level(),
        }
    }

    /// The last key of the last node of the level.
    pub(crate) fn last_key_of_level(&self) -> &[u8] {
        self.root.last_key().unwrap_or_default()
    }

    /// What stands for the node one level up: the parent and the node's position in it.
    pub(crate) fn parent(&self) -> Option<(Arc<Node>, usize)> {
        self.path.last().cloned()
    }

    /// Tells whether both stand at the same node of the same level of the same tree.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        self.path
            .iter()
            .map(|(_, position)| position)
            .eq(other.path.iter().map(|(_, position)| position))
    }

    /// Tells whether this is the first node of the level.
    pub(crate) fn is_first(&self) -> bool {
        self.path.iter().all(|(_, position)| *position == 0)
    }

    /// Tells whether this is the last node of the level.
    pub(crate) fn is_last(&self) -> bool {
        self.path
            .iter()
            .all(|(node, position)| position + 1 == node.len())
    }

    /// Goes to the first node whose last key is at least `key`, or to the last node of the level.
    /// Stays where it is if a node is not at hand, as the other moves do.
    pub(crate) fn seek(&mut self, source: &dyn NodeSource, key: &[u8]) -> Result<(), ReadError> {
        let place = |node: &Node| node.lower_bound(key).min(node.len() - 1);
        // What of the old path leads there stays, so that a near seek asks the source for little.
        let mut path = Vec::with_capacity(self.path.len());
        for (node, position) in &self.path {
            let wanted = place(node);
            path.push((node.clone(), wanted));
            if wanted != *position {
                break;
            }
        }
        self.path = self.descend(source, path, place)?;
        Ok(())
    }

    /// Goes to the next node; false if this was the last.
    pub(crate) fn next(&mut self, source: &dyn NodeSource) -> Result<bool, ReadError> {
        let turn = self
            .path
            .iter()
            .rposition(|(node, position)| position + 1 < node.len());
        let Some(turn) = turn else { return Ok(false) };
        let mut path = self.path[..=turn].to_vec();
        path[turn].1 += 1;
        self.path = self.descend(source, path, |_| 0)?;
        Ok(true)
    }

    /// Goes to the node before; false if this was the first.
    pub(crate) fn previous(&mut self, source: &dyn NodeSource) -> Result<bool, ReadError> {
        let turn = self.path.iter().rposition(|(_, position)| *position > 0);
        let Some(turn) = turn else { return Ok(false) };
        let mut path = self.path[..=turn].to_vec();
        path[turn].1 -= 1;
        self.path = self.descend(source, path, |node| node.len() - 1)?;
        Ok(true)
    }

    /// Completes a path down to the level.
    fn descend(
        &self,
        source: &dyn NodeSource,
        mut path: Vec<(Arc<Node>, usize)>,
        place: impl Fn(&Node) -> usize,
    ) -> Result<Vec<(Arc<Node>, usize)>, ReadError> {
        loop {
            let node = match path.last() {
                Some((parent, _)) if parent.level() == self.level + 1 => return Ok(path),
                None if self.root.level() == self.level => return Ok(path),
                Some((parent, position)) => child_node(source, parent, *position)?,
                None => self.root.clone(),
            };
            let position = place(&node);
            path.push((node, position));
        }
    }
}
