//! A memory cache bounded by bytes that drops what was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Keeps values up to a number of bytes, by use.
#[derive(Debug)]
pub(super) struct ByteLru<K, V> {
    entries: HashMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    clock: u64,
    len_bytes: usize,
    len_bytes_max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    len_bytes: usize,
    used: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> ByteLru<K, V> {
    /// An empty cache of at most `len_bytes_max`.
    pub(super) fn new(len_bytes_max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            len_bytes: 0,
            len_bytes_max,
        }
    }

    /// Finds a value and marks it as used.
    pub(super) fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        if let Some(key) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.clock, key);
        }
        entry.used = self.clock;
        Some(entry.value.clone())
    }

    /// Adds a value that takes `len_bytes`, and drops others to make room. A value larger than the whole
    /// cache is not kept.
    pub(super) fn insert(&mut self, key: K, value: V, len_bytes: usize) {
        self.remove(&key);
        if len_bytes > self.len_bytes_max {
            return;
        }
        while self.len_bytes + len_bytes > self.len_bytes_max {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.len_bytes -= entry.len_bytes;
            }
        }
        self.clock += 1;
        self.len_bytes += len_bytes;
        self.by_use.insert(self.clock, key.clone());
        let entry = Entry {
            value,
            len_bytes,
            used: self.clock,
        };
        self.entries.insert(key, entry);
    }

    /// Drops a value.
    pub(super) fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.used);
            self.len_bytes -= entry.len_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn drops_what_was_used_longest_ago() {
        let mut lru = ByteLru::new(30);
        for key in 0..3 {
            lru.insert(key, key, 10);
        }
        assert_eq!(lru.get(&0), Some(0));
        lru.insert(3, 3, 10);
        assert_eq!(lru.get(&1), None);
        assert_eq!(lru.get(&0), Some(0));
        lru.insert(4, 4, 31);
        assert_eq!(lru.get(&4), None);
        assert_eq!(lru.len_bytes, 30);
    }

    proptest! {
        /// Against a list in order of use.
        #[test]
        fn behaves_like_a_list(steps in proptest::collection::vec((0u8..12, 0usize..40, 0u8..3), 1..200)) {
            let mut lru = ByteLru::new(100);
            let mut model: Vec<(u8, usize)> = Vec::new();
            for (key, len, step) in steps {
                match step {
                    0 => {
                        let found = model.iter().position(|entry| entry.0 == key);
                        prop_assert_eq!(lru.get(&key), found.map(|at| model[at].1));
                        if let Some(at) = found {
                            let entry = model.remove(at);
                            model.push(entry);
                        }
                    }
                    1 => {
                        lru.insert(key, len, len);
                        model.retain(|entry| entry.0 != key);
                        while model.iter().map(|entry| entry.1).sum::<usize>() + len > 100 {
                            model.remove(0);
                        }
                        model.push((key, len));
                    }
                    _ => {
                        lru.remove(&key);
                        model.retain(|entry| entry.0 != key);
                    }
                }
                prop_assert_eq!(lru.len_bytes, model.iter().map(|entry| entry.1).sum::<usize>());
            }
        }
    }
}
