//! What a person is told: that the home is away or went back, who took an image and why, and what to do next.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{Device, Program, SOON, World, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn problem(device: &Device, wanted: &str) -> Result<Value> {
    wait_for(wanted, || {
        let status = device.status("vm")?;
        let problem = status["problem"].as_str().unwrap_or_default();
        Ok(problem.contains(wanted).then_some(status))
    })
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap_or_default()
}

fn run(args: &[&str]) -> Result<()> {
    let outcome = Program::new("imghome")?.args(args.iter().copied()).run()?;
    ensure!(outcome.ok(), "imghome {args:?}: {outcome}");
    Ok(())
}

fn failed(device: &Device, check: &str) -> Result<Value> {
    let outcome = device.imgctl(&["doctor", "--json"])?;
    let lines = outcome.stdout.lines().map(serde_json::from_str::<Value>);
    let lines = lines.collect::<Result<Vec<_>, _>>()?;
    let found = lines
        .into_iter()
        .find(|line| line["check"] == check && line["ok"] == false);
    found.with_context(|| format!("{check} is well: {outcome}"))
}

#[test]
fn a_status_says_that_the_home_is_away_or_went_back_and_why_a_checkout_is_an_orphan() -> Result<()>
{
    let mut world = World::new()?;
    let laptop = world.founder("laptop")?;
    laptop.json(&["create", "vm"])?;
    let backup = world.path("backup");
    let backup = backup.to_str().context("UTF-8")?;
    run(&[
        "backup",
        world.home.dir().to_str().context("UTF-8")?,
        backup,
    ])?;
    let mount = laptop.checkout("vm", &[])?;
    laptop.json(&["create", "new"])?;
    let new = laptop.checkout("new", &[])?;
    fs::write(mount.join("x"), "x")?;
    laptop.json(&["commit", "vm"])?;

    // Its own lease stands in the list, with the time that the status shows.
    let status = laptop.status("vm")?;
    ensure!(status["problem"].is_null(), "{status}");
    world.home.kill()?;
    let status = problem(&laptop, "cannot be reached")?;
    ensure!(text(&status, "hint").contains("network"), "{status}");
    ensure!(status["state"] == "leased", "{status}");
    let listed = laptop.imgctl(&["ls", "--json"])?;
    let listed: Vec<Value> = listed
        .stdout
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(listed.len() == 2, "{listed:?}");
    for image in &listed {
        let status = laptop.status(text(image, "name"))?;
        ensure!(
            image["lease"]["device"] == "laptop"
                && image["lease"]["until"] == status["lease"]["until"],
            "{image} {status}"
        );
    }

    let home = world.home.dir().to_owned();
    fs::rename(&home, world.path("lost"))?;
    run(&["restore", backup, home.to_str().context("UTF-8")?])?;
    world.home.start()?;
    let status = problem(&laptop, "went back in time")?;
    ensure!(text(&status, "hint").contains("accept-restore"), "{status}");
    let check = failed(&laptop, "home")?;
    ensure!(text(&check, "hint").contains("accept-restore"), "{check}");
    laptop.json(&["home", "accept-restore"])?;
    for (dir, why) in [
        (&mount, "is not the newest"),
        (&new, "does not have new any more"),
    ] {
        let dir = dir.to_str().context("UTF-8")?;
        ensure!(laptop.status(dir)?["state"] != "leased", "{dir}");
        let status = wait_for("an orphan", || {
            let status = laptop.status(dir)?;
            Ok(text(&status, "problem").contains(why).then_some(status))
        })?;
        ensure!(
            status["state"] == "orphan"
                && text(&status, "problem").contains("restored from a backup"),
            "{status}"
        );
        ensure!(text(&status, "hint").contains("--branch NEW"), "{status}");
    }
    let check = failed(&laptop, "checkouts")?;
    ensure!(text(&check, "hint").contains("--branch NEW"), "{check}");
    Ok(())
}

#[test]
fn a_loser_reads_who_took_the_image_and_why() -> Result<()> {
    let world = World::new()?;
    let desktop = world.founder("desktop")?;
    // No admin: the reason is for whoever lost the image.
    let laptop = world.joined("laptop", &desktop)?;
    desktop.json(&["create", "vm"])?;
    laptop.checkout("vm", &[])?;
    desktop.json(&["steal", "vm", "--reason", "the talk is today"])?;
    let status = problem(&laptop, "the talk is today")?;
    ensure!(
        status["state"] == "orphan"
            && status["rival"] == "desktop"
            && status["reason"] == "the talk is today",
        "{status}"
    );
    let refused = laptop.fails(5, &["commit", "vm"])?;
    ensure!(
        text(&refused, "message").contains("desktop has taken vm over: \"the talk is today\""),
        "{refused}"
    );
    Ok(())
}

#[test]
fn what_was_told_once_is_no_problem_and_small_mistakes_have_a_way_out() -> Result<()> {
    let world = World::new()?;
    let laptop = world.founder("laptop")?;
    laptop.json(&["create", "vm"])?;
    laptop.json(&["create", "other"])?;
    let mount = laptop.checkout("vm", &[])?;
    fs::write(mount.join("x"), "x")?;
    let refused = laptop.fails(2, &["commit", "vm", "--branch", "other"])?;
    ensure!(refused["error"] == "name_taken", "{refused}");
    let status = laptop.status("vm")?;
    ensure!(status["problem"].is_null(), "{status}");

    laptop.json(&["rename", "vm", "vm"])?;
    laptop.fails(2, &["checkout", "other", "--read-only", "--lease", "1h"])?;
    laptop.json(&["checkout", "other", "my folder"])?;
    let status = laptop.status("my folder")?;
    ensure!(status["name"] == "other", "{status}");
    laptop.json(&["release", "my folder"])?;

    // A late commit of one's own image cannot be helped by stealing it.
    laptop.json(&["checkout", "vm", "read", "--read-only"])?;
    fs::write(laptop.work().join("read/y"), "y")?;
    let read = laptop.work().join("read");
    let refused = laptop.fails(4, &["commit", read.to_str().context("UTF-8")?])?;
    ensure!(
        text(&refused, "message").contains("another checkout of this device")
            && !text(&refused, "hint").contains("steal"),
        "{refused}"
    );
    Ok(())
}

#[test]
fn nobody_waits_long_for_a_home_that_hangs() -> Result<()> {
    let world = World::new()?;
    let desktop = world.founder("desktop")?;
    for (name, seed) in [("vm", 1_u32), ("full", 2)] {
        let source = world.path(name);
        fs::create_dir(&source)?;
        // Nothing of the one is found in the other.
        let mut state = seed;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let noise: Vec<u8> = noise.take(3 << 20).collect();
        fs::write(source.join("file"), noise)?;
        let source = source.to_str().context("UTF-8")?;
        desktop.json(&["create", name, "--from", source])?;
    }
    let laptop = world.joined("laptop", &desktop)?;
    laptop.checkout("vm", &[])?;
    laptop.checkout("full", &[])?;
    laptop.json(&["hydrate", "full"])?;
    let home = i32::try_from(world.home.process_id()?)?;
    let home = Pid::from_raw(home).context("a process")?;
    kill_process(home, Signal::STOP)?;
    let dest = world.path("dest");
    let dest = dest.to_str().context("UTF-8")?;
    let timed = |code: Option<i32>, args: &[&str]| -> Result<()> {
        let began = Instant::now();
        match code {
            Some(code) => drop(laptop.fails(code, args)?),
            None => drop(laptop.json(args)?),
        }
        // How long exactly is the machine's matter; a home that hangs does so for ever.
        let took = began.elapsed();
        ensure!(took < SOON, "{args:?}: {took:?}");
        Ok(())
    };
    let outcome = (|| {
        // What is here needs no home; what is not is given up.
        timed(None, &["export", "full", dest])?;
        timed(None, &["hydrate", "full"])?;
        timed(Some(6), &["hydrate", "vm"])?;
        timed(Some(6), &["home", "address", "127.0.0.1:9"])
    })();
    kill_process(home, Signal::CONT)?;
    outcome
}
