//! `cargo xtask model`: explores the lease rules in full, in release, and prints the tables of
//! `docs/numbers.md`.

use anyhow::{Context, Result};

use crate::shell::cargo;

/// Runs the explorations and mutants whose names contain one of the words, or all.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words = words.iter().map(String::as_str);
    let args: Vec<_> = ["run", "--release", "-p", "model", "--"]
        .into_iter()
        .chain(words)
        .collect();
    cargo(&args).context("something that must hold does not, or was not looked at")
}
