//! Running programs in the foreground, and talking to the person who waits.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Says a line.
pub(crate) fn say(line: &str) {
    // Whoever closed the output does not want to hear it.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Says what went wrong.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Runs a program that shares this terminal, in the workspace's folder.
pub(crate) fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).current_dir(workspace());
    let shown = line(&command);
    say(&format!("$ {shown}"));
    let status = command
        .status()
        .with_context(|| format!("cannot run: {shown}"))?;
    if !status.success() {
        bail!("failed ({status}): {shown}");
    }
    Ok(())
}

/// Runs cargo, the one that runs this.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    run(&cargo_program(), args)
}

/// Whether cargo has a subcommand.
pub(crate) fn cargo_has(subcommand: &str) -> bool {
    let mut command = Command::new(cargo_program());
    let output = command.args([subcommand, "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// The folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.join("../..").canonicalize().unwrap_or(own)
}

/// A command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn cargo_program() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}
