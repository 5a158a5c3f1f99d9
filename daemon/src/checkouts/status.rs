//! How a checkout stands, as `docs/control-api.md` shows it.

use img_types::CommitId;
use serde_json::{Value, json};

use super::Checkout;
use crate::error::ApiError;
use crate::events::{Phase, time};
use crate::keeper::{rival, word};
use crate::state::CheckpointRow;

/// What a checkout's worker lets others see.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// Whether it is mounted.
    pub(super) mounted: bool,
    /// The commit that it stands on.
    pub(super) base: Option<CommitId>,
    /// Checkpoints that no commit contains yet, oldest first.
    pub(super) checkpoints: Vec<CheckpointRow>,
    /// The newest checkpoint that is home without being a commit.
    pub(super) staged: Option<CommitId>,
    /// Whether something is on its way home.
    pub(super) streaming: bool,
    /// Whether a release waits.
    pub(super) releasing: bool,
    /// Bytes sealed and sent for the newest commit.
    pub(super) sealed_bytes: u64,
    pub(super) sent_bytes: u64,
    /// How long the last cut held writers up.
    pub(super) freeze_us: Option<u64>,
    /// Why the oldest closed generation is not sealed, if that failed.
    pub(super) unsealed: Option<ApiError>,
    /// What does not go on, and why.
    pub(super) problem: Option<String>,
}

/// A checkpoint as who asked for it hears of it.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    /// The checkpoint, or the commit that contains everything.
    pub(super) id: Option<String>,
    pub(super) freeze_us: u64,
    pub(super) dirty_bytes: u64,
    /// Whether nothing had changed since.
    pub(super) unchanged: bool,
}

impl Cut {
    pub(super) fn new(row: &CheckpointRow, unchanged: bool) -> Self {
        Self {
            id: Some(data_encoding::HEXLOWER.encode(&row.checkpoint)),
            freeze_us: row.freeze_us,
            dirty_bytes: row.dirty_bytes,
            unchanged,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "checkpoint": self.id,
            "freeze_us": self.freeze_us,
            "dirty_bytes": self.dirty_bytes,
            "unchanged": self.unchanged,
        })
    }
}

impl Checkout {
    /// The checkout's status.
    pub fn to_json(&self) -> Value {
        let view = self.view.borrow().clone();
        let holder = self.shared.keeper.holder(self.id);
        let tenure = holder.as_ref().and_then(|holder| holder.tenure());
        let lease = tenure.map(|tenure| {
            json!({
                "device": self.shared.images.device_name(&self.shared.home.device()),
                "until": time(tenure.term.until()),
                "epoch": tenure.token.epoch,
                "mode": tenure.terms.mode,
            })
        });
        let progress = self.reporter.now();
        let streaming = (view.streaming && progress.phase == Phase::Push).then(|| {
            json!({
                "done_bytes": progress.done_bytes,
                "total_bytes": progress.total_bytes.unwrap_or(progress.done_bytes),
            })
        });
        let hydrating = self
            .hydration
            .now()
            .map(|done_bytes| json!({ "done_bytes": done_bytes, "total_bytes": null }));
        let newest = view.checkpoints.last();
        let durable_local = newest
            .map(|row| data_encoding::HEXLOWER.encode(&row.checkpoint))
            .or_else(|| view.base.map(|base| base.to_string()));
        let objects = self.shared.home.objects();
        let (fetched_objects, fetched_bytes) = objects.fetched();
        let stats = self.tree.as_ref().map(|tree| tree.stats());
        let revoked = self.shared.home.revoked().map(|told| told.message);
        json!({
            "name": self.name(),
            "image": self.image(),
            "checkout": self.id,
            "dir": self.dir.display().to_string(),
            "mounted": view.mounted,
            "state": holder.as_ref().map_or("closed", |holder| word(holder.kind())),
            "rival": holder.as_ref().and_then(|holder| rival(&self.shared.home, holder)),
            "base": view.base,
            "head": self.shared.head(self.image()).or(view.base),
            "lease": lease,
            "dirty_bytes": stats.map_or(0, |stats| stats.dirty_bytes),
            "changed": self.is_changed(),
            "image_deleted": self.shared.is_gone(self.image()),
            "checkpoints_local": view.checkpoints.len(),
            "durable_local": durable_local,
            "durable_home": view.base,
            "staged": view.staged,
            "fetched_bytes": fetched_bytes - self.fetched_before.1,
            "fetched_objects": fetched_objects - self.fetched_before.0,
            "sealed_bytes": view.sealed_bytes,
            "sent_bytes": view.sent_bytes,
            "cached_bytes": objects.cached_bytes(),
            "streaming": streaming,
            "hydrating": hydrating,
            "freeze_us": view.freeze_us,
            "stopped_us": null,
            "opened": time(self.opened),
            "releasing": view.releasing,
            "problem": revoked.or(view.problem).or_else(|| self.hydration.problem()),
        })
    }
}
