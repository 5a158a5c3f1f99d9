//! Checkpoints that can be gone back to: those that no commit contains, and those of before.

use std::collections::BTreeSet;

use img_seal::Reference;
use tokio::task::block_in_place;

use super::Worker;
use crate::checkouts::thinning::{self, Cut};
use crate::events;
use crate::state::{CheckpointRow, Database, StateError};

impl Worker {
    /// Takes up what was kept before the daemon ended, and the root that it could not write down any more.
    pub(super) fn take_kept(&mut self) {
        let checkout = self.checkout;
        let read = block_in_place(|| {
            self.shared.state.now(|db| {
                let roots = db.checkpoint_roots(checkout)?;
                Ok((roots, db.past_checkpoints(checkout)?))
            })
        });
        match read {
            Ok((roots, past)) => {
                self.past = past;
                for kept in roots {
                    let generation = kept.generation;
                    self.kept.insert(generation, kept.root);
                    if self.ends_with(generation) {
                        self.roots
                            .insert(generation, (kept.root, kept.sealed_bytes));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "roots of checkpoints cannot be read"),
        }
        let root = self.tree.as_ref().and_then(|tree| tree.root());
        if let Some(root) = root
            && !self.kept.contains_key(&self.sealed_upto)
        {
            self.keep_checkpoint_root(self.sealed_upto, root);
        }
    }

    /// Keeps what the checkpoint that ends with a generation was sealed into, if there is one.
    pub(super) fn keep_checkpoint_root(&mut self, generation: u64, root: Reference) {
        if let Err(error) = self.write_checkpoint_root(generation, root) {
            tracing::warn!(%error, "a checkpoint's root is not written down; it can be read until the daemon ends");
        }
    }

    /// Keeps a checkpoint's root, durably.
    pub(super) fn write_checkpoint_root(
        &mut self,
        generation: u64,
        root: Reference,
    ) -> Result<(), StateError> {
        if !self.ends_with(generation) {
            return Ok(());
        }
        self.kept.insert(generation, root);
        let sealed_bytes = self.roots.get(&generation).map_or(0, |(_, bytes)| *bytes);
        let (checkout, state) = (self.checkout, &self.shared.state);
        let set =
            |db: &mut Database| db.set_checkpoint_root(checkout, generation, &root, sealed_bytes);
        block_in_place(|| state.now(set))
    }

    /// Whether a checkpoint that no commit contains ends with a generation.
    fn ends_with(&self, generation: u64) -> bool {
        let mut rows = self.checkpoints.iter();
        rows.any(|row| row.generation == generation)
    }

    /// A commit contains a generation: the checkpoint that ends with it is the commit, and earlier ones are the past.
    pub(super) fn pass_checkpoints(&mut self, generation_max: u64) {
        let rows = std::mem::take(&mut self.checkpoints).into_iter();
        let (passed, left) = rows.partition(|row| row.generation <= generation_max);
        self.checkpoints = left;
        let kept = &mut self.kept;
        let passed: Vec<CheckpointRow> = passed;
        let passed = passed.into_iter().filter(|row| {
            let is_commit = row.generation == generation_max;
            !is_commit && kept.contains_key(&row.generation)
        });
        self.past.extend(passed);
        kept.remove(&generation_max);
    }

    /// The roots of all that can be gone back to.
    pub(super) fn kept_roots(&self) -> impl Iterator<Item = Reference> {
        self.kept.values().copied()
    }

    /// Lets go of old checkpoints, as [`thinning`] says; the next trim of the outbox releases what only they had.
    pub(super) fn thin(&mut self) {
        let wished: BTreeSet<_> = self.wishes.iter().map(|wish| wish.generation).collect();
        let is_needed = |row: &CheckpointRow| {
            wished.contains(&row.generation) || self.stage_upto == Some(row.generation)
        };
        let rows = self.past.iter().chain(&self.checkpoints);
        let cuts = rows.map(|row| Cut {
            generation: row.generation,
            time: row.time,
            is_named: !row.message.is_empty(),
            is_needed: is_needed(row),
        });
        let cuts: Vec<_> = cuts.collect();
        let gone = thinning::to_drop(&cuts, events::now());
        if gone.is_empty() {
            return;
        }
        let rows = self.past.iter().chain(&self.checkpoints);
        let rows = rows.filter(|row| gone.contains(&row.generation));
        let ids: Vec<_> = rows.map(|row| row.checkpoint).collect();
        let dropped = block_in_place(|| self.shared.state.now(|db| db.drop_checkpoints(&ids)));
        if let Err(error) = dropped {
            tracing::warn!(%error, "old checkpoints are kept until the next one is taken");
            return;
        }
        let stays = |row: &CheckpointRow| !gone.contains(&row.generation);
        self.past.retain(stays);
        self.checkpoints.retain(stays);
        self.kept.retain(|generation, _| !gone.contains(generation));
    }
}
