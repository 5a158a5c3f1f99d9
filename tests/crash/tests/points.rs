//! A few points of every scenario; `cargo xtask crash --points all` visits all of them.

use anyhow::{Context, Result};
use crash::campaign::{Campaign, Trial, spread};
use crash::scenario;

/// Visits some points of a scenario, each trial in turn: mostly power cuts, in one way each.
fn visit(name: &str) -> Result<()> {
    let found = scenario::ALL.iter().find(|scenario| scenario.name == name);
    let mut campaign = Campaign::new(*found.context("no such scenario")?, 1)?;
    let counted = campaign.count()?;
    for (n, at) in spread(Trial::Cut.points(counted), POINTS).enumerate() {
        let (fault, way) = Trial::Cut.faults(at)[n % 3];
        let visit = campaign.visit(fault, way);
        visit.with_context(|| format!("{fault:?}, {way:?}"))?;
    }
    for (trial, points) in [(Trial::FailedSync, 3), (Trial::Full, 1)] {
        for at in spread(trial.points(counted), points) {
            let (fault, way) = trial.faults(at)[0];
            let visit = campaign.visit(fault, way);
            visit.with_context(|| format!("{fault:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_device_loses_nothing_that_was_synced() -> Result<()> {
    visit("write")
}

#[test]
fn a_device_loses_nothing_of_several_generations_beside_a_small_cache() -> Result<()> {
    visit("churn")
}

#[test]
fn a_device_loses_nothing_when_it_crashes_while_it_recovers() -> Result<()> {
    visit("restart")
}

#[test]
fn a_release_ends_or_can_be_repeated() -> Result<()> {
    visit("release")
}

#[test]
fn an_import_is_there_or_can_be_repeated() -> Result<()> {
    visit("import")
}

#[test]
fn a_home_loses_no_commit_and_no_lease() -> Result<()> {
    visit("home")
}

#[test]
fn a_backup_is_the_earlier_or_the_newer_one() -> Result<()> {
    visit("backup")
}

#[test]
fn a_restored_home_is_whole_or_absent() -> Result<()> {
    visit("home-restore")
}

/// Points of each scenario.
const POINTS: u64 = 6;
