//! The home's running clock: how long this home has been running, over all its processes.
//!
//! Every deadline (leases, staged records, pins, invites) is a reading of this clock. It counts
//! `CLOCK_BOOTTIME` while a process serves the home, is persisted with every transaction and every
//! minute, and goes on from what was persisted: downtime never shortens a deadline. No guard of a
//! commit reads it.

use img_types::{BootMillis, WallMillis};
use rustix::time::{ClockId, DynamicClockId, clock_gettime, clock_gettime_dynamic};

/// A reading of the running clock in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunningMillis(pub(crate) u64);

impl RunningMillis {
    pub(crate) fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` until this reading; zero if it is not earlier.
    pub(crate) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Counts on from a persisted reading.
#[derive(Debug, Clone)]
pub(crate) struct RunningClock {
    started: RunningMillis,
    boot: BootMillis,
    /// Milliseconds by which a test has moved the clock on.
    #[cfg(test)]
    moved: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl RunningClock {
    /// Goes on from `persisted`.
    pub(crate) fn resume(persisted: RunningMillis) -> Self {
        Self {
            started: persisted,
            boot: boot_millis(),
            #[cfg(test)]
            moved: std::sync::Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> RunningMillis {
        let now = self.started.plus(boot_millis().since(self.boot));
        #[cfg(test)]
        let now = now.plus(self.moved.load(std::sync::atomic::Ordering::Relaxed));
        now
    }

    /// Moves the clock on, for all its clones.
    #[cfg(test)]
    pub(crate) fn advance(&self, ms: u64) {
        self.moved
            .fetch_add(ms, std::sync::atomic::Ordering::Relaxed);
    }

    /// When this process began to serve.
    pub(crate) fn started(&self) -> RunningMillis {
        self.started
    }
}

fn boot_millis() -> BootMillis {
    // The fallback runs too; it only stops while the machine sleeps, which makes deadlines later.
    let time = clock_gettime_dynamic(DynamicClockId::Boottime)
        .unwrap_or_else(|_| clock_gettime(ClockId::Monotonic));
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0);
    BootMillis(seconds * 1_000 + millis)
}

/// The wall clock, for display only.
pub(crate) fn wall_millis() -> WallMillis {
    let time = clock_gettime(ClockId::Realtime);
    WallMillis(time.tv_sec.saturating_mul(1_000) + time.tv_nsec / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_from_what_was_persisted() {
        let clock = RunningClock::resume(RunningMillis(5_000));
        let first = clock.now();
        assert!(first >= RunningMillis(5_000) && first < RunningMillis(65_000));
        assert!(clock.now() >= first);
        let clone = clock.clone();
        clone.advance(60_000);
        assert!(clock.now().since(first) >= 60_000);
        assert_eq!(first.plus(10).since(first), 10);
        assert_eq!(first.since(first.plus(10)), 0);
    }
}
