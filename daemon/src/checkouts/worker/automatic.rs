//! The worker's checkpoints that nobody asks for, and what becomes of them.
//!
//! They are cut as [`pace`](crate::checkouts::pace) says: while a checkout is mounted, and writes somebody's image or an
//! orphan's remains. A lease makes them commits or staged records, whichever the configuration says; an orphan's stay
//! here. They never change what a person asked for: a person's commit takes them along, or comes before them.

use std::path::Path;
use std::time::Duration;

use img_lease::holder::{Before, Kind as LeaseKind};
use img_types::WallMillis;
use img_types::limits::GENERATIONS_UNSEALED_MAX;
use tokio::sync::{oneshot, watch};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep_until};

use super::{Streamed, Worker};
use crate::checkouts::CommitRequest;
use crate::checkouts::pace::{self, Pace, Power, Situation, Step};
use crate::config::{Checkpoints, CommitPolicy};
use crate::state::{CheckpointRow, Stage, WishRow};
use crate::tree::FreezeError;
use crate::uplink::Hurry;

/// What the worker knows of its automatic checkpoints.
#[derive(Debug)]
pub(super) struct Automatic {
    pub(super) pace: Pace,
    power: Power,
    power_again: Instant,
    /// When to look again.
    wake: Option<Instant>,
    /// When the newest one was taken.
    last: Option<WallMillis>,
    /// The newest generation that is staged.
    pub(super) staged_upto: u64,
    /// The newest generation that was to become a commit.
    wished_upto: u64,
    /// Says whether somebody waits for what was begun without anybody.
    hurry: watch::Sender<bool>,
}

/// What others may see of it.
#[derive(Debug, Clone, Default)]
pub(in crate::checkouts) struct AutomaticView {
    /// How far checkpoints are apart; nothing where there are none.
    pub(in crate::checkouts) interval: Option<Duration>,
    /// When the next one is due.
    pub(in crate::checkouts) next: Option<Instant>,
    /// When the newest one was taken.
    pub(in crate::checkouts) last: Option<WallMillis>,
    /// Which become commits.
    pub(in crate::checkouts) policy: Option<CommitPolicy>,
}

/// What becomes of a checkout's automatic checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They go home.
    Home,
    /// They stay here.
    Here,
}

impl Automatic {
    /// Begins beside the checkpoints and wishes that there are.
    pub(super) fn new(settings: Checkpoints, kept: &[CheckpointRow], wishes: &[WishRow]) -> Self {
        let mut automatic = kept.iter().rev().filter(|row| row.automatic);
        let wished = wishes.iter().map(|wish| wish.generation);
        let now = Instant::now();
        Self {
            pace: Pace::new(settings, now),
            power: Power::Mains,
            power_again: now,
            wake: None,
            last: automatic.next().map(|row| row.time),
            staged_upto: 0,
            wished_upto: wished.max().unwrap_or(0),
            hurry: watch::Sender::new(false),
        }
    }

    /// Waits until it is to be looked again; for ever if events bring that.
    pub(super) async fn due(wake: Option<Instant>) {
        match wake {
            Some(wake) => sleep_until(wake).await,
            None => std::future::pending().await,
        }
    }

    /// When it is to be looked again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// For an upload that nobody waits for; nothing for another.
    pub(super) fn hurry(&self, automatic: bool) -> Option<Hurry> {
        automatic.then(|| self.hurry.subscribe())
    }

    /// What the device runs on, looked at now and then where it matters.
    fn power(&mut self, now: Instant) -> Power {
        if self.pace.heeds_power() && self.power_again <= now {
            self.power = block_in_place(|| pace::power(Path::new(POWER_SUPPLIES)));
            self.power_again = now + POWER_LOOK;
        }
        self.power
    }
}

impl Worker {
    /// Takes the checkpoint that is due, and brings home what is to go there.
    pub(super) fn start_automatic(&mut self) {
        self.say_hurry();
        let now = Instant::now();
        self.automatic.wake = None;
        let Some(fate) = self.fate() else {
            self.show_automatic(None);
            return;
        };
        if fate == Fate::Home {
            self.commit_what_is_due(now);
        }
        let power = self.automatic.power(now);
        let step = self.automatic.pace.step(now, power, self.situation());
        match step {
            Step::Never | Step::Wait(_) => {}
            Step::Hold => self.wake_by(now + HOLD_LOOK),
            Step::Pass => self.automatic.pace.pass(now),
            Step::Cut => self.cut_automatically(fate),
        }
        let due = self.automatic.pace.due(power);
        if let Some(due) = due.filter(|due| *due > now) {
            self.wake_by(due);
        }
        if power != Power::Mains {
            // The interval may become shorter.
            self.wake_by(self.automatic.power_again);
        }
        self.show_automatic(due);
    }

    /// What becomes of automatic checkpoints now; nothing while none are taken.
    fn fate(&self) -> Option<Fate> {
        let works = self.stage == Stage::Open && self.mounted.is_some() && self.onward.is_none();
        let holder = self.shared.keeper.holder(self.checkout);
        let holder = holder.filter(|_| works)?;
        let before = holder.tenure().and_then(|tenure| tenure.before);
        if before == Some(Before::ReadOnly) && self.is_read_only() {
            // It has the lease for one commit of a person.
            return None;
        }
        match holder.kind() {
            LeaseKind::Leased | LeaseKind::Lapsed if self.shared.home.revoked().is_none() => {
                Some(Fate::Home)
            }
            LeaseKind::Leased | LeaseKind::Lapsed | LeaseKind::Orphan => Some(Fate::Here),
            LeaseKind::ReadOnly | LeaseKind::Closed => None,
        }
    }

    /// Whether its changes are nobody else's business.
    fn is_read_only(&self) -> bool {
        let checkout = self.checkout;
        let row = block_in_place(|| self.shared.state.now(|db| db.checkout(checkout)));
        !matches!(row, Ok(Some(row)) if !row.read_only)
    }

    fn situation(&self) -> Situation {
        let tree = self.tree.as_ref();
        let stats = tree.map(|tree| tree.stats());
        let is_full = stats.is_some_and(|stats| stats.closed >= GENERATIONS_UNSEALED_MAX);
        let has_uncut = tree.is_some_and(|tree| self.has_uncut(tree, tree.closed_upto()));
        let changed = has_uncut || stats.is_some_and(|stats| stats.changed);
        let (automatic, _) = self.wishes.askers();
        let waits = automatic || self.stage_upto.is_some();
        // What does not go on now is not waited for.
        let goes_on = self.paused.is_none()
            && self.stage_again.is_none()
            && self.seal_again.is_none()
            && self.shared.home.connected()
            && !self.shared.home.uplink().is_held();
        Situation {
            changed,
            is_held: is_full || (waits && goes_on),
        }
    }

    fn cut_automatically(&mut self, fate: Fate) {
        let begun = Instant::now();
        let generation = match self.cut_by_itself() {
            Ok(generation) => generation,
            Err(FreezeError::Unsealed) => {
                self.wake_by(begun + HOLD_LOOK);
                return;
            }
            Err(error) => {
                tracing::warn!(checkout = %self.checkout.short(), %error, "no automatic checkpoint was taken");
                self.automatic.pace.pass(Instant::now());
                return;
            }
        };
        let now = Instant::now();
        self.automatic.pace.cut(now);
        self.automatic.pace.spend(now - begun);
        self.automatic.last = self.checkpoints.last().map(|row| row.time);
        tracing::debug!(checkout = %self.checkout.short(), generation, "an automatic checkpoint is taken");
        if fate == Fate::Home {
            self.stage_upto = Some(generation);
            self.commit_what_is_due(now);
        }
    }

    /// Wants the newest checkpoint to be a commit, if it is time for that.
    fn commit_what_is_due(&mut self, now: Instant) {
        let Some(from) = self.automatic.pace.commits_from() else {
            return;
        };
        let Some(newest) = self.checkpoints.last() else {
            return;
        };
        let (generation, automatic) = (newest.generation, newest.automatic);
        // What was refused is not asked for again before something changes.
        if !automatic || generation <= self.automatic.wished_upto {
            return;
        }
        if from > now {
            self.wake_by(from);
            return;
        }
        self.automatic.pace.committed(now);
        self.automatic.wished_upto = generation;
        if let Some(root) = self.kept.get(&generation) {
            // Sealed before a restart.
            self.roots.entry(generation).or_insert((*root, 0));
        }
        self.stage_upto = self.stage_upto.filter(|upto| *upto > generation);
        if let Some(number) = self.wishes.move_automatic(generation) {
            let moved = block_in_place(|| {
                let state = &self.shared.state;
                state.now(|db| db.move_wishes(&[number], generation))
            });
            if let Err(error) = moved {
                tracing::warn!(%error, "a restart commits an earlier checkpoint");
            }
            self.keep_root(generation);
            return;
        }
        let request = CommitRequest {
            automatic: true,
            ..CommitRequest::default()
        };
        if let Err(error) = self.wish(generation, request, oneshot::channel().0) {
            tracing::warn!(checkout = %self.checkout.short(), error = %error.message, "an automatic checkpoint is not to be a commit");
        }
    }

    /// Counts what a stream took of the connection.
    pub(super) fn count_stream(&mut self, streamed: &Streamed) {
        if let Ok(Some((_, arrived))) = streamed {
            self.automatic.pace.spend(arrived.busy());
        }
    }

    /// Says whether somebody waits for what streams.
    fn say_hurry(&self) {
        let (_, asked) = self.wishes.askers();
        let staged = self.automatic.staged_upto;
        let mut rows = self.checkpoints.iter();
        let stages =
            self.stage_upto.is_some() && rows.any(|row| !row.automatic && row.generation > staged);
        let hurries = asked || stages || self.onward.is_some() || self.stage != Stage::Open;
        self.automatic.hurry.send_if_modified(|hurry| {
            let before = std::mem::replace(hurry, hurries);
            before != hurries
        });
    }

    fn wake_by(&mut self, at: Instant) {
        let wake = self.automatic.wake.map_or(at, |wake| wake.min(at));
        self.automatic.wake = Some(wake);
    }

    fn show_automatic(&self, next: Option<Instant>) {
        let automatic = &self.automatic;
        let view = AutomaticView {
            interval: next.and_then(|_| automatic.pace.interval(automatic.power)),
            next,
            last: automatic.last,
            policy: Some(automatic.pace.policy()),
        };
        self.view.send_modify(|shown| shown.automatic = view);
    }
}

/// The kernel's folder of batteries and mains adapters.
const POWER_SUPPLIES: &str = "/sys/class/power_supply";
/// How often it is looked at: some batteries take a while to answer.
const POWER_LOOK: Duration = Duration::from_secs(30);
/// How often a checkpoint that waits for an earlier one is looked at, besides at every event: nobody says when the home
/// goes away.
const HOLD_LOOK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
