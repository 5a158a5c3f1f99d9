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
    let mut had = Had::new(objects, wanted.minus).await?;
    let mut queue = VecDeque::from([wanted.root]);
    let mut seen = BTreeSet::from([wanted.root]);
    let mut left = wanted.budget;
    while let Some(id) = queue.pop_front() {
        let Some(bytes) = objects.get_node(id).await? else {
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
    async fn get(objects: &Objects, id: ObjectId) -> Result<Option<Self>, Stop> {
        let bytes = objects.get_node(id).await?;
        Ok(bytes.and_then(|bytes| Self::read(&bytes)))
    }

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

/// The nodes that the device has. Children lie exactly one level below their parent, so that one
/// level after the other is known without reading its own nodes.
struct Had {
    ids: BTreeSet<ObjectId>,
    /// The nodes of the lowest level that is known, and that level.
    lowest: Vec<ObjectId>,
    level: u8,
}

impl Had {
    async fn new(objects: &Objects, root: Option<ObjectId>) -> Result<Self, Stop> {
        let mut had = Self {
            ids: BTreeSet::new(),
            lowest: Vec::new(),
            level: 0,
        };
        let Some(root) = root else { return Ok(had) };
        if let Some(node) = Node::get(objects, root).await? {
            had.ids.insert(root);
            had.lowest.push(root);
            had.level = node.level;
        }
        Ok(had)
    }

    /// Reads down until every node of `level` is among the ids.
    async fn down_to(&mut self, objects: &Objects, level: u8) -> Result<(), Stop> {
        while self.level > level {
            let mut below = Vec::new();
            for id in &self.lowest {
                if let Some(node) = Node::get(objects, *id).await? {
                    below.extend(node.nodes_below);
                }
            }
            below.retain(|id| self.ids.insert(*id));
            self.lowest = below;
            self.level -= 1;
        }
        Ok(())
    }
}
