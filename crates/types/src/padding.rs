//! Padmé: padded lengths that hide a message's exact size at a bounded cost.
//!
//! Source: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with
//! PURBs", PETS 2019, section 4. A length keeps only as many significant bits as its exponent has
//! bits, so that it leaks O(log log n) bits and costs at most 12 %.

use crate::limits::PADDED_LEN_MIN;

/// The padded length of a message of `len` bytes, at least [`PADDED_LEN_MIN`].
pub fn padded_len(len: usize) -> usize {
    let len = len.max(PADDED_LEN_MIN);
    let exponent = len.ilog2();
    let significant_bits = exponent.ilog2() + 1;
    let mask = (1usize << (exponent - significant_bits)) - 1;
    (len + mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_the_paper() {
        for (len, padded) in [
            (0, 256),
            (256, 256),
            (257, 272),
            (9_000, 9_216),
            (65_536, 65_536),
            (65_537, 67_584),
        ] {
            assert_eq!(padded_len(len), padded, "{len}");
        }
    }

    #[test]
    fn padding_is_idempotent_monotone_and_cheap() {
        let mut previous = 0;
        for len in 0..200_000 {
            let padded = padded_len(len);
            assert!(padded >= len && padded >= previous);
            assert_eq!(padded_len(padded), padded);
            assert!(len < 256 || (padded - len) * 100 <= len * 12);
            previous = padded;
        }
    }
}
