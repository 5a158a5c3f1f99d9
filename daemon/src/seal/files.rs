//! The data of changed files: which blocks are sealed, and what becomes of their keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use img_index::{Attributes, Inode, Key, KeyRange, ReadError, Value};
use img_overlay::{BlockPlan, Edits, INFINITY, InodePlan, Layer, SealPlan};
use img_seal::Sealer;
use img_types::limits::BLOCK_SIZE;

use super::blocks::{Base, Job, Outcome};
use super::facts::{LOOK_UPS_MAX, attributes, is_small};
use super::patches::{Packer, Waiting};
use super::{Made, SealError, Sealing};
use crate::background;

/// A file whose data changes.
struct File<'a> {
    inode: Inode,
    /// Its attributes after the generation; nothing if it is gone.
    now: Option<Attributes>,
    /// Its attributes in the root, if it is there.
    before: Option<Attributes>,
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
        resized: &BTreeSet<Inode>,
        edits: &mut Edits,
    ) -> Result<Made, SealError> {
        let removed = &self.closed.removed.inodes;
        let stay = || plan.inodes().filter(|file| !removed.contains(&file.inode));
        let changed: BTreeSet<Inode> = stay().map(|file| file.inode).collect();
        let mut files = stay()
            .map(|file| (file.inode, Some(file)))
            .chain(resized.difference(&changed).map(|inode| (*inode, None)));
        let mut batch = Batch {
            sealing: self,
            sealers: self.sealers(),
            packer: Packer::new(self),
            jobs: Vec::new(),
            extents: BTreeMap::new(),
            made: Made::default(),
        };
        let mut home_answers = true;
        loop {
            let some: Vec<_> = files.by_ref().take(LOOK_UPS_MAX).collect();
            if some.is_empty() {
                break;
            }
            for mut file in self.look_at(some, edits)? {
                if let Some(now) = file.now.filter(|now| !is_small(now.size)) {
                    let kept = file.extents_kept(self, &mut home_answers)?;
                    batch.extents.insert(file.inode, (now, kept));
                }
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
                now,
                before,
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
    fn size(&self) -> u64 {
        self.now.map_or(0, |now| now.size)
    }

    fn dropped(&self) -> bool {
        self.plan.is_some_and(|plan| plan.dropped())
    }

    /// How many extents of the root are left once everything is removed that is zero as a whole.
    ///
    /// Of a file with holes those that go are counted in the index. If the home does not answer with what is absent
    /// of it, the holes are assumed to lie evenly: a seal must not wait for the home in order to count. Then
    /// `home_answers` is cleared, and the next files do not ask.
    fn extents_kept(&self, sealing: &Sealing, home_answers: &mut bool) -> Result<u64, SealError> {
        let Some(before) = self.before.filter(|_| !self.dropped()) else {
            return Ok(0);
        };
        let all = before.size.next_multiple_of(BLOCK);
        let had = match before.extents {
            _ if self.inline.is_some() => 0,
            _ if is_small(before.size) => {
                let counted = sealing.count_extents(self.inode, 0, INFINITY, &mut false)?;
                return Ok(counted.unwrap_or(0));
            }
            Some(extents) => extents,
            None => all / BLOCK,
        };
        let behind = self.size().next_multiple_of(BLOCK).min(all);
        let cleared = self.plan.iter().flat_map(InodePlan::cleared);
        let cleared = cleared.map(|(start, end)| (start, end.min(behind)));
        let mut kept = had;
        for (start, end) in cleared.chain([(behind, all)]) {
            let blocks = end.saturating_sub(start) / BLOCK;
            let removed = if blocks == 0 || blocks * BLOCK == all || had * BLOCK == all {
                blocks.min(had)
            } else {
                let share = u128::from(had) * u128::from(blocks) / u128::from(all / BLOCK);
                let counted = sealing.count_extents(self.inode, start, end, home_answers)?;
                counted.unwrap_or(share as u64)
            };
            kept = kept.saturating_sub(removed);
        }
        Ok(kept)
    }

    /// Removes the keys of what is zero as a whole, and of what lies behind the size.
    fn clear(&mut self, edits: &mut Edits) {
        let Some(before) = self.before else {
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
        if self.size() < before.size {
            let behind = self.size().next_multiple_of(BLOCK);
            edits.clear(KeyRange::extents(self.inode, behind, INFINITY));
        }
    }

    /// The blocks to seal: the changed ones, and the first if it can be inline no longer.
    fn blocks(&self) -> impl Iterator<Item = BlockPlan> + use<'_> {
        let mut changed = self
            .plan
            .iter()
            .flat_map(InodePlan::blocks)
            .take_while(|block| block.offset < self.size())
            .peekable();
        let first_changed = changed.peek().is_some_and(|block| block.offset == 0);
        let outgrown = self.inline.is_some() && !is_small(self.size()) && !first_changed;
        let first = outgrown.then(|| BlockPlan {
            offset: 0,
            pieces: Vec::new(),
            copied: None,
        });
        first.into_iter().chain(changed)
    }

    /// Takes a block over for sealing, with what is known of its base.
    fn job(&self, block: BlockPlan) -> Job {
        let len = (self.size() - block.offset).min(BLOCK);
        Job {
            inode: self.inode,
            len: u32::try_from(len).expect("a block is shorter than 4 GiB"),
            small: is_small(self.size()),
            base: match &self.inline {
                Some(content) if block.offset == 0 => Base::Inline(content.clone()),
                None if self.before.is_some() && !self.dropped() => Base::Unknown,
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
    /// The files that are not small, with how many extents they have.
    extents: BTreeMap<Inode, (Attributes, u64)>,
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
        for (inode, (mut attributes, extents)) in self.extents {
            attributes.count_extents(extents);
            edits.set(Key::attributes(inode), Some(Value::Attributes(attributes)));
        }
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
                .map(|sealer| {
                    scope.spawn(|| {
                        let done = work(sealer);
                        let spent = background::core_time().as_micros();
                        let spent = u64::try_from(spent).unwrap_or(u64::MAX);
                        sealing.core_us.fetch_add(spent, Ordering::Relaxed);
                        done
                    })
                })
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
        let has_extent = matches!(outcome, Outcome::Extent(_) | Outcome::Patch { .. });
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
        if let Some((_, extents)) = self.extents.get_mut(&inode) {
            let had_extent = matches!(base, Base::Extent(_));
            *extents = (*extents + u64::from(has_extent)).saturating_sub(u64::from(had_extent));
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
    /// Counts the extents of a range in the root; nothing if the range is a very large one, or a part of the index
    /// is absent and the home does not answer soon or is not to be asked.
    fn count_extents(
        &self,
        inode: Inode,
        start: u64,
        end: u64,
        home_answers: &mut bool,
    ) -> Result<Option<u64>, SealError> {
        let Some(root) = self.closed.base.as_ref() else {
            return Ok(Some(0));
        };
        let (nodes, range) = (self.nodes(), KeyRange::extents(inode, start, end));
        loop {
            match img_index::range(&nodes, root, &range, EXTENTS_COUNTED_MAX) {
                Ok(found) if found.len() < EXTENTS_COUNTED_MAX => {
                    return Ok(Some(found.len() as u64));
                }
                Ok(_) => return Ok(None),
                Err(ReadError::Absent(absent)) => {
                    *home_answers = *home_answers && nodes.fetch_soon(&absent.0);
                    if !*home_answers {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

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
/// Extents that are counted in one cleared range: 4 GiB of contents.
const EXTENTS_COUNTED_MAX: usize = 65_536;
const BLOCK: u64 = BLOCK_SIZE as u64;
