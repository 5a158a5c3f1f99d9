//! Messages between a device and its home: requests, answers, refusals and their framing.
//!
//! This crate owns the bytes of the wire and does no I/O; `docs/protocol.md` describes the rules
//! around them. Signed records travel as the bytes that were signed and are opaque here.
//! Messages are postcard; enums only ever grow at their end, anything else needs a new ALPN.

pub mod answer;
pub mod call;
pub mod frame;
pub mod refusal;

pub use answer::{Answer, AuditRow, ImageRow, LeaseRow, PendingJoin, Reply, StagedRow, StealRow};
pub use call::{Call, LeaseTerms, Request, StealExpectation};
pub use refusal::Refusal;

use img_types::{Incarnation, LogPosition, LogRoot};
use serde::{Deserialize, Serialize};

/// The protocol's name in the TLS handshake; a new major version is a new name.
pub const ALPN: &[u8] = b"imgctl/1";

/// A place in a home's log: what a device has seen, or where the home stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The home's database.
    pub incarnation: Incarnation,
    /// Number of log entries.
    pub position: LogPosition,
    /// Hash chain over these entries.
    pub root: LogRoot,
}

/// What a stream carries; decides who overtakes whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Bulk data on its way home.
    Upload,
    /// Filling the cache because a person asked for all of an image.
    Hydrate,
    /// Objects that an earlier session touched.
    Trace,
    /// Somebody waits for this object.
    Demand,
    /// Lease calls, commits and everything small.
    Control,
}

impl Class {
    /// The stream's priority: higher goes first.
    pub fn priority(self) -> i32 {
        self as i32
    }
}
