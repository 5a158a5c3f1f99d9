//! What the plays have in common: verbs that note what they were promised, and checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::{Device, Outcome, tree, wait_for};
use serde_json::Value;

use super::IMAGE;
use crate::ledger::{Ledger, Writer, noise};
use crate::stage::{Cast, Stage};

/// Where a device has the image checked out.
pub(super) fn folder(device: &Device) -> PathBuf {
    device.work().join(IMAGE)
}

/// Commits, and notes that it was acknowledged.
pub(super) fn commit(device: &Device, ledger: &mut Ledger) -> Result<()> {
    let commit = device.json(&["commit", IMAGE])?;
    ledger.commits.push(text(&commit["commit"])?);
    ledger.checkpoints.clear();
    Ok(())
}

/// Makes a checkpoint, and notes that it was acknowledged.
pub(super) fn checkpoint(device: &Device, ledger: &mut Ledger) -> Result<()> {
    let checkpoint = device.json(&["checkpoint", IMAGE])?;
    ledger.checkpoints.push(text(&checkpoint["checkpoint"])?);
    Ok(())
}

/// Checks that a device's history has all that was acknowledged.
pub(super) fn check_log(device: &Device, ledger: &Ledger) -> Result<()> {
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
pub(super) fn goes_on(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
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
    let copy = b.work().join("copy");
    let copy_text = copy.display().to_string();
    b.json(&["checkout", IMAGE, &copy_text, "--read-only"])?;
    tree::assert_equal(&mount, &copy).context("the other device")?;
    b.json(&["release", &copy_text, "--discard"])?;
    Ok(())
}

/// Waits until a checkout that the daemon mounts again is there.
pub(super) fn mounted(device: &Device) -> Result<PathBuf> {
    let folder = folder(device);
    let mut said = Value::Null;
    wait_for("the mount to be back", || {
        said = device.status(IMAGE)?;
        let is_back = fs::read_dir(&folder).is_ok() && is_mounted(&folder);
        Ok(is_back.then_some(()))
    })
    .with_context(|| format!("{said}"))?;
    Ok(folder)
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
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

/// Repeats a verb until it is done; a home that is away or full is no failure. `is_done` tells whether an earlier
/// call that got no answer has done it.
pub(super) fn until_done(
    device: &Device,
    args: &[&str],
    is_done: impl Fn(&Outcome) -> Result<bool>,
) -> Result<Value> {
    let mut is_first = true;
    wait_for(&format!("{args:?}"), || {
        let outcome = device.imgctl(&[args, &["--json"]].concat())?;
        let value = || serde_json::from_str(outcome.stdout.trim());
        if outcome.ok() {
            return Ok(Some(value().unwrap_or(Value::Null)));
        }
        if !is_first && is_done(&outcome)? {
            return Ok(Some(Value::Null));
        }
        is_first = false;
        ensure!(
            matches!(outcome.code, Some(6 | 9)),
            "imgctl {args:?} on {}: {outcome}",
            device.name()
        );
        Ok(None)
    })
}

/// Whether a device has the image checked out.
pub(super) fn is_checked_out(device: &Device) -> Result<bool> {
    let outcome = device.imgctl(&["status", IMAGE, "--json"])?;
    ensure!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
    Ok(outcome.ok())
}
