//! Plays in which a device's daemon is the victim.

use std::fs;

use anyhow::{Result, ensure};
use e2e::{Device, tree, wait_for};

use super::words::{check_log, checkpoint, commit, goes_on, mounted};
use super::{IMAGE, Scenario};
use crate::ledger::{Ledger, Writer, noise};
use crate::stage::{Cast, Place, Stage};

/// Files that are written, overwritten and synced; a checkpoint, which is sealed and streamed; a commit.
pub(super) const WRITE: Scenario = Scenario {
    name: "write",
    victim: Place::A,
    prepare: checked_out,
    play: write,
    check: stands,
};

/// Many files that come, grow, shrink, move and go over several generations, beside a cache that is too small.
pub(super) const CHURN: Scenario = Scenario {
    name: "churn",
    victim: Place::A,
    prepare: imported,
    play: churn,
    check: stands,
};

/// A daemon that starts after a crash, with work to recover, to seal and to commit.
pub(super) const RESTART: Scenario = Scenario {
    name: "restart",
    victim: Place::A,
    prepare: crashed,
    play: restart,
    check: stands,
};

/// A release: the last checkpoint, its commit, the end of the checkout.
pub(super) const RELEASE: Scenario = Scenario {
    name: "release",
    victim: Place::A,
    prepare: checked_out,
    play: release,
    check: released,
};

/// An image that is imported and checked out.
pub(super) const IMPORT: Scenario = Scenario {
    name: "import",
    victim: Place::A,
    prepare: folder_to_import,
    play: import,
    check: is_imported,
};

/// An image with a file, checked out on `a`.
fn checked_out(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let a = &stage.cast.a;
    a.json(&["create", IMAGE])?;
    let mount = a.checkout(IMAGE, &[])?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("large", 0, &noise(1, 300_000))?;
    writer.sync("large")?;
    commit(a, ledger)
}

fn write(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.a.restart()?;
    let mount = mounted(&cast.a)?;
    cast.arm();
    let mut writer = Writer::new(&mount, ledger);
    writer.write("small", 0, &noise(2, 100))?;
    writer.sync("small")?;
    writer.write("large", 5_000, &noise(3, 90_000))?;
    writer.sync("large")?;
    checkpoint(&cast.a, ledger)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.append("small", &noise(4, 9_000))?;
    writer.sync("small")?;
    commit(&cast.a, ledger)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("large", 200_000, &noise(5, 150_000))?;
    writer.write("last", 0, &noise(6, 20_000))?;
    writer.sync("last")?;
    writer.write("large", 0, &noise(7, 10))
}

/// An image whose files are at home only.
fn imported(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let a = &stage.cast.a;
    let folder = a.work().join("old");
    fs::create_dir(&folder)?;
    for n in 0..OLD_FILES {
        fs::write(folder.join(format!("old-{n}")), noise(100 + n, 100_000))?;
    }
    a.json(&["create", IMAGE, "--from", "old"])?;
    fs::remove_dir_all(&folder)?;
    let mount = a.checkout(IMAGE, &[])?;
    let mut writer = Writer::new(&mount, ledger);
    for n in 0..OLD_FILES {
        writer.note(&format!("old-{n}"))?;
    }
    a.json(&["cache", "--limit", "10M"])?;
    Ok(())
}

fn churn(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.a.restart()?;
    let mount = mounted(&cast.a)?;
    cast.arm();
    cast.a.json(&["cache", "--limit", "1M"])?;
    for round in 0..3 {
        let mut writer = Writer::new(&mount, ledger);
        let paths: Vec<_> = (0..12).map(|n| format!("new-{round}-{n}")).collect();
        for (path, seed) in paths.iter().zip(1_000 * (round + 1)..) {
            writer.write(path, 0, &noise(seed, 200 + 900 * (seed % 12) as usize))?;
        }
        for path in &paths {
            writer.sync(path)?;
        }
        let old = |n: u64| format!("old-{}", 4 * round + n);
        let moved = format!("moved-{round}");
        writer.rename(&paths[0], &paths[1])?;
        writer.rename(&old(0), &moved)?;
        writer.remove(&paths[2])?;
        writer.remove(&old(1))?;
        let names = [&paths[0], &paths[1], &paths[2], &old(0), &moved, &old(1)];
        writer.sync_names("", &names.map(String::as_str))?;
        writer.set_len(&paths[3], 100)?;
        writer.set_len(&old(2), 50_000)?;
        writer.write(&old(3), 30_000, &noise(2_000 + round, 5_000))?;
        for path in [&paths[3], &old(2), &old(3)] {
            writer.sync(path)?;
        }
        // What is read is fetched, and pushes other objects out of the cache.
        for n in 12..OLD_FILES {
            let content = fs::read(mount.join(format!("old-{n}")))?;
            ensure!(content == noise(100 + n, 100_000), "old-{n} is another");
        }
        checkpoint(&cast.a, ledger)?;
    }
    commit(&cast.a, ledger)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("last", 0, &noise(6, 20_000))?;
    writer.sync("last")?;
    writer.remove("moved-0")
}

/// A device that was killed with synced writes, a checkpoint and a commit that the home has not seen.
fn crashed(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    checked_out(stage, ledger)?;
    stage.home().stop()?;
    let a = &stage.cast.a;
    let mount = mounted(a)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("small", 0, &noise(2, 9_000))?;
    writer.write("large", 5_000, &noise(3, 90_000))?;
    writer.sync("small")?;
    writer.sync("large")?;
    checkpoint(a, ledger)?;
    // The home is away; the daemon goes on by itself.
    let outcome = a.imgctl(&["commit", IMAGE, "--no-wait"])?;
    ensure!(matches!(outcome.code, Some(0 | 6)), "{outcome}");
    let mut writer = Writer::new(&mount, ledger);
    writer.write("small", 2_000, &noise(4, 9_000))?;
    writer.sync("small")?;
    writer.write("last", 0, &noise(5, 2_000))?;
    stage.cast.a.kill()?;
    stage.home().start()
}

fn restart(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.arm();
    cast.a.restart()?;
    let mount = mounted(&cast.a)?;
    ledger.check(&mount)?;
    wait_for("the commit", || {
        let status = cast.a.status(IMAGE)?;
        let is_done = status["checkpoints_local"] == 0 && status["streaming"].is_null();
        Ok(is_done.then_some(()))
    })?;
    commit(&cast.a, ledger)
}

/// The checkout is mounted again by itself, with all that was promised, and work goes on.
fn stands(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let mount = mounted(&stage.cast.a)?;
    ledger.check(&mount)?;
    check_log(&stage.cast.a, ledger)?;
    goes_on(stage, ledger)
}

fn release(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.a.restart()?;
    let mount = mounted(&cast.a)?;
    cast.arm();
    let mut writer = Writer::new(&mount, ledger);
    writer.write("small", 0, &noise(2, 9_000))?;
    writer.sync("small")?;
    writer.write("large", 5_000, &noise(3, 90_000))?;
    writer.sync("large")?;
    cast.a.json(&["release", IMAGE])?;
    Ok(())
}

/// The release can be finished, and the next checkout has all of it.
fn released(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let a = &stage.cast.a;
    wait_for("the release", || {
        let outcome = a.imgctl(&["release", IMAGE])?;
        // The daemon may be about to finish it by itself, and says so with 1.
        ensure!(matches!(outcome.code, Some(0 | 1 | 3)), "{outcome}");
        Ok((outcome.code != Some(1)).then_some(()))
    })?;
    let mount = a.checkout(IMAGE, &[])?;
    ledger.check(&mount)?;
    check_log(a, ledger)?;
    goes_on(stage, ledger)
}

fn folder_to_import(stage: &mut Stage, _: &mut Ledger) -> Result<()> {
    let folder = stage.cast.a.work().join("source");
    fs::create_dir_all(folder.join("inner"))?;
    for n in 0..20 {
        fs::write(folder.join(format!("inner/file-{n}")), noise(n, 10_000))?;
    }
    fs::write(folder.join("large"), noise(50, 300_000))?;
    Ok(())
}

fn import(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    cast.a.restart()?;
    cast.arm();
    let created = cast.a.json(&["create", IMAGE, "--from", "source"])?;
    ledger
        .commits
        .extend(created["commit"].as_str().map(str::to_owned));
    cast.a.checkout(IMAGE, &[])?;
    Ok(())
}

/// The image is there, or can be made by the same words.
fn is_imported(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let a = &stage.cast.a;
    if !is_there(a)? {
        ensure!(ledger.commits.is_empty(), "the image is gone");
        let again = a.imgctl(&["create", IMAGE, "--from", "source"])?;
        // The home may have taken it without an answer, or the daemon may finish it by itself meanwhile.
        ensure!(again.ok() || is_there(a)?, "{again}");
    }
    if !super::words::is_checked_out(a)? {
        a.checkout(IMAGE, &[])?;
    }
    let mount = mounted(a)?;
    tree::assert_equal(&a.work().join("source"), &mount)?;
    check_log(a, ledger)?;
    // From here on the files of the import are like any other.
    let mut writer = Writer::new(&mount, ledger);
    writer.note("large")?;
    for n in 0..20 {
        writer.note(&format!("inner/file-{n}"))?;
    }
    goes_on(stage, ledger)
}

fn is_there(device: &Device) -> Result<bool> {
    let listed = device.imgctl(&["ls", "--json"])?;
    ensure!(listed.ok(), "{listed}");
    Ok(listed.stdout.contains(&format!("\"{IMAGE}\"")))
}

/// Files of 100 kB that are imported: more than the cache may have.
const OLD_FILES: u64 = 30;
