//! Who watches a home and its calls, writes down what happened in the plainest way, and says when
//! something that must hold does not.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use img_lease::{Proposal, Refused};
use img_testkit::home::{Answer, Call, Connection, Failure, ModelHome, Standing};
use img_types::{
    CheckoutId, CommitId, DeviceId, Epoch, ImageId, Incarnation, LogPosition, RequestId, Token,
};

/// What must hold and did not; the numbers are those of `docs/semantics.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breach {
    /// 1: a token was granted twice.
    TokenGrantedTwice,
    /// 1: an epoch went down.
    EpochWentDown,
    /// 2: a lease was granted while another was outstanding.
    TwoLeases,
    /// 3: the head moved to a commit with another parent, or a grant told another head.
    NotLinear,
    /// 4: the head moved, a lease was renewed, or a token stayed, where another's token was current.
    UnderAnothersToken,
    /// 5: what was acknowledged is not in history.
    AcknowledgedLost,
    /// 6: a commit or a call was applied twice.
    AppliedTwice,
    /// 7: a refused call changed something.
    RefusedChanged,
    /// 7: a member's branch was refused.
    BranchRefused,
    /// 9: a repeated request was answered otherwise, or another content under its id was taken.
    ReplayDiffers,
    /// 11: a device believes in its lease for longer than its home.
    DeadlineTooLate,
    /// 12: an earlier daemon of a device changed something other than by a branch, or was told what it did.
    OldDaemonActed,
    /// 15: a device that saw what is gone was not told, or one that did not was.
    NotNoticed,
    /// 16: who holds the lease was refused, or met its own grant as a stranger's.
    OwnGrantRefused,
}

impl Breach {
    /// All of them, each with the promise that it breaks.
    pub const ALL: [(Self, &'static str); 14] = [
        (
            Self::TokenGrantedTwice,
            "1: a token is granted at most once",
        ),
        (Self::EpochWentDown, "1: an epoch never goes down"),
        (Self::TwoLeases, "2: at most one lease is outstanding"),
        (Self::NotLinear, "3: history is linear"),
        (
            Self::UnderAnothersToken,
            "4: nobody commits under another's token",
        ),
        (
            Self::AcknowledgedLost,
            "5: what was acknowledged is in history",
        ),
        (Self::AppliedTwice, "6: nothing is applied twice"),
        (Self::RefusedChanged, "7: a refused call changes nothing"),
        (Self::BranchRefused, "7: work can always be branched"),
        (Self::ReplayDiffers, "9: a repeated request has one answer"),
        (
            Self::DeadlineTooLate,
            "11: a device's deadline is never later than its home's",
        ),
        (Self::OldDaemonActed, "12: the newest daemon wins"),
        (Self::NotNoticed, "15: a home that went back is noticed"),
        (
            Self::OwnGrantRefused,
            "16: nobody meets its own grant as a stranger's",
        ),
    ];

    /// The promise that is broken.
    pub fn name(self) -> &'static str {
        let name = Self::ALL.into_iter().find(|(breach, _)| *breach == self);
        name.map_or("", |(_, name)| name)
    }
}

/// Who claims to hold an image.
type Claim = (DeviceId, CheckoutId, Token);

/// What the bystander has written down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Bystander {
    granted: BTreeSet<(ImageId, Incarnation, Epoch)>,
    holders: BTreeMap<ImageId, Claim>,
    chains: BTreeMap<ImageId, Vec<CommitId>>,
    acknowledged: BTreeSet<CommitId>,
    answers: BTreeMap<(DeviceId, RequestId), (u64, Answer)>,
    /// The log's length in the backup that was restored.
    forked_at: Option<(Incarnation, LogPosition)>,
    /// The first thing that did not hold.
    pub breach: Option<Breach>,
}

/// A call, with the home before and after it.
pub struct Seen<'a> {
    /// The home before the call.
    pub before: &'a ModelHome,
    /// The home after it.
    pub after: &'a ModelHome,
    /// Who called.
    pub by: Connection,
    /// Under which id.
    pub request: RequestId,
    /// What was called.
    pub call: &'a Call,
    /// What was answered.
    pub result: &'a Result<Answer, Failure>,
}

impl Seen<'_> {
    fn newest(&self) -> bool {
        let newest = self.before.newest_daemon(self.by.device);
        newest.is_none_or(|newest| newest.instance == self.by.instance)
    }

    fn moved_rows(&self) -> bool {
        !self.before.images().eq(self.after.images())
    }
}

impl Bystander {
    /// The commits of an image, oldest first.
    pub fn chain(&self, image: ImageId) -> &[CommitId] {
        self.chains.get(&image).map_or(&[], Vec::as_slice)
    }

    /// Whose token is current.
    pub fn holder(&self, image: ImageId) -> Option<Claim> {
        self.holders.get(&image).copied()
    }

    /// Writes down that something does not hold; the first such thing stays.
    pub fn report(&mut self, breach: Breach) {
        self.breach.get_or_insert(breach);
    }

    /// Watches a call.
    pub fn watch(&mut self, seen: &Seen<'_>) {
        let key = (seen.by.device, seen.request);
        let hash = hash(seen.call);
        let earlier = self.answers.get(&key).copied();
        let verdict = match (earlier, seen.result) {
            (Some(earlier), result) => self.repeated(seen, earlier, hash, result),
            (None, Err(failure)) => self.refused(seen, failure),
            (None, Ok(answer)) => {
                self.answers.insert(key, (hash, *answer));
                self.answered(seen, answer)
            }
        };
        let verdict = verdict.and_then(|()| self.compare(seen));
        if let Err(breach) = verdict {
            self.report(breach);
        }
    }

    /// Watches a Hello: `seen` is the newest that the device saw of the home's log.
    pub fn watch_hello(&mut self, seen: Option<Standing>, went_back: bool) {
        let gone = match (seen, self.forked_at) {
            (Some(seen), Some((incarnation, at))) => {
                seen.incarnation == incarnation && seen.position > at
            }
            _ => false,
        };
        if gone != went_back {
            self.report(Breach::NotNoticed);
        }
    }

    /// Watches a restore to a state of which `backup` was the bystander.
    pub fn watch_restore(&mut self, backup: &Self, at: Standing) {
        self.chains.clone_from(&backup.chains);
        self.answers.clone_from(&backup.answers);
        self.acknowledged.clone_from(&backup.acknowledged);
        self.holders.clear();
        self.forked_at = Some((at.incarnation, at.position));
    }

    fn repeated(
        &self,
        seen: &Seen<'_>,
        (kept, earlier): (u64, Answer),
        hash: u64,
        result: &Result<Answer, Failure>,
    ) -> Result<(), Breach> {
        // A fenced daemon is told nothing of its calls: its newest start repeats them.
        let fenced = !seen.newest() && !matches!(seen.call, Call::Branch { .. });
        if fenced && result.is_ok() {
            return Err(Breach::OldDaemonActed);
        }
        let same = match (earlier, result) {
            (_, Err(Failure::RequestReused)) => kept != hash,
            (_, Err(Failure::Refused(Refused::NotMember))) => {
                !seen.before.is_member(seen.by.device)
            }
            (_, Err(Failure::Refused(Refused::InstanceFenced))) => fenced,
            (Answer::Renewed { .. }, Err(_)) => !self.is_current(seen),
            (_, Err(_)) => false,
            (
                Answer::Granted { token, .. },
                Ok(Answer::Granted {
                    token: now,
                    current,
                    ..
                }),
            ) => token == *now && *current == self.stands(seen, token),
            (Answer::Renewed { .. }, Ok(Answer::Renewed { .. })) => self.is_current(seen),
            (Answer::Branched { receipt, .. }, Ok(Answer::Branched { receipt: now, .. })) => {
                receipt == *now
            }
            (earlier, Ok(now)) => earlier == *now,
        };
        if !same || (result.is_ok() && kept != hash) {
            return Err(Breach::ReplayDiffers);
        }
        if seen.moved_rows() {
            return Err(Breach::AppliedTwice);
        }
        Ok(())
    }

    fn refused(&self, seen: &Seen<'_>, failure: &Failure) -> Result<(), Breach> {
        if seen.before != seen.after {
            return Err(Breach::RefusedChanged);
        }
        let member = seen.before.is_member(seen.by.device);
        match seen.call {
            Call::Branch { .. } if member => Err(Breach::BranchRefused),
            Call::Commit(proposal) if member && self.may_commit(seen, proposal) => {
                Err(Breach::OwnGrantRefused)
            }
            Call::Renew { .. } if self.is_current(seen) => Err(Breach::OwnGrantRefused),
            Call::Acquire { want, .. } => match failure {
                Failure::Refused(Refused::Leased(lease))
                    if (lease.device, lease.checkout) == (seen.by.device, want.checkout) =>
                {
                    Err(Breach::OwnGrantRefused)
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn answered(&mut self, seen: &Seen<'_>, answer: &Answer) -> Result<(), Breach> {
        let branches = matches!(seen.call, Call::Branch { .. });
        if !branches && !seen.newest() && seen.moved_rows() {
            return Err(Breach::OldDaemonActed);
        }
        let device = seen.by.device;
        match (seen.call, answer) {
            (Call::Acquire { image, want }, Answer::Granted { token, head, .. }) => {
                let lease = seen.before.image(*image).and_then(|row| row.lease);
                if lease.is_some_and(|lease| !lease.lapsed) {
                    return Err(Breach::TwoLeases);
                }
                self.granted(*image, (device, want.checkout, *token))?;
                self.told_head(*image, head.map(|head| head.commit))
            }
            (
                Call::Steal {
                    image,
                    checkout,
                    branch,
                    ..
                },
                Answer::Granted { token, head, .. },
            ) => {
                let loser = seen.before.image(*image).and_then(|row| row.lease);
                self.granted(*image, (device, *checkout, *token))?;
                self.told_head(*image, head.map(|head| head.commit))?;
                let (Some((name, first)), Some(loser)) = (branch, loser) else {
                    return Ok(());
                };
                self.begin(name.image, first.commit)?;
                if seen.before.is_member(loser.device) {
                    let token = Token {
                        epoch: Epoch(1),
                        ..*token
                    };
                    self.granted(name.image, (loser.device, loser.checkout, token))?;
                }
                Ok(())
            }
            (Call::CreateImage { name, checkout, .. }, Answer::Granted { token, head, .. }) => {
                let others: Vec<_> = seen
                    .after
                    .images()
                    .filter(|row| row.lease.is_none())
                    .collect();
                self.holders
                    .retain(|id, _| !others.iter().any(|row| row.image == *id));
                let claim = (device, *checkout, *token);
                self.chains.entry(name.image).or_default();
                if self.holder(name.image) != Some(claim) {
                    self.granted(name.image, claim)?;
                }
                self.told_head(name.image, head.map(|head| head.commit))
            }
            (Call::Renew { .. }, Answer::Renewed { .. }) if !self.is_current(seen) => {
                Err(Breach::UnderAnothersToken)
            }
            (
                Call::Release {
                    image,
                    checkout,
                    token,
                },
                _,
            ) if self.holder(*image) == Some((device, *checkout, *token)) => {
                self.holders.remove(image);
                Ok(())
            }
            (Call::Commit(proposal), Answer::Committed { .. }) => self.committed(seen, proposal),
            (Call::Branch { first, .. }, Answer::Branched { token, .. }) => {
                if self.acknowledged.contains(&first.commit) {
                    return Ok(());
                }
                self.begin(first.image, first.commit)?;
                self.granted(first.image, (device, first.checkout, *token))
            }
            (Call::Readmit { image, commits }, _) => {
                let new = commits.iter().map(|(proposal, _)| proposal);
                let new: Vec<_> = new
                    .filter(|proposal| !self.acknowledged.contains(&proposal.commit))
                    .collect();
                for proposal in &new {
                    self.extend(proposal)?;
                }
                let lease = seen.after.image(*image).and_then(|row| row.lease);
                if !new.is_empty() && lease.is_some() {
                    return Err(Breach::UnderAnothersToken);
                }
                if !new.is_empty() {
                    self.holders.remove(image);
                }
                Ok(())
            }
            (Call::DeleteImage { image, .. }, _) => {
                self.holders.remove(image);
                Ok(())
            }
            (Call::Revoke { device, .. }, _) => {
                self.holders.retain(|_, (holder, ..)| holder != device);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn committed(&mut self, seen: &Seen<'_>, proposal: &Proposal) -> Result<(), Breach> {
        if seen.after.commit(proposal.commit).is_none() {
            return Err(Breach::AcknowledgedLost);
        }
        if self.acknowledged.contains(&proposal.commit) {
            return if seen.moved_rows() {
                Err(Breach::AppliedTwice)
            } else {
                Ok(())
            };
        }
        let token = proposal.token.ok_or(Breach::UnderAnothersToken)?;
        let claim = (proposal.device, proposal.checkout, token);
        if self.holder(proposal.image) != Some(claim) || seen.by.device != proposal.device {
            return Err(Breach::UnderAnothersToken);
        }
        self.extend(proposal)
    }

    /// A commit follows the head.
    fn extend(&mut self, proposal: &Proposal) -> Result<(), Breach> {
        let chain = self.chains.entry(proposal.image).or_default();
        if proposal.parent != chain.last().copied() {
            return Err(Breach::NotLinear);
        }
        chain.push(proposal.commit);
        self.acknowledged.insert(proposal.commit);
        Ok(())
    }

    /// A branch begins with its first commit.
    fn begin(&mut self, image: ImageId, first: CommitId) -> Result<(), Breach> {
        let taken = self.chains.insert(image, vec![first]);
        if taken.is_some() || !self.acknowledged.insert(first) {
            return Err(Breach::AppliedTwice);
        }
        Ok(())
    }

    fn granted(&mut self, image: ImageId, claim: Claim) -> Result<(), Breach> {
        let (_, _, token) = claim;
        self.holders.insert(image, claim);
        if self.granted.insert((image, token.incarnation, token.epoch)) {
            Ok(())
        } else {
            Err(Breach::TokenGrantedTwice)
        }
    }

    fn told_head(&self, image: ImageId, head: Option<CommitId>) -> Result<(), Breach> {
        if self.chain(image).last().copied() == head {
            Ok(())
        } else {
            Err(Breach::NotLinear)
        }
    }

    /// Whether the token of a Renew is current.
    fn is_current(&self, seen: &Seen<'_>) -> bool {
        match seen.call {
            Call::Renew { token, .. } => self.stands(seen, *token),
            _ => false,
        }
    }

    /// Whether the grant of a call stands.
    fn stands(&self, seen: &Seen<'_>, token: Token) -> bool {
        let (image, checkout) = match seen.call {
            Call::Acquire { image, want } => (image, want.checkout),
            Call::Renew {
                image, checkout, ..
            }
            | Call::Steal {
                image, checkout, ..
            } => (image, *checkout),
            Call::CreateImage { name, checkout, .. } => (&name.image, *checkout),
            _ => return false,
        };
        seen.newest()
            && seen.before.is_member(seen.by.device)
            && self.holder(*image) == Some((seen.by.device, checkout, token))
    }

    /// Whether the one rule lets a commit in.
    fn may_commit(&self, seen: &Seen<'_>, proposal: &Proposal) -> bool {
        let claim = proposal
            .token
            .map(|token| (proposal.device, proposal.checkout, token));
        claim.is_some()
            && self.holder(proposal.image) == claim
            && seen.by.device == proposal.device
            && seen.newest()
            && self.chain(proposal.image).last().copied() == proposal.parent
    }

    /// Compares the rows with what is written down here.
    fn compare(&self, seen: &Seen<'_>) -> Result<(), Breach> {
        for row in seen.before.images() {
            let after = seen.after.image(row.image);
            if after.is_none_or(|after| after.epoch < row.epoch) {
                return Err(Breach::EpochWentDown);
            }
        }
        let mut all: Vec<_> = self.chains.values().flatten().collect();
        if all
            .iter()
            .any(|commit| seen.after.commit(**commit).is_none())
        {
            return Err(Breach::AcknowledgedLost);
        }
        for (image, chain) in &self.chains {
            let head = seen.after.image(*image).and_then(|row| row.head_commit());
            if head != chain.last().copied() {
                return Err(Breach::NotLinear);
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        if all.len() == count {
            Ok(())
        } else {
            Err(Breach::AppliedTwice)
        }
    }
}

fn hash(call: &Call) -> u64 {
    let mut hasher = DefaultHasher::new();
    call.hash(&mut hasher);
    hasher.finish()
}
