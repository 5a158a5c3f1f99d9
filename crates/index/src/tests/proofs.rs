//! Challenges to whoever stores a tree.

use std::collections::{BTreeMap, BTreeSet};

use img_seal::{Reference, Sealer};
use img_types::bytes::Reader;
use img_types::object::{ObjectKind, Parsed, Step};
use img_types::{KeyEpoch, ObjectId};

use super::memory::Memory;
use super::samples::attributes;
use crate::proof::{Proof, ProofError, prove};
use crate::{Edit, Extent, Inode, Key, Value};

/// A tree over 3,000 blocks, with everything that is stored of it.
struct Stored {
    memory: Memory,
    blocks: BTreeMap<ObjectId, Vec<u8>>,
    root: Reference,
}

impl Stored {
    fn new() -> Self {
        let mut memory = Memory::small();
        let content = memory.keys.content(KeyEpoch(0)).unwrap().clone();
        let mut sealer = Sealer::new(content, KeyEpoch(0));
        let mut blocks = BTreeMap::new();
        let mut edits = vec![Edit::Put(Key::attributes(Inode(2)), attributes(1))];
        for number in 0u64..3_000 {
            let block = sealer
                .seal(ObjectKind::Block, &number.to_le_bytes())
                .unwrap();
            let extent = Extent {
                base: Some(block.reference),
                patches: Vec::new(),
            };
            edits.push(Edit::Put(
                Key::extent(Inode(2), number << 16),
                Value::Extent(extent),
            ));
            blocks.insert(block.reference.id, block.bytes);
        }
        let (root, _) = memory.apply(None, &edits);
        Self {
            memory,
            blocks,
            root,
        }
    }

    fn get(&self, id: &ObjectId) -> Option<Vec<u8>> {
        let node = self.memory.objects.get(id).map(|(sealed, _)| &sealed.bytes);
        node.or_else(|| self.blocks.get(id)).cloned()
    }
}

#[test]
fn a_walk_over_stored_bytes_alone_is_accepted_after_its_way_over_the_wire() {
    let tree = Stored::new();
    for number in 0..50 {
        // As a home walks: it has no index and no keys, and answers with bytes.
        let seed = [number; 32];
        let mut object = tree.get(&tree.root.id).unwrap();
        let mut sent: Vec<Vec<u8>> = Vec::new();
        while let Some(step) = Step::choose(&Parsed::decode(&object).unwrap(), &seed, sent.len()) {
            object = tree.get(&step.child).unwrap();
            let mut record = Vec::new();
            step.encode(&mut record);
            sent.push(record);
        }
        let received = sent.iter().map(|record| {
            let mut reader = Reader::new(record);
            let step = Step::decode(&mut reader).unwrap();
            reader.finish().unwrap();
            step
        });
        let proof = Proof {
            steps: received.collect(),
            object,
        };
        proof.verify(tree.root.id, &seed).unwrap();
        let same = prove(tree.root.id, &seed, |id| tree.get(id));
        assert_eq!(same, Ok(proof));
    }
}

#[test]
fn a_seeded_walk_is_proved_and_checked_without_nodes() {
    let tree = Stored::new();
    let Stored {
        memory,
        blocks,
        root,
    } = &tree;
    let stored = |id: &ObjectId| tree.get(id);

    let mut looked_at = BTreeSet::new();
    for number in 0..100 {
        let seed = [number; 32];
        let proof = prove(root.id, &seed, stored).unwrap();
        let found = proof.verify(root.id, &seed).unwrap();
        looked_at.insert(found);
        assert_eq!(
            proof.steps.len(),
            memory.open_all(root).len()
                - usize::from(
                    // The leaf of the metadata names no block.
                    !blocks.contains_key(&found)
                )
        );

        let mut record = Vec::new();
        proof.steps[0].encode(&mut record);
        assert_eq!(
            Step::decode(&mut Reader::new(&record)),
            Ok(proof.steps[0].clone())
        );

        assert!(proof.verify(root.id, &[number ^ 1; 32]).is_err() || number == 255);
        assert!(proof.verify(found, &seed).is_err());
        let mut altered = proof.clone();
        *altered.object.last_mut().unwrap() ^= 1;
        assert_eq!(altered.verify(root.id, &seed), Err(ProofError::Broken));
        let early = Proof {
            steps: proof.steps[..1].to_vec(),
            object: stored(&proof.steps[0].child).unwrap(),
        };
        assert_eq!(early.verify(root.id, &seed), Err(ProofError::OtherWay));
    }
    assert!(looked_at.len() > 80, "walks spread");

    let lost = |id: &ObjectId| stored(id).filter(|_| !blocks.contains_key(id));
    let missing = (0..10).filter(|number| {
        matches!(
            prove(root.id, &[*number; 32], lost),
            Err(ProofError::Missing(_))
        )
    });
    assert!(missing.count() > 5, "who has only nodes cannot answer");
}
