//! What is in a checkout or a commit: the writes that it contains, so that lost work shows.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use img_types::ObjectId;

use crate::ids;

/// Writes in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    writes: Rc<Vec<u64>>,
    root: ObjectId,
}

impl Default for Content {
    fn default() -> Self {
        Self::of(Vec::new())
    }
}

impl Content {
    /// The content that these writes make.
    pub fn of(writes: Vec<u64>) -> Self {
        Self {
            root: ids::root(&writes),
            writes: Rc::new(writes),
        }
    }

    /// With one write more.
    #[must_use]
    pub fn with(&self, write: u64) -> Self {
        let mut writes = Vec::clone(&self.writes);
        writes.push(write);
        Self::of(writes)
    }

    /// The first so many writes.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        Self::of(self.writes.iter().copied().take(count).collect())
    }

    /// The root of its index.
    pub fn root(&self) -> ObjectId {
        self.root
    }

    /// Its writes.
    pub fn writes(&self) -> &[u64] {
        &self.writes
    }

    /// The objects below the root, the root last.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> {
        let blocks = self.writes.iter().map(|write| ids::block(*write));
        blocks.chain([self.root])
    }

    /// The objects that `base` does not need.
    pub fn beyond(&self, base: &Self) -> Vec<ObjectId> {
        if self.root == base.root {
            return Vec::new();
        }
        let there: BTreeSet<_> = base.objects().collect();
        self.objects().filter(|id| !there.contains(id)).collect()
    }
}

/// Opens roots: what every member can do with the keys, and the home cannot.
#[derive(Debug, Clone, Default)]
pub struct Library(BTreeMap<ObjectId, Content>);

impl Library {
    /// Remembers what a root stands for.
    pub fn keep(&mut self, content: &Content) {
        self.0
            .entry(content.root())
            .or_insert_with(|| content.clone());
    }

    /// What a root stands for; nothing is in one that was never sealed.
    pub fn open(&self, root: ObjectId) -> Content {
        self.0.get(&root).cloned().unwrap_or_default()
    }
}
