//! The plays: what the programs do while they are crashed, and what must be there afterwards.

mod device;
mod home;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Device, tree, wait_for};
use serde_json::Value;

use crate::ledger::{Ledger, Writer, noise};
use crate::stage::{Cast, Place, Stage};

/// One play.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is asked for by.
    pub name: &'static str,
    /// Whose disk is crashed.
    pub victim: Place,
    /// Brings the stage to where every visit begins; all of it runs in good order and is ended then.
    pub prepare: fn(&mut Stage, &mut Ledger) -> Result<()>,
    /// Does what is crashed, and notes what is acknowledged. Fails at the first thing that does.
    pub play: fn(&mut Cast, &mut Ledger) -> Result<()>,
    /// Checks, after the victim runs again, that all is there and that work goes on.
    pub check: fn(&mut Stage, &mut Ledger) -> Result<()>,
}

/// All plays.
pub const ALL: [Scenario; 1] = [device::WRITE];

/// The image that the plays are about.
const IMAGE: &str = "vm";

/// Where a device has the image checked out.
fn folder(device: &Device) -> PathBuf {
    device.work().join(IMAGE)
}

/// Commits, and notes that it was acknowledged.
fn commit(device: &Device, ledger: &mut Ledger) -> Result<()> {
    let commit = device.json(&["commit", IMAGE])?;
    ledger.commits.push(text(&commit["commit"])?);
    ledger.checkpoints.clear();
    Ok(())
}

/// Makes a checkpoint, and notes that it was acknowledged.
fn checkpoint(device: &Device, ledger: &mut Ledger) -> Result<()> {
    let checkpoint = device.json(&["checkpoint", IMAGE])?;
    ledger.checkpoints.push(text(&checkpoint["checkpoint"])?);
    Ok(())
}

/// Checks that a device's history has all that was acknowledged.
fn check_log(device: &Device, ledger: &Ledger) -> Result<()> {
    let log = match device.json(&["log", IMAGE])? {
        Value::Array(entries) => entries,
        entry => vec![entry],
    };
    let has = |id: &String, at_home: bool| {
        let is_it = |entry: &&Value| entry["commit"] == id.as_str();
        let entry = log.iter().find(is_it);
        entry.is_some_and(|entry| !at_home || entry["home"] == true)
    };
    for commit in &ledger.commits {
        ensure!(has(commit, true), "commit {commit} is not in {log:#?}");
    }
    // What was not committed before the crash may have been since, by the daemon itself.
    let newest = log.iter().find(|entry| entry["home"] == true);
    let newest = newest.map(|entry| &entry["commit"]);
    let has_moved = newest.and_then(Value::as_str) != ledger.commits.last().map(String::as_str);
    for checkpoint in &ledger.checkpoints {
        ensure!(
            has_moved || has(checkpoint, false),
            "checkpoint {checkpoint} is not in {log:#?}"
        );
    }
    Ok(())
}

/// Checks that work goes on: a write, a commit, and the same tree on the other device.
fn goes_on(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let Cast { a, b, .. } = &mut stage.cast;
    let mount = folder(a);
    let mut writer = Writer::new(&mount, ledger);
    writer.write("after", 0, &noise(77, 5_000))?;
    writer.sync("after")?;
    commit(a, ledger)?;
    check_log(a, ledger)?;
    ledger.check(&mount)?;
    if b.process_id().is_err() {
        b.restart()?;
    }
    let copy = b.checkout(IMAGE, &["--read-only"])?;
    tree::assert_equal(&mount, &copy).context("the other device")?;
    b.json(&["release", IMAGE, "--discard"])?;
    Ok(())
}

/// Waits until a checkout that the daemon mounts again is there.
fn mounted(device: &Device) -> Result<PathBuf> {
    let folder = folder(device);
    wait_for("the mount to be back", || {
        let status = device.status(IMAGE)?;
        if let Some(problem) = status["problem"].as_str() {
            bail!("the checkout says: {problem}");
        }
        let is_back = std::fs::read_dir(&folder).is_ok() && is_mounted(&folder);
        Ok(is_back.then_some(()))
    })?;
    Ok(folder)
}

fn is_mounted(folder: &std::path::Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let folder = folder.display().to_string();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&folder))
}

fn text(value: &Value) -> Result<String> {
    value
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("{value} is no text"))
}
