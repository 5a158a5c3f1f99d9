//! The data of changed files: which blocks are sealed, and what becomes of their keys.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use img_index::{Inode, Key, KeyRange, Value};
use img_overlay::{BlockPlan, Edits, INFINITY, InodePlan, Layer, SealPlan};
use img_seal::Sealer;
use img_types::limits::BLOCK_SIZE;

use super::blocks::{Base, Job, Outcome};
use super::facts::{LOOK_UPS_MAX, attributes, is_small};
use super::patches::{Packer, Waiting};
use super::{Made, SealError, Sealing};

/// A file whose data changes.
struct File<'a> {
    inode: Inode,
    /// Its size after the generation; zero if it is gone.
    size: u64,
    /// Its size in the root, if it is there.
    size_before: Option<u64>,
    /// Its inline contents in the root, as far as they still count.
    inline: Option<Vec<u8>>,
    /// Nothing if only its size has changed.
    plan: Option<InodePlan<'a>>,
}

impl Sealing {
    /// Seals the data of all changed files and adds their keys to the edits.
    pub(super) fn seal_files(
        &self,
        plan: SealPlan<'_>,
        outgrown: &BTreeSet<Inode>,
        edits: &mut Edits,
    ) -> Result<Made, SealError> {
        let changed: BTreeSet<Inode> = plan.inodes().map(|file| file.inode).collect();
        let mut files = plan
            .inodes()
            .map(|file| (file.inode, Some(file)))
            .chain(outgrown.difference(&changed).map(|inode| (*inode, None)));
        let mut batch = Batch {
            sealing: self,
            sealers: self.sealers(),
            packer: Packer::new(self),
            jobs: Vec::new(),
            made: Made::default(),
        };
        loop {
            let some: Vec<_> = files.by_ref().take(LOOK_UPS_MAX).collect();
            if some.is_empty() {
                break;
            }
            for mut file in self.look_at(some, edits)? {
                file.clear(edits);
                for block in file.blocks() {
                    batch.add(file.job(block), edits)?;
                }
            }
        }
        batch.finish(edits)
    }

    fn look_at<'a>(
        &self,
        files: Vec<(Inode, Option<InodePlan<'a>>)>,
        edits: &Edits,
    ) -> Result<Vec<File<'a>>, SealError> {
        let keys: Vec<Key> = files
            .iter()
            .flat_map(|(inode, _)| [Key::attributes(*inode), Key::inline(*inode)])
            .collect();
        let mut values = self.nodes().look_up(&keys)?.into_iter();
        let mut found = Vec::with_capacity(files.len());
        for (inode, plan) in files {
            let before = attributes(values.next().flatten());
            let inline = values.next().flatten();
            let now = match edits.get(&Key::attributes(inode)) {
                Layer::Value(value) => attributes(Some(value)),
                Layer::Deleted => None,
                Layer::Below => before,
            };
            found.push(File {
                inode,
                size: now.map_or(0, |attributes| attributes.size),
                size_before: before.map(|attributes| attributes.size),
                inline: match inline {
                    Some(Value::Inline(content)) => Some(content),
                    _ => None,
                },
                plan,
            });
        }
        Ok(found)
    }
}

impl File<'_> {
    fn dropped(&self) -> bool {
        self.plan.is_some_and(|plan| plan.dropped())
    }

    /// Removes the keys of what is zero as a whole, and of what lies behind the size.
    fn clear(&mut self, edits: &mut Edits) {
        let Some(size_before) = self.size_before else {
            return;
        };
        if self.dropped() {
            edits.clear(KeyRange::data(self.inode));
            self.inline = None;
            return;
        }
        for (start, end) in self.plan.iter().flat_map(InodePlan::cleared) {
            edits.clear(KeyRange::extents(self.inode, start, end));
            if start == 0 && self.inline.take().is_some() {
                edits.set(Key::inline(self.inode), None);
            }
        }
        if self.size < size_before {
            let behind = self.size.next_multiple_of(BLOCK);
            edits.clear(KeyRange::extents(self.inode, behind, INFINITY));
        }
    }

    /// The blocks to seal: the changed ones, and the first if it can be inline no longer.
    fn blocks(&self) -> impl Iterator<Item = BlockPlan> + use<'_> {
        let mut changed = self
            .plan
            .iter()
            .flat_map(InodePlan::blocks)
            .take_while(|block| block.offset < self.size)
            .peekable();
        let first_changed = changed.peek().is_some_and(|block| block.offset == 0);
        let outgrown = self.inline.is_some() && !is_small(self.size) && !first_changed;
        let first = outgrown.then(|| BlockPlan {
            offset: 0,
            pieces: Vec::new(),
            copied: None,
        });
        first.into_iter().chain(changed)
    }

    /// Takes a block over for sealing, with what is known of its base.
    fn job(&self, block: BlockPlan) -> Job {
        let len = (self.size - block.offset).min(BLOCK);
        Job {
            inode: self.inode,
            len: u32::try_from(len).expect("a block is shorter than 4 GiB"),
            small: is_small(self.size),
            base: match &self.inline {
                Some(content) if block.offset == 0 => Base::Inline(content.clone()),
                None if self.size_before.is_some() && !self.dropped() => Base::Unknown,
                _ => Base::Nothing,
            },
            block,
        }
    }
}

/// Blocks that are sealed together, on all cores, before the next ones are looked at.
struct Batch<'a> {
    sealing: &'a Sealing,
    sealers: Vec<Sealer>,
    packer: Packer<'a>,
    jobs: Vec<Job>,
    made: Made,
}

impl Batch<'_> {
    fn add(&mut self, job: Job, edits: &mut Edits) -> Result<(), SealError> {
        self.jobs.push(job);
        if self.jobs.len() < BATCH_BLOCKS {
            return Ok(());
        }
        self.run(edits)
    }

    fn finish(mut self, edits: &mut Edits) -> Result<Made, SealError> {
        self.run(edits)?;
        self.packer.flush(edits)?;
        self.made.add(self.packer.made);
        Ok(self.made)
    }

    /// Seals the blocks of the batch and adds what becomes of them in their order, which makes the
    /// new root the same however the threads were scheduled.
    fn run(&mut self, edits: &mut Edits) -> Result<(), SealError> {
        let mut jobs = std::mem::take(&mut self.jobs);
        self.sealing.look_up_bases(&mut jobs)?;
        let outcomes = self.seal(&jobs)?;
        for (job, (outcome, made)) in jobs.into_iter().zip(outcomes) {
            self.made.add(made);
            self.settle(job, outcome, edits)?;
        }
        Ok(())
    }

    fn seal(&mut self, jobs: &[Job]) -> Result<Vec<(Outcome, Made)>, SealError> {
        let sealing = self.sealing;
        let next = AtomicUsize::new(0);
        let work = |sealer: &mut Sealer| {
            let mut done = Vec::new();
            while let number = next.fetch_add(1, Ordering::Relaxed)
                && let Some(job) = jobs.get(number)
            {
                let outcome = sealing.seal_block(job, sealer);
                if outcome.is_err() {
                    next.store(jobs.len(), Ordering::Relaxed);
                }
                done.push((number, outcome));
            }
            done
        };
        let mut done = std::thread::scope(|scope| {
            let others = self.sealers.len().min(jobs.len()).saturating_sub(1);
            let (first, rest) = self.sealers.split_at_mut(1);
            let threads: Vec<_> = rest
                .iter_mut()
                .take(others)
                .map(|sealer| scope.spawn(|| work(sealer)))
                .collect();
            let mut done: Vec<_> = first.iter_mut().flat_map(work).collect();
            for thread in threads {
                match thread.join() {
                    Ok(more) => done.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            done
        });
        done.sort_unstable_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Adds what became of a block to the edits.
    fn settle(&mut self, job: Job, outcome: Outcome, edits: &mut Edits) -> Result<(), SealError> {
        let Job {
            inode, block, base, ..
        } = job;
        let (mut extent, mut inline) = (None, None);
        match outcome {
            Outcome::Same => return Ok(()),
            Outcome::Hole => {}
            Outcome::Inline(content) => {
                inline = (!content.is_empty()).then_some(Value::Inline(content));
            }
            Outcome::Extent(made) => extent = Some(Value::Extent(made)),
            Outcome::Patch {
                base,
                patches,
                section,
            } => {
                let waiting = Waiting {
                    inode,
                    offset: block.offset,
                    base,
                    patches,
                };
                self.packer.add(waiting, section, edits)?;
            }
        }
        // The extent that waits for its patch is set over this deletion when the patch is made.
        if matches!(base, Base::Extent(_)) || extent.is_some() {
            edits.set(Key::extent(inode, block.offset), extent);
        }
        if matches!(base, Base::Inline(_)) || inline.is_some() {
            edits.set(Key::inline(inode), inline);
        }
        Ok(())
    }
}

impl Sealing {
    /// Finds the extents under the blocks that may have one.
    fn look_up_bases(&self, jobs: &mut [Job]) -> Result<(), SealError> {
        let mut unknown: Vec<&mut Job> = jobs
            .iter_mut()
            .filter(|job| matches!(job.base, Base::Unknown))
            .collect();
        let keys: Vec<Key> = unknown
            .iter()
            .map(|job| Key::extent(job.inode, job.block.offset))
            .collect();
        let bases = self.nodes().look_up(&keys)?;
        for (job, base) in unknown.iter_mut().zip(bases) {
            job.base = match base {
                Some(Value::Extent(extent)) => Base::Extent(extent),
                _ => Base::Nothing,
            };
        }
        Ok(())
    }
}

/// Blocks of a batch: 16 MiB of contents.
const BATCH_BLOCKS: usize = 256;
const BLOCK: u64 = BLOCK_SIZE as u64;
