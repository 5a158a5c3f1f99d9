//! A device's disk: every durable write is a step that a crash may come before or after.

use crate::luck::Luck;

/// The process died; whoever sees this returns it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash;

/// A state that survives crashes, written one transaction at a time.
#[derive(Debug, Clone)]
pub struct Disk<S> {
    state: S,
    crashes_in_10_000: u64,
    writes: u64,
}

impl<S> Disk<S> {
    /// A disk with a first state.
    pub fn new(state: S) -> Self {
        Self {
            state,
            crashes_in_10_000: 0,
            writes: 0,
        }
    }

    /// How often the process dies around a write.
    pub fn set_crashes(&mut self, in_10_000: u64) {
        self.crashes_in_10_000 = in_10_000;
    }

    /// What is durable.
    pub fn read(&self) -> &S {
        &self.state
    }

    /// How many transactions were begun.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// One transaction: all of it is durable when this returns, or the process died before or after it.
    ///
    /// # Errors
    /// [`Crash`].
    pub fn write<T>(
        &mut self,
        luck: &mut Luck,
        change: impl FnOnce(&mut S) -> T,
    ) -> Result<T, Crash> {
        self.writes += 1;
        if !luck.chance(self.crashes_in_10_000) {
            return Ok(change(&mut self.state));
        }
        if luck.chance(5_000) {
            change(&mut self.state);
        }
        Err(Crash)
    }

    /// Changes the disk from outside the process: no step of it.
    pub fn repair(&mut self) -> &mut S {
        &mut self.state
    }
}
