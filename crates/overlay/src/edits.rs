//! The edits of one generation to zones 0 and 1 of the map.

use std::collections::BTreeMap;

use img_index::{Key, KeyRange, Value, Xattr};

/// What one generation says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Value(&'a Value),
    Deleted,
    Nothing,
}

/// Values and tombstones by key, over cleared ranges that hide whatever lies below.
///
/// An edit counts as newer than the clear that covers it: a clear removes the edits it finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edits {
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

    pub(crate) fn set(&mut self, key: Key, value: Option<Value>) {
        self.bytes += cost(&key, value.as_ref());
        let cost_key = key.as_bytes().len();
        if let Some(old) = self.keys.insert(key, value) {
            self.bytes -= cost_of(cost_key, old.as_ref());
        }
    }

    pub(crate) fn clear(&mut self, range: KeyRange) {
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

    pub(crate) fn get(&self, key: &Key) -> Said<'_> {
        match self.keys.get(key) {
            Some(Some(value)) => Said::Value(value),
            Some(None) => Said::Deleted,
            None if self.is_cleared(key) => Said::Deleted,
            None => Said::Nothing,
        }
    }

    pub(crate) fn keys(&self) -> &BTreeMap<Key, Option<Value>> {
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

    /// All cleared ranges in order.
    pub(crate) fn cleared(&self) -> &BTreeMap<Key, Key> {
        &self.cleared
    }

    fn is_cleared(&self, key: &Key) -> bool {
        self.cleared
            .range(..=key)
            .next_back()
            .is_some_and(|(_, end)| key < end)
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
