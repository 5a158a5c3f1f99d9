//! Device keys, signatures and the signed records: roster, commit, descriptor, receipt, log, invite.
//!
//! This crate owns the bytes of everything that is signed or proved, and the rules of the roster's
//! chain. It knows no content keys: sealed parts of records are opaque bytes here, which `img-seal`
//! makes and opens. No I/O, no clock. `docs/formats.md` describes the records.

pub mod commit;
pub mod descriptor;
pub mod device;
pub mod invite;
pub mod join;
pub mod log;
pub mod receipt;
pub mod roster;
pub mod signed;

#[cfg(test)]
mod golden;

pub use commit::{Commit, CommitKind, CommitPrivate, Maps, Parent, Seen, SignedCommit, commit_id};
pub use descriptor::{Descriptor, DescriptorPrivate, SignedDescriptor};
pub use device::{PublicKeys, SignatureError, SigningSecret, verify};
pub use invite::{AnyInvite, FoundingInvite, Invite, InviteError};
pub use join::{JoinAnswer, JoinRequest};
pub use log::{LogEntry, LogKind};
pub use receipt::{Receipt, SignedReceipt};
pub use roster::{
    Change, Member, MemberState, RecoveryKeys, Role, Roster, RosterEntry, RosterError,
    SignedRosterEntry, Wrap, entry_id,
};
pub use signed::{Record, Signed};
