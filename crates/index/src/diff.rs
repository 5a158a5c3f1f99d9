//! What differs between two trees, found without looking at what they share.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use img_seal::Reference;
use img_types::ObjectId;

use crate::key::{Key, KeyRange};
use crate::node::Node;
use crate::tree::{Absent, NodeSource, ReadError, child_node, root_node};
use crate::value::Value;

/// A key whose values differ; at least one is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: Key,
    /// Its value in the first tree.
    pub before: Option<Value>,
    /// Its value in the second tree.
    pub after: Option<Value>,
}

/// Differences in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// At most as many as were asked for.
    pub differences: Vec<Difference>,
    /// Where to start the range of the next call; nothing when all has been listed.
    pub next: Option<Key>,
}

/// Lists the first `limit` differences between two trees within a range.
///
/// Subtrees that both share are skipped by their reference, so time is proportional to the
/// difference. Values that name other objects count as different, whatever these hold.
///
/// # Errors
/// A node is misplaced or absent; near the first absent one, all are named that are needed as well.
pub fn diff(
    source: &dyn NodeSource,
    before: &Reference,
    after: &Reference,
    range: &KeyRange,
    limit: usize,
) -> Result<Diff, ReadError> {
    let mut differences = Vec::new();
    if before.id == after.id || range.is_empty() {
        let next = None;
        return Ok(Diff { differences, next });
    }
    let (mut a, mut b) = match (root_node(source, before), root_node(source, after)) {
        (Ok(a), Ok(b)) => (Side::new(a, range), Side::new(b, range)),
        (a, b) => return Err(both(a.err(), b.err())),
    };
    loop {
        let (open_a, open_b) = match (a.head(), b.head()) {
            (Head::End, Head::End) => break,
            (Head::Child(x, _), Head::Child(y, _)) if x.id == y.id => {
                a.pass();
                b.pass();
                continue;
            }
            (Head::Child(_, x), Head::Child(_, y)) => (x >= y, y >= x),
            (Head::Child(..), _) => (true, false),
            (_, Head::Child(..)) => (false, true),
            (x, y) => {
                let order = match (&x, &y) {
                    (Head::Entry(x, _), Head::Entry(y, _)) => x.cmp(y),
                    (Head::Entry(..), _) => Ordering::Less,
                    _ => Ordering::Greater,
                };
                let equal = order.is_eq() && x == y;
                if !equal && differences.len() == limit {
                    let next = [x.key(), y.key()].into_iter().flatten().min();
                    let next = next.map(Key::from_checked);
                    return Ok(Diff { differences, next });
                }
                let x = order.is_le().then(|| a.take(equal)).flatten();
                let y = order.is_ge().then(|| b.take(equal)).flatten();
                let (before, after) = (x, y);
                if let Some((key, _)) = before.as_ref().or(after.as_ref()) {
                    differences.push(Difference {
                        key: key.clone(),
                        before: before.map(|(_, value)| value),
                        after: after.map(|(_, value)| value),
                    });
                }
                continue;
            }
        };
        let opened_a = if open_a { a.open(source) } else { Ok(()) };
        let opened_b = if open_b { b.open(source) } else { Ok(()) };
        if let (None, None) = (opened_a.as_ref().err(), opened_b.as_ref().err()) {
            continue;
        }
        return Err(match both(opened_a.err(), opened_b.err()) {
            ReadError::Absent(first) => {
                near(source, &a, &b, first, limit - differences.len()).into()
            }
            error => error,
        });
    }
    let next = None;
    Ok(Diff { differences, next })
}

/// One tree, gone through from left to right.
struct Side<'a> {
    range: &'a KeyRange,
    /// From the root down, each with the position of what comes next.
    path: Vec<(Arc<Node>, usize)>,
}

/// What comes next on one side.
#[derive(PartialEq, Eq)]
enum Head<'n> {
    Child(Reference, u8),
    Entry(&'n [u8], &'n [u8]),
    End,
}

impl<'n> Head<'n> {
    fn key(&self) -> Option<&'n [u8]> {
        match self {
            Self::Entry(key, _) => Some(key),
            Self::Child(..) | Self::End => None,
        }
    }
}

impl<'a> Side<'a> {
    fn new(root: Arc<Node>, range: &'a KeyRange) -> Self {
        let path = Vec::new();
        let mut side = Self { range, path };
        side.enter(root);
        side
    }

    fn enter(&mut self, node: Arc<Node>) {
        let start = node.lower_bound(self.range.start.as_bytes());
        self.path.push((node, start));
        self.leave_finished();
    }

    fn leave_finished(&mut self) {
        while let Some((node, position)) = self.path.last()
            && *position == node.len()
        {
            self.path.pop();
            if let Some((_, position)) = self.path.last_mut() {
                *position += 1;
            }
        }
    }

    fn head(&self) -> Head<'_> {
        let Some((node, position)) = self.path.last() else {
            return Head::End;
        };
        let end = self.range.end.as_bytes();
        if node.level() > 0 {
            let behind_the_end = *position > 0 && node.key(position - 1) >= end;
            return if behind_the_end {
                Head::End
            } else {
                Head::Child(node.child(*position), node.level() - 1)
            };
        }
        let (key, value) = node.raw_entry(*position);
        if key < end {
            Head::Entry(key, value)
        } else {
            Head::End
        }
    }

    fn pass(&mut self) {
        if let Some((_, position)) = self.path.last_mut() {
            *position += 1;
        }
        self.leave_finished();
    }

    /// Passes an entry and gives it, unless it is of no interest.
    fn take(&mut self, pass_only: bool) -> Option<(Key, Value)> {
        let (node, position) = self.path.last()?;
        let entry = (!pass_only).then(|| node.entry(*position));
        self.pass();
        entry
    }

    fn open(&mut self, source: &dyn NodeSource) -> Result<(), ReadError> {
        if let Some((node, position)) = self.path.last() {
            let child = child_node(source, node, *position)?;
            self.enter(child);
        }
        Ok(())
    }

    /// The children still to come in the lowest node that has been opened.
    fn siblings(&self) -> impl Iterator<Item = Reference> {
        let end = self.range.end.as_bytes();
        self.path
            .last()
            .filter(|(node, _)| node.level() > 0)
            .into_iter()
            .flat_map(|(node, position)| (*position..node.len()).map(move |at| (node, at)))
            .take_while(move |(node, at)| *at == 0 || node.key(at - 1) < end)
            .map(|(node, at)| node.child(at))
    }
}

/// Joins the errors of both sides; at least one is there.
fn both(a: Option<ReadError>, b: Option<ReadError>) -> ReadError {
    match (a, b) {
        (Some(ReadError::Absent(mut a)), Some(ReadError::Absent(b))) => {
            a.0.extend(b.0);
            a.into()
        }
        (Some(error @ ReadError::Misplaced(_)), _) | (_, Some(error @ ReadError::Misplaced(_))) => {
            error
        }
        (Some(error), None) | (None, Some(error)) => error,
        (None, None) => Absent(Vec::new()).into(),
    }
}

/// Adds to the absent nodes those beside them that one side has and the other has not: at most as
/// many as differences are wanted.
fn near(
    source: &dyn NodeSource,
    a: &Side<'_>,
    b: &Side<'_>,
    first: Absent,
    wanted: usize,
) -> Absent {
    let ids = |side: &Side<'_>| {
        side.siblings()
            .map(|child| child.id)
            .collect::<BTreeSet<_>>()
    };
    let (ids_a, ids_b) = (ids(a), ids(b));
    let shared: BTreeSet<ObjectId> = ids_a.intersection(&ids_b).copied().collect();
    let Absent(mut absent) = first;
    let mut named: BTreeSet<ObjectId> = absent.iter().map(|reference| reference.id).collect();
    absent.retain({
        let mut seen = BTreeSet::new();
        move |reference| seen.insert(reference.id)
    });
    for child in a.siblings().chain(b.siblings()) {
        if absent.len() >= wanted {
            break;
        }
        if !shared.contains(&child.id) && source.node(&child).is_none() && named.insert(child.id) {
            absent.push(child);
        }
    }
    Absent(absent)
}
