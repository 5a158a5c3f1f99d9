//! The worker's cuts: checkpoints that are asked for, and those that wait for a seal.

use img_records::Maps;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::block_in_place;

use super::Worker;
use crate::checkouts::status::Cut;
use crate::checkouts::{CommitRequest, apps};
use crate::commits::OpenCommit;
use crate::error::{ApiError, Kind};
use crate::events;
use crate::random::random;
use crate::state::CheckpointRow;
use crate::tree::{FreezeError, Tree};

/// A cut that waits until an earlier one is sealed.
pub(super) struct WaitingCut {
    pub(super) message: String,
    pub(super) done: oneshot::Sender<Result<Cut, ApiError>>,
    pub(super) wish: Option<(CommitRequest, oneshot::Sender<Result<Value, ApiError>>)>,
}

impl Worker {
    pub(super) fn cut_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting_cuts) {
            self.cut_or_wait(waiting);
        }
    }

    pub(super) fn cut_or_wait(&mut self, waiting: WaitingCut) {
        let outcome = match self.cut(&waiting.message) {
            Ok(outcome) => outcome,
            Err(FreezeError::Unsealed) => {
                self.waiting_cuts.push(waiting);
                return;
            }
            Err(error) => {
                self.refuse_cut(waiting.done, disk_full(&error));
                return;
            }
        };
        let (cut, generation) = outcome;
        if waiting.wish.is_none() {
            self.stage_upto = Some(generation);
        }
        if let Some((request, committed)) = waiting.wish {
            if let Err(error) = self.wish(generation, request, committed) {
                self.refuse_cut(waiting.done, error);
                return;
            }
            // Whoever asks wants to know now.
            (self.paused, self.tries) = (None, 0);
        }
        let _ = waiting.done.send(Ok(cut));
    }

    /// Says why there is no cut, or no wish for it; shows it where nobody listens.
    fn refuse_cut(&self, done: oneshot::Sender<Result<Cut, ApiError>>, error: ApiError) {
        if let Err(Err(unheard)) = done.send(Err(error)) {
            self.set_problem(Some(unheard.message));
        }
    }

    /// Takes a cut that is durable when this returns, and the generation that it ends with.
    pub(super) fn cut(&mut self, message: &str) -> Result<(Cut, u64), FreezeError> {
        self.cut_for(message, false)
    }

    /// Takes a cut that nobody asked for; returns the generation that it ends with.
    pub(super) fn cut_by_itself(&mut self) -> Result<u64, FreezeError> {
        self.cut_for("", true).map(|(_, generation)| generation)
    }

    fn cut_for(&mut self, message: &str, automatic: bool) -> Result<(Cut, u64), FreezeError> {
        let Some(tree) = self.tree.clone() else {
            return Ok((self.unchanged(), 0));
        };
        let (mounted, application) = (self.mounted.as_ref(), self.application.as_ref());
        let frozen = block_in_place(|| apps::cut(&tree, mounted, application))?;
        let closed_upto = tree.closed_upto();
        let (newest, freeze_us, dirty_bytes) = match frozen.cut {
            Some(cut) => (cut.generation.0, cut.freeze_us, cut.dirty_bytes),
            None if self.has_uncut(&tree, closed_upto) => (closed_upto, 0, 0),
            None => {
                let newest = closed_upto;
                let generation = self.checkpoints.last().map_or(newest, |row| row.generation);
                return Ok((self.unchanged(), generation));
            }
        };
        let row = CheckpointRow {
            checkpoint: random(),
            checkout: self.checkout,
            generation: newest,
            time: events::now(),
            freeze_us,
            stopped_us: frozen.stopped_us,
            dirty_bytes,
            maps: frozen.maps,
            message: message.to_owned(),
            automatic,
        };
        let kept = block_in_place(|| self.shared.state.now(|db| db.add_checkpoint(&row)));
        if let Err(error) = kept {
            // The cut itself is durable in the checkout's journal; only its name is not.
            tracing::error!(%error, "a checkpoint could not be written down");
        }
        let cut = Cut::new(&row, false);
        self.view.send_modify(|view| view.show_cut(Some(&row)));
        self.checkpoints.push(row);
        if newest == tree.sealed_upto()
            && let Some(root) = tree.root()
        {
            self.keep_checkpoint_root(newest, root);
        }
        self.thin();
        Ok((cut, newest))
    }

    /// What the state that ends with a generation holds of shared maps.
    pub(super) fn maps_of(&self, generation: u64) -> Maps {
        let mut newest = self.checkpoints.iter().rev();
        let newest = newest.find(|row| row.generation <= generation);
        let newest = newest.map(|row| row.maps);
        let base = self.base.as_ref().map(|base| base.private.maps);
        newest.or(base).unwrap_or(Maps::Exact)
    }

    /// Whether a generation closed by its size holds changes that no checkpoint names.
    pub(super) fn has_uncut(&self, tree: &Tree, newest: u64) -> bool {
        match self.checkpoints.last() {
            Some(row) => newest > row.generation,
            None => tree.stats().closed > 0 || self.is_ahead(tree),
        }
    }

    /// Whether the sealed root is another than the base's.
    pub(in crate::checkouts) fn is_ahead(&self, tree: &Tree) -> bool {
        tree.root() != self.base.as_ref().map(OpenCommit::root)
    }

    fn unchanged(&self) -> Cut {
        match self.checkpoints.last() {
            Some(row) => Cut::new(row, true),
            None => Cut {
                id: self.base.as_ref().map(|base| base.id.to_string()),
                freeze_us: 0,
                stopped_us: None,
                dirty_bytes: 0,
                maps: Maps::Exact,
                unchanged: true,
            },
        }
    }
}

pub(super) fn disk_full(error: &FreezeError) -> ApiError {
    ApiError::new(
        Kind::NoRoom,
        format!("The checkpoint was not taken: {error}. Nothing is lost."),
        "Make room on this device and ask again.",
    )
}
