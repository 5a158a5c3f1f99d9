//! Edits of the map by key: values, tombstones and cleared ranges, in whatever order they are made.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

use img_index::{Edit, Key, KeyRange, Value, Xattr};

/// What changes say about a key of zone 0 or 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// The key has this value.
    Value(Value),
    /// The key does not exist.
    Deleted,
    /// The root knows.
    Below,
}

/// Values and tombstones by key, over cleared ranges that hide whatever lies below.
///
/// An edit counts as newer than the clear that covers it: a clear removes the edits it finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    keys: BTreeMap<Key, Option<Value>>,
    /// Disjoint, not even adjacent: start → exclusive end.
    cleared: BTreeMap<Key, Key>,
    bytes: u64,
}

impl Edits {
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.cleared.is_empty()
    }

    /// Estimated memory of all edits in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets a key, or deletes it.
    pub fn set(&mut self, key: Key, value: Option<Value>) {
        self.bytes += cost(&key, value.as_ref());
        let key_len = key.as_bytes().len();
        if let Some(old) = self.keys.insert(key, value) {
            self.bytes -= cost_of(key_len, old.as_ref());
        }
    }

    /// Deletes every key of a range, the edits made so far included.
    pub fn clear(&mut self, range: KeyRange) {
        let KeyRange { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((key, _)) = self.keys.range(&start..&end).next() {
            let key = key.clone();
            if let Some(old) = self.keys.remove(&key) {
                self.bytes -= cost(&key, old.as_ref());
            }
        }
        // Swallow every cleared range that touches this one, so that they stay apart.
        while let Some((left, right)) = self.cleared.range(..=&end).next_back() {
            if *right < start {
                break;
            }
            let left = left.clone();
            let Some(right) = self.cleared.remove(&left) else {
                break;
            };
            self.bytes -= clear_cost(&left, &right);
            start = start.min(left);
            end = end.max(right);
        }
        self.bytes += clear_cost(&start, &end);
        self.cleared.insert(start, end);
    }

    /// Looks a key up.
    pub fn get(&self, key: &Key) -> Layer {
        match self.keys.get(key) {
            Some(Some(value)) => Layer::Value(value.clone()),
            Some(None) => Layer::Deleted,
            None if self.is_cleared(key) => Layer::Deleted,
            None => Layer::Below,
        }
    }

    /// Values and tombstones in the order of their keys.
    pub fn keys(&self) -> &BTreeMap<Key, Option<Value>> {
        &self.keys
    }

    /// The cleared ranges that touch `range`, not clipped, in order.
    pub(crate) fn cleared_within<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = (&'a Key, &'a Key)> {
        let from = self
            .cleared
            .range(..=&range.start)
            .next_back()
            .filter(|(_, end)| **end > range.start)
            .map_or(&range.start, |(start, _)| start);
        // A reversed question would make `range` panic.
        let to = if range.end > *from { &range.end } else { from };
        self.cleared.range(from..to)
    }

    /// All edits as [`img_index::apply()`] takes them: sorted, none overlapping another.
    pub fn sorted(&self) -> impl Iterator<Item = Edit> + '_ {
        Sorted {
            keys: self.keys.iter().peekable(),
            cleared: self.cleared.iter().peekable(),
            clearing: None,
            ready: None,
        }
    }

    fn is_cleared(&self, key: &Key) -> bool {
        self.cleared
            .range(..=key)
            .next_back()
            .is_some_and(|(_, end)| key < end)
    }
}

/// Lays keys and cleared ranges out as one sorted list without overlaps.
struct Sorted<'a> {
    keys: Peekable<btree_map::Iter<'a, Key, Option<Value>>>,
    cleared: Peekable<btree_map::Iter<'a, Key, Key>>,
    /// What is left of the cleared range under way.
    clearing: Option<KeyRange>,
    /// What comes right behind the clear that was answered last.
    ready: Option<Edit>,
}

impl Iterator for Sorted<'_> {
    type Item = Edit;

    fn next(&mut self) -> Option<Edit> {
        if let Some(edit) = self.ready.take() {
            return Some(edit);
        }
        loop {
            let key = self.keys.peek().map(|(key, _)| *key);
            if self.clearing.is_none()
                && let Some((start, end)) = self
                    .cleared
                    .next_if(|(start, _)| key.is_none_or(|key| *start <= key))
            {
                self.clearing = Some(KeyRange {
                    start: start.clone(),
                    end: end.clone(),
                });
            }
            let Some(range) = self.clearing.take() else {
                let (key, value) = self.keys.next()?;
                return Some(match value {
                    Some(value) => Edit::Put(key.clone(), value.clone()),
                    None => Edit::Delete(key.clone()),
                });
            };
            let Some((key, value)) = self.keys.next_if(|(key, _)| range.contains(key)) else {
                return Some(Edit::Clear(range));
            };
            let Some(value) = value else {
                // A tombstone inside a cleared range says nothing new.
                self.clearing = Some(range);
                continue;
            };
            let put = Edit::Put(key.clone(), value.clone());
            let before = KeyRange {
                start: range.start,
                end: key.clone(),
            };
            let behind = KeyRange {
                start: key.successor(),
                end: range.end,
            };
            self.clearing = Some(behind).filter(|range| !range.is_empty());
            if before.is_empty() {
                return Some(put);
            }
            self.ready = Some(put);
            return Some(Edit::Clear(before));
        }
    }
}

fn cost(key: &Key, value: Option<&Value>) -> u64 {
    cost_of(key.as_bytes().len(), value)
}

fn cost_of(key_len: usize, value: Option<&Value>) -> u64 {
    let owned = match value {
        Some(Value::Manifest(bytes) | Value::Symlink(bytes) | Value::Inline(bytes)) => bytes.len(),
        Some(Value::Xattr(Xattr::Inline(bytes))) => bytes.len(),
        _ => 0,
    };
    EDIT_BYTES + (key_len + owned) as u64
}

fn clear_cost(start: &Key, end: &Key) -> u64 {
    EDIT_BYTES + (start.as_bytes().len() + end.as_bytes().len()) as u64
}

/// Memory of an edit beside its key and owned bytes: the value itself and its share of a B-tree node.
const EDIT_BYTES: u64 = 160;
