//! The index as a seal sees it: nodes from memory, the disk and at last the home.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use img_index::{Key, KeyRange, Node, NodeSink, NodeSource, ReadError, Value, get};
use img_proto::Class;
use img_seal::{Reference, Sealed};
use tokio::runtime::Handle;

use super::{Made, SealError, Sealing};
use crate::objects::{FetchError, Objects};

/// Reads the nodes of the root under a generation; blocks on the disk.
pub(super) struct Nodes<'a> {
    objects: &'a Arc<Objects>,
    runtime: &'a Handle,
    root: Option<Reference>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(
        objects: &'a Arc<Objects>,
        runtime: &'a Handle,
        root: Option<Reference>,
    ) -> Self {
        Self {
            objects,
            runtime,
            root,
        }
    }

    /// Looks keys up in the root; what is absent is fetched for all of them at once.
    pub(super) fn look_up(&self, keys: &[Key]) -> Result<Vec<Option<Value>>, SealError> {
        let Some(root) = &self.root else {
            return Ok(vec![None; keys.len()]);
        };
        loop {
            let mut values = Vec::with_capacity(keys.len());
            let mut absent = BTreeSet::new();
            for key in keys {
                match get(self, root, key) {
                    Ok(value) => values.push(value),
                    Err(ReadError::Absent(nodes)) => absent.extend(nodes.0),
                    Err(error) => return Err(error.into()),
                }
            }
            if absent.is_empty() {
                return Ok(values);
            }
            self.fetch(&absent.into_iter().collect::<Vec<_>>())?;
        }
    }

    /// Looks one key up in the root.
    pub(super) fn value(&self, key: Key) -> Result<Option<Value>, SealError> {
        Ok(self.look_up(&[key])?.pop().flatten())
    }

    /// Lists at most `limit` entries of a range of the root.
    pub(super) fn range(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Value)>, SealError> {
        let Some(root) = &self.root else {
            return Ok(Vec::new());
        };
        loop {
            match img_index::range(self, root, range, limit) {
                Err(ReadError::Absent(absent)) => self.fetch(&absent.0)?,
                listed => return Ok(listed?),
            }
        }
    }

    /// Brings nodes to this device. A part of the index that was never looked at may be at the home
    /// only: without the home the seal waits for it, and with the seal only local roots do.
    pub(super) fn fetch(&self, nodes: &[Reference]) -> Result<(), FetchError> {
        let fetching = self.objects.fetch_nodes(nodes, Class::Demand);
        self.runtime.block_on(fetching)
    }

    /// Brings nodes to this device if the home answers within [`PATIENCE`]; says whether it did.
    pub(super) fn fetch_soon(&self, nodes: &[Reference]) -> bool {
        let fetching = self.objects.fetch_nodes(nodes, Class::Demand);
        let in_time = async { tokio::time::timeout(PATIENCE, fetching).await };
        matches!(self.runtime.block_on(in_time), Ok(Ok(())))
    }
}

impl NodeSource for Nodes<'_> {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.objects.node_at_hand(reference).or_else(|| {
            self.objects.load_nodes(vec![*reference]);
            self.objects.node_at_hand(reference)
        })
    }
}

/// Takes new nodes into the outbox, and into memory for whoever reads the new root first.
pub(super) struct Outbox<'a> {
    sealing: &'a Sealing,
    made: Result<Made, SealError>,
}

impl<'a> Outbox<'a> {
    pub(super) fn new(sealing: &'a Sealing) -> Self {
        Self {
            sealing,
            made: Ok(Made::default()),
        }
    }

    /// How much was kept.
    pub(super) fn finish(self) -> Result<Made, SealError> {
        self.made
    }
}

impl NodeSink for Outbox<'_> {
    fn put(&mut self, sealed: Sealed, node: Arc<Node>) {
        if let Ok(made) = &mut self.made {
            match self.sealing.keep(&sealed) {
                Ok(kept) => made.add(kept),
                Err(error) => self.made = Err(error),
            }
            self.sealing.objects.remember_node(sealed.reference, node);
        }
    }
}

/// How long a seal waits for nodes that it can do without.
const PATIENCE: Duration = Duration::from_secs(5);
