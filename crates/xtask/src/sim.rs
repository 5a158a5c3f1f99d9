//! `cargo xtask sim`: runs many seeds of `tests/sim` in release.

use anyhow::Result;

use crate::shell::cargo;

/// Runs the simulation with its options.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let args = args.iter().map(String::as_str);
    let args: Vec<_> = ["run", "--release", "-p", "sim", "--"]
        .into_iter()
        .chain(args)
        .collect();
    cargo(&args)
}
