//! A range of keys as the overlay sees it, and how it lies over the root's.

use std::collections::BTreeMap;

use img_index::{Key, KeyRange, Value};

use crate::generation::Generation;

/// What all generations together say about a range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeView {
    /// Values and tombstones in the order of their keys.
    pub entries: Vec<(Key, Option<Value>)>,
    /// Where nothing of the root counts; in order, disjoint.
    pub cleared: Vec<KeyRange>,
    /// Where to go on: the view is complete for the keys before. Nothing: it is complete.
    pub next: Option<Key>,
}

/// The range of keys as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Keys and values in order.
    pub entries: Vec<(Key, Value)>,
    /// Where to go on; nothing at the range's end.
    pub next: Option<Key>,
}

impl RangeView {
    /// Lays the view over `below`, the root's entries of the same range in order. `below_next` is
    /// where the root's entries go on, if they were cut off.
    pub fn over(self, below: Vec<(Key, Value)>, below_next: Option<Key>) -> Merged {
        let next = match (self.next, below_next) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let counts = |key: &Key| next.as_ref().is_none_or(|next| key < next);
        let mut cleared = self.cleared.into_iter().peekable();
        let mut below = below
            .into_iter()
            .filter(|(key, _)| {
                while cleared.next_if(|range| range.end <= *key).is_some() {}
                counts(key) && cleared.peek().is_none_or(|range| *key < range.start)
            })
            .peekable();
        let mut entries = Vec::new();
        for (key, value) in self.entries.into_iter().filter(|(key, _)| counts(key)) {
            while let Some(entry) = below.next_if(|(lower, _)| *lower < key) {
                entries.push(entry);
            }
            below.next_if(|(lower, _)| *lower == key);
            if let Some(value) = value {
                entries.push((key, value));
            }
        }
        entries.extend(below);
        Merged { entries, next }
    }

    /// Merges generations, given from the oldest to the newest, looking at about `limit` keys.
    pub(crate) fn merge<'a>(
        generations: impl Iterator<Item = &'a Generation>,
        range: &KeyRange,
        limit: usize,
    ) -> Self {
        let limit = limit.max(1);
        let mut merged: BTreeMap<&Key, Option<&Value>> = BTreeMap::new();
        let mut cleared: BTreeMap<Key, Key> = BTreeMap::new();
        let mut next: Option<&Key> = None;
        if range.is_empty() {
            return Self {
                entries: Vec::new(),
                cleared: Vec::new(),
                next: None,
            };
        }
        for generation in generations {
            let edits = generation.edits();
            for (start, end) in edits.cleared_within(range) {
                let (start, end) = (start.max(&range.start), end.min(&range.end));
                let hidden: Vec<&Key> = merged
                    .range::<&Key, _>(start..end)
                    .map(|(key, _)| *key)
                    .collect();
                for key in hidden {
                    merged.remove(key);
                }
                unite(&mut cleared, start, end);
            }
            let mut keys = edits.keys().range(&range.start..&range.end);
            merged.extend(
                keys.by_ref()
                    .take(limit)
                    .map(|(key, value)| (key, value.as_ref())),
            );
            // Beyond the first key left out of any generation nothing is known completely.
            if let Some((left_out, _)) = keys.next() {
                next = Some(next.map_or(left_out, |next| next.min(left_out)));
            }
        }
        if let Some((&key, _)) = merged.iter().nth(limit) {
            next = Some(next.map_or(key, |next| next.min(key)));
        }
        let counts = |key: &Key| next.is_none_or(|next| key < next);
        Self {
            entries: merged
                .into_iter()
                .take_while(|(key, _)| counts(key))
                .map(|(key, value)| (key.clone(), value.cloned()))
                .collect(),
            cleared: cleared
                .into_iter()
                .map(|(start, end)| KeyRange { start, end })
                .collect(),
            next: next.cloned(),
        }
    }
}

/// Adds a range to disjoint ranges.
fn unite(ranges: &mut BTreeMap<Key, Key>, start: &Key, end: &Key) {
    let (mut start, mut end) = (start.clone(), end.clone());
    while let Some((left, right)) = ranges.range(..=&end).next_back() {
        if *right < start {
            break;
        }
        let (left, right) = (left.clone(), right.clone());
        ranges.remove(&left);
        start = start.min(left);
        end = end.max(right);
    }
    ranges.insert(start, end);
}
