//! What a home answers.

use bytes::Bytes;
use img_types::{
    CheckoutId, CommitId, DeviceId, Epoch, ImageId, Instance, InviteId, LeaseMode, LogPosition,
    ObjectId, Seq, Token, UploadId, WallMillis,
};
use serde::{Deserialize, Serialize};

use crate::{Refusal, Standing};

/// One reply; it always says where the home stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The home's standing after the call; nothing while the home has not been founded or the
    /// caller is a stranger.
    pub at: Option<Standing>,
    /// The outcome.
    pub result: Result<Answer, Refusal>,
}

/// Answers, each named after its call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done; there is nothing to tell.
    Done,
    /// Who the home takes the caller for.
    Hello {
        /// The daemon's instance.
        instance: Instance,
        /// The home's root at the position that the device had seen.
        at_seen: Option<Standing>,
    },
    /// The home is founded; its genesis is the caller's.
    Founded,
    /// Whether a join was answered.
    Join {
        /// The inviter's answer, or nothing yet.
        answer: Option<Bytes>,
    },
    /// Signed roster entries in order.
    Roster {
        /// The entries.
        entries: Vec<Bytes>,
        /// Whether more follow.
        more: bool,
    },
    /// Joins that wait.
    PendingJoins {
        /// Each with its request.
        joins: Vec<PendingJoin>,
    },
    /// The live images.
    Images {
        /// One row each.
        images: Vec<ImageRow>,
        /// Whether others follow behind the last one.
        more: bool,
    },
    /// A lease was granted.
    Granted {
        /// The fencing token.
        token: Token,
        /// Milliseconds granted.
        ttl_ms: u64,
        /// The signed head commit in the same transaction; nothing for an empty image.
        head: Option<Bytes>,
        /// Whether the grant still stands: false for a repeated call whose grant is over.
        current: bool,
        /// Set when the image's trace is known.
        trace: Option<ObjectId>,
    },
    /// A lease has a new deadline.
    Renewed {
        /// Milliseconds from the home's receipt of the call.
        ttl_ms: u64,
    },
    /// Something changed.
    Changed {
        /// The image concerned, if one.
        images: Vec<ImageId>,
    },
    /// Object frames follow, one for each object.
    Objects,
    /// The upload session.
    Upload {
        /// Its id.
        upload: UploadId,
    },
    /// Positions, in the question's list, of objects that the home lacks.
    Missing {
        /// Ascending positions.
        positions: Vec<u32>,
    },
    /// This many objects of the push are durable at the home.
    Pushed {
        /// Objects since the push began.
        objects: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// The commit is in history.
    Committed {
        /// The home's signed receipt.
        receipt: Bytes,
    },
    /// The branch exists.
    Branched {
        /// The lease of the branch.
        token: Token,
        /// Milliseconds granted.
        ttl_ms: u64,
        /// The home's signed receipt for its first commit.
        receipt: Bytes,
    },
    /// Signed commits with their receipts, newest first.
    Log {
        /// The pairs.
        commits: Vec<(Bytes, Bytes)>,
        /// Whether older ones exist.
        more: bool,
    },
    /// A proof of possession.
    Proof {
        /// Encoded child proofs from the commit's root down.
        steps: Vec<Bytes>,
        /// The object at the end.
        object: Bytes,
    },
    /// The home's figures.
    Usage {
        /// Live images.
        images: u64,
        /// Stored objects.
        objects: u64,
        /// Their bytes.
        object_bytes: u64,
        /// Packs.
        packs: u64,
        /// Commits that are kept for read-only checkouts.
        pins: u64,
    },
    /// Leases held.
    Leases {
        /// One row for each image that has a lease.
        images: Vec<ImageRow>,
        /// Whether others follow behind the last one.
        more: bool,
    },
    /// What was refused or taken by force, newest first.
    Audit {
        /// The entries.
        entries: Vec<AuditRow>,
        /// Whether older ones are kept.
        more: bool,
    },
    /// Entries of the log with their positions, newest first, as `img-records` encodes them.
    History {
        /// The entries.
        entries: Vec<(LogPosition, Bytes)>,
        /// Whether there are older ones.
        more: bool,
    },
    /// Who took an image from a checkout.
    StolenBy {
        /// The newest steal; nothing if there was none.
        steal: Option<StealRow>,
    },
}

/// A steal, for the loser.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StealRow {
    /// The thief.
    pub device: DeviceId,
    /// The home's wall clock; information only.
    pub time: WallMillis,
    /// The sealed reason; empty once the home has forgotten it.
    pub reason: Bytes,
}

/// A call that was refused, or that took something by force. It proves nothing: it is in no chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Grows with every entry.
    pub number: u64,
    /// The home's wall clock; information only.
    pub time: WallMillis,
    /// Who called, if the key was ever on the roster.
    pub device: Option<DeviceId>,
    /// The image concerned, if one.
    pub image: Option<ImageId>,
    /// The call's name.
    pub call: String,
    /// Why it was refused; nothing for what was taken by force.
    pub refusal: Option<String>,
    /// The sealed reason of a steal; empty otherwise.
    pub reason: Bytes,
}

/// An image as the home knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// Which image.
    pub image: ImageId,
    /// Its signed descriptor.
    pub descriptor: Bytes,
    /// Its signed head commit.
    pub head: Option<Bytes>,
    /// The head's number.
    pub seq: Option<Seq>,
    /// Grows with every grant.
    pub epoch: Epoch,
    /// Who holds it.
    pub lease: Option<LeaseRow>,
    /// Commits staged beside the head.
    pub staged: Vec<StagedRow>,
    /// Bytes of the objects that were new with this image's commits.
    pub stored_bytes: u64,
}

/// Who holds an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The device.
    pub device: DeviceId,
    /// Its checkout.
    pub checkout: CheckoutId,
    /// The grant's number.
    pub epoch: Epoch,
    /// Online or offline.
    pub mode: LeaseMode,
    /// Milliseconds left; zero once lapsed.
    pub remaining_ms: u64,
    /// Whether the deadline has passed without a rival.
    pub lapsed: bool,
}

/// A checkpoint that has streamed home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRow {
    /// The device.
    pub device: DeviceId,
    /// Its checkout.
    pub checkout: CheckoutId,
    /// The commit it would become.
    pub commit: CommitId,
    /// The signed record.
    pub record: Bytes,
}

/// A join that waits for the inviter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingJoin {
    /// Under which invite.
    pub invite: InviteId,
    /// The join record.
    pub request: Bytes,
}
