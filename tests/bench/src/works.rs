//! The pieces of work, done by both sides in turn.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::World;

use crate::corpus;
use crate::ours;
use crate::restic::{self, Restic};
use crate::timing::{Comparison, time};

/// Pages that a commit changes: 14 MB.
const PAGES: u64 = 3_500;
/// Commits of one image; the first and the tenth may differ.
const COMMITS: u64 = 10;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths of a benchmark are UTF-8")
}

/// First import of a tree.
pub(crate) fn import(from: &Path, rounds: usize) -> Result<Comparison> {
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    let bytes = corpus::tree(from, &tree)?;
    let mut comparison = Comparison::new(format!(
        "first import of {:.0} MB of files",
        bytes as f64 / 1e6
    ));
    for _ in 0..rounds {
        let scratch = tempfile::tempdir()?;
        let peer = Restic::init(scratch.path())?;
        comparison.add("restic", time(restic::core_seconds, || peer.backup(&tree))?);
        let world = World::new()?;
        let device = world.founder("bench")?;
        let cost = time(
            || ours::core_seconds(&world, &[&device]),
            || {
                let created = device.json(&["create", "tree", "--from", text(&tree)?])?;
                created["sent_bytes"].as_u64().context("sent_bytes")
            },
        )?;
        comparison.add("imgctl create", cost);
    }
    Ok(comparison)
}

/// Everything of a disk on a second device.
pub(crate) fn checkout(from: &Path, rounds: usize) -> Result<Comparison> {
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    corpus::tree(from, &tree)?;
    let disk = corpus::disk(&tree, &dir.path().join("disk.img"))?;
    std::fs::remove_dir_all(&tree)?;
    let peer = Restic::init(dir.path())?;
    peer.backup(&disk)?;
    let world = World::new()?;
    let owner = world.founder("owner")?;
    owner.json(&["create", "disk", "--from", text(&disk)?])?;
    let mut comparison = Comparison::new("all of a 2.3 GB disk".to_owned());
    for round in 0..rounds {
        let target = tempfile::tempdir()?;
        comparison.add(
            "restic restore",
            time(restic::core_seconds, || peer.restore(target.path()))?,
        );
        let device = world.joined(&format!("device-{round}"), &owner)?;
        let target = tempfile::tempdir()?;
        let file = target.path().join("disk.img");
        let cost = time(
            || ours::core_seconds(&world, &[&device]),
            || {
                let exported = device.json(&["export", "disk", text(&file)?])?;
                exported["bytes"].as_u64().context("bytes")
            },
        )?;
        comparison.add("imgctl export", cost);
        let device = world.joined(&format!("reader-{round}"), &owner)?;
        let cost = time(
            || ours::core_seconds(&world, &[&device]),
            || {
                device.checkout("disk", &["--read-only"])?;
                let hydrated = device.json(&["hydrate", "disk"])?;
                hydrated["fetched_bytes"].as_u64().context("fetched_bytes")
            },
        )?;
        comparison.add("checkout + hydrate", cost);
    }
    Ok(comparison)
}

/// A commit after scattered page writes.
pub(crate) fn commit(from: &Path, rounds: usize) -> Result<Comparison> {
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    corpus::tree(from, &tree)?;
    let disk = corpus::disk(&tree, &dir.path().join("disk.img"))?;
    std::fs::remove_dir_all(&tree)?;
    let mut comparison = Comparison::new(format!(
        "a commit after {PAGES} random page writes to a 2.3 GB disk"
    ));
    let peer = Restic::init(dir.path())?;
    peer.backup(&disk)?;
    let world = World::new()?;
    let device = world.founder("bench")?;
    device.json(&["create", "disk", "--from", text(&disk)?])?;
    let mount = device.checkout("disk", &[])?;
    for round in 0..rounds.max(usize::try_from(COMMITS)?) as u64 {
        if round < rounds as u64 {
            corpus::write_pages(&disk, PAGES, round)?;
            comparison.add("restic", time(restic::core_seconds, || peer.backup(&disk))?);
        }
        corpus::write_pages(&mount.join("disk.img"), PAGES, round)?;
        let cost = time(
            || ours::core_seconds(&world, &[&device]),
            || {
                let committed = device.json(&["commit", "disk"])?;
                committed["sent_bytes"].as_u64().context("sent_bytes")
            },
        )?;
        comparison.add("imgctl commit", cost);
        if round + 1 == COMMITS {
            comparison.add("imgctl commit, 10th", cost);
        }
    }
    Ok(comparison)
}
