//! Names of a run: counted, not random, so that a trace can be read.

use img_types::ObjectId;

/// Counts names of every kind.
#[derive(Debug, Clone, Default)]
pub struct Names(u64);

impl Names {
    /// Bytes that no other name of this run has.
    pub fn make(&mut self) -> [u8; 32] {
        self.0 += 1;
        bytes(NAME, self.0)
    }
}

/// What a number of a kind is called.
pub fn bytes(kind: u8, number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(
        &u32::try_from(number & 0xffff_ffff)
            .unwrap_or(0)
            .to_be_bytes(),
    );
    bytes[4..8].copy_from_slice(&u32::try_from(number >> 32).unwrap_or(0).to_be_bytes());
    bytes[31] = kind;
    bytes
}

/// The block that one write makes.
pub fn block(write: u64) -> ObjectId {
    ObjectId::from_bytes(bytes(BLOCK, write))
}

/// The root over these writes: equal contents have equal roots.
pub fn root(writes: &[u64]) -> ObjectId {
    let mix = |seed: u64| {
        writes.iter().fold(seed, |hash, write| {
            (hash ^ write)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
        })
    };
    let mut id = bytes(ROOT, mix(1));
    id[8..16].copy_from_slice(&mix(2).to_be_bytes());
    ObjectId::from_bytes(id)
}

/// A name in a trace.
pub fn short(bytes: &[u8; 32]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

const NAME: u8 = 1;
const BLOCK: u8 = 2;
const ROOT: u8 = 3;
