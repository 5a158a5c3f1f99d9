//! When a checkout takes its next checkpoint by itself.
//!
//! Computes; the worker cuts. The interval is Young's: with what a checkpoint costs, C, and the rate of failures of this
//! device, λ, the least time is lost to both at `sqrt(2·C/λ)` (J. W. Young, "A first order approximation to the
//! optimum checkpoint interval", 1974). It is counted from the last cut, or from the last look that found nothing
//! changed: so what is lost with the device is at most what one interval and its streaming take, and a program that
//! has just begun to write after a pause is not cut at its first byte.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Checkpoints, CommitPolicy, Interval};

/// What the device runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// Mains, or nothing that is known.
    Mains,
    /// A battery.
    Battery,
    /// A battery that ends soon.
    NearlyEmpty,
}

/// How a checkout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Situation {
    /// Whether there is something that no checkpoint has.
    pub(super) changed: bool,
    /// Whether an earlier one comes first: it is on its way home, where it gets sooner without the next, or there is no
    /// room for another before it is sealed.
    pub(super) is_held: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, ever.
    Never,
    /// Nothing until then.
    Wait(Instant),
    /// Nothing until the earlier one is done.
    Hold,
    /// Nothing has changed: another interval begins.
    Pass,
    /// A checkpoint.
    Cut,
}

/// The pace of one checkout's checkpoints.
#[derive(Debug)]
pub(super) struct Pace {
    settings: Checkpoints,
    /// What the last checkpoints cost, oldest first.
    costs: VecDeque<Duration>,
    /// What has been spent since the last cut.
    spent: Duration,
    /// When the interval began.
    since: Instant,
    /// When something of this checkout became a commit.
    committed: Instant,
}

impl Pace {
    /// Begins now.
    pub(super) fn new(settings: Checkpoints, now: Instant) -> Self {
        Self {
            settings,
            costs: VecDeque::new(),
            spent: Duration::ZERO,
            since: now,
            committed: now,
        }
    }

    /// Counts a part of what the last checkpoint costs: time of a core, or of the connection.
    pub(super) fn spend(&mut self, cost: Duration) {
        self.spent = self.spent.saturating_add(cost);
    }

    /// Something of the checkout has become a commit.
    pub(super) fn committed(&mut self, now: Instant) {
        self.committed = now;
    }

    /// A checkpoint was taken: what was spent before was for the one before it.
    pub(super) fn cut(&mut self, now: Instant) {
        let spent = std::mem::take(&mut self.spent);
        if !spent.is_zero() {
            self.costs.push_back(spent);
        }
        if self.costs.len() > COSTS_KEPT {
            self.costs.pop_front();
        }
        self.since = now;
    }

    /// Nothing had changed.
    pub(super) fn pass(&mut self, now: Instant) {
        self.since = now;
    }

    /// How far checkpoints are apart; nothing where there are none.
    pub(super) fn interval(&self, power: Power) -> Option<Duration> {
        let (min, max) = (self.settings.min, self.settings.max);
        match self.settings.interval {
            Interval::Off => None,
            // Who says so knows the battery.
            Interval::Fixed(interval) => Some(interval),
            Interval::Auto => {
                let interval = young(self.cost(), self.settings.mtbf).clamp(min, max);
                match power {
                    Power::Mains | Power::Battery => Some(interval),
                    Power::NearlyEmpty => Some((interval / NEARLY_EMPTY_SHARE).max(min)),
                }
            }
        }
    }

    /// When the next checkpoint is due.
    pub(super) fn due(&self, power: Power) -> Option<Instant> {
        Some(self.since + self.interval(power)?)
    }

    /// Whether the power matters for the interval.
    pub(super) fn heeds_power(&self) -> bool {
        self.settings.interval == Interval::Auto
    }

    /// What is to be done now.
    pub(super) fn step(&self, now: Instant, power: Power, situation: Situation) -> Step {
        match self.due(power) {
            None => Step::Never,
            Some(due) if due > now => Step::Wait(due),
            Some(_) if !situation.changed => Step::Pass,
            Some(_) if situation.is_held => Step::Hold,
            Some(_) => Step::Cut,
        }
    }

    /// From when on a checkpoint is to become a commit; nothing where a person says when.
    pub(super) fn commits_from(&self) -> Option<Instant> {
        match self.settings.commit {
            CommitPolicy::Every => Some(self.committed),
            CommitPolicy::After(time) => Some(self.committed + time),
            CommitPolicy::Hand => None,
        }
    }

    /// Which checkpoints become commits.
    pub(super) fn policy(&self) -> CommitPolicy {
        self.settings.commit
    }

    /// What a checkpoint costs, as the last ones did; nothing until one has been measured.
    fn cost(&self) -> Duration {
        let count = u32::try_from(self.costs.len()).unwrap_or(u32::MAX);
        self.costs.iter().sum::<Duration>() / count.max(1)
    }
}

/// The interval at which checkpoints and what is lost by failures together cost least.
fn young(cost: Duration, mtbf: Duration) -> Duration {
    let seconds = (2.0 * cost.as_secs_f64() * mtbf.as_secs_f64()).sqrt();
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Reads what the device runs on from the kernel's folder of power supplies. A mouse has a battery too, of which
/// nothing here depends.
pub(super) fn power(supplies: &Path) -> Power {
    let Ok(entries) = std::fs::read_dir(supplies) else {
        return Power::Mains;
    };
    let (mut discharging, mut fullest) = (false, None);
    for supply in entries.flatten() {
        let says = |name: &str| {
            let text = std::fs::read_to_string(supply.path().join(name));
            text.unwrap_or_default().trim().to_owned()
        };
        if says("type") != "Battery" || says("scope") == "Device" {
            continue;
        }
        discharging |= says("status") == "Discharging";
        if let Ok(percent) = says("capacity").parse::<u32>() {
            fullest = fullest.max(Some(percent));
        }
    }
    match fullest {
        Some(percent) if discharging && percent < NEARLY_EMPTY_PERCENT => Power::NearlyEmpty,
        _ if discharging => Power::Battery,
        _ => Power::Mains,
    }
}

/// Checkpoints whose costs are averaged: enough that one large change does not set the pace, few enough that another
/// way of working does soon.
const COSTS_KEPT: usize = 5;
/// A battery below this ends within minutes.
const NEARLY_EMPTY_PERCENT: u32 = 10;
/// Part of the interval that is left then: a failure is not a matter of days any more.
const NEARLY_EMPTY_SHARE: u32 = 10;

#[cfg(test)]
mod tests;
