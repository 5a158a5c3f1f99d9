//! Why a home refuses a call.

use img_types::{CommitId, DeviceId, Epoch, LeaseMode, LogPosition, ObjectId};
use serde::{Deserialize, Serialize};

use crate::{LeaseRow, Standing};

/// A refused call changed nothing. The display text is a sentence for logs; the device renders its
/// own for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The message does not parse or breaks a rule of the protocol.
    #[error("the request is malformed: {0}")]
    Malformed(String),
    /// The home has not been founded.
    #[error("the home has not been founded")]
    NotFounded,
    /// Another device founded the home.
    #[error("the home has been founded already")]
    AlreadyFounded,
    /// The founding secret is wrong.
    #[error("the founding invite is not this home's")]
    WrongFounding,
    /// The caller is not on the roster (any more).
    #[error("this device is not on the roster")]
    NotMember,
    /// The call is an admin's.
    #[error("only an admin may do this")]
    NotAdmin,
    /// The invite is unknown, used up or expired.
    #[error("the invite is unknown or has expired")]
    InviteUnknown,
    /// Hello comes first.
    #[error("say Hello first")]
    HelloFirst,
    /// A newer daemon with this device's keys has been seen.
    #[error("a newer daemon of this device is known")]
    InstanceFenced,
    /// The device has seen a log that this home does not have.
    #[error("the home's log is behind or unlike what the device saw")]
    WentBack {
        /// What the home has at that position, if it gets that far.
        at_seen: Option<Standing>,
    },
    /// The roster moved on meanwhile.
    #[error("the roster has moved on")]
    RosterMoved {
        /// Number of the newest entry.
        seq: u64,
    },
    /// A signature or an identity inside a record is wrong.
    #[error("the record does not verify: {0}")]
    BadRecord(String),
    /// The request id was used for another content.
    #[error("this request id was used for something else")]
    RequestReused,
    /// There is no such live image.
    #[error("there is no such image")]
    UnknownImage,
    /// There is no such commit.
    #[error("there is no such commit")]
    UnknownCommit,
    /// Another live image has this name.
    #[error("another image has this name")]
    NameTaken,
    /// The descriptor moved on meanwhile.
    #[error("the image's descriptor has moved on")]
    DescriptorMoved,
    /// Somebody holds the lease.
    #[error("the image is leased by another checkout")]
    Leased(LeaseRow),
    /// The lease lapsed, but newer work of its holder is staged; `take_over` gets past it.
    #[error("the lease has lapsed, but its holder has staged newer work")]
    StagedWork {
        /// The holder.
        lease: LeaseRow,
        /// The staged commit.
        staged: CommitId,
    },
    /// The token is not current (any more).
    #[error("the token is not current")]
    TokenStale {
        /// The image's epoch.
        epoch: Epoch,
        /// Who took over, if somebody holds it.
        holder: Option<DeviceId>,
        /// In which mode.
        mode: Option<LeaseMode>,
    },
    /// The base is not the head.
    #[error("the head has moved")]
    HeadMoved {
        /// The head.
        head: Option<CommitId>,
    },
    /// What the thief saw has changed.
    #[error("the lease has changed meanwhile")]
    Changed,
    /// Nobody holds the lease.
    #[error("nobody holds the lease")]
    NobodyHolds,
    /// Objects below the root are not here.
    #[error("the commit's objects are not complete at the home")]
    Incomplete {
        /// Some of the absent ones.
        missing: Vec<ObjectId>,
    },
    /// The upload session has ended.
    #[error("the upload session has ended")]
    SessionClosed,
    /// An object that was pushed is not what an object looks like.
    #[error("a pushed object is malformed")]
    BadObject,
    /// The device's quota or the home's disk is used up.
    #[error("there is no room: {0}")]
    NoRoom(String),
    /// A limit of the protocol was exceeded.
    #[error("over a limit: {0}")]
    OverLimit(String),
    /// The home is busy; try again.
    #[error("the home is busy")]
    Busy,
    /// A revocation named an outdated log position.
    #[error("the log has moved on")]
    LogMoved {
        /// The newest position.
        position: LogPosition,
    },
    /// The home failed inside; its log says why.
    #[error("the home failed: {0}")]
    Internal(String),
}
