//! Why a call is refused.

use img_types::{CommitId, DeviceId, Epoch, LeaseMode, LogPosition};

use crate::Lease;

/// A refused call changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// The device is not on the roster (any more).
    #[error("this device is not on the roster")]
    NotMember,
    /// A newer daemon with this device's keys has been seen.
    #[error("a newer daemon of this device is known")]
    InstanceFenced,
    /// The image has been deleted.
    #[error("there is no such image")]
    UnknownImage,
    /// Another live image has this name.
    #[error("another image has this name")]
    NameTaken,
    /// Somebody holds the lease.
    #[error("the image is leased by another checkout")]
    Leased(Box<Lease>),
    /// The lease lapsed, but its holder has staged work upon the head.
    #[error("the lease has lapsed, but its holder has staged newer work")]
    StagedWork {
        /// The holder.
        lease: Box<Lease>,
        /// What it staged.
        staged: CommitId,
    },
    /// The token is not current (any more).
    #[error("the token is not current")]
    TokenStale {
        /// The image's epoch.
        epoch: Epoch,
        /// Who has the lease, if somebody has.
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
    Changed {
        /// The image's epoch.
        epoch: Epoch,
        /// Its head.
        head: Option<CommitId>,
        /// What the holder has staged.
        staged: Option<CommitId>,
    },
    /// Nobody has the lease.
    #[error("nobody holds the lease")]
    NobodyHolds,
    /// The parent, or the commit to pin, is in no history here.
    #[error("there is no such commit")]
    UnknownCommit,
    /// The record contradicts itself or the call around it.
    #[error("the record does not fit: {0}")]
    BadRecord(&'static str),
    /// The device has entries in the log after the position of its revocation.
    #[error("the log has moved on")]
    LogMoved {
        /// Position of the device's newest entry.
        position: LogPosition,
    },
    /// Numbers have ended; no such image can exist.
    #[error("the image's numbers are used up")]
    Exhausted,
}
