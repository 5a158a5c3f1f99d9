//! Virtual time, and the clocks of one machine that show it wrongly.

use img_lease::holder::{BootId, Moment};
use img_types::{BootMillis, WallMillis};

/// True time of a run in milliseconds; no machine can read it.
pub type Millis = u64;

/// A second.
pub const SECOND: Millis = 1_000;
/// A minute.
pub const MINUTE: Millis = 60 * SECOND;
/// An hour.
pub const HOUR: Millis = 60 * MINUTE;
/// A day.
pub const DAY: Millis = 24 * HOUR;
/// A year.
pub const YEAR: Millis = 365 * DAY;

/// The wall clock's reading at the start of a run where nobody has set it wrongly.
const WALL_AT_START: i64 = 1_790_000_000_000;

/// The clocks of one machine: BOOTTIME runs on during sleep and drifts a little; the wall clock also jumps.
#[derive(Debug, Clone)]
pub struct Clocks {
    machine: u8,
    boots: u64,
    booted: Millis,
    drift_ppm: i64,
    wall_offset: i64,
    /// Boots after which the wall clock has been set back, for the check of deadlines.
    set_back: u64,
}

impl Clocks {
    /// The clocks of a machine that boots now.
    pub fn new(machine: u8, drift_ppm: i64) -> Self {
        Self {
            machine,
            boots: 1,
            booted: 0,
            drift_ppm,
            wall_offset: 0,
            set_back: 0,
        }
    }

    /// Starts BOOTTIME anew, under a new boot id.
    pub fn reboot(&mut self, now: Millis) {
        self.boots += 1;
        self.booted = now;
    }

    /// Sets the wall clock forward or back.
    pub fn jump(&mut self, by: i64) {
        self.wall_offset = self.wall_offset.saturating_add(by);
        if by < 0 {
            self.set_back += 1;
        }
    }

    /// How often the machine was started.
    pub fn boots(&self) -> u64 {
        self.boots
    }

    /// How often the wall clock has been set back.
    pub fn set_back(&self) -> u64 {
        self.set_back
    }

    /// What the machine reads.
    pub fn moment(&self, now: Millis) -> Moment {
        let mut boot_id = [self.machine; 16];
        boot_id[..8].copy_from_slice(&self.boots.to_le_bytes());
        let wall = i64::try_from(self.drifted(now)).unwrap_or(i64::MAX);
        Moment {
            boot_id: BootId(boot_id),
            boot: BootMillis(self.drifted(now - self.booted)),
            wall: WallMillis(
                WALL_AT_START
                    .saturating_add(wall)
                    .saturating_add(self.wall_offset),
            ),
        }
    }

    /// True time after which `local` milliseconds will have passed here, rounded up.
    pub fn until(&self, local: u64) -> Millis {
        let rate = 1_000_000_u64.saturating_add_signed(self.drift_ppm);
        let whole = u128::from(local) * 1_000_000 / u128::from(rate);
        u64::try_from(whole).unwrap_or(u64::MAX) + 1
    }

    fn drifted(&self, true_ms: Millis) -> u64 {
        let rate = 1_000_000_u64.saturating_add_signed(self.drift_ppm);
        let whole = u128::from(true_ms) * u128::from(rate) / 1_000_000;
        u64::try_from(whole).unwrap_or(u64::MAX)
    }
}
