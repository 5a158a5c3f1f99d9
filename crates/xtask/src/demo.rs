//! `cargo xtask demo`: the whole system on this machine, on real files, through the real programs.
//!
//! One home and two devices run in a temporary folder. Whatever happens, Ctrl-C included, everything is
//! unmounted, stopped and removed at the end.

mod corpus;
mod manifest;
mod stage;
mod story;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::needs;
use crate::shell::{self, cargo, say};
use stage::Stage;

/// The exit code of what was interrupted.
const INTERRUPTED: i32 = 130;

/// Runs the demo on a folder, or on a good one of this system.
pub(crate) fn run(path: Option<&Path>) -> Result<()> {
    needs::ensure(&needs::MOUNTS)?;
    needs::ensure_fuse()?;
    let corpus = corpus::choose(path)?;
    say("Building the programs.");
    cargo(&[
        "build",
        "--release",
        "--bins",
        "-p",
        "imghome",
        "-p",
        "imgd",
        "-p",
        "imgctl",
    ])?;
    let programs = programs()?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no async runtime")?;
    let stage = Arc::new(Stage::new(programs)?);
    let outcome = runtime.block_on(tell(Arc::clone(&stage), corpus));
    stage.tear_down();
    match outcome? {
        Some(told) => told,
        None => {
            shell::complain("Interrupted; everything is cleaned up.");
            std::process::exit(INTERRUPTED);
        }
    }
}

/// Tells the story; nothing if somebody interrupts it.
async fn tell(stage: Arc<Stage>, corpus: corpus::Corpus) -> Result<Option<Result<()>>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("no signals")?;
    let story = tokio::task::spawn_blocking(move || story::tell(&stage, &corpus));
    tokio::select! {
        told = story => Ok(Some(told.context("the story broke off")?)),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
    }
}

/// The folder of the programs that were just built.
fn programs() -> Result<std::path::PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(shell::workspace())
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    Ok(metadata
        .target_directory
        .join("release")
        .into_std_path_buf())
}
