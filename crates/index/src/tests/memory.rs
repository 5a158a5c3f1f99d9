//! Nodes in memory, with a watch on what is asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use img_seal::{HomeSecret, KeyRing, Reference, Sealed, Sealer};
use img_types::{KeyEpoch, ObjectId};

use super::samples::BOUNDARY;
use crate::apply::apply_by;
use crate::boundary::Rules;
use crate::gap::cut_out_by;
use crate::{
    Absent, ApplyError, Edit, Key, KeyRange, Node, NodeSink, NodeSource, Value, open_node, range,
};

pub(super) struct Memory {
    pub(super) keys: KeyRing,
    pub(super) sealer: Sealer,
    pub(super) rules: Rules,
    pub(super) objects: BTreeMap<ObjectId, (Sealed, Arc<Node>)>,
    /// What has been asked for.
    pub(super) asked: RefCell<BTreeSet<ObjectId>>,
    /// What is at hand; nothing: all.
    pub(super) at_hand: RefCell<Option<BTreeSet<ObjectId>>>,
}

/// Nodes in the order in which they were written.
#[derive(Default)]
pub(super) struct Written(pub(super) Vec<(Sealed, Arc<Node>)>);

impl NodeSink for Written {
    fn put(&mut self, sealed: Sealed, node: Arc<Node>) {
        self.0.push((sealed, node));
    }
}

impl NodeSource for Memory {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.asked.borrow_mut().insert(reference.id);
        if let Some(at_hand) = &*self.at_hand.borrow()
            && !at_hand.contains(&reference.id)
        {
            return None;
        }
        Some(self.objects[&reference.id].1.clone())
    }
}

impl Memory {
    pub(super) fn new(rules: Rules) -> Self {
        let keys = KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([5; 32]));
        let content = keys.content(KeyEpoch(0)).unwrap().clone();
        Self {
            keys,
            sealer: Sealer::new(content, KeyEpoch(0)),
            rules,
            objects: BTreeMap::new(),
            asked: RefCell::default(),
            at_hand: RefCell::default(),
        }
    }

    /// Nodes of a quarter of the size, for tall trees of few entries.
    pub(super) fn small() -> Self {
        Self::new(Rules::scaled_down(&BOUNDARY, 4))
    }

    pub(super) fn full_size() -> Self {
        Self::new(Rules::new(&BOUNDARY))
    }

    pub(super) fn try_apply(
        &mut self,
        root: Option<&Reference>,
        edits: &[Edit],
        written: &mut Written,
    ) -> Result<Reference, ApplyError> {
        let content = self.keys.content(KeyEpoch(0)).unwrap().clone();
        let mut sealer = std::mem::replace(&mut self.sealer, Sealer::new(content, KeyEpoch(0)));
        let result = apply_by(self.rules, self, written, &mut sealer, root, edits);
        self.sealer = sealer;
        result
    }

    /// Cuts gaps out; what is written is not kept.
    pub(super) fn cut_out(
        &mut self,
        gaps: &[crate::Gap],
        root: &Reference,
        written: &mut Written,
    ) -> Result<Reference, ApplyError> {
        let content = self.keys.content(KeyEpoch(0)).unwrap().clone();
        let mut sealer = std::mem::replace(&mut self.sealer, Sealer::new(content, KeyEpoch(0)));
        let result = cut_out_by(self.rules, gaps, self, written, &mut sealer, root);
        self.sealer = sealer;
        result
    }

    /// Applies edits and keeps what was written; also says how many nodes that were, by level.
    pub(super) fn apply(
        &mut self,
        root: Option<&Reference>,
        edits: &[Edit],
    ) -> (Reference, BTreeMap<u8, usize>) {
        let mut written = Written::default();
        let root = self.try_apply(root, edits, &mut written).unwrap();
        let mut levels = BTreeMap::new();
        for (sealed, node) in written.0 {
            *levels.entry(node.level()).or_default() += 1;
            if let Some(at_hand) = &mut *self.at_hand.borrow_mut() {
                at_hand.insert(sealed.reference.id);
            }
            self.objects.insert(sealed.reference.id, (sealed, node));
        }
        (root, levels)
    }

    /// The root of exactly these entries.
    pub(super) fn root_of(&mut self, model: &BTreeMap<Key, Value>) -> Reference {
        let edits: Vec<_> = model
            .iter()
            .map(|(key, value)| Edit::Put(key.clone(), value.clone()))
            .collect();
        self.apply(None, &edits).0
    }

    pub(super) fn entries(&self, root: &Reference) -> BTreeMap<Key, Value> {
        let entries = range(self, root, &KeyRange::all(), usize::MAX).unwrap();
        entries.into_iter().collect()
    }

    /// Opens every node of a tree from its stored bytes and counts the nodes of each level.
    pub(super) fn open_all(&self, root: &Reference) -> Vec<usize> {
        let (sealed, node) = &self.objects[&root.id];
        let opened = open_node(&self.keys, root, &sealed.bytes).unwrap();
        assert_eq!(opened, **node);
        let mut levels = vec![0; usize::from(node.level()) + 1];
        levels[usize::from(node.level())] = 1;
        if node.level() > 0 {
            for position in 0..node.len() {
                let below = self.open_all(&node.child(position));
                assert_eq!(below.len(), usize::from(node.level()));
                for (level, count) in below.into_iter().enumerate() {
                    levels[level] += count;
                }
            }
        }
        levels
    }

    /// How many nodes a call asks for.
    pub(super) fn asked_by<T>(&self, call: impl FnOnce(&Self) -> T) -> (T, usize) {
        self.asked.borrow_mut().clear();
        let result = call(self);
        (result, self.asked.borrow().len())
    }

    /// Repeats a call, from nothing at hand, until it has all that it needs; also says how often it
    /// was repeated.
    pub(super) fn until_at_hand<T, E>(
        &mut self,
        mut call: impl FnMut(&mut Self) -> Result<T, E>,
        absent_of: impl Fn(E) -> Absent,
    ) -> (T, usize) {
        *self.at_hand.borrow_mut() = Some(BTreeSet::new());
        let mut rounds = 0;
        let result = loop {
            match call(self) {
                Ok(result) => break result,
                Err(error) => {
                    let Absent(absent) = absent_of(error);
                    rounds += 1;
                    let mut at_hand = self.at_hand.borrow_mut();
                    let at_hand = at_hand.as_mut().unwrap();
                    assert!(!absent.is_empty());
                    for reference in absent {
                        assert!(at_hand.insert(reference.id), "named twice");
                    }
                }
            }
        };
        *self.at_hand.borrow_mut() = None;
        (result, rounds)
    }
}
