//! Plays in which the home, or what copies it, is the victim.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::{Outcome, Program};
use serde_json::Value;

use super::words::{check_log, commit, folder, goes_on, is_checked_out, mounted, until_done};
use super::{IMAGE, Scenario};
use crate::ledger::{Ledger, Writer, noise};
use crate::stage::{Cast, Place, Stage};

/// Commits, a release, a checkout by another device, checkpoints that are staged, a steal; the home comes back
/// while the devices go on.
pub(super) const HOME: Scenario = Scenario {
    name: "home",
    victim: Place::Home,
    prepare: committed,
    play: work,
    check: verifies,
};

/// A backup over an earlier one.
pub(super) const BACKUP: Scenario = Scenario {
    name: "backup",
    victim: Place::Vault,
    prepare: backed_up,
    play: back_up,
    check: can_be_restored,
};

/// A home that is made from a backup.
pub(super) const RESTORE: Scenario = Scenario {
    name: "home-restore",
    victim: Place::Vault,
    prepare: backup_beside,
    play: restore,
    check: is_restored,
};

fn committed(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let a = &stage.cast.a;
    a.json(&["create", IMAGE])?;
    let mount = a.checkout(IMAGE, &[])?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("first", 0, &noise(1, 50_000))?;
    writer.sync("first")?;
    commit(a, ledger)
}

fn work(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.a.restart()?;
    cast.b.restart()?;
    let mount = mounted(&cast.a)?;
    cast.arm();
    let (a, b) = (&cast.a, &cast.b);
    let mut writer = Writer::new(&mount, ledger);
    writer.write("second", 0, &noise(2, 300_000))?;
    writer.sync("second")?;
    commit_patiently(a, ledger)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("third", 0, &noise(3, 5_000))?;
    writer.sync("third")?;
    until_done(
        a,
        &["release", IMAGE],
        |outcome| Ok(outcome.code == Some(3)),
    )?;

    // Whoever has released is no holder any more, whatever the home remembers.
    until_done(b, &["checkout", IMAGE], |_| is_checked_out(b))?;
    let there = mounted(b)?;
    ledger.check(&there)?;
    let mut writer = Writer::new(&there, ledger);
    writer.write("fourth", 0, &noise(4, 5_000))?;
    writer.sync("fourth")?;
    commit_patiently(b, ledger)?;
    // Staged by itself, and lost with the lease.
    b.json(&["checkpoint", IMAGE])?;

    until_done(a, &["steal", IMAGE], |_| is_checked_out(a))?;
    let mount = mounted(a)?;
    ledger.check(&mount)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("fifth", 0, &noise(5, 5_000))?;
    writer.sync("fifth")?;
    commit_patiently(a, ledger)
}

fn commit_patiently(device: &e2e::Device, ledger: &mut Ledger) -> Result<()> {
    let commit = until_done(device, &["commit", IMAGE], |_| Ok(false))?;
    let id = commit["commit"].as_str().context("no commit id")?;
    ledger.commits.push(id.to_owned());
    Ok(())
}

/// The home verifies, has every commit, and goes on.
fn verifies(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    ledger.check(&folder(&stage.cast.a))?;
    check_log(&stage.cast.a, ledger)?;
    let dir = stage.cast.home.clone();
    stage.home().stop()?;
    check(&dir)?;
    stage.home().start()?;
    until_done(&stage.cast.a, &["ls"], |_| Ok(false))?;
    goes_on(stage, ledger)
}

fn backed_up(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    committed(stage, ledger)?;
    succeeds(&imghome(
        &["backup"],
        &[&stage.cast.home, &stage.cast.vault],
    )?)?;
    let a = &stage.cast.a;
    let mut writer = Writer::new(&folder(a), ledger);
    writer.write("second", 0, &noise(2, 300_000))?;
    writer.sync("second")?;
    a.json(&["commit", IMAGE])?;
    Ok(())
}

fn back_up(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.arm();
    back_up_again(cast, ledger)
}

fn back_up_again(cast: &Cast, ledger: &mut Ledger) -> Result<()> {
    succeeds(&imghome(&["backup"], &[&cast.home, &cast.vault])?)?;
    ledger.commits.push("the newer one".to_owned());
    Ok(())
}

/// What is in the vault is a whole home, the earlier or the newer one; and the next backup is the newer one.
fn can_be_restored(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let vault = stage.cast.vault.clone();
    for round in ["now", "after the next"] {
        let dir = stage.path("restored");
        succeeds(&imghome(&["restore"], &[&vault, &dir])?).context(round)?;
        let commits = check(&dir).context(round)?;
        ensure!(
            commits >= ledger.commits.len().min(2) as u64,
            "{round}: {commits} commits of {:?}",
            ledger.commits
        );
        std::fs::remove_dir_all(&dir)?;
        back_up_again(&stage.cast, ledger).context(round)?;
    }
    Ok(())
}

fn backup_beside(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    committed(stage, ledger)?;
    let backup = stage.path("backup");
    succeeds(&imghome(&["backup"], &[&stage.cast.home, &backup])?)
}

fn restore(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.arm();
    let backup = cast.vault.with_file_name("backup");
    succeeds(&imghome(&["restore"], &[&backup, &cast.vault.join("new")])?)?;
    ledger.commits.clear();
    Ok(())
}

/// A home that has its name is whole, and one that has not can be made.
fn is_restored(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let new = stage.cast.vault.join("new");
    let was_told = ledger.commits.is_empty();
    let outcome = imghome(&["check"], &[&new])?;
    if was_told {
        return succeeds(&outcome);
    }
    if !outcome.ok() {
        succeeds(&imghome(&["restore"], &[&stage.path("backup"), &new])?)?;
        check(&new)?;
    }
    Ok(())
}

/// Verifies a home; returns how many commits it has.
fn check(home: &Path) -> Result<u64> {
    let outcome = imghome(&["check", "--json"], &[home])?;
    succeeds(&outcome)?;
    let found: Value = serde_json::from_str(outcome.stdout.trim())?;
    found["commits"].as_u64().context("no number of commits")
}

fn imghome(verb: &[&str], paths: &[&Path]) -> Result<Outcome> {
    let paths = paths.iter().filter_map(|path| path.to_str());
    let args = verb.iter().copied().chain(paths);
    Program::new("imghome")?.args(args).run()
}

fn succeeds(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.ok(), "imghome: {outcome}");
    Ok(())
}
