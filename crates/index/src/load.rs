//! Writes a whole map whose zones come at the same time.
//!
//! An import learns a file's attributes and its data together, but they lie in different zones. A leaf
//! never holds two zones, so the leaves of each can be written while the others grow, and only their
//! keys and references are kept until all levels above are written at the end.

use std::sync::Arc;

use img_seal::{Reference, Sealer};
use img_types::bytes::DecodeError;

use crate::apply::{ApplyError, encode};
use crate::boundary::{Boundary, Rules};
use crate::key::{Key, ZONE_DATA};
use crate::node::{Node, OpenNode};
use crate::tree::{NodeSink, NodeSource};
use crate::value::Value;
use crate::writer::{Pen, Writer};

/// Writes a tree from nothing; keys rise within each zone.
///
/// The root is that of [`apply`](crate::apply()) with the same entries. Memory is about 120 bytes for
/// each leaf written.
pub struct Loader<'a> {
    writer: Writer<'a>,
    zones: [Zone; ZONE_DATA as usize + 1],
    value: Vec<u8>,
}

struct Zone {
    open: OpenNode,
    /// Last key and reference of each leaf.
    leaves: Vec<(Vec<u8>, Reference)>,
}

impl<'a> Loader<'a> {
    /// Starts with the empty map.
    pub fn new(sink: &'a mut dyn NodeSink, sealer: &'a mut Sealer, boundary: &Boundary) -> Self {
        Self::by(Rules::new(boundary), sink, sealer)
    }

    pub(crate) fn by(rules: Rules, sink: &'a mut dyn NodeSink, sealer: &'a mut Sealer) -> Self {
        Self {
            writer: Writer::from_nothing(rules, &NoNodes, Pen::Seal { sealer, sink }),
            zones: std::array::from_fn(|_| Zone {
                open: OpenNode::new(0),
                leaves: Vec::new(),
            }),
            value: Vec::new(),
        }
    }

    /// Adds an entry above all others of its zone.
    ///
    /// # Errors
    /// The key is not above the others, no map can hold the entry, or a leaf could not be sealed.
    pub fn put(&mut self, key: &Key, value: &Value) -> Result<(), ApplyError> {
        self.value.clear();
        let size = encode(key, value, &mut self.value)?;
        let key = key.as_bytes();
        let zone = key
            .first()
            .and_then(|zone| self.zones.get_mut(usize::from(*zone)))
            .ok_or(DecodeError("no index key"))?;
        let last = match zone.open.last() {
            Some((last, _)) => Some(last),
            None => zone.leaves.last().map(|(last, _)| &last[..]),
        };
        if last.is_some_and(|last| last >= key) {
            return Err(ApplyError::Unsorted);
        }
        if self.writer.leaf_ends_before(&zone.open, key, size) {
            zone.leaves.push(self.writer.seal_leaf(&mut zone.open)?);
        }
        zone.open.push(key, &self.value, size);
        if self.writer.leaf_ends_after(&zone.open, key, size) {
            zone.leaves.push(self.writer.seal_leaf(&mut zone.open)?);
        }
        Ok(())
    }

    /// Writes what is left and returns the root.
    ///
    /// # Errors
    /// A node could not be sealed, or there are too many.
    pub fn finish(mut self) -> Result<Reference, ApplyError> {
        for zone in &mut self.zones {
            if !zone.open.is_empty() {
                zone.leaves.push(self.writer.seal_leaf(&mut zone.open)?);
            }
            for (last, leaf) in zone.leaves.drain(..) {
                self.writer.add_leaf(&last, &leaf)?;
            }
        }
        self.writer.finish()
    }
}

/// There is no old tree to read.
struct NoNodes;

impl NodeSource for NoNodes {
    fn node(&self, _: &Reference) -> Option<Arc<Node>> {
        None
    }
}
