//! The overlay against a naive model: a map of keys and one byte array per file.
//!
//! Random operations go to both. After each a random range is compared, after each freeze and at
//! the end everything. The oldest closed generation is folded into the model of the root through
//! its plan, so that the plan is checked along with the reads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use img_index::{Boundary, Edit, Extent, FileKind, Inode, Key, KeyRange, Value, name_hash};
use img_overlay::{
    Change, DirtySource, Generation, GenerationId, INFINITY, Layer, Overlay, Piece, plan,
};
use img_seal::{BlockKey, Reference};
use img_types::ObjectId;
use img_types::limits::BLOCK_SIZE;
use proptest::prelude::*;

const INODES: u64 = 4;
const NAMES: u64 = 6;
/// Three blocks and a bit, so that ranges meet every kind of block edge.
const FILE_LEN: u64 = 3 * BLOCK_SIZE as u64 + 1_000;

/// What an image holds: the truth, or what the root under the overlay says.
#[derive(Clone)]
struct State {
    keys: BTreeMap<Key, Value>,
    files: BTreeMap<Inode, Vec<u8>>,
}

impl State {
    fn new() -> Self {
        let files = (1..=INODES)
            .map(|inode| (Inode(inode), vec![0; FILE_LEN as usize]))
            .collect();
        Self {
            keys: BTreeMap::new(),
            files,
        }
    }

    fn clear(&mut self, range: &KeyRange) {
        self.keys.retain(|key, _| !range.contains(key));
    }

    fn file(&mut self, inode: Inode, range: Range<u64>) -> &mut [u8] {
        let end = range.end.min(FILE_LEN);
        let start = range.start.min(end);
        &mut self.files.get_mut(&inode).unwrap()[start as usize..end as usize]
    }

    /// Does what a seal of the generation has to do.
    fn fold(&mut self, generation: &Generation, arena: &[u8]) {
        let plan = plan(generation);
        let mut last: Option<Key> = None;
        for edit in plan.edits().sorted() {
            let (first, next) = match &edit {
                Edit::Put(key, _) | Edit::Delete(key) => (key.clone(), key.successor()),
                Edit::Clear(range) => (range.start.clone(), range.end.clone()),
            };
            assert!(
                last.is_none_or(|last| last <= first),
                "edits overlap or are not sorted"
            );
            assert!(first < next);
            last = Some(next);
            match edit {
                Edit::Put(key, value) => drop(self.keys.insert(key, value)),
                Edit::Delete(key) => drop(self.keys.remove(&key)),
                Edit::Clear(range) => self.clear(&range),
            }
        }
        for inode in plan.inodes() {
            if inode.dropped() {
                self.file(inode.inode, 0..FILE_LEN).fill(0);
            }
            for (start, end) in inode.cleared() {
                assert_eq!(start % BLOCK_SIZE as u64, 0);
                assert!(end == INFINITY || end % BLOCK_SIZE as u64 == 0);
                self.file(inode.inode, start..end).fill(0);
            }
            for block in inode.blocks() {
                if let Some(extent) = &block.copied {
                    let content = content(extent);
                    let target =
                        self.file(inode.inode, block.offset..block.offset + BLOCK_SIZE as u64);
                    target.copy_from_slice(&content[..target.len()]);
                }
                for dirty in &block.pieces {
                    let start = block.offset + u64::from(dirty.offset);
                    let target = self.file(inode.inode, start..start + u64::from(dirty.len));
                    match dirty.source {
                        DirtySource::Zero => target.fill(0),
                        DirtySource::Arena(position) => {
                            let position = position as usize;
                            target.copy_from_slice(&arena[position..position + target.len()]);
                        }
                    }
                }
            }
        }
    }
}

/// Bytes to write at a range, different for every place and `seed`.
fn noise(seed: u8, range: Range<u64>) -> &'static [u8] {
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 1u64;
        let bytes = (0..FILE_LEN + 256).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        });
        bytes.collect()
    });
    let shift = u64::from(seed);
    &NOISE[(range.start + shift) as usize..(range.end + shift) as usize]
}

/// An extent whose content `content` knows.
fn extent(seed: u8) -> Extent {
    Extent {
        base: Some(Reference {
            id: ObjectId::from_bytes([seed; 32]),
            key: BlockKey::from_bytes([seed; 32]),
            len: BLOCK_SIZE as u32,
        }),
        patches: Vec::new(),
    }
}

fn content(extent: &Extent) -> &'static [u8] {
    let seed = extent.base.unwrap().id.as_bytes()[0];
    noise(seed, 0..BLOCK_SIZE as u64)
}

#[derive(Debug, Clone)]
enum Operation {
    Write {
        inode: u64,
        range: Range<u64>,
        byte: u8,
    },
    Zero {
        inode: u64,
        range: Range<u64>,
    },
    Truncate {
        inode: u64,
        from: u64,
    },
    Copy {
        inode: u64,
        block: u64,
        seed: u8,
    },
    ClearExtents {
        inode: u64,
        from: u64,
        to: u64,
    },
    Put {
        inode: u64,
        name: u64,
        value: u64,
    },
    Delete {
        inode: u64,
        name: u64,
    },
    ClearEntries {
        inode: u64,
        from: Option<u64>,
    },
    Drop {
        inode: u64,
    },
    Freeze,
    Seal,
}

struct System {
    overlay: Overlay,
    arenas: BTreeMap<GenerationId, Vec<u8>>,
    root: State,
    truth: State,
    journal: Vec<Record>,
}

enum Record {
    Change(Vec<u8>),
    Freeze,
    Dropped(GenerationId),
}

fn entry_key(inode: u64, name: u64) -> Key {
    let name = format!("name-{name}");
    let boundary = Boundary::from_bytes([7; 32]);
    Key::entry(
        Inode(inode),
        name_hash(&boundary, name.as_bytes()),
        name.as_bytes(),
    )
}

impl System {
    fn new() -> Self {
        Self {
            overlay: Overlay::new(GenerationId(5)),
            arenas: BTreeMap::from([(GenerationId(5), Vec::new())]),
            root: State::new(),
            truth: State::new(),
            journal: Vec::new(),
        }
    }

    fn apply(&mut self, change: Change) {
        let mut record = Vec::new();
        change.encode(&mut record);
        assert_eq!(Change::decode(&record).as_ref(), Ok(&change));
        self.journal.push(Record::Change(record));
        self.overlay.apply(change);
    }

    fn step(&mut self, operation: &Operation) {
        match operation.clone() {
            Operation::Write { inode, range, byte } => self.write(Inode(inode), range, byte),
            Operation::Zero { inode, range } => {
                let inode = Inode(inode);
                self.truth.file(inode, range.clone()).fill(0);
                self.apply(Change::Zero {
                    inode,
                    offset: range.start,
                    len: range.end - range.start,
                });
            }
            Operation::Truncate { inode, from } => {
                let inode = Inode(inode);
                self.truth.file(inode, from..INFINITY).fill(0);
                self.apply(Change::Zero {
                    inode,
                    offset: from,
                    len: INFINITY,
                });
            }
            Operation::Copy { inode, block, seed } => {
                let (inode, offset) = (Inode(inode), block * BLOCK_SIZE as u64);
                let extent = extent(seed);
                let content = content(&extent);
                let target = self.truth.file(inode, offset..offset + BLOCK_SIZE as u64);
                target.copy_from_slice(&content[..target.len()]);
                self.apply(Change::Put(
                    Key::extent(inode, offset),
                    Value::Extent(extent),
                ));
            }
            Operation::ClearExtents { inode, from, to } => {
                let inode = Inode(inode);
                let (from, to) = (from * BLOCK_SIZE as u64, to * BLOCK_SIZE as u64);
                self.truth.file(inode, from..to).fill(0);
                self.apply(Change::ClearKeys(KeyRange::extents(inode, from, to)));
            }
            Operation::Put { inode, name, value } => {
                let key = entry_key(inode, name);
                let value = Value::Entry {
                    inode: Inode(value),
                    kind: FileKind::File,
                };
                self.truth.keys.insert(key.clone(), value.clone());
                self.apply(Change::Put(key, value));
            }
            Operation::Delete { inode, name } => {
                let key = entry_key(inode, name);
                self.truth.keys.remove(&key);
                self.apply(Change::Delete(key));
            }
            Operation::ClearEntries { inode, from } => {
                let start = from.map(|name| entry_key(inode, name));
                let mut range = KeyRange::entries(Inode(inode));
                range.start = start.unwrap_or(range.start);
                self.truth.clear(&range);
                self.apply(Change::ClearKeys(range));
            }
            Operation::Drop { inode } => {
                let inode = Inode(inode);
                self.truth.clear(&KeyRange::inode_metadata(inode));
                self.truth.file(inode, 0..FILE_LEN).fill(0);
                self.apply(Change::DropInode(inode));
            }
            Operation::Freeze => {
                let closed = self.overlay.freeze();
                self.journal.push(Record::Freeze);
                assert_eq!(self.overlay.top().id(), closed.next());
                self.arenas.insert(closed.next(), Vec::new());
                self.compare_everything();
            }
            Operation::Seal => self.seal(),
        }
    }

    fn write(&mut self, inode: Inode, range: Range<u64>, byte: u8) {
        let noise = noise(byte, range.clone());
        self.truth.file(inode, range.clone()).copy_from_slice(noise);
        let places = self
            .overlay
            .place(inode, range.start, range.end - range.start);
        let mut at = range.start;
        for (part, position) in places {
            assert_eq!(part.start, at);
            assert!(!part.is_empty());
            at = part.end;
            let arena = self.arenas.get_mut(&self.overlay.top().id()).unwrap();
            let position = position.unwrap_or_else(|| {
                // Now and then the arena goes on elsewhere, so that not everything coalesces.
                let gap = if byte & 3 == 0 { 5 } else { 0 };
                let position = arena.len() + gap;
                arena.resize(position + (part.end - part.start) as usize, 0xee);
                position as u64
            });
            let bytes = &noise[(part.start - range.start) as usize..];
            let bytes = &bytes[..(part.end - part.start) as usize];
            arena[position as usize..][..bytes.len()].copy_from_slice(bytes);
            self.apply(Change::Write {
                inode,
                offset: part.start,
                len: part.end - part.start,
                arena: position,
            });
        }
        assert_eq!(at, range.end);
        let places = self
            .overlay
            .place(inode, range.start, range.end - range.start);
        assert!(
            places.iter().all(|(_, position)| position.is_some()),
            "what was just written is the top's own"
        );
    }

    fn seal(&mut self) {
        let Some(oldest) = self.overlay.closed().next().cloned() else {
            return;
        };
        assert!(
            self.overlay.drop_oldest(oldest.id().next()).is_none(),
            "only the oldest can go"
        );
        let arena = self.arenas.remove(&oldest.id()).unwrap();
        self.root.fold(&oldest, &arena);
        assert_eq!(
            self.overlay
                .drop_oldest(oldest.id())
                .map(|dropped| dropped.id()),
            Some(oldest.id())
        );
        self.journal.push(Record::Dropped(oldest.id()));
    }

    fn read(&self, inode: Inode, range: Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self
            .overlay
            .read(inode, range.start, range.end - range.start)
        {
            assert!(piece.len() > 0);
            match piece {
                Piece::Arena {
                    generation,
                    position,
                    len,
                } => {
                    let position = position as usize;
                    let arena = &self.arenas[&generation];
                    bytes.extend_from_slice(&arena[position..position + len as usize]);
                }
                Piece::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
                Piece::Copied {
                    extent,
                    offset,
                    len,
                } => {
                    let offset = offset as usize;
                    bytes.extend_from_slice(&content(&extent)[offset..offset + len as usize]);
                }
                Piece::Below { offset, len } => {
                    assert_eq!(offset, range.start + bytes.len() as u64);
                    let root = &self.root.files[&inode];
                    bytes.extend_from_slice(&root[offset as usize..(offset + len) as usize]);
                }
            }
        }
        assert_eq!(bytes.len() as u64, range.end - range.start);
        bytes
    }

    fn list(&self, range: &KeyRange, limit: usize) -> Vec<(Key, Value)> {
        let mut entries = Vec::new();
        let mut range = range.clone();
        loop {
            let view = self.overlay.range(&range, limit);
            assert!(view.entries.len() <= limit);
            let mut below: Vec<_> = self
                .root
                .keys
                .range(&range.start..&range.end)
                .map(|(key, value)| (key.clone(), value.clone()))
                .take(limit)
                .collect();
            let below_next = (below.len() == limit)
                .then(|| below.pop().map(|(key, _)| key))
                .flatten();
            let merged = view.over(below, below_next);
            entries.extend(merged.entries);
            match merged.next {
                Some(next) => {
                    assert!(next > range.start, "every call gets further");
                    range.start = next;
                }
                None => return entries,
            }
        }
    }

    fn compare(&self, inode: Inode, range: Range<u64>) {
        let truth = &self.truth.files[&inode][range.start as usize..range.end as usize];
        assert!(
            self.read(inode, range.clone()) == truth,
            "{inode:?} {range:?}"
        );
    }

    fn compare_keys(&self, limit: usize) {
        for inode in 1..=INODES {
            for name in 0..NAMES {
                let key = entry_key(inode, name);
                let found = match self.overlay.get(&key) {
                    Layer::Value(value) => Some(value),
                    Layer::Deleted => None,
                    Layer::Below => self.root.keys.get(&key).cloned(),
                };
                assert_eq!(found.as_ref(), self.truth.keys.get(&key));
            }
        }
        let everything = KeyRange::all();
        let truth: Vec<_> = self.truth.keys.clone().into_iter().collect();
        assert_eq!(self.list(&everything, limit), truth);
        let entries = KeyRange::entries(Inode(2));
        let truth: Vec<_> = truth
            .into_iter()
            .filter(|(key, _)| entries.contains(key))
            .collect();
        assert_eq!(self.list(&entries, limit), truth);
    }

    fn compare_everything(&self) {
        for inode in 1..=INODES {
            self.compare(Inode(inode), 0..FILE_LEN);
        }
        for limit in [2, 3, 1_000] {
            self.compare_keys(limit);
        }
    }

    fn replayed(&self) -> Overlay {
        let mut overlay = Overlay::new(GenerationId(5));
        for record in &self.journal {
            match record {
                Record::Change(bytes) => overlay.apply(Change::decode(bytes).unwrap()),
                Record::Freeze => drop(overlay.freeze()),
                Record::Dropped(id) => drop(overlay.drop_oldest(*id)),
            }
        }
        overlay
    }
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..FILE_LEN,
        (0..4u64, 0..40u64)
            .prop_map(|(block, by)| (block * BLOCK_SIZE as u64 + by).saturating_sub(20)),
        Just(0),
    ]
}

fn byte_range() -> impl Strategy<Value = Range<u64>> {
    let len = prop_oneof![4 => 1..64u64, 2 => 1..5_000u64, 1 => 1..FILE_LEN];
    (offset(), len).prop_map(|(start, len)| {
        let start = start.min(FILE_LEN - 1);
        start..(start + len).min(FILE_LEN)
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let inode = || 1..=INODES;
    prop_oneof![
        12 => (inode(), byte_range(), any::<u8>())
            .prop_map(|(inode, range, byte)| Operation::Write { inode, range, byte }),
        4 => (inode(), byte_range()).prop_map(|(inode, range)| Operation::Zero { inode, range }),
        2 => (inode(), offset()).prop_map(|(inode, from)| Operation::Truncate { inode, from }),
        2 => (inode(), 0..4u64, any::<u8>())
            .prop_map(|(inode, block, seed)| Operation::Copy { inode, block, seed }),
        1 => (inode(), 0..4u64, 0..4u64)
            .prop_map(|(inode, from, to)| Operation::ClearExtents { inode, from, to: to.max(from) }),
        6 => (inode(), 0..NAMES, 1..9u64)
            .prop_map(|(inode, name, value)| Operation::Put { inode, name, value }),
        3 => (inode(), 0..NAMES).prop_map(|(inode, name)| Operation::Delete { inode, name }),
        2 => (inode(), proptest::option::of(0..NAMES))
            .prop_map(|(inode, from)| Operation::ClearEntries { inode, from }),
        1 => inode().prop_map(|inode| Operation::Drop { inode }),
        2 => Just(Operation::Freeze),
        2 => Just(Operation::Seal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    // 400 cases of 260 to 300 operations: more than 100,000 operations in a run.
    #[test]
    fn the_overlay_says_what_the_model_says(
        operations in proptest::collection::vec((operation(), 1..=INODES, byte_range()), 260..300),
    ) {
        let mut system = System::new();
        for (operation, inode, looked_at) in &operations {
            system.step(operation);
            system.compare(Inode(*inode), looked_at.clone());
            system.compare_keys(4);
        }
        system.compare_everything();
        prop_assert!(system.replayed() == system.overlay, "a replay gives an equal overlay");
        while system.overlay.closed().next().is_some() {
            system.seal();
        }
        system.compare_everything();
    }

    #[test]
    fn decoding_a_change_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), tag in 0..8u8) {
        let _ = Change::decode(&bytes);
        let record = [&[1, tag], &bytes[..]].concat();
        if let Ok(change) = Change::decode(&record) {
            let mut again = Vec::new();
            change.encode(&mut again);
            prop_assert_eq!(again, record);
            let mut overlay = Overlay::new(GenerationId(0));
            overlay.apply(change);
        }
    }
}
