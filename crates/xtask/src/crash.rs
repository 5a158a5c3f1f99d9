//! `cargo xtask crash`: runs the crash campaign of `tests/crash` in release, on the programs as they ship.

use anyhow::Result;

use crate::shell::cargo;

/// Builds the programs and runs the campaign with its options.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let programs = ["-p", "imgd", "-p", "imgctl", "-p", "imghome"];
    let build: Vec<_> = ["build", "--release", "--bins"]
        .into_iter()
        .chain(programs)
        .collect();
    cargo(&build)?;
    let args = args.iter().map(String::as_str);
    let args: Vec<_> = ["run", "--release", "-p", "crash", "--"]
        .into_iter()
        .chain(args)
        .collect();
    cargo(&args)
}
