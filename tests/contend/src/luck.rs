//! Random choices that follow from a seed.

/// A stream of choices (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
pub struct Luck(u64);

impl Luck {
    /// The choices of a seed.
    pub fn new(seed: u64) -> Self {
        let hash = blake3::hash(&seed.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        // Zero would stay zero.
        Self(u64::from_le_bytes(first) | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        // The remainder is below a usize, so that it is one.
        (self.bits() >> 11) as usize % end
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}
