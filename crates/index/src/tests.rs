//! Whole trees against a plain sorted map.

pub(crate) mod samples;

mod absent;
mod diffs;
mod gaps;
mod memory;
mod model;
mod proofs;
mod reading;
mod scale;
