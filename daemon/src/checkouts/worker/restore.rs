//! The worker's part of a restore: the moment in which the checkout stands on another root.
//!
//! Everything that takes time or may fail has been done before ([`crate::checkouts::restoring`]). The order in which
//! things become durable is this: what is replaced, with its root; then the tree's root; then the checkpoint that
//! says so. A crash after the second leaves the tree restored, and the next cut takes that checkpoint's place.

use img_records::Maps;
use img_seal::Reference;
use img_types::CommitId;
use tokio::task::block_in_place;

use super::Worker;
use crate::error::{ApiError, Kind};
use crate::events;
use crate::mount::Forget;
use crate::random::random;
use crate::state::{CheckpointRow, Stage};
use crate::tree::{Failure, Restored};

/// Where a checkout is to stand.
#[derive(Debug)]
pub(in crate::checkouts) struct Restoring {
    /// The root that it stands on, as far as is known.
    pub(in crate::checkouts) from: Reference,
    pub(in crate::checkouts) root: Reference,
    /// What that is called in the log.
    pub(in crate::checkouts) id: CommitId,
    /// Where it is a checkpoint of this checkout, the generation that it ends with.
    pub(in crate::checkouts) generation: Option<u64>,
    /// Also where files are open for writing.
    pub(in crate::checkouts) force: bool,
    /// All that is not alike in the two.
    pub(in crate::checkouts) forget: Forget,
}

/// What became of it.
#[derive(Debug)]
pub(in crate::checkouts) enum Step {
    /// The checkout stands there; this checkpoint says so.
    Done(Box<CheckpointRow>),
    /// Something was written meanwhile, or is to be fetched: look again.
    Again,
    /// Files are open for writing.
    Writers,
}

impl Worker {
    /// Sets the checkout to another root, if all that is there now is in a checkpoint or commit.
    pub(super) fn restore(&mut self, restoring: &Restoring) -> Result<Step, ApiError> {
        if self.stage != Stage::Open {
            return Err(ApiError::failed("the checkout is being released"));
        }
        let Some(tree) = self.tree.clone() else {
            return Err(ApiError::failed("the checkout is ending"));
        };
        if let Some(generation) = restoring.generation
            && self.kept.get(&generation) != Some(&restoring.root)
        {
            return Err(ApiError::not_found(
                format!(
                    "Checkpoint {} has just been let go of to make room for newer ones; nothing was changed.",
                    restoring.id.short()
                ),
                format!("`imgctl log {}` lists what there is.", self.name),
            ));
        }
        let closed_upto = tree.closed_upto();
        if tree.root() != Some(restoring.from)
            || tree.sealed_upto() != closed_upto
            || self.has_uncut(&tree, closed_upto)
        {
            return Ok(Step::Again);
        }
        let written = block_in_place(|| self.write_checkpoint_root(closed_upto, restoring.from));
        if let Err(error) = written {
            return Err(ApiError::new(
                Kind::NoRoom,
                format!("What is here now cannot be written down: {error}. Nothing was changed."),
                "Make room on this device and ask again.",
            ));
        }
        let restored =
            block_in_place(|| tree.restore(restoring.from, restoring.root, restoring.force));
        let generation = match restored {
            Ok(Restored::Done(generation)) => generation.0,
            Ok(Restored::Unsealed) | Err(Failure::Absent(_)) => return Ok(Step::Again),
            Ok(Restored::Writers(_)) => return Ok(Step::Writers),
            Err(Failure::Refused(error)) => {
                return Err(ApiError::new(
                    Kind::NoRoom,
                    format!("The restore cannot be written down: {error}. Nothing was changed."),
                    "Make room on this device and ask again.",
                ));
            }
        };
        if let Some(mounted) = &self.mounted {
            block_in_place(|| mounted.forget(&restoring.forget));
        }
        self.stands_on(generation, restoring)
    }

    /// Lists the root that the checkout stands on, to be staged and committed like any other change.
    fn stands_on(&mut self, generation: u64, restoring: &Restoring) -> Result<Step, ApiError> {
        let row = CheckpointRow {
            checkpoint: random(),
            checkout: self.checkout,
            generation,
            time: events::now(),
            freeze_us: 0,
            dirty_bytes: 0,
            message: format!("restored to {}", restoring.id.short()),
            automatic: false,
            stopped_us: None,
            maps: Maps::Exact,
        };
        let root = restoring.root;
        let added = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.add_sealed_checkpoint(&row, &root))
        });
        if let Err(error) = added {
            // The restore itself is durable in the checkout's journal; only its name is not.
            tracing::error!(%error, "a restore could not be written down");
        }
        tracing::info!(
            checkout = %self.checkout.short(), to = %restoring.id.short(),
            inodes = restoring.forget.inodes.len(), names = restoring.forget.entries.len(), "restored"
        );
        self.sealed_upto = generation;
        self.roots.insert(generation, (root, 0));
        self.kept.insert(generation, root);
        self.checkpoints.push(row.clone());
        self.stage_upto = Some(generation);
        self.untrimmed = self.untrimmed.saturating_add(1);
        self.renew_run_id();
        self.thin();
        Ok(Step::Done(Box::new(row)))
    }
}
