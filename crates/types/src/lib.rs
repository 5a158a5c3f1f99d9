//! Ids, names, numbers of the lease rules, the clear form of stored objects, and every limit.
//!
//! This crate owns the vocabulary that every other crate shares: a value that reaches a function
//! here has been parsed once, at the door. It deliberately knows no keys, no I/O and no protocol.
//! The byte layouts are described in `docs/formats.md`.

pub mod bytes;
pub mod ids;
pub mod lease;
pub mod limits;
pub mod name;
pub mod object;
pub mod padding;
pub mod time;
pub mod units;

pub use ids::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, EntryId, HomeId, HomeKey, ImageId, Incarnation,
    InviteId, LogRoot, NameTag, ObjectId, RequestId, UploadId,
};
pub use lease::{Epoch, Instance, KeyEpoch, LeaseMode, LogPosition, Seq, Token};
pub use name::{DeviceName, ImageName, NameError};
pub use time::{BootMillis, WallMillis};
pub use units::{parse_duration, parse_size};
