//! All luck of a campaign: one seeded generator.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Decides what a power cut leaves.
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

    /// True every second time.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
