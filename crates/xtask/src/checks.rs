//! What must pass before a push, and what CI runs.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::shell::{cargo, cargo_has, say};
use crate::{arrows, needs};

/// Runs everything, after installing what the tests need.
pub(crate) fn test() -> Result<()> {
    let began = Instant::now();
    needs::ensure(&needs::TESTS)?;
    needs::ensure_fuse()?;
    check()?;
    // The end-to-end tests run the programs that lie beside them.
    cargo(&["build", "--workspace", "--bins"])?;
    if cargo_has("nextest") {
        cargo(&["nextest", "run", "--workspace"]).context("tests failed")?;
    } else {
        say("cargo-nextest is not installed; cargo test runs the same tests.");
        cargo(&["test", "--workspace", "--lib", "--bins", "--tests"]).context("tests failed")?;
    }
    cargo(&["test", "--workspace", "--doc"]).context("doc tests failed")?;
    let seconds = began.elapsed().as_secs();
    say(&format!(
        "All passed in {} min {} s.",
        seconds / 60,
        seconds % 60
    ));
    Ok(())
}

/// Checks what can be checked without running the programs.
pub(crate) fn check() -> Result<()> {
    for component in ["fmt", "clippy"] {
        if !cargo_has(component) {
            let component = if component == "fmt" {
                "rustfmt"
            } else {
                component
            };
            crate::shell::run("rustup", ["component", "add", component])?;
        }
    }
    cargo(&["fmt", "--all", "--check"]).context("run: cargo fmt --all")?;
    arrows::check()?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    cargo(&lints).context("lints failed")
}
