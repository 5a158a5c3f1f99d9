//! Numbers of the lease rules and of history, each with a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::Incarnation;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// The number after this one, or nothing where numbers end.
            pub fn next(self) -> Option<Self> {
                self.0.checked_add(1).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Grows with every grant of an image's lease and is never reset. Zero: no grant yet.
    Epoch(u64)
);
counter!(
    /// Counts the daemon starts of one device, as given by the home; the newest wins.
    Instance(u64)
);
counter!(
    /// Place of a commit in its image's linear history, from 0.
    Seq(u64)
);
counter!(
    /// Number of entries in a home's log.
    LogPosition(u64)
);
counter!(
    /// Generation of the home secret; grows with every revocation.
    KeyEpoch(u32)
);

/// The fencing token: proves that a call belongs to the newest grant of this database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    /// The home's database that granted.
    pub incarnation: Incarnation,
    /// The grant's number.
    pub epoch: Epoch,
}

/// How long a lease is meant to last without contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseMode {
    /// Hours; renewed all the time by a daemon that is in contact.
    Online,
    /// Days to half a year; renewed whenever there is contact.
    Offline,
}
