//! Checkpoints as points in time of the whole tree, while several processes write it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use e2e::{Device, World};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::run::Running;

const FILES: usize = 12;
/// Cuts of each test.
const CUTS: usize = 20;
/// Longest time that an application may stand still (docs/architecture.md).
const STOPPED_US_MAX: u64 = 100_000;

/// Builds the program that counts in files.
fn counters(world: &World) -> Result<PathBuf> {
    let (source, program) = (world.path("counters.c"), world.path("counters"));
    fs::write(&source, include_str!("counters.c"))?;
    let compiled = Command::new("gcc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&program, &source])
        .status()?;
    ensure!(compiled.success(), "{compiled}");
    Ok(program)
}

/// Counts that run outside of `imgctl run`, ended with it.
struct Counting(Child);

impl Counting {
    fn start(program: &Path, mount: &Path, ways: &str) -> Result<Self> {
        let child = Command::new(program)
            .args([&FILES.to_string(), "3", ways])
            .current_dir(mount)
            .spawn()?;
        Ok(Self(child))
    }

    fn end(mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.0.id())?).context("a process id")?;
        kill_process(pid, Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.code() == Some(7), "{status}");
        Ok(())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The counts in a tree, in the order in which they are written.
fn counts(tree: &Path, ways: &str) -> Result<Vec<u64>> {
    let ways: Vec<char> = ways.chars().collect();
    (0..FILES)
        .map(|number| {
            let way = ways[number % ways.len()];
            let path = tree.join(format!("{number}-{way}"));
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let counts: Vec<u64> = bytes
                .chunks_exact(8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
                .collect();
            if way == 'a' {
                ensure!(
                    counts.iter().copied().eq(0..counts.len() as u64),
                    "{}",
                    path.display()
                );
                return counts.last().copied().context("an empty file");
            }
            counts.first().copied().context("an empty file")
        })
        .collect()
}

/// Whether no count is there without every earlier one.
fn is_exact(counts: &[u64]) -> bool {
    let falls = counts.is_sorted_by(|earlier, later| earlier >= later);
    falls
        && counts
            .first()
            .zip(counts.last())
            .is_some_and(|(first, last)| first - last <= 1)
}

/// Takes a cut of the image `vm` and exports it. Returns what was said of it and the counts in it.
fn cut(device: &Device, world: &World, round: usize, ways: &str) -> Result<(Value, Vec<u64>)> {
    let (verb, id) = match round % 4 {
        3 => ("commit", "commit"),
        _ => ("checkpoint", "checkpoint"),
    };
    let cut = device.json(&[verb, "vm"])?;
    let id = cut[id].as_str().context("no id")?;
    let dest = world.path(&format!("cut-{round}"));
    device.json(&["export", "vm", dest.to_str().context("UTF-8")?, "--at", id])?;
    let counts = counts(&dest, ways)?;
    fs::remove_dir_all(dest)?;
    Ok((cut, counts))
}

#[test]
fn every_cut_of_files_that_several_processes_write_is_exact() -> Result<()> {
    let world = World::new()?;
    let program = counters(&world)?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    let ways = "war";
    let counting = Counting::start(&program, &mount, ways)?;
    e2e::wait_for("the first round", || {
        Ok(counts(&mount, ways)
            .ok()
            .filter(|counts| counts.last() > Some(&0)))
    })?;
    let mut last = 0;
    for round in 0..CUTS {
        let (cut, counts) = cut(&a, &world, round, ways)?;
        ensure!(is_exact(&counts), "round {round}: {counts:?} in {cut}");
        ensure!(counts[0] > last, "round {round}: nothing new in {counts:?}");
        last = counts[0];
    }
    let log = a.json(&["log", "vm"])?;
    let log = log.as_array().context("a list")?;
    ensure!(log.iter().all(|row| row["maps"] == "exact"), "{log:?}");
    counting.end()
}

#[test]
fn cuts_of_an_application_that_maps_files_are_exact_and_stop_it_briefly() -> Result<()> {
    // By itself a map is written so fast that a flush beside it is no cut; with calls between both are held.
    for ways in ["m", "mmwmar"] {
        cuts_of_an_application(ways)?;
    }
    Ok(())
}

fn cuts_of_an_application(ways: &str) -> Result<()> {
    let world = World::new()?;
    let program = counters(&world)?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.work().join("vm");
    let program = program.to_str().context("UTF-8")?;
    let files = FILES.to_string();
    let running = Running::start(&a, &["vm", "--", program, &files, "3", ways])?;
    e2e::wait_for("the first round", || {
        Ok(counts(&mount, ways)
            .ok()
            .filter(|counts| counts.last() > Some(&0)))
    })?;
    let mut exact = 0;
    for round in 0..CUTS {
        let (said, counts) = cut(&a, &world, round, ways)?;
        let status = a.status("vm")?;
        let stopped_us = status["stopped_us"].as_u64();
        ensure!(
            stopped_us.is_none_or(|us| us <= STOPPED_US_MAX),
            "round {round}: {status}"
        );
        if status["maps"] == "exact" {
            exact += 1;
            ensure!(stopped_us.is_some(), "round {round}: {status}");
            ensure!(is_exact(&counts), "round {round}: {counts:?} in {said}");
        }
    }
    ensure!(exact > 0, "no cut was exact");
    let log = a.json(&["log", "vm"])?;
    let log = log.as_array().context("a list")?;
    let commits = log.iter().filter(|row| row["seq"].as_u64() > Some(0));
    ensure!(
        commits.filter(|row| row["maps"] == "exact").count() > 0,
        "{log:?}"
    );
    running.signal(Signal::TERM)?;
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(7), "{outcome}");
    a.fails(3, &["status", "vm"])?;
    let dest = world.path("end");
    a.json(&["export", "vm", dest.to_str().context("UTF-8")?])?;
    let counts = counts(&dest, ways)?;
    ensure!(is_exact(&counts), "{counts:?}");
    Ok(())
}

#[test]
fn maps_of_other_programs_are_as_of_their_last_flush_and_said_to_be() -> Result<()> {
    let world = World::new()?;
    let program = counters(&world)?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    let counting = Counting::start(&program, &mount, "m")?;
    e2e::wait_for("the first round", || {
        Ok(counts(&mount, "m")
            .ok()
            .filter(|counts| counts.last() > Some(&0)))
    })?;
    let mut before = vec![0; FILES];
    for round in 0..4 {
        let (_, counts) = cut(&a, &world, round, "m")?;
        let status = a.status("vm")?;
        ensure!(
            status["maps"] == "last flush" && status["stopped_us"].is_null(),
            "{status}"
        );
        // Not one moment, but everything of before this checkpoint was asked for.
        let later = counts.iter().zip(&before).all(|(now, before)| now > before);
        ensure!(later, "{counts:?} after {before:?}");
        before = counts;
    }
    let log = a.json(&["log", "vm"])?;
    ensure!(log[0]["maps"] == "last flush", "{log}");
    counting.end()?;
    let written = counts(&mount, "m")?;
    let (_, counts) = cut(&a, &world, 4, "m")?;
    let status = a.status("vm")?;
    ensure!(status["maps"] == "exact", "{status}");
    ensure!(counts == written && is_exact(&counts), "{counts:?}");
    Ok(())
}
