//! Work without a network: long leases, clocks that jump, machines that sleep, and rivals meanwhile.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::{Device, Program, World};
use serde_json::Value;

/// Days in seconds, for the clock that runs while a laptop sleeps.
const DAY: u64 = 24 * 3600;

/// A laptop that has an image with everything in it for 30 days, and a desktop.
fn taken_along() -> Result<(World, Device, Device)> {
    let world = World::new()?;
    let desktop = world.founder("desktop")?;
    let laptop = world.joined("laptop", &desktop)?;
    desktop.json(&["create", "vm"])?;
    let mount = desktop.checkout("vm", &[])?;
    fs::write(mount.join("first"), vec![1; 300_000])?;
    desktop.json(&["release", "vm"])?;
    laptop.checkout("vm", &["--offline", "30d", "--hydrate"])?;
    laptop.json(&["hydrate", "vm"])?;
    Ok((world, laptop, desktop))
}

fn becomes(device: &Device, image: &str, state: &str) -> Result<Value> {
    e2e::wait_for(&format!("{image} to be {state}"), || {
        let status = device.status(image)?;
        Ok((status["state"] == state).then_some(status))
    })
}

fn lease_at_home(device: &Device, image: &str) -> Result<Value> {
    let leases = device.json(&["leases"])?;
    let mut rows = match leases {
        Value::Array(rows) => rows,
        row => vec![row],
    };
    rows.retain(|row| row["name"] == image);
    Ok(rows.pop().unwrap_or_default())
}

/// A commit that is home, however long the home takes to be noticed.
fn commits(device: &Device, image: &str) -> Result<Value> {
    e2e::wait_for("the commit", || {
        let outcome = device.imgctl(&["commit", image, "--json"])?;
        ensure!(matches!(outcome.code, Some(0 | 6)), "{outcome}");
        let answer = serde_json::from_str(outcome.stdout.trim())?;
        Ok(outcome.ok().then_some(answer))
    })
}

fn signal(pid: u32, name: &str) -> Result<()> {
    let sent = Program::any(Path::new("kill"))
        .args([name, &pid.to_string()])
        .run()?;
    ensure!(sent.ok(), "{sent}");
    Ok(())
}

#[test]
fn work_goes_on_for_weeks_without_a_home_and_is_committed_when_it_is_back() -> Result<()> {
    let (mut world, mut laptop, desktop) = taken_along()?;
    let epoch = laptop.status("vm")?["lease"]["epoch"].clone();
    world.home.kill()?;
    let mount = laptop.work().join("vm");
    ensure!(fs::read(mount.join("first"))? == vec![1; 300_000]);
    fs::write(mount.join("away"), "work")?;
    laptop.json(&["checkpoint", "vm", "-m", "on the train"])?;
    laptop.fails(6, &["commit", "vm"])?;
    laptop.kill()?;
    // 20 days asleep: the lease lasts.
    laptop.restart_later(20 * DAY)?;
    ensure!(laptop.status("vm")?["state"] == "leased");
    ensure!(fs::read_to_string(mount.join("away"))? == "work");
    // 40 days: it has lapsed here, and work goes on.
    laptop.stop()?;
    laptop.restart_later(40 * DAY)?;
    becomes(&laptop, "vm", "lapsed")?;
    fs::write(mount.join("later"), "more")?;
    laptop.json(&["checkpoint", "vm"])?;

    world.home.start()?;
    let committed = commits(&laptop, "vm")?;
    ensure!(committed["seq"].as_u64() >= Some(2), "{committed}");
    let status = becomes(&laptop, "vm", "leased")?;
    ensure!(
        status["lease"]["epoch"] == epoch,
        "the same lease: {status}"
    );
    laptop.json(&["release", "vm"])?;
    let theirs = desktop.checkout("vm", &[])?;
    ensure!(fs::read_to_string(theirs.join("away"))? == "work");
    ensure!(fs::read_to_string(theirs.join("later"))? == "more");
    Ok(())
}

/// A checkout that has gone on by itself as an image of this name.
fn goes_on_as(device: &Device, image: &str) -> Result<Value> {
    e2e::wait_for(&format!("the checkout to go on as {image}"), || {
        let outcome = device.imgctl(&["status", image, "--json"])?;
        ensure!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
        let status: Value = serde_json::from_str(outcome.stdout.trim())?;
        Ok((outcome.ok() && status["name"] == image).then_some(status))
    })
}

#[test]
fn everything_that_was_asked_for_is_fetched_also_after_a_restart_without_the_home() -> Result<()> {
    let mut world = World::new()?;
    let desktop = world.founder("desktop")?;
    let mut laptop = world.joined("laptop", &desktop)?;
    desktop.json(&["create", "vm"])?;
    let mount = desktop.checkout("vm", &[])?;
    let content = crate::leases::noise(3 << 20);
    fs::write(mount.join("big"), &content)?;
    desktop.json(&["release", "vm"])?;
    let mount = laptop.checkout("vm", &["--read-only"])?;
    world.home.kill()?;
    laptop.fails(6, &["hydrate", "vm"])?;
    laptop.kill()?;
    laptop.restart()?;
    let status = laptop.status("vm")?;
    ensure!(
        status["hydrating"]["waits_for"] == "the home",
        "it is wanted on: {status}"
    );
    world.home.start()?;
    e2e::wait_for("everything to be here", || {
        Ok(laptop.status("vm")?["hydrating"].is_null().then_some(()))
    })?;
    world.home.kill()?;
    ensure!(fs::read(mount.join("big"))? == content);
    laptop.kill()?;
    laptop.restart()?;
    let status = laptop.status("vm")?;
    ensure!(status["hydrating"].is_null(), "it is complete: {status}");
    Ok(())
}

#[test]
fn a_commit_and_then_a_branch_that_were_asked_for_offline_are_both_made() -> Result<()> {
    let (mut world, mut laptop, desktop) = taken_along()?;
    world.home.kill()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("good"), "for everybody")?;
    let told = laptop.fails(6, &["commit", "vm", "-m", "before the trial"])?;
    let message = told["message"].as_str().unwrap_or_default();
    ensure!(message.contains("finish by itself"), "{message}");
    fs::write(mount.join("trial"), "for the branch")?;
    laptop.fails(6, &["commit", "vm", "--branch", "trial", "-m", "a trial"])?;
    fs::write(mount.join("more"), "of the branch")?;
    laptop.json(&["commit", "vm", "--no-wait", "-m", "went on"])?;
    laptop.kill()?;
    laptop.restart()?;

    world.home.start()?;
    goes_on_as(&laptop, "trial")?;
    // Whatever is wanted comes before a release.
    laptop.json(&["release", "trial"])?;
    let log = desktop.json(&["log", "vm"])?;
    ensure!(log[0]["message"] == "before the trial", "{log}");
    let log = desktop.json(&["log", "trial"])?;
    ensure!(
        log[0]["message"] == "went on" && log[1]["message"] == "a trial",
        "{log}"
    );
    let image = desktop.checkout("vm", &[])?;
    ensure!(fs::read_to_string(image.join("good"))? == "for everybody");
    ensure!(!image.join("trial").exists() && !image.join("more").exists());
    let branch = desktop.checkout("trial", &[])?;
    for name in ["good", "trial", "more"] {
        ensure!(branch.join(name).exists(), "{name}");
    }
    Ok(())
}

#[test]
fn a_branch_of_an_unchanged_checkout_that_was_asked_for_offline_is_made() -> Result<()> {
    let (mut world, mut laptop, desktop) = taken_along()?;
    world.home.kill()?;
    laptop.fails(6, &["commit", "vm", "--branch", "copy"])?;
    laptop.kill()?;
    laptop.restart()?;
    // What came later is not what was asked for.
    let mount = laptop.work().join("vm");
    fs::write(mount.join("later"), "2")?;
    laptop.json(&["checkpoint", "vm"])?;

    world.home.start()?;
    goes_on_as(&laptop, "copy")?;
    laptop.json(&["commit", "copy"])?;
    let log = desktop.json(&["log", "copy"])?;
    ensure!(log.as_array().map(Vec::len) == Some(2), "{log}");
    let first = log[1]["commit"].as_str().context("a first commit")?;
    let copy = desktop.checkout("copy", &["--read-only", "--at", first])?;
    ensure!(copy.join("first").exists() && !copy.join("later").exists());
    Ok(())
}

#[test]
fn a_release_and_a_commit_before_it_finish_by_themselves_after_a_restart() -> Result<()> {
    let (mut world, mut laptop, desktop) = taken_along()?;
    world.home.kill()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("kept"), "1")?;
    laptop.fails(6, &["commit", "vm", "-m", "said so"])?;
    fs::write(mount.join("last"), "2")?;
    laptop.fails(6, &["release", "vm"])?;
    laptop.kill()?;
    laptop.restart()?;
    ensure!(laptop.status("vm")?["releasing"] == true);

    world.home.start()?;
    e2e::wait_for("the release", || {
        let outcome = laptop.imgctl(&["status", "vm", "--json"])?;
        Ok((outcome.code == Some(3)).then_some(()))
    })?;
    let log = desktop.json(&["log", "vm"])?;
    ensure!(log[0]["message"] == "said so", "{log}");
    let theirs = desktop.checkout("vm", &[])?;
    ensure!(fs::read_to_string(theirs.join("kept"))? == "1");
    ensure!(fs::read_to_string(theirs.join("last"))? == "2");
    Ok(())
}

#[test]
fn a_commit_that_a_rival_has_made_impossible_is_told_of_and_not_tried_for_ever() -> Result<()> {
    let (mut world, mut laptop, desktop) = taken_along()?;
    world.home.stop()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("away"), "work")?;
    laptop.fails(6, &["commit", "vm"])?;
    laptop.kill()?;
    world.home.start()?;
    desktop.json(&["steal", "vm", "--reason", "it is needed"])?;
    laptop.restart()?;
    becomes(&laptop, "vm", "orphan")?;
    let problem = e2e::wait_for("the refusal to be shown", || {
        let problem = laptop.status("vm")?["problem"].clone();
        Ok(problem.as_str().map(str::to_owned))
    })?;
    ensure!(problem.contains("orphaned"), "{problem}");
    laptop.json(&["commit", "vm", "--branch", "mine"])?;
    ensure!(laptop.status("mine")?["problem"].is_null());
    Ok(())
}

#[test]
fn an_image_that_was_taken_over_meanwhile_leaves_the_work_as_a_branch() -> Result<()> {
    let (_world, mut laptop, desktop) = taken_along()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("away"), "work")?;
    laptop.json(&["checkpoint", "vm"])?;
    laptop.kill()?;
    desktop.json(&["steal", "vm", "--reason", "it is needed"])?;
    fs::write(desktop.work().join("vm/theirs"), "2")?;
    desktop.json(&["commit", "vm"])?;
    laptop.restart_later(40 * DAY)?;
    let status = becomes(&laptop, "vm", "orphan")?;
    ensure!(status["rival"] == "desktop", "{status}");
    ensure!(fs::read_to_string(mount.join("away"))? == "work");
    laptop.fails(5, &["commit", "vm"])?;
    laptop.json(&["commit", "vm", "--branch", "mine"])?;
    laptop.json(&["release", "mine"])?;
    let saved = desktop.checkout("mine", &[])?;
    ensure!(saved.join("away").exists() && !saved.join("theirs").exists());
    Ok(())
}

#[test]
fn a_lapse_in_sleep_without_a_rival_is_as_if_nothing_had_been() -> Result<()> {
    let world = World::new()?;
    let desktop = world.founder("desktop")?;
    let laptop = world.joined("laptop", &desktop)?;
    desktop.json(&["create", "vm"])?;
    let mount = laptop.checkout("vm", &["--lease", "10s"])?;
    fs::write(mount.join("before"), "1")?;
    let epoch = laptop.status("vm")?["lease"]["epoch"].clone();
    signal(laptop.process_id()?, "-STOP")?;
    let lapsed = e2e::wait_for("the lease to lapse at home", || {
        let lease = lease_at_home(&desktop, "vm")?;
        Ok((lease["state"] == "lapsed").then_some(lease))
    });
    signal(laptop.process_id()?, "-CONT")?;
    ensure!(lapsed?["device"] == "laptop");
    fs::write(mount.join("after"), "2")?;
    commits(&laptop, "vm")?;
    let status = becomes(&laptop, "vm", "leased")?;
    ensure!(status["lease"]["epoch"] == epoch, "{status}");
    Ok(())
}

#[test]
fn only_a_release_gives_back_and_it_commits_what_changed() -> Result<()> {
    let world = World::new()?;
    let mut laptop = world.founder("laptop")?;
    let desktop = world.joined("desktop", &laptop)?;
    laptop.json(&["create", "vm"])?;
    let mount = laptop.checkout("vm", &[])?;
    // The application dies, then the daemon: neither is a release.
    let mut writer = Program::any(Path::new("/bin/sh"))
        .args(["-c", "exec 3>>out; while echo line >&3; do :; done"])
        .current_dir(&mount);
    writer.spawn()?;
    e2e::wait_for("the application to write", || {
        let written = fs::metadata(mount.join("out")).map_or(0, |file| file.len());
        Ok((written > 0).then_some(()))
    })?;
    writer.kill()?;
    let refused = desktop.fails(4, &["checkout", "vm"])?;
    ensure!(
        refused["holder"] == "laptop" && refused["until"].is_string(),
        "{refused}"
    );
    let hint = refused["hint"].as_str().context("a way on")?;
    ensure!(
        hint.contains("imgctl steal vm") && hint.contains("--read-only"),
        "{hint}"
    );
    fs::write(mount.join("last"), "kept")?;
    fs::File::open(mount.join("last"))?.sync_all()?;
    laptop.kill()?;
    desktop.fails(4, &["checkout", "vm"])?;
    laptop.restart()?;
    laptop.json(&["release", "vm"])?;
    let theirs = desktop.checkout("vm", &[])?;
    ensure!(fs::read_to_string(theirs.join("last"))? == "kept");
    ensure!(theirs.join("out").exists());
    Ok(())
}

#[test]
fn staged_work_of_a_lapsed_holder_is_passed_over_only_when_asked() -> Result<()> {
    let world = World::new()?;
    let desktop = world.founder("desktop")?;
    let mut laptop = world.joined("laptop", &desktop)?;
    desktop.json(&["create", "vm"])?;
    let mount = laptop.checkout("vm", &["--lease", "10s"])?;
    fs::write(mount.join("staged"), "at home")?;
    laptop.json(&["checkpoint", "vm"])?;
    e2e::wait_for("the checkpoint to be staged", || {
        let status = laptop.status("vm")?;
        Ok(status["staged"].is_string().then_some(()))
    })?;
    laptop.kill()?;
    let lease = e2e::wait_for("the lease to lapse", || {
        let lease = lease_at_home(&desktop, "vm")?;
        Ok((lease["state"] == "lapsed").then_some(lease))
    })?;
    ensure!(
        lease["staged"].is_string() && lease["mode"] == "online",
        "{lease}"
    );
    let refused = desktop.fails(4, &["checkout", "vm"])?;
    ensure!(
        refused["error"] == "staged_work" && refused["holder"] == "laptop",
        "{refused}"
    );
    ensure!(refused["staged"] == lease["staged"], "{refused}");
    desktop.json(&["checkout", "vm", "--take-over"])?;
    laptop.restart()?;
    becomes(&laptop, "vm", "orphan")?;
    ensure!(fs::read_to_string(mount.join("staged"))? == "at home");
    Ok(())
}

#[test]
fn the_history_shows_branches_and_who_had_the_image() -> Result<()> {
    let (_world, laptop, desktop) = taken_along()?;
    let head = desktop.json(&["ls"])?["head"].clone();
    desktop.fails(4, &["checkout", "vm"])?;
    desktop.json(&["steal", "vm", "--reason", "the train leaves"])?;
    becomes(&laptop, "vm", "orphan")?;
    laptop.json(&["commit", "vm", "--branch", "mine"])?;
    desktop.json(&["release", "vm"])?;

    let log = desktop.json(&["log", "vm"])?;
    ensure!(
        log[0]["commit"] == head && log[0]["branches"][0]["name"] == "mine",
        "{log}"
    );
    let drawn = desktop.imgctl(&["log", "vm"])?.stdout;
    ensure!(drawn.contains("├─▶ mine"), "{drawn}");
    let branch = desktop.json(&["log", "mine"])?;
    ensure!(
        branch["kind"] == "branch" && branch["parent"] == head,
        "{branch}"
    );
    ensure!(
        desktop
            .imgctl(&["log", "mine"])?
            .stdout
            .contains("left vm at")
    );

    let audit = desktop.json(&["log", "vm", "--audit"])?;
    let audit = audit.as_array().cloned().unwrap_or_default();
    let of = |kind: &str| audit.iter().find(|row| row["kind"] == kind).cloned();
    let steal = of("steal").context("a steal")?;
    ensure!(
        steal["device"] == "desktop" && steal["reason"] == "the train leaves",
        "{steal}"
    );
    ensure!(
        of("release").is_some_and(|row| row["device"] == "desktop"),
        "{audit:?}"
    );
    ensure!(
        of("grant").is_some_and(|row| row["device"] == "laptop"),
        "{audit:?}"
    );
    ensure!(
        of("refused").is_some_and(|row| row["call"] == "Acquire"),
        "{audit:?}"
    );
    laptop.fails(8, &["log", "vm", "--audit"])?;
    Ok(())
}
