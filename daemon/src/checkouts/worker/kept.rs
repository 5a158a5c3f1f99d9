//! The roots of checkpoints that no commit contains: kept, so that a person can look at them and go back.

use img_seal::Reference;
use tokio::task::block_in_place;

use super::Worker;
use crate::state::{CheckpointRow, Database};

impl Worker {
    /// Takes up the roots that were kept before the daemon ended, and the one that it could not write down any more.
    pub(super) fn take_kept(&mut self) {
        let checkout = self.checkout;
        match block_in_place(|| self.shared.state.now(|db| db.checkpoint_roots(checkout))) {
            Ok(roots) => {
                let roots = roots.into_iter();
                self.kept = roots
                    .map(|(_, generation, root)| (generation, root))
                    .collect();
            }
            Err(error) => tracing::warn!(%error, "roots of checkpoints cannot be read"),
        }
        let root = self.tree.as_ref().and_then(|tree| tree.root());
        let ends = |row: &CheckpointRow| row.generation == self.sealed_upto;
        if let Some(root) = root
            && self.checkpoints.iter().any(ends)
            && !self.kept.contains_key(&self.sealed_upto)
        {
            self.keep_checkpoint_root(self.sealed_upto, root);
        }
    }

    /// Keeps what the checkpoints that end with a generation were sealed into.
    pub(super) fn keep_checkpoint_root(&mut self, generation: u64, root: Reference) {
        if !self
            .checkpoints
            .iter()
            .any(|row| row.generation == generation)
        {
            return;
        }
        self.kept.insert(generation, root);
        let (checkout, state) = (self.checkout, &self.shared.state);
        let set = |db: &mut Database| db.set_checkpoint_root(checkout, generation, &root);
        let kept = block_in_place(|| state.now(set));
        if let Err(error) = kept {
            tracing::warn!(%error, "a checkpoint's root is not written down; it can be read until the daemon ends");
        }
    }

    /// The roots of the newest checkpoints; those of others are let go of.
    pub(super) fn newest_kept(&mut self) -> Vec<Reference> {
        let newest = self.checkpoints.iter().rev().take(CHECKPOINTS_KEPT);
        let newest: Vec<_> = newest.map(|row| row.generation).collect();
        self.kept
            .retain(|generation, _| newest.contains(generation));
        let checkout = self.checkout;
        let forget = |db: &mut Database| db.keep_checkpoint_roots(checkout, CHECKPOINTS_KEPT);
        if let Err(error) = block_in_place(|| self.shared.state.now(forget)) {
            tracing::warn!(%error, "roots of old checkpoints are not forgotten");
        }
        self.kept.values().copied().collect()
    }
}

/// Checkpoints without a commit that can be read: as many as are sealed before the outbox is trimmed, so that it
/// holds at most twice of what it would without.
const CHECKPOINTS_KEPT: usize = 16;
