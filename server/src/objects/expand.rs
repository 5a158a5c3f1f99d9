//! Walking down from a root: the nodes that a device will need next, before it asks for each.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use img_types::ObjectId;
use img_types::object::{ObjectKind, Parsed};
use tokio::sync::mpsc;

use super::Objects;
use crate::db::Stop;

/// What a device wants to have below a root.
#[derive(Debug, Clone)]
pub(crate) struct Expansion {
    pub(crate) root: ObjectId,
    /// A root whose nodes the device has.
    pub(crate) minus: Option<ObjectId>,
    /// Depth first from the left instead of breadth first: metadata lies at the left.
    pub(crate) left_edge: bool,
    /// Most bytes to send.
    pub(crate) budget: u64,
}

/// Sends nodes below a root, parents before children, until the budget or the nodes end.
///
/// A subtree that the `minus` root names at any place is left out whole: equal id, equal content.
pub(crate) async fn expand(
    objects: &Objects,
    wanted: &Expansion,
    into: &mpsc::Sender<Bytes>,
) -> Result<(), Stop> {
    let mut had = Had::new(wanted.minus);
    let mut queue = VecDeque::from([wanted.root]);
    let mut seen = BTreeSet::from([wanted.root]);
    let mut left = wanted.budget;
    while let Some(id) = queue.pop_front() {
        let Some(bytes) = objects.get(id).await? else {
            continue;
        };
        let Some(node) = Node::read(&bytes) else {
            continue;
        };
        had.down_to(objects, node.level).await?;
        if had.ids.contains(&id) {
            continue;
        }
        let Some(rest) = left.checked_sub(bytes.len() as u64) else {
            break;
        };
        left = rest;
        // A device that went away wants nothing more.
        if into.send(bytes).await.is_err() {
            break;
        }
        let fresh = node
            .nodes_below
            .into_iter()
            .filter(|child| seen.insert(*child));
        if wanted.left_edge {
            let fresh: Vec<ObjectId> = fresh.collect();
            for child in fresh.into_iter().rev() {
                queue.push_front(child);
            }
        } else {
            queue.extend(fresh);
        }
    }
    Ok(())
}

/// The clear part of a node.
struct Node {
    level: u8,
    nodes_below: Vec<ObjectId>,
}

impl Node {
    /// Takes the header of a node; nothing for other objects. Leaves name blocks, not nodes.
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = Parsed::decode(bytes).ok()?.header;
        if header.kind != ObjectKind::Node {
            return None;
        }
        Some(Self {
            level: header.level,
            nodes_below: if header.level > 0 {
                header.children
            } else {
                Vec::new()
            },
        })
    }
}

/// The nodes that the device has, read level by level as far down as they are needed.
struct Had {
    ids: BTreeSet<ObjectId>,
    /// Nodes not read yet; their level is known only once they are.
    open: Vec<ObjectId>,
    /// All nodes above this level have been read.
    level: Option<u8>,
}

impl Had {
    fn new(root: Option<ObjectId>) -> Self {
        Self {
            ids: root.into_iter().collect(),
            open: root.into_iter().collect(),
            level: None,
        }
    }

    /// Reads down until every node of `level` is among the ids.
    async fn down_to(&mut self, objects: &Objects, level: u8) -> Result<(), Stop> {
        while !self.open.is_empty() && self.level.is_none_or(|reached| reached > level) {
            let mut below = Vec::new();
            let mut reached = 0;
            for id in std::mem::take(&mut self.open) {
                let Some(bytes) = objects.get(id).await? else {
                    continue;
                };
                let Some(node) = Node::read(&bytes) else {
                    continue;
                };
                reached = reached.max(node.level);
                if node.level <= level {
                    // Its own level was wanted, not what lies below; it is read again if it is.
                    self.open.push(id);
                    continue;
                }
                below.extend(node.nodes_below);
            }
            if below.is_empty() {
                self.level = Some(reached.min(level));
                return Ok(());
            }
            for id in below {
                if self.ids.insert(id) {
                    self.open.push(id);
                }
            }
            self.level = Some(reached.saturating_sub(1));
        }
        Ok(())
    }
}
