//! Randomness from the kernel: for ids, and for luck.

/// Bytes that nobody can guess.
///
/// # Panics
/// Never where a daemon runs: the kernel has had randomness since it began.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel has randomness once a daemon runs");
    bytes
}
