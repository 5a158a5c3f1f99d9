//! Random generations over random images, sealed on devices that have all, some or none of it.

use img_overlay::Piece;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Create,
    Write {
        file: usize,
        offset: u64,
        len: usize,
        seed: u64,
    },
    Zero {
        file: usize,
        offset: u64,
        len: u64,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    Drop {
        file: usize,
    },
    Copy {
        from: usize,
        to: usize,
        block: u64,
    },
}

/// One generation, and the device that seals it.
#[derive(Debug, Clone)]
struct Round {
    steps: Vec<Step>,
    device: usize,
    /// Whether the next generation is closed before this one is sealed.
    late: bool,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0..3_000u64,
        3 => 0..4 * BLOCK,
        2 => (0..4u64, 0..40u64).prop_map(|(block, by)| (block * BLOCK + by).saturating_sub(20)),
    ]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![5 => 1..2_000usize, 2 => 1..20_000usize, 1 => 1..2 * BLOCK_SIZE]
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..8usize;
    prop_oneof![
        2 => Just(Step::Create),
        12 => (file(), offset(), len(), 0..4u64)
            .prop_map(|(file, offset, len, seed)| Step::Write { file, offset, len, seed }),
        3 => (file(), offset(), len())
            .prop_map(|(file, offset, len)| Step::Zero { file, offset, len: len as u64 }),
        3 => (file(), offset()).prop_map(|(file, size)| Step::Truncate { file, size }),
        1 => file().prop_map(|file| Step::Drop { file }),
        2 => (file(), file(), 0..4u64).prop_map(|(from, to, block)| Step::Copy { from, to, block }),
    ]
}

fn round(steps: usize) -> impl Strategy<Value = Round> {
    let steps = proptest::collection::vec(step(), 1..steps);
    (steps, 0..4usize, any::<bool>()).prop_map(|(steps, device, late)| Round {
        steps,
        device,
        late,
    })
}

struct System {
    home: Arc<Home>,
    /// Devices that keep what they have sealed and read; beyond them a new one is taken each time.
    devices: Vec<Device>,
    changes: Changes,
    root: Option<Reference>,
    next_inode: u64,
    /// What the files held when each waiting generation was closed.
    cuts: Vec<BTreeMap<Inode, Vec<u8>>>,
}

impl System {
    fn new() -> Self {
        let home = Arc::new(Home::default());
        Self {
            devices: vec![Device::new(&home), Device::new(&home)],
            home,
            changes: Changes::new(),
            root: None,
            next_inode: 2,
            cuts: Vec::new(),
        }
    }

    fn file(&self, number: usize) -> Option<Inode> {
        let files = &self.changes.files;
        files.keys().nth(number % files.len().max(1)).copied()
    }

    async fn step(&mut self, step: &Step) -> Option<()> {
        match *step {
            Step::Create => {
                self.changes.create(Inode(self.next_inode));
                self.next_inode += 1;
            }
            Step::Write {
                file,
                offset,
                len,
                seed,
            } => {
                let bytes = match seed {
                    0 => vec![0; len],
                    seed => noise(seed + offset, len),
                };
                self.changes.write(self.file(file)?, offset, &bytes);
            }
            Step::Zero { file, offset, len } => {
                let file = self.file(file)?;
                let size = self.changes.files[&file].len() as u64;
                let len = len.min(size.saturating_sub(offset));
                if len > 0 {
                    self.changes.zero(file, offset, len);
                }
            }
            Step::Truncate { file, size } => self.changes.truncate(self.file(file)?, size),
            Step::Drop { file } => self.changes.drop_inode(self.file(file)?),
            Step::Copy { from, to, block } => {
                self.copy(self.file(from)?, self.file(to)?, block * BLOCK)
                    .await;
            }
        }
        Some(())
    }

    /// Copies a block by reference, if it is whole and the root has it.
    async fn copy(&mut self, from: Inode, to: Inode, offset: u64) {
        let pieces = self.changes.overlay.read(from, offset, BLOCK);
        let clean = matches!(pieces[..], [Piece::Below { .. }]);
        let (Some(root), true) = (self.root, clean) else {
            return;
        };
        let map = self.devices[0].read_all(root).await;
        let Some(Value::Extent(extent)) = map.get(&Key::extent(from, offset)) else {
            return;
        };
        self.changes.copy(from, to, offset, extent);
    }

    fn close(&mut self) {
        self.changes.freeze();
        self.cuts.push(self.changes.files.clone());
    }

    /// Seals the oldest closed generation and compares the new root with the cut.
    async fn seal(&mut self, device: usize) {
        let stranger = Device::new(&self.home);
        let device = self.devices.get(device).unwrap_or(&stranger);
        let closed = self.changes.closed(self.root);
        let sealed = device.seal(&closed).await;
        device.stream();
        let again = device.seal(&closed).await;
        assert_eq!(again.root, sealed.root, "a seal can be repeated");
        self.changes.overlay.drop_oldest(closed.generation.id());
        self.root = Some(sealed.root);

        let expected = self.cuts.remove(0);
        let image = Device::new(&self.home).read_image(sealed.root).await;
        assert_eq!(
            image.files.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (inode, content) in &expected {
            assert_eq!(image.files[inode].0.size, content.len() as u64);
            assert!(
                image.files[inode].1 == *content,
                "{inode:?} reads as it was cut"
            );
        }
        let bytes: usize = expected.values().map(Vec::len).sum();
        assert_eq!(sealed.files, expected.len() as u64);
        assert_eq!(sealed.logical_bytes, bytes as u64);
        let totals = Value::Totals {
            files: sealed.files,
            logical_bytes: sealed.logical_bytes,
        };
        assert!(image.facts.contains(&totals), "{:?}", image.facts);
    }

    async fn run(&mut self, rounds: &[Round]) {
        for round in rounds {
            for step in &round.steps {
                self.step(step).await;
            }
            self.close();
            if !round.late || self.cuts.len() == 2 {
                while !self.cuts.is_empty() {
                    self.seal(round.device).await;
                }
            }
        }
        while !self.cuts.is_empty() {
            self.seal(0).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_new_root_reads_as_the_overlay_over_the_old_one(
        image in round(30),
        generations in proptest::collection::vec(round(16), 3..6),
    ) {
        let mut image = image;
        image.steps.splice(0..0, [Step::Create, Step::Create, Step::Create]);
        image.late = false;
        let rounds = [vec![image], generations].concat();
        Runtime::new().unwrap().block_on(System::new().run(&rounds));
    }
}
