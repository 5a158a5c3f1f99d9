//! Readings of the two clocks, kept apart by type.
//!
//! No decision that protects data reads either of them; see `leases.md` in the design: time only
//! decides when a lease may be offered to somebody else and when a person is warned.

use serde::{Deserialize, Serialize};

/// Milliseconds of `CLOCK_BOOTTIME`: grows while the machine sleeps, restarts at a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootMillis(pub u64);

/// Milliseconds since the Unix epoch, as the machine's wall clock says; may jump either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallMillis(pub i64);

impl BootMillis {
    /// Milliseconds from an earlier reading to this one; zero if the clock restarted.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
