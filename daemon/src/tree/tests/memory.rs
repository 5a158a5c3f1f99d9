//! A home in memory and the simplest sealer: every changed block anew, small files inline.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use img_index::{
    Boundary, Edit, Extent, Inode, Key, KeyParts, KeyRange, Node, NodeSink, NodeSource, Value,
    apply,
};
use img_overlay::{DirtySource, plan};
use img_proto::Class;
use img_seal::{HomeSecret, KeyRing, Reference, Sealed};
use img_types::KeyEpoch;
use img_types::limits::{BLOCK_SIZE, INLINE_LEN_MAX};
use img_types::object::ObjectKind;
use rustix::io::Errno;

use super::super::durable::Closed;
use super::super::source::{Fetching, MakingRoom, Source, SourceError, Wanted};

/// All nodes and blocks there are, and which of them are at hand.
#[derive(Debug)]
pub(super) struct Memory {
    keys: KeyRing,
    objects: Mutex<Objects>,
    /// Free bytes of the disk, where a test says so.
    pub(super) free: Arc<AtomicU64>,
    /// Bytes that it can give back.
    pub(super) evictable: AtomicU64,
}

#[derive(Debug, Default)]
struct Objects {
    nodes: BTreeMap<Reference, Arc<Node>>,
    blocks: BTreeMap<Reference, Bytes>,
    nodes_at_hand: BTreeMap<Reference, Arc<Node>>,
    blocks_at_hand: BTreeMap<Reference, Bytes>,
    away: bool,
    /// Whether something was kept since the last sync.
    unsynced: bool,
}

/// A home that answers when it is told to.
#[derive(Debug)]
pub(super) struct Slow {
    pub(super) memory: Arc<Memory>,
    pub(super) open: tokio::sync::watch::Sender<bool>,
    /// How many fetches wait.
    pub(super) waiting: tokio::sync::watch::Sender<usize>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            keys: KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([1; 32])),
            objects: Mutex::default(),
            free: Arc::default(),
            evictable: AtomicU64::new(0),
        }
    }

    /// Empties what is at hand, as memory that others use does.
    pub(super) fn forget(&self) {
        let mut objects = self.objects.lock().unwrap();
        objects.nodes_at_hand.clear();
        objects.blocks_at_hand.clear();
    }

    /// Cuts or mends the way to what is not at hand.
    pub(super) fn set_away(&self, away: bool) {
        self.objects.lock().unwrap().away = away;
    }

    /// Whether something was kept and not synced.
    pub(super) fn is_unsynced(&self) -> bool {
        self.objects.lock().unwrap().unsynced
    }

    /// Turns a closed generation into a root.
    pub(super) fn seal(&self, closed: &Closed) -> Reference {
        let plan = plan(&closed.generation);
        let mut edits: Vec<Edit> = plan.edits().sorted().collect();
        for file in plan.inodes() {
            let mut blocks = BTreeMap::new();
            let mut before = Vec::new();
            if let Some(root) = &closed.base {
                let range = KeyRange::data(file.inode);
                before = img_index::range(&All(self), root, &range, usize::MAX).unwrap();
            }
            if !file.dropped() {
                for (key, value) in &before {
                    let (offset, content) = self.content(key, value);
                    blocks.insert(offset, content);
                }
            }
            for (from, to) in file.cleared() {
                blocks.retain(|offset, _| !(from..to).contains(offset));
            }
            for block in file.blocks() {
                assert!(block.copied.is_none());
                let content = blocks.entry(block.offset).or_insert(vec![0; BLOCK_SIZE]);
                for dirty in block.pieces {
                    let range = dirty.offset as usize..(dirty.offset + dirty.len) as usize;
                    match dirty.source {
                        DirtySource::Zero => content[range].fill(0),
                        DirtySource::Arena(at) => {
                            closed.arena.read_at(&mut content[range], at).unwrap();
                        }
                    }
                }
            }
            let extents = blocks
                .values()
                .filter(|block| block.iter().any(|byte| *byte != 0));
            let extents = extents.count() as u64;
            let attributes = Key::attributes(file.inode);
            for edit in &mut edits {
                if let Edit::Put(key, Value::Attributes(now)) = edit
                    && *key == attributes
                {
                    now.count_extents(extents);
                }
            }
            let mut after: BTreeMap<Key, Edit> = before
                .iter()
                .map(|(key, _)| (key.clone(), Edit::Delete(key.clone())))
                .collect();
            for (key, value) in self.values(file.inode, blocks) {
                after.insert(key.clone(), Edit::Put(key, value));
            }
            edits.extend(after.into_values());
        }
        let boundary = Boundary::from_bytes([7; 32]);
        let mut sink = Sink(self);
        let mut sealer = self.keys.sealer();
        let base = closed.base.as_ref();
        apply(&All(self), &mut sink, &mut sealer, &boundary, base, edits).unwrap()
    }

    fn content(&self, key: &Key, value: &Value) -> (u64, Vec<u8>) {
        let (offset, content) = match (key.parts(), value) {
            (KeyParts::Inline(_), Value::Inline(content)) => (0, content.clone()),
            (KeyParts::Extent { offset, .. }, Value::Extent(extent)) => {
                let base = extent.base.unwrap();
                let objects = self.objects.lock().unwrap();
                (offset, objects.blocks[&base].to_vec())
            }
            other => panic!("no data: {other:?}"),
        };
        let mut block = content;
        block.resize(BLOCK_SIZE, 0);
        (offset, block)
    }

    fn values(&self, inode: Inode, blocks: BTreeMap<u64, Vec<u8>>) -> Vec<(Key, Value)> {
        let mut contents: Vec<(u64, Vec<u8>)> = Vec::new();
        for (offset, mut content) in blocks {
            while content.last() == Some(&0) {
                content.pop();
            }
            if !content.is_empty() {
                contents.push((offset, content));
            }
        }
        if let [(0, content)] = &contents[..]
            && content.len() <= INLINE_LEN_MAX
        {
            return vec![(Key::inline(inode), Value::Inline(content.clone()))];
        }
        let mut sealer = self.keys.sealer();
        let extents = contents.into_iter().map(|(offset, content)| {
            let sealed = sealer.seal(ObjectKind::Block, &content).unwrap();
            let reference = sealed.reference;
            let mut objects = self.objects.lock().unwrap();
            objects.blocks.insert(reference, content.into());
            let extent = Extent {
                base: Some(reference),
                patches: Vec::new(),
            };
            (Key::extent(inode, offset), Value::Extent(extent))
        });
        extents.collect()
    }
}

impl NodeSource for Memory {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        let objects = self.objects.lock().unwrap();
        objects.nodes_at_hand.get(reference).cloned()
    }
}

impl Source for Memory {
    fn block(&self, reference: &Reference) -> Option<Bytes> {
        let objects = self.objects.lock().unwrap();
        objects.blocks_at_hand.get(reference).cloned()
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, _class: Class) -> Fetching<'a> {
        Box::pin(async move {
            let mut objects = self.objects.lock().unwrap();
            if objects.away {
                return Err(SourceError::Away);
            }
            let lost = || SourceError::Failed("there is no such object".into());
            for reference in &wanted.nodes {
                let node = objects.nodes.get(reference).cloned().ok_or_else(lost)?;
                objects.nodes_at_hand.insert(*reference, node);
            }
            for reference in &wanted.blocks {
                let block = objects.blocks.get(reference).cloned().ok_or_else(lost)?;
                objects.blocks_at_hand.insert(*reference, block);
            }
            Ok(())
        })
    }

    fn keep(&self, value: &[u8]) -> Result<Reference, Errno> {
        let sealed = self.keys.sealer().seal(ObjectKind::Block, value).unwrap();
        let mut objects = self.objects.lock().unwrap();
        objects
            .blocks
            .insert(sealed.reference, value.to_vec().into());
        objects.unsynced = true;
        Ok(sealed.reference)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.objects.lock().unwrap().unsynced = false;
        Ok(())
    }

    fn make_room(&self, missing: u64) -> MakingRoom<'_> {
        let given = if missing <= self.evictable() {
            missing
        } else {
            0
        };
        self.evictable.fetch_sub(given, Ordering::SeqCst);
        self.free.fetch_add(given, Ordering::SeqCst);
        Box::pin(std::future::ready(given > 0))
    }

    fn evictable(&self) -> u64 {
        self.evictable.load(Ordering::SeqCst)
    }
}

impl NodeSource for Slow {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.memory.node(reference)
    }
}

impl Source for Slow {
    fn block(&self, reference: &Reference) -> Option<Bytes> {
        self.memory.block(reference)
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, class: Class) -> Fetching<'a> {
        Box::pin(async move {
            self.waiting.send_modify(|waiting| *waiting += 1);
            let mut open = self.open.subscribe();
            open.wait_for(|open| *open)
                .await
                .map_err(|_| SourceError::Away)?;
            self.memory.fetch(wanted, class).await
        })
    }

    fn keep(&self, value: &[u8]) -> Result<Reference, Errno> {
        self.memory.keep(value)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.memory.sync()
    }
}

/// The sealer's view: everything is at hand.
struct All<'a>(&'a Memory);

impl NodeSource for All<'_> {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.0.objects.lock().unwrap().nodes.get(reference).cloned()
    }
}

struct Sink<'a>(&'a Memory);

impl NodeSink for Sink<'_> {
    fn put(&mut self, sealed: Sealed, node: Arc<Node>) {
        let mut objects = self.0.objects.lock().unwrap();
        objects.nodes.insert(sealed.reference, node);
    }
}
