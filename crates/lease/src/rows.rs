//! The rows that the rules read and write, and the effects that they return.

use std::time::Duration;

use img_types::limits::{
    LEASE_OFFLINE_TTL_MAX, LEASE_ONLINE_TTL_MAX, LEASE_TTL_DEFAULT, LEASE_TTL_MIN,
};
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, Epoch, ImageId, Incarnation, Instance, LeaseMode,
    ObjectId, Seq, Token, WallMillis,
};
use serde::{Deserialize, Serialize};

use crate::Refused;

/// How long and in which manner a lease is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// Milliseconds from the grant or renewal to the lapse.
    pub ttl_ms: u64,
    /// Online or offline.
    pub mode: LeaseMode,
}

impl Terms {
    /// The terms of a lease for which nobody asked for anything else.
    pub fn usual() -> Self {
        Self {
            ttl_ms: millis(LEASE_TTL_DEFAULT),
            mode: LeaseMode::Online,
        }
    }

    /// The nearest terms that the limits allow.
    pub fn bounded(self) -> Self {
        let max = match self.mode {
            LeaseMode::Online => LEASE_ONLINE_TTL_MAX,
            LeaseMode::Offline => LEASE_OFFLINE_TTL_MAX,
        };
        Self {
            ttl_ms: self.ttl_ms.clamp(millis(LEASE_TTL_MIN), millis(max)),
            ..self
        }
    }
}

/// An image's newest commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Head {
    /// Which.
    pub commit: CommitId,
    /// Its number in the image's history.
    pub seq: Seq,
}

/// A lease as the home's row has it: HELD, or LAPSED if its deadline passed without a rival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The holder's device.
    pub device: DeviceId,
    /// The holder's checkout.
    pub checkout: CheckoutId,
    /// The grant's number.
    pub epoch: Epoch,
    /// Online or offline.
    pub mode: LeaseMode,
    /// Milliseconds that a renewal gives.
    pub ttl_ms: u64,
    /// Milliseconds of the home's running time until it lapses.
    pub remaining_ms: u64,
    /// Whether the deadline has passed.
    pub lapsed: bool,
    /// The newest commit that the holder is known to stand on.
    pub base: Option<CommitId>,
}

impl Lease {
    /// Whether nobody else can be granted the image now: the lease is HELD.
    pub fn outstanding(&self) -> bool {
        !self.lapsed
    }

    /// The lease with a new deadline, HELD again if it had lapsed.
    pub(crate) fn extended(self, terms: Terms) -> Self {
        Self {
            mode: terms.mode,
            ttl_ms: terms.ttl_ms,
            remaining_ms: terms.ttl_ms,
            lapsed: false,
            ..self
        }
    }
}

/// A checkpoint that has streamed home and may become a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Staged {
    /// The commit record as it would be.
    pub proposal: Proposal,
    /// Milliseconds of the home's running time that it is kept once its token is not current.
    pub remaining_ms: u64,
}

/// What the rules need to know of a commit record; the server checked its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Proposal {
    /// The record's id.
    pub commit: CommitId,
    /// The image whose head it would become.
    pub image: ImageId,
    /// Its number in the image's history.
    pub seq: Seq,
    /// The commit that it is based on, if any.
    pub parent: Option<CommitId>,
    /// The index root.
    pub root: ObjectId,
    /// The token that it was made under; nothing for the first commit of a branch.
    pub token: Option<Token>,
    /// The device that signed it.
    pub device: DeviceId,
    /// The checkout that it was made in.
    pub checkout: CheckoutId,
    /// The daemon start that made it. Orders staged records, decides nothing else.
    pub instance: Instance,
    /// The device's wall clock, strictly increasing within a checkout. Orders staged records,
    /// decides nothing else.
    pub clock: WallMillis,
}

/// Everything about one image that the rules decide on. The row is never deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageState {
    /// Which image.
    pub image: ImageId,
    /// The newest commit; nothing before the first one.
    pub head: Option<Head>,
    /// Grows with every grant, also across release, deletion and restart.
    pub epoch: Epoch,
    /// HELD or LAPSED; nothing when FREE.
    pub lease: Option<Lease>,
    /// At most one staged record for each checkout.
    pub staged: Vec<Staged>,
    /// For a deleted image: milliseconds for which its commits are still kept for a branch.
    pub tombstone_ms: Option<u64>,
}

impl ImageState {
    /// The head's commit id.
    pub fn head_commit(&self) -> Option<CommitId> {
        self.head.map(|head| head.commit)
    }

    /// What a checkout has staged.
    pub fn staged_by(&self, checkout: &CheckoutId) -> Option<&Staged> {
        self.staged
            .iter()
            .find(|staged| staged.proposal.checkout == *checkout)
    }

    /// Whether a staged record is the holder's, under its current token: then its time stands still.
    pub fn holder_staged(&self, staged: &Staged, incarnation: Incarnation) -> bool {
        let proposal = &staged.proposal;
        self.lease.is_some_and(|lease| {
            let epoch = lease.epoch;
            (lease.device, lease.checkout) == (proposal.device, proposal.checkout)
                && proposal.token == Some(Token { incarnation, epoch })
        })
    }

    pub(crate) fn live(&self) -> Result<(), Refused> {
        match self.tombstone_ms {
            None => Ok(()),
            Some(_) => Err(Refused::UnknownImage),
        }
    }
}

/// Who calls, as the connection and the roster say, and in which database the call is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The device that the connection's key belongs to.
    pub device: DeviceId,
    /// Whether the device is on the roster in this transaction.
    pub member: bool,
    /// The daemon start behind this connection.
    pub instance: Instance,
    /// The newest daemon start of this device.
    pub newest_instance: Instance,
    /// The home's database.
    pub incarnation: Incarnation,
}

impl Caller {
    /// Checks what every call of this crate but a branch needs: a member's newest daemon.
    ///
    /// # Errors
    /// [`Refused::NotMember`] or [`Refused::InstanceFenced`].
    pub fn acts(&self) -> Result<(), Refused> {
        self.belongs()?;
        if self.instance == self.newest_instance {
            Ok(())
        } else {
            Err(Refused::InstanceFenced)
        }
    }

    /// Checks that the device is on the roster, which is all that a branch needs.
    ///
    /// # Errors
    /// [`Refused::NotMember`].
    pub fn belongs(&self) -> Result<(), Refused> {
        if self.member {
            Ok(())
        } else {
            Err(Refused::NotMember)
        }
    }
}

/// The newest daemon start of a device, as the home's row has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Daemon {
    /// The nonce of that start.
    pub nonce: DaemonNonce,
    /// Its number.
    pub instance: Instance,
}

/// A commit that is kept for a read-only checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pin {
    /// The commit.
    pub commit: CommitId,
    /// The checkout that reads it.
    pub checkout: CheckoutId,
    /// The device that asked.
    pub device: DeviceId,
    /// Milliseconds of the home's running time that it still holds.
    pub remaining_ms: u64,
}

/// What a call does: the image's rows afterwards and what follows from it, to be written in the
/// same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The image's rows afterwards.
    pub image: ImageState,
    /// Entries of the home's log in order; the device of each is the caller, its epoch the image's.
    pub log: Vec<Logged>,
    /// The lease that another call ended, whose holder is to be told.
    pub loser: Option<Lease>,
}

/// An effect that grants a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The rows afterwards.
    pub effect: Effect,
    /// The fencing token.
    pub token: Token,
    /// Milliseconds granted.
    pub ttl_ms: u64,
}

/// A line of the home's log that a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Logged {
    /// The head moved.
    Commit(CommitId),
    /// A checkout was granted the lease.
    Grant(CheckoutId),
    /// The lease of this checkout was taken by force.
    Steal(CheckoutId),
    /// The holder gave the lease back.
    Release(CheckoutId),
    /// A commit that the home had acknowledged before was given back to it.
    Readmit(CommitId),
    /// The image was deleted.
    Delete,
}

/// Whole milliseconds of a limit.
pub(crate) const fn millis(duration: Duration) -> u64 {
    duration.as_secs() * 1_000 + duration.subsec_millis() as u64
}
