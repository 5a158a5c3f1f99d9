//! What was, and how to get at it: the log, ids of commits and checkpoints, and differences.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

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
    let changed = laptop.json(&["diff", "vm", &checkpoint, &only_here])?;
    ensure!(
        changed["change"] == "added" && changed["path"] == "third",
        "{changed}"
    );
    // Also after a restart, and when newer work has been cut.
    fs::write(mount.join("fourth"), "4")?;
    laptop.json(&["checkpoint", "vm"])?;
    let mut laptop = laptop;
    laptop.kill()?;
    laptop.restart()?;
    let changed = laptop.json(&["diff", "vm", &checkpoint, &only_here])?;
    ensure!(changed["path"] == "third", "{changed}");
    let changed = laptop.json(&["diff", "vm", &only_here])?;
    ensure!(changed["path"] == "fourth", "{changed}");
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

/// Paths that differ between two folders, each with a letter, as looking at all of both tells. A folder whose only
/// change is when something came or went in it is left out.
fn compared(before: &Path, after: &Path) -> Result<BTreeMap<String, char>> {
    let (before, after) = (listed(before)?, listed(after)?);
    let mut differs = BTreeMap::new();
    for (path, was) in &before {
        match after.get(path) {
            None => drop(differs.insert(path.clone(), 'D')),
            Some(is) if is != was => drop(differs.insert(path.clone(), 'M')),
            Some(_) => {}
        }
    }
    let new = after.keys().filter(|path| !before.contains_key(*path));
    differs.extend(new.map(|path| (path.clone(), 'A')));
    Ok(differs)
}

/// All that is below a folder: path, and what of it is compared.
fn listed(top: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let metadata = path.symlink_metadata()?;
            let content = if metadata.is_file() {
                format!(
                    "{:?} {}.{}",
                    fs::read(&path)?,
                    metadata.mtime(),
                    metadata.mtime_nsec()
                )
            } else if metadata.is_symlink() {
                format!("{:?}", fs::read_link(&path)?)
            } else {
                waiting.push(path.clone());
                String::new()
            };
            let name = path.strip_prefix(top)?.display().to_string();
            let owner = (metadata.uid(), metadata.gid());
            found.insert(name, format!("{:o} {owner:?} {content}", metadata.mode()));
        }
    }
    Ok(found)
}

/// What `imgctl diff` says, each path with its letter; a rename is a path that went and one that came.
fn told(device: &Device, args: &[&str]) -> Result<BTreeMap<String, char>> {
    let lines = device.json(&[&["diff", "vm"], args].concat())?;
    let lines = match lines {
        Value::Array(lines) => lines,
        line => vec![line],
    };
    let mut told = BTreeMap::new();
    for line in &lines {
        let path = text(&line["path"])?;
        let letter = match text(&line["change"])?.as_str() {
            "added" => 'A',
            "removed" => 'D',
            "modified" => 'M',
            _ => {
                told.insert(text(&line["from"])?, 'D');
                'A'
            }
        };
        ensure!(told.insert(path, letter).is_none(), "twice: {line}");
    }
    Ok(told)
}

#[test]
fn a_diff_says_what_looking_at_both_exports_says() -> Result<()> {
    let (world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    for folder in ["a", "a/deep", "b"] {
        fs::create_dir(mount.join(folder))?;
        for number in 0..5 {
            fs::write(mount.join(folder).join(format!("file-{number}")), folder)?;
        }
    }
    fs::write(mount.join("large"), vec![1; 300_000])?;
    std::os::unix::fs::symlink("a/file-1", mount.join("link"))?;
    fs::hard_link(mount.join("a/file-2"), mount.join("b/hard"))?;
    let first = text(&laptop.json(&["commit", "vm", "-m", "laptop"])?["commit"])?;
    laptop.json(&["release", "vm"])?;

    // Another device changes all sorts of things.
    let mount = desktop.checkout("vm", &[])?;
    fs::write(mount.join("a/file-0"), "other")?;
    fs::write(mount.join("a/file-2"), "both names")?;
    fs::remove_file(mount.join("a/file-1"))?;
    fs::write(mount.join("new"), "new")?;
    fs::create_dir(mount.join("folder"))?;
    fs::write(mount.join("folder/in"), "in")?;
    fs::remove_dir_all(mount.join("a/deep"))?;
    fs::set_permissions(mount.join("b/file-0"), fs::Permissions::from_mode(0o600))?;
    fs::rename(mount.join("b/file-1"), mount.join("moved"))?;
    fs::write(mount.join("saved"), "saved")?;
    fs::rename(mount.join("saved"), mount.join("b/file-2"))?;
    fs::remove_file(mount.join("link"))?;
    std::os::unix::fs::symlink("elsewhere", mount.join("link"))?;
    fs::write(mount.join("grün \n\\"), "an odd name")?;
    let large = fs::File::options().write(true).open(mount.join("large"))?;
    large.write_all_at(b"patched", 100_000)?;
    drop(large);
    let second = text(&desktop.json(&["commit", "vm", "-m", "desktop"])?["commit"])?;

    let export = |device: &Device, at: &str, name: &str| -> Result<PathBuf> {
        let dest = world.path(name);
        device.json(&["export", "vm", dest.to_str().context("a path")?, "--at", at])?;
        Ok(dest)
    };
    let (before, after) = (
        export(&laptop, &first, "before")?,
        export(&laptop, &second, "after")?,
    );
    let expected = compared(&before, &after)?;
    ensure!(expected.len() > 15, "{expected:?}");
    for args in [
        &[first.as_str(), &second][..],
        &[&first[..8], "head"],
        &["head~1", "head"],
    ] {
        let told = told(&laptop, args)?;
        ensure!(told == expected, "{told:#?}\n{expected:#?}");
    }
    ensure!(told(&laptop, &[&second, &first])? == compared(&after, &before)?);
    let people = laptop.imgctl(&["diff", "vm", &first, &second])?.stdout;
    for line in [
        "M  a/file-0\n",
        "R  b/file-1 -> moved\n",
        "M  b/file-0  (mode)\n",
        "D  a/deep/\n",
        "grün \\n\\\n",
    ] {
        ensure!(people.contains(line), "no {line:?} in {people}");
    }
    // Nothing is checked out on the laptop: what is compared has to be said.
    laptop.fails(2, &["diff", "vm"])?;
    ensure!(told(&laptop, &[&first])? == expected);

    // The live checkout, and what is staged of it, on the other device too.
    ensure!(told(&desktop, &[])?.is_empty());
    let unlinked = fs::File::create(mount.join("unlinked"))?;
    fs::remove_file(mount.join("unlinked"))?;
    fs::write(mount.join("live"), "live")?;
    fs::write(mount.join("new"), "newer")?;
    let live = BTreeMap::from([("live".to_owned(), 'A'), ("new".to_owned(), 'M')]);
    ensure!(told(&desktop, &[])? == live);
    let record = wait_for("what was cut to be staged", || {
        let staged = desktop.status("vm")?["staged"].clone();
        Ok(staged.as_str().map(str::to_owned))
    })?;
    ensure!(told(&laptop, &[&second, &record])? == live);
    drop(unlinked);
    let since = told(&desktop, &[&first])?;
    ensure!(
        since.get("live") == Some(&'A') && since.len() == expected.len() + 1,
        "{since:?}"
    );
    Ok(())
}
