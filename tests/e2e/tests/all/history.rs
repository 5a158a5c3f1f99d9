//! What was, and how to get at it: the log, ids of commits and checkpoints, and differences.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::{Device, World, wait_for};
use serde_json::Value;

/// A home with an image of two commits that the laptop has checked out, and a desktop.
fn held() -> Result<(World, Device, Device)> {
    let world = World::new()?;
    let laptop = world.founder("laptop")?;
    laptop.json(&["create", "vm"])?;
    let mount = laptop.checkout("vm", &[])?;
    fs::write(mount.join("first"), "1")?;
    laptop.json(&["commit", "vm", "-m", "first"])?;
    let desktop = world.joined("desktop", &laptop)?;
    Ok((world, laptop, desktop))
}

fn log(device: &Device, image: &str) -> Result<Vec<Value>> {
    let log = device.json(&["log", image])?;
    Ok(match log {
        Value::Array(rows) => rows,
        row => vec![row],
    })
}

/// Cuts a checkpoint and waits until it is staged; returns its id and that of the staged record.
fn staged(device: &Device, image: &str, message: &str) -> Result<(String, String)> {
    let before = device.status(image)?["staged"].clone();
    let cut = device.json(&["checkpoint", image, "-m", message])?;
    let staged = wait_for("the checkpoint to be staged", || {
        let staged = &device.status(image)?["staged"];
        Ok((*staged != before).then(|| staged.clone()))
    })?;
    Ok((text(&cut["checkpoint"])?, text(&staged)?))
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("no text")?.to_owned())
}

#[test]
fn the_log_shows_what_is_not_in_the_history_yet() -> Result<()> {
    let (mut world, laptop, desktop) = held()?;
    let base = laptop.status("vm")?["base"].clone();
    fs::write(laptop.work().join("vm/second"), "2")?;
    let (checkpoint, staged) = staged(&laptop, "vm", "half done")?;

    let rows = log(&laptop, "vm")?;
    ensure!(rows.len() == 4, "{rows:?}");
    for (home, id) in [(true, &staged), (false, &checkpoint)] {
        let row = rows.iter().find(|row| row["commit"] == **id);
        let row = row.with_context(|| format!("{id} is not in {rows:?}"))?;
        ensure!(row["kind"] == "checkpoint" && row["home"] == home, "{row}");
        ensure!(row["seq"].is_null() && row["parent"] == base, "{row}");
        ensure!(
            row["device"] == "laptop" && row["message"] == "half done",
            "{row}"
        );
    }
    let kind = (&rows[2]["kind"], &rows[2]["home"]);
    ensure!(rows[2]["commit"] == base && *kind.0 == "commit" && *kind.1 == true);

    // Of another device only what is at home can be known.
    let rows = log(&desktop, "vm")?;
    ensure!(rows.len() == 3 && rows[0]["commit"] == *staged, "{rows:?}");
    ensure!(
        rows[0]["device"] == "laptop" && rows[0]["home"] == true,
        "{rows:?}"
    );
    let shown = laptop.imgctl(&["log", "vm"])?.stdout;
    ensure!(
        shown.contains("checkpoint, only here") && shown.contains("checkpoint, staged"),
        "{shown}"
    );

    // Without the home, what is known here: also the commit below the one that the checkout stands on.
    world.home.kill()?;
    let rows = log(&laptop, "vm")?;
    ensure!(rows.len() == 4, "{rows:?}");
    ensure!(rows.iter().all(|row| row["stale"] == true), "{rows:?}");

    // A commit that is signed and not answered is shown as what it is.
    laptop.fails(6, &["commit", "vm", "-m", "away"])?;
    world.home.start()?;
    wait_for("the commit to finish by itself", || {
        let rows = log(&laptop, "vm")?;
        let done = rows[0]["message"] == "away" && rows[0]["seq"] == 2;
        Ok((done && rows.len() == 3).then_some(()))
    })
}

#[test]
fn a_checkpoint_is_found_by_the_id_that_was_printed() -> Result<()> {
    let (mut world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("second"), "2")?;
    let (checkpoint, record) = staged(&laptop, "vm", "half done")?;
    let rows = log(&laptop, "vm")?;
    let local = rows.iter().find(|row| row["commit"] == *checkpoint);
    ensure!(
        local.is_some_and(|row| row["staged"] == *record),
        "{rows:?}"
    );

    // Here by both of its ids, elsewhere by the one that the home knows; and by the beginnings of them.
    laptop.json(&["branch", "vm", "by-checkpoint", "--at", &checkpoint])?;
    laptop.json(&["branch", "vm", "by-record", "--at", &record[..8]])?;
    desktop.json(&["branch", "vm", "elsewhere", "--at", &record])?;
    desktop.fails(3, &["branch", "vm", "nothing", "--at", &checkpoint])?;
    for image in ["by-checkpoint", "by-record", "elsewhere"] {
        let copy = desktop.checkout(image, &["--read-only"])?;
        ensure!(fs::read_to_string(copy.join("second"))? == "2", "{image}");
    }
    let beside = laptop.work().join("beside");
    let beside = beside.to_str().context("a path")?;
    laptop.json(&[
        "checkout",
        "vm",
        beside,
        "--read-only",
        "--at",
        &checkpoint[..10],
    ])?;
    ensure!(fs::read_to_string(laptop.work().join("beside/second"))? == "2");
    laptop.json(&["release", beside])?;

    // One that is only here: what needs the home says so and what to type, the rest works.
    world.home.kill()?;
    laptop.json(&["ls"])?;
    fs::write(mount.join("third"), "3")?;
    let cut = laptop.json(&["checkpoint", "vm"])?;
    let only_here = text(&cut["checkpoint"])?;
    let exported = world.path("exported");
    let dest = exported.to_str().context("a path")?;
    laptop.json(&["export", "vm", dest, "--at", &only_here])?;
    ensure!(fs::read_to_string(exported.join("third"))? == "3");
    // Also after a restart, and when newer work has been cut.
    fs::write(mount.join("fourth"), "4")?;
    laptop.json(&["checkpoint", "vm"])?;
    let mut laptop = laptop;
    laptop.kill()?;
    laptop.restart()?;
    let again = world.path("again");
    let dest = again.to_str().context("a path")?;
    laptop.json(&["export", "vm", dest, "--at", &only_here])?;
    ensure!(again.join("third").exists() && !again.join("fourth").exists());
    world.home.start()?;
    wait_for("the newest checkpoint to be staged", || {
        let rows = log(&laptop, "vm")?;
        let newest = rows.iter().find(|row| row["home"] == false);
        Ok(newest
            .is_some_and(|row| row["staged"].is_string())
            .then_some(()))
    })?;
    let refused = laptop.fails(3, &["branch", "vm", "nothing", "--at", &only_here])?;
    let told = refused.to_string();
    ensure!(
        told.contains("only on this device") && told.contains("imgctl commit"),
        "{told}"
    );
    Ok(())
}
