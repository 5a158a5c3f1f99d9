//! Homes with a fault, to show that the checks around a home would see it.
//!
//! The rules themselves have no switches. A mutant lies to them about rows, caller or record, or changes
//! the rows after they have decided.

use img_lease::grantor::{Acquire, History};
use img_lease::{Caller, Effect, ImageState, Lease, Proposal, Refused};
use img_types::{Epoch, Instance, LeaseMode, Seq, Token};

use super::{Failure, ModelHome};

/// One fault of a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A commit needs no token.
    NoTokenCheck,
    /// A late commit's Acquire does not mind an outstanding lease.
    LateCommitIgnoresLease,
    /// A commit's base need not be the head.
    NoHeadCheck,
    /// A commit's base need only have the contents of the head.
    HeadComparedByRoot,
    /// A repeated call is a new one, and no commit is known.
    NoIdempotency,
    /// A release starts the epoch again.
    EpochDroppedOnRelease,
    /// A restored backup goes on as the same database, with its leases.
    RestoreKeepsIncarnation,
    /// Whoever knows the token may commit.
    TokenNotBound,
    /// An earlier daemon of a device may do what the newest may.
    InstanceNotChecked,
    /// A token counts after its lease was given back, until the next grant.
    ReleasedTokenCounts,
    /// A staged record is taken for a commit that is known.
    StagedTakenForCommit,
    /// Readmission leaves a lease and the epoch as they are.
    ReadmitKeepsLease,
    /// Staged work is looked for when the lease has been granted over it.
    TakeOverCheckedLate,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::NoTokenCheck,
        Self::LateCommitIgnoresLease,
        Self::NoHeadCheck,
        Self::HeadComparedByRoot,
        Self::NoIdempotency,
        Self::EpochDroppedOnRelease,
        Self::RestoreKeepsIncarnation,
        Self::TokenNotBound,
        Self::InstanceNotChecked,
        Self::ReleasedTokenCounts,
        Self::StagedTakenForCommit,
        Self::ReadmitKeepsLease,
        Self::TakeOverCheckedLate,
    ];
}

impl ModelHome {
    pub(super) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn shown_instance(&self, instance: Instance, newest: Instance) -> Instance {
        if self.has(Mutant::InstanceNotChecked) {
            newest
        } else {
            instance
        }
    }

    /// What an Acquire is shown of its image.
    pub(super) fn shown_to_acquire(&self, mut image: ImageState, want: &Acquire) -> ImageState {
        if self.has(Mutant::LateCommitIgnoresLease)
            && want.expect_head.is_some()
            && let Some(lease) = &mut image.lease
        {
            lease.lapsed = true;
        }
        image
    }

    /// An Acquire as the rules are shown it.
    pub(super) fn shown_acquire(&self, want: &Acquire) -> Acquire {
        Acquire {
            take_over: want.take_over || self.has(Mutant::TakeOverCheckedLate),
            ..*want
        }
    }

    /// Whether a refused call's rows stay.
    pub(super) fn keeps_refused(&self, why: &Failure) -> bool {
        self.has(Mutant::TakeOverCheckedLate)
            && matches!(why, Failure::Refused(Refused::StagedWork { .. }))
    }

    /// A commit as the rules are shown it: its image, its caller, its record.
    pub(super) fn shown_to_commit(
        &self,
        image: &ImageState,
        caller: &Caller,
        proposal: &Proposal,
    ) -> (ImageState, Caller, Proposal) {
        let (mut image, mut caller, mut proposal) = (image.clone(), *caller, *proposal);
        let own = Lease {
            device: proposal.device,
            checkout: proposal.checkout,
            epoch: image.epoch,
            mode: LeaseMode::Online,
            ttl_ms: 0,
            remaining_ms: 0,
            lapsed: true,
            base: None,
        };
        let token = Token {
            incarnation: self.incarnation,
            epoch: image.epoch,
        };
        match self.mutant {
            Some(Mutant::NoTokenCheck) => {
                let lease = *image.lease.get_or_insert(own);
                proposal.token = Some(token);
                proposal.device = lease.device;
                proposal.checkout = lease.checkout;
                caller.device = lease.device;
            }
            Some(Mutant::ReleasedTokenCounts) => {
                image.lease.get_or_insert(own);
            }
            Some(Mutant::TokenNotBound) => {
                if let Some(lease) = &image.lease {
                    proposal.device = lease.device;
                    proposal.checkout = lease.checkout;
                    caller.device = lease.device;
                }
            }
            Some(Mutant::NoHeadCheck) => upon_head(&image, &mut proposal),
            Some(Mutant::HeadComparedByRoot) => {
                let root = |commit| self.commits.get(&commit).map(|row| row.proposal.root);
                let same = proposal.parent.and_then(root) == image.head_commit().and_then(root);
                if same {
                    upon_head(&image, &mut proposal);
                }
            }
            _ => {}
        }
        (image, caller, proposal)
    }

    /// A commit's effect as it is written.
    pub(super) fn written_commit(&self, image: &ImageState, mut effect: Effect) -> Effect {
        if image.lease.is_none() {
            effect.image.lease = None;
        }
        effect
    }

    /// A release's effect as it is written.
    pub(super) fn written_release(&self, mut effect: Effect) -> Effect {
        if self.has(Mutant::EpochDroppedOnRelease) {
            effect.image.epoch = Epoch(0);
        }
        effect
    }

    /// A readmission's effect as it is written.
    pub(super) fn written_readmit(&self, image: &ImageState, mut effect: Effect) -> Effect {
        if self.has(Mutant::ReadmitKeepsLease) {
            effect.image.epoch = image.epoch;
            effect.image.lease = image.lease;
        }
        effect
    }

    /// What the rules are told of a record's history.
    pub(super) fn shown_history(&self, image: &ImageState, proposal: &Proposal) -> History {
        let mut history = self.history(proposal);
        match self.mutant {
            Some(Mutant::NoIdempotency) => history.has_commit = false,
            Some(Mutant::StagedTakenForCommit) => {
                let mut staged = image.staged.iter();
                history.has_commit |=
                    staged.any(|staged| staged.proposal.commit == proposal.commit);
            }
            _ => {}
        }
        history
    }
}

fn upon_head(image: &ImageState, proposal: &mut Proposal) {
    proposal.parent = image.head_commit();
    proposal.seq = match image.head {
        Some(head) => head.seq.next().unwrap_or(head.seq),
        None => Seq(0),
    };
}
