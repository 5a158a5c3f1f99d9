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
