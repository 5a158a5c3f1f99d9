//! How long a device may take its lease to last, by two clocks neither of which it trusts alone.

use img_types::limits::LEASE_TTL_DEFAULT;
use img_types::{BootMillis, LeaseMode, WallMillis};
use serde::{Deserialize, Serialize};

use crate::Terms;
use crate::rows::millis;

/// Tells one boot of a machine from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub [u8; 16]);

/// One reading of a device's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Moment {
    /// In which boot.
    pub boot_id: BootId,
    /// Time since that boot, sleep included.
    pub boot: BootMillis,
    /// What the wall clock says.
    pub wall: WallMillis,
}

/// The stretch of time that one grant or renewal gives.
///
/// It counts from when the call was *sent*, so that it ends before the home's deadline, which counts
/// from the call's receipt: `t_send + ttl · (1 − 1/250) − 2 s`. A 250th covers two clocks that drift
/// apart by up to 0.4 %, the two seconds cover rounding and the home's own delay in noticing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Term {
    sent: Moment,
    usable_ms: u64,
    renew_after_ms: u64,
    newest_wall: WallMillis,
}

impl Term {
    /// Begins when the call was sent. `luck` in 0..=65,535 spreads the renewals of many devices
    /// over a tenth of their interval.
    pub fn new(sent: Moment, terms: Terms, luck: u16) -> Self {
        // Long offline leases are renewed as often as usual ones while there is contact.
        let base_ms = match terms.mode {
            LeaseMode::Online => terms.ttl_ms,
            LeaseMode::Offline => terms.ttl_ms.min(millis(LEASE_TTL_DEFAULT)),
        };
        let third_ms = base_ms / 3;
        Self {
            sent,
            usable_ms: usable_ms(terms.ttl_ms),
            renew_after_ms: third_ms - spread(third_ms / 10, luck),
            newest_wall: sent.wall,
        }
    }

    /// Whether the deadline has passed.
    ///
    /// Within the boot of the grant either clock can say so. After a reboot only the wall clock is
    /// left, and one that stands earlier than it has been seen before is not believed.
    pub fn past(&self, now: &Moment) -> bool {
        self.remaining_ms(now) == 0
    }

    /// Milliseconds until the deadline; zero past it.
    pub fn remaining_ms(&self, now: &Moment) -> u64 {
        let by_wall = self.by_wall(now);
        if now.boot_id == self.sent.boot_id {
            by_wall.min(
                self.usable_ms
                    .saturating_sub(now.boot.since(self.sent.boot)),
            )
        } else if now.wall < self.newest_wall {
            0
        } else {
            by_wall
        }
    }

    /// Milliseconds until the next renewal is due; zero when it is, and after every reboot.
    pub fn renewal_in_ms(&self, now: &Moment) -> u64 {
        if now.boot_id == self.sent.boot_id {
            self.renew_after_ms
                .saturating_sub(now.boot.since(self.sent.boot))
        } else {
            0
        }
    }

    /// When the call was sent that began it.
    pub fn sent(&self) -> Moment {
        self.sent
    }

    /// Remembers the newest wall time seen.
    pub(super) fn observe(&mut self, now: &Moment) {
        self.newest_wall = self.newest_wall.max(now.wall);
    }

    fn by_wall(&self, now: &Moment) -> u64 {
        let elapsed = now.wall.0.saturating_sub(self.sent.wall.0);
        // A wall clock that was set back gives no more than the whole term; the boot clock caps it.
        let elapsed = u64::try_from(elapsed).unwrap_or(0);
        self.usable_ms.saturating_sub(elapsed)
    }
}

/// `ttl · (1 − 1/250) − 2 s`, rounded down.
fn usable_ms(ttl_ms: u64) -> u64 {
    ttl_ms
        .saturating_sub(ttl_ms.div_ceil(DRIFT_DIVISOR))
        .saturating_sub(MARGIN_MS)
}

fn spread(range_ms: u64, luck: u16) -> u64 {
    range_ms.saturating_mul(u64::from(luck)) / (u64::from(u16::MAX) + 1)
}

/// Clocks may drift apart by one part in this many.
const DRIFT_DIVISOR: u64 = 250;
/// Covers rounding and the home's delay.
const MARGIN_MS: u64 = 2_000;
