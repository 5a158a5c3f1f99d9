//! How a checkout stands, as `docs/control-api.md` shows it.

use img_lease::holder::{Holder, Kind};
use img_records::Maps;
use img_types::{CommitId, ImageId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::worker::AutomaticView;
use super::{Checkout, Checkouts, work};
use crate::error::{self, ApiError};
use crate::events::{Phase, time};
use crate::images::NamedRoot;
use crate::keeper::{rival, word};
use crate::state::{CheckpointRow, TakenRow};

/// What a checkout's worker lets others see.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// Whether it is mounted.
    pub(super) mounted: bool,
    /// The commit that it stands on.
    pub(super) base: Option<NamedRoot>,
    /// Checkpoints that no commit contains yet, oldest first.
    pub(super) checkpoints: Vec<CheckpointRow>,
    /// The newest checkpoint that is home without being a commit.
    pub(super) staged: Option<CommitId>,
    /// Whether something is on its way home.
    pub(super) streaming: bool,
    /// Whether a release waits.
    pub(super) releasing: bool,
    /// Whether it drops what changed: nothing is sealed any more.
    pub(super) discarding: bool,
    /// Bytes sealed and sent for the newest commit.
    pub(super) sealed_bytes: u64,
    pub(super) sent_bytes: u64,
    /// How long the last cut held writers up.
    pub(super) freeze_us: Option<u64>,
    /// How long it held the application up.
    pub(super) stopped_us: Option<u64>,
    /// What it holds of shared memory maps.
    pub(super) maps: Option<Maps>,
    /// Whether an application runs that was started in it.
    pub(super) application: bool,
    /// Why the oldest closed generation is not sealed, if that failed.
    pub(super) unsealed: Option<ApiError>,
    /// How often a seal has failed.
    pub(super) seal_failures: u64,
    /// Who took over what it was of before, until a person goes on with what it has become.
    pub(super) taken: Option<TakenRow>,
    /// What does not go on, and why.
    pub(super) problem: Option<String>,
    /// Whether that is a refusal of what was asked, which is not tried again by itself.
    pub(super) refused: bool,
    /// Checkpoints that nobody asks for.
    pub(super) automatic: AutomaticView,
}

/// A checkpoint as who asked for it hears of it.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    /// The checkpoint, or the commit that contains everything.
    pub(super) id: Option<String>,
    pub(super) freeze_us: u64,
    pub(super) stopped_us: Option<u64>,
    pub(super) dirty_bytes: u64,
    pub(super) maps: Maps,
    /// Whether nothing had changed since.
    pub(super) unchanged: bool,
}

impl View {
    /// Shows how the newest cut came about.
    pub(super) fn show_cut(&mut self, row: Option<&CheckpointRow>) {
        self.freeze_us = row.map(|row| row.freeze_us);
        self.stopped_us = row.and_then(|row| row.stopped_us);
        self.maps = row.map(|row| row.maps);
    }
}

impl Cut {
    pub(super) fn new(row: &CheckpointRow, unchanged: bool) -> Self {
        Self {
            id: Some(data_encoding::HEXLOWER.encode(&row.checkpoint)),
            freeze_us: row.freeze_us,
            stopped_us: row.stopped_us,
            dirty_bytes: row.dirty_bytes,
            maps: row.maps,
            unchanged,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "checkpoint": self.id,
            "freeze_us": self.freeze_us,
            "stopped_us": self.stopped_us,
            "maps": self.maps.word(),
            "dirty_bytes": self.dirty_bytes,
            "unchanged": self.unchanged,
        })
    }
}

impl AutomaticView {
    fn to_json(&self, waits_for: Option<&String>) -> Value {
        let next = self
            .next
            .map(|next| next.saturating_duration_since(Instant::now()));
        json!({
            "interval_s": self.interval.map(|interval| interval.as_secs()),
            "next_in_s": next.map(|next| next.as_secs()),
            "last": self.last.map(time),
            "policy": self.policy.map(|policy| policy.to_string()),
            "waits_for": waits_for,
        })
    }
}

impl Checkout {
    /// The checkout's status.
    pub fn to_json(&self) -> Value {
        let view = self.view.borrow().clone();
        let holder = self.shared.keeper.holder(self.id);
        let tenure = holder.as_ref().and_then(|holder| holder.tenure());
        let tenure = tenure.filter(|tenure| !self.shared.home.is_void(&tenure.token));
        let lease = tenure.map(|tenure| {
            json!({
                "device": self.shared.images.device_name(&self.shared.home.device()),
                "until": time(tenure.until()),
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
        let hydrating = self.hydration.now().map(|done_bytes| {
            let waits = !self.shared.home.connected();
            json!({
                "done_bytes": done_bytes,
                "total_bytes": null,
                "waits_for": waits.then_some("the home"),
            })
        });
        let waits_for = progress.waits_for.as_ref().filter(|_| view.streaming);
        let automatic = view.automatic.to_json(waits_for);
        let newest = view.checkpoints.last();
        let base = view.base.map(|base| base.id);
        let durable_local = newest
            .map(|row| data_encoding::HEXLOWER.encode(&row.checkpoint))
            .or_else(|| base.map(|base| base.to_string()));
        let objects = self.shared.home.objects();
        let (fetched_objects, fetched_bytes) = objects.fetched();
        let stats = self.tree.as_ref().map(|tree| tree.stats());
        let trouble = self.trouble(&view, holder.as_ref());
        json!({
            "name": self.name(),
            "image": self.image(),
            "checkout": self.id,
            "dir": self.dir.display().to_string(),
            "mounted": view.mounted,
            "state": holder.as_ref().map_or("closed", |holder| self.word(holder)),
            "rival": holder.as_ref().and_then(|holder| rival(&self.shared.home, holder)),
            "reason": self.shared.keeper.reason(self.id),
            "taken": view.taken,
            "base": base,
            "head": self.shared.head(self.image()).or(base),
            "lease": lease,
            "dirty_bytes": stats.map_or(0, |stats| stats.dirty_bytes),
            "changed": self.is_changed(),
            "image_deleted": self.shared.is_gone(self.image()),
            "checkpoints_local": view.checkpoints.len(),
            "checkpoints": automatic,
            "durable_local": durable_local,
            "durable_home": base.filter(|base| !self.lost_base(holder.as_ref(), *base)),
            "staged": view.staged,
            "fetched_bytes": fetched_bytes - self.fetched_before.1,
            "fetched_objects": fetched_objects - self.fetched_before.0,
            "sealed_bytes": view.sealed_bytes,
            "sent_bytes": view.sent_bytes,
            "cached_bytes": objects.cached_bytes(),
            "streaming": streaming,
            "hydrating": hydrating,
            "freeze_us": view.freeze_us,
            "stopped_us": view.stopped_us,
            "maps": view.maps.map(Maps::word),
            "application": view.application,
            "opened": time(self.opened),
            "releasing": view.releasing,
            "problem": trouble.as_ref().map(|told| &told.message),
            "hint": trouble.as_ref().map(|told| &told.hint).filter(|hint| !hint.is_empty()),
        })
    }

    /// The word for its state. A lease that ended with the home's database is none, before anybody has said so.
    fn word(&self, holder: &Holder) -> &'static str {
        match holder.token() {
            Some(token) if self.shared.home.is_void(&token) => word(Kind::Lapsed),
            _ => word(holder.kind()),
        }
    }

    /// Whether the home lost the base when it was restored, and a person has accepted that: its receipt was forgotten.
    fn lost_base(&self, holder: Option<&Holder>, base: CommitId) -> bool {
        let orphan = holder.filter(|holder| holder.kind() == Kind::Orphan);
        let newest = orphan.and_then(|holder| holder.newest());
        newest.is_some_and(|token| self.shared.home.is_void(&token))
            && self
                .shared
                .state
                .now(|db| db.acknowledged_at(base))
                .is_ok_and(|kept| kept.is_none())
    }

    /// What can be done where what was asked is refused. It is made of how things stand now: a lease may have gone
    /// since, or have come back.
    fn ways_on(&self, holder: Option<&Holder>) -> String {
        let dir = self.dir.display();
        if holder.is_some_and(|holder| holder.kind() == Kind::Orphan) {
            return work::orphan(&self.shared, self.image(), &self.name(), &self.dir).hint;
        }
        format!(
            "Ask for it again: `imgctl commit {dir}`. Or save it as a new image and go on there: `imgctl commit {dir} --branch NEW`."
        )
    }

    /// What a person should know now: what only a person can mend comes first, then what does not go on here,
    /// then a home that will be back.
    fn trouble(&self, view: &View, holder: Option<&Holder>) -> Option<ApiError> {
        let home = self.shared.home.trouble();
        if let Some(told) = home
            .as_ref()
            .filter(|told| told.kind != error::Kind::HomeAway)
        {
            return Some(told.clone());
        }
        if let Some(problem) = &view.problem {
            let mut told = ApiError::new(error::Kind::Failed, problem.clone(), "");
            if view.refused {
                told.hint = self.ways_on(holder);
            }
            return Some(told);
        }
        if holder.is_some_and(|holder| holder.kind() == Kind::Orphan) {
            return Some(work::orphan(
                &self.shared,
                self.image(),
                &self.name(),
                &self.dir,
            ));
        }
        if home.is_some() {
            return home;
        }
        let void = holder
            .and_then(|holder| holder.token())
            .filter(|token| self.shared.home.is_void(token));
        if void.is_some() {
            return Some(ApiError::new(
                error::Kind::Failed,
                "The home was restored from a backup, which ended the lease; it is taken anew by itself if this checkout stands on the newest commit there.",
                "",
            ));
        }
        self.hydration.problem()
    }
}

impl Checkouts {
    /// The lease that this device has of an image, as its status shows it.
    pub fn lease_of(&self, image: ImageId) -> Option<Value> {
        let of_image = self.shared.of_image(image);
        of_image.iter().find_map(|checkout| {
            let holder = self.shared.keeper.holder(checkout.id)?;
            let tenure = holder.tenure()?;
            let device = self.shared.home.device();
            let valid = !self.shared.home.is_void(&tenure.token);
            valid.then(|| {
                json!({
                    "device": self.shared.images.device_name(&device),
                    "device_id": device,
                    "until": time(tenure.until()),
                    "mode": tenure.terms.mode,
                    "lapsed": holder.kind() == Kind::Lapsed,
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkouts::lock;
    use crate::checkouts::scene::Scene;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_refused_while_nobody_waited_is_shown_with_the_ways_on() {
        let scene = Scene::new().await;
        let _inbox = scene.list();
        let checkout = lock(&scene.shared.open).values().next().cloned().unwrap();
        let mut view = View {
            problem: Some("Another image is called new.".into()),
            refused: true,
            ..View::default()
        };
        let told = checkout.trouble(&view, None).unwrap();
        assert!(told.hint.contains("--branch NEW"), "{told:?}");
        view.refused = false;
        assert_eq!(checkout.trouble(&view, None).unwrap().hint, "");
    }
}
