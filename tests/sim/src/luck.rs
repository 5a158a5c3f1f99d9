//! All luck of a run: one seeded generator.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Decides everything that a real system leaves to chance.
#[derive(Debug, Clone)]
pub struct Luck(Pcg64Mcg);

impl Luck {
    /// The luck of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed))
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that happens `in_10_000` times of ten thousand.
    pub fn chance(&mut self, in_10_000: u64) -> bool {
        in_10_000 > 0 && self.below(10_000) < in_10_000
    }

    /// One of several things; nothing of none.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let len = u64::try_from(of.len()).ok().filter(|len| *len > 0)?;
        usize::try_from(self.below(len))
            .ok()
            .and_then(|index| of.get(index).copied())
    }

    /// Sixteen bits, for the spread of renewals.
    pub fn word(&mut self) -> u16 {
        u16::try_from(self.below(1 << 16)).unwrap_or(0)
    }
}
