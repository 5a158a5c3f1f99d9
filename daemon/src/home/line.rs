//! The line of an image's commits as this device knows it, from a restored home's head to the newest one.
//!
//! Says which part of it this device can give back, and what is missing for the rest, by whom it was made. Knows
//! records and receipts; what of their objects is here is its caller's business. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use img_records::SignedCommit;
use img_types::{CommitId, DeviceId, Seq};

use super::restored::{Loss, Place};
use crate::state::Acknowledged;

/// What this device knows of the commits that a home lost of an image.
pub(super) struct Line<'a> {
    from: Place,
    to: Option<Place>,
    /// Commits with receipts, oldest first.
    known: &'a [Acknowledged],
    /// The way back from the newest commit, as far as records tell it: the last one's maker may not be known.
    way: BTreeMap<Seq, Step>,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    commit: CommitId,
    device: Option<DeviceId>,
}

/// Commits in a row that are missing on this device, made by the same device as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The number of the first.
    pub first: Seq,
    /// The number of the last.
    pub last: Seq,
    /// The last one's id, if it is known.
    pub commit: Option<CommitId>,
    /// Who made them, if it is known.
    pub device: Option<DeviceId>,
}

impl<'a> Line<'a> {
    /// Looks at a loss. `seen` are records that this device saw without their receipts; `known` is ordered by number.
    pub(super) fn new(
        loss: &Loss,
        known: &'a [Acknowledged],
        seen: &[(CommitId, SignedCommit)],
    ) -> Self {
        let signed = |commit: &Acknowledged| {
            Some((commit.commit, SignedCommit::decode(&commit.record).ok()?))
        };
        let records = known.iter().filter_map(signed).chain(seen.iter().cloned());
        let records: BTreeMap<_, _> = records.collect();
        let mut way = BTreeMap::new();
        let mut next = Some(loss.from);
        while let Some(Place { seq, commit }) = next {
            let record = records.get(&commit).map(|signed| &signed.record);
            let device = record.map(|record| record.device);
            way.insert(seq, Step { commit, device });
            let parent = record.and_then(|record| record.parent);
            let before = parent
                .filter(|parent| {
                    parent.image == loss.image && loss.to.is_none_or(|to| to.seq < seq)
                })
                .and_then(|parent| Some((parent.commit, seq.0.checked_sub(1)?)));
            next = before.map(|(commit, seq)| Place {
                seq: Seq(seq),
                commit,
            });
        }
        Self {
            from: loss.from,
            to: loss.to,
            known,
            way,
        }
    }

    /// Whether the home has commits that are not of this line.
    pub(super) fn others_went_on(&self) -> bool {
        self.to.is_some_and(|to| {
            let here = self.way.get(&to.seq);
            self.from.seq <= to.seq || here.is_some_and(|step| step.commit != to.commit)
        })
    }

    /// The commits with receipts that follow the home's head without a gap, oldest first.
    pub(super) fn givable(&self) -> Vec<CommitId> {
        if self.others_went_on() {
            return Vec::new();
        }
        let to = self.to.map(|to| to.commit);
        let mut reached = BTreeSet::new();
        let mut tip = None;
        for known in self.of_the_line() {
            let follows = match (parent(known), to) {
                (_, None) if known.seq == Seq(0) => true,
                (Some(parent), _) => Some(parent) == to || reached.contains(&parent),
                (None, _) => false,
            };
            if follows {
                reached.insert(known.commit);
                tip = Some(known.commit);
            }
        }
        tip.map_or_else(Vec::new, |tip| chain(self.known, tip, to))
    }

    /// What this device lacks of what the home lost, `unfit` included, which has its receipt and not its objects.
    pub(super) fn missing(&self, unfit: Option<CommitId>) -> Vec<Missing> {
        let has = self.of_the_line().map(|known| (known.seq, known.commit));
        let has = has.filter(|(_, commit)| Some(*commit) != unfit);
        let has: BTreeMap<_, _> = has.collect();
        let mut next = self.to.map_or(0, |to| to.seq.0.saturating_add(1));
        let numbers: BTreeSet<_> = self.way.keys().chain(has.keys()).copied().collect();
        let mut missing: Vec<Missing> = Vec::new();
        for seq in numbers {
            if seq.0 < next {
                continue;
            }
            if next < seq.0 {
                missing.push(Missing {
                    first: Seq(next),
                    last: Seq(seq.0 - 1),
                    commit: None,
                    device: None,
                });
            }
            let row = missing
                .last_mut()
                .filter(|row| row.last.0.checked_add(1) == Some(seq.0));
            next = seq.0.saturating_add(1);
            let Some(step) = self.way.get(&seq).filter(|_| !has.contains_key(&seq)) else {
                continue;
            };
            match row.filter(|row| row.device == step.device && row.commit.is_some()) {
                Some(row) => (row.last, row.commit) = (seq, Some(step.commit)),
                None => missing.push(Missing {
                    first: seq,
                    last: seq,
                    commit: Some(step.commit),
                    device: step.device,
                }),
            }
        }
        missing
    }

    /// Commits with receipts that are not known to be of another line.
    fn of_the_line(&self) -> impl Iterator<Item = &'a Acknowledged> {
        let fits = |known: &&Acknowledged| {
            let step = self.way.get(&known.seq);
            step.is_none_or(|step| step.commit == known.commit)
        };
        self.known.iter().filter(fits)
    }
}

impl Missing {
    /// Them for a person; `name` tells who a device is.
    pub(super) fn words(&self, name: impl Fn(&DeviceId) -> String) -> String {
        let maker = self
            .device
            .map(|device| format!(" made by {}", name(&device)));
        let maker = maker.unwrap_or_default();
        match self.commit.filter(|_| self.first == self.last) {
            Some(commit) => format!("commit {} ({}){maker}", self.first, commit.short()),
            None if self.first == self.last => format!("commit {}{maker}", self.first),
            None => format!("commits {} to {}{maker}", self.first, self.last),
        }
    }
}

/// The parent of a commit within its image.
fn parent(commit: &Acknowledged) -> Option<CommitId> {
    let signed = SignedCommit::decode(&commit.record).ok()?;
    let parent = signed.record.parent?;
    (parent.image == commit.image).then_some(parent.commit)
}

/// The commits from behind `base` to `tip`, oldest first, as far back as they are known.
pub(super) fn chain(
    known: &[Acknowledged],
    tip: CommitId,
    base: Option<CommitId>,
) -> Vec<CommitId> {
    let by_id: BTreeMap<_, _> = known.iter().map(|known| (known.commit, known)).collect();
    let mut chain = Vec::new();
    let mut next = Some(tip);
    while let Some(commit) = next.filter(|next| Some(*next) != base)
        && let Some(known) = by_id.get(&commit)
    {
        chain.push(commit);
        next = parent(known);
    }
    chain.reverse();
    chain
}

#[cfg(test)]
mod tests;
