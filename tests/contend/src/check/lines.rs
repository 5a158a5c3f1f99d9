//! The log of each image, replayed by the lease rules.

use std::collections::BTreeMap;

use img_records::{LogEntry, LogKind};
use img_types::{CheckoutId, CommitId, DeviceId, ImageId};

use super::{Evidence, Findings, Logged};
use crate::papers::{self, Device, FOUNDER};

/// An open end.
pub(super) const OPEN: u64 = u64::MAX;

/// One grant and how long its token was current, in positions of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tenure {
    pub(super) epoch: u64,
    pub(super) device: DeviceId,
    pub(super) checkout: CheckoutId,
    /// The grant.
    pub(super) start: u64,
    /// What ended it, or [`OPEN`].
    pub(super) end: u64,
    /// A rival was granted the image although nobody took it by force: the lease must have lapsed.
    pub(super) lapsed: bool,
}

/// What happened to one image.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    /// By epoch, from 1 on without gaps.
    pub(super) tenures: Vec<Tenure>,
    /// Positions and commits.
    pub(super) heads: Vec<(u64, CommitId)>,
}

impl Line {
    /// The grant of an epoch.
    pub(super) fn tenure(&self, epoch: u64) -> Option<&Tenure> {
        self.tenures
            .get(usize::try_from(epoch.checked_sub(1)?).ok()?)
    }

    /// The epoch at a position.
    pub(super) fn epoch_at(&self, position: u64) -> u64 {
        self.tenures
            .partition_point(|tenure| tenure.start <= position) as u64
    }

    /// The head at a position.
    pub(super) fn head_at(&self, position: u64) -> Option<CommitId> {
        let before = self.heads.partition_point(|(at, _)| *at <= position);
        Some(self.heads.get(before.checked_sub(1)?)?.1)
    }

    /// Whether a commit was the head at some position from `first` to `last`.
    pub(super) fn was_head(&self, commit: CommitId, first: u64, last: u64) -> bool {
        let from = self.heads.partition_point(|(at, _)| *at <= first);
        self.heads[from.saturating_sub(1)..]
            .iter()
            .take_while(|(at, _)| *at <= last)
            .any(|(_, head)| *head == commit)
    }

    /// Whether somebody held the image at every position from `first` to `last`.
    pub(super) fn held_throughout(&self, first: u64, last: u64) -> bool {
        let mut at = first;
        while let Some(tenure) = self.tenure(self.epoch_at(at)) {
            if tenure.end <= at {
                return false;
            }
            if tenure.end > last {
                return true;
            }
            at = tenure.end;
        }
        false
    }
}

impl Tenure {
    /// Whether the token was current at some position from `first` to `last`.
    pub(super) fn was_current(&self, first: u64, last: u64) -> bool {
        self.start <= last && self.end > first
    }
}

/// Replays the log.
pub(super) fn replay(evidence: &Evidence, findings: &mut Findings) -> BTreeMap<ImageId, Line> {
    let images = (0..evidence.plan.images).map(|number| (papers::image(number), Line::default()));
    let mut lines: BTreeMap<_, _> = images.collect();
    let devices = (FOUNDER..=evidence.plan.clients).map(Device::of);
    let devices: BTreeMap<_, _> = devices.map(|device| (device.id(), device)).collect();
    let mut root = LogEntry::EMPTY_ROOT;
    for (position, Logged { entry, root: kept }) in (1..).zip(&evidence.log) {
        root = LogEntry::chain(root, entry);
        findings.ensure(root == *kept, || format!("the chain breaks at {position}"));
        if matches!(entry.kind, LogKind::Roster | LogKind::Descriptor) {
            continue;
        }
        match (lines.get_mut(&entry.image), devices.get(&entry.device)) {
            (Some(line), Some(device)) => {
                let checkout = device.checkout(entry.image);
                if let Err(why) = line.step(position, entry, checkout) {
                    findings.problem(|| format!("log {position}, {entry:?}: {why}"));
                }
            }
            _ => findings.problem(|| format!("log {position}: nobody's entry {entry:?}")),
        }
    }
    let tenures = || lines.values().flat_map(|line| &line.tenures);
    findings.grants = tenures().count() as u64;
    findings.lapses = tenures().filter(|tenure| tenure.lapsed).count() as u64;
    lines
}

impl Line {
    /// Takes one entry of the log; `checkout` is the one that its device has of the image.
    fn step(
        &mut self,
        position: u64,
        entry: &LogEntry,
        checkout: CheckoutId,
    ) -> Result<(), &'static str> {
        let held = self.tenures.last_mut().filter(|tenure| tenure.end == OPEN);
        let own = |tenure: &Tenure| (tenure.device, tenure.epoch) == (entry.device, entry.epoch.0);
        match (entry.kind, held) {
            (LogKind::Commit, Some(tenure)) if own(tenure) => {
                self.heads
                    .push((position, CommitId::from_bytes(entry.subject)));
                Ok(())
            }
            (LogKind::Commit, _) => Err("a commit by somebody who does not hold the image"),
            (LogKind::Release, Some(tenure)) if own(tenure) => {
                tenure.end = position;
                (entry.subject == *tenure.checkout.as_bytes())
                    .then_some(())
                    .ok_or("a release of another checkout")
            }
            (LogKind::Release, _) => Err("a release by somebody who does not hold the image"),
            (LogKind::Grant, held) => {
                if let Some(tenure) = held {
                    tenure.end = position;
                    tenure.lapsed = true;
                }
                if entry.subject != *checkout.as_bytes() {
                    return Err("a grant to another's checkout");
                }
                self.grant(position, entry, checkout)
            }
            (LogKind::Steal, Some(tenure)) => {
                tenure.end = position;
                if entry.subject != *tenure.checkout.as_bytes() {
                    return Err("a steal from somebody else");
                }
                self.grant(position, entry, checkout)
            }
            (LogKind::Steal, None) => Err("a steal from nobody"),
            _ => Err("an entry that nobody asked for"),
        }
    }

    fn grant(
        &mut self,
        position: u64,
        entry: &LogEntry,
        checkout: CheckoutId,
    ) -> Result<(), &'static str> {
        let follows = entry.epoch.0 == self.tenures.len() as u64 + 1;
        self.tenures.push(Tenure {
            epoch: entry.epoch.0,
            device: entry.device,
            checkout,
            start: position,
            end: OPEN,
            lapsed: false,
        });
        follows.then_some(()).ok_or("an epoch that does not follow")
    }
}
