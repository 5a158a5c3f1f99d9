//! The device's clocks, as the lease rules take them, and luck.

use img_lease::holder::{BootId, Moment};
use img_types::BootMillis;
use rustix::time::{ClockId, clock_gettime};

use crate::events;
use crate::random::random;

/// Reads the clocks of one boot.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    boot_id: BootId,
}

impl Clock {
    /// Learns which boot this is.
    ///
    /// Where the kernel does not say, each daemon start counts as a boot of its own: then the wall clock
    /// alone decides, as after a reboot.
    pub fn new() -> Self {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot_id = text.ok().and_then(|text| parse(&text)).unwrap_or_else(|| {
            tracing::warn!("the kernel does not tell one boot from another");
            BootId(random())
        });
        Self { boot_id }
    }

    /// What the clocks say now.
    pub fn now(&self) -> Moment {
        let boot = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(boot.tv_sec).unwrap_or(0);
        let millis = u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000;
        Moment {
            boot_id: self.boot_id,
            boot: BootMillis(seconds * 1_000 + millis),
            wall: events::now(),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Spreads renewals.
pub fn luck() -> u16 {
    u16::from_le_bytes(random())
}

/// Reads a UUID with its dashes.
fn parse(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let bytes = data_encoding::HEXLOWER.decode(digits.as_bytes()).ok()?;
    Some(BootId(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run_forwards_within_one_boot() {
        let clock = Clock::new();
        let (first, second) = (clock.now(), clock.now());
        assert_eq!(first.boot_id, Clock::new().now().boot_id);
        assert!(second.boot >= first.boot);
        assert!(first.boot.0 > 0 && first.wall.0 > 0);
    }

    #[test]
    fn boot_ids_are_uuids() {
        let id = "00112233-4455-6677-8899-aabbccddeeff\n";
        assert_eq!(parse(id).unwrap().0[..3], [0, 0x11, 0x22]);
        assert_eq!(parse("00112233"), None);
        assert_eq!(parse("no boot id"), None);
    }
}
