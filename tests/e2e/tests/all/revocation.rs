//! Devices that are taken off the roster, and those that stay.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Device, World, wait_for};
use serde_json::Value;

/// Waits until a device has heard that it was revoked, and returns the status of its checkout.
fn revoked(device: &Device, image: &str) -> Result<Value> {
    wait_for("the revoked device to hear of it", || {
        let status = device.status(image)?;
        Ok((status["state"] == "orphan").then_some(status))
    })
}

/// A founder, with what it is shown for a recovery: the words, and the arguments of the command.
fn founder(world: &World) -> Result<(Device, String, Vec<String>)> {
    let a = world.stranger("a")?;
    let shown = a.json(&["join", &world.home.invite()?, "--name", "a"])?;
    let words = shown[0]["recovery_words"].as_str().context("no words")?;
    let line = shown[0]["recover"].as_str().context("no command")?;
    let command = line.split(' ').skip(1).map(str::to_owned).collect();
    Ok((a, words.to_owned(), command))
}

fn read(dir: &Path, name: &str) -> Result<String> {
    fs::read_to_string(dir.join(name)).with_context(|| format!("{name} in {}", dir.display()))
}

#[test]
fn a_revoked_device_can_only_export_and_the_others_go_on_with_new_keys() -> Result<()> {
    let mut world = World::new()?;
    let (a, words, command) = founder(&world)?;
    let b = world.joined("b", &a)?;
    let mut c = world.joined("c", &a)?;
    a.json(&["create", "vm"])?;
    let mount = c.checkout("vm", &[])?;
    fs::write(mount.join("committed"), "by c")?;
    c.json(&["commit", "vm"])?;
    fs::write(mount.join("unsaved"), "only here")?;

    // Only an admin revokes, only somebody who means it, and never the last admin.
    b.fails(8, &["device", "revoke", "c", "--yes"])?;
    a.fails(2, &["device", "revoke", "c"])?;
    a.fails(3, &["device", "revoke", "nobody", "--yes"])?;
    a.fails(8, &["device", "revoke", "a", "--yes"])?;

    let (ends, log) = (AtomicBool::new(false), mount.join("log"));
    std::thread::scope(|scope| -> Result<()> {
        let program = scope.spawn(|| -> Result<u64> {
            let mut written = 0;
            while !ends.load(Ordering::Relaxed) {
                written += 1;
                fs::write(&log, written.to_string())?;
            }
            Ok(written)
        });
        let done = a.json(&["device", "revoke", "c", "--yes"]);
        let heard = revoked(&c, "vm");
        ends.store(true, Ordering::Relaxed);
        let written = program.join().expect("the program does not panic")?;
        let (done, status) = (done?, heard?);
        ensure!(done["already"] == false && done["key_epoch"] == 1, "{done}");
        ensure!(status["lease"].is_null(), "{status}");
        let problem = status["problem"].as_str().unwrap_or_default();
        ensure!(
            problem.contains("was revoked on") && problem.contains("by a"),
            "{status}"
        );
        ensure!(read(&mount, "log")? == written.to_string());
        Ok(())
    })?;
    let again = a.json(&["device", "revoke", "c", "--yes"])?;
    ensure!(again["already"] == true && again["by"] == "a", "{again}");

    // It is told so whatever it asks, and its mount goes on.
    for args in [
        &["commit", "vm"][..],
        &["commit", "vm", "--branch", "mine"],
        &["commit", "vm", "--adopt-orphan"],
        &["release", "vm"],
        &["branch", "vm", "mine"],
        &["create", "mine"],
        &["checkout", "vm", "elsewhere"],
        &["steal", "vm", "elsewhere"],
        &["ls"],
    ] {
        let refused = c.fails(8, args)?;
        ensure!(refused["error"] == "revoked", "{args:?}: {refused}");
        ensure!(refused["by"] == "a", "{args:?}: {refused}");
    }
    fs::write(mount.join("later"), "still here")?;
    c.json(&["checkpoint", "vm"])?;

    // The others take it over, with what was committed, and write under new keys without a restart.
    let theirs = a.checkout("vm", &[])?;
    ensure!(read(&theirs, "committed")? == "by c" && !theirs.join("unsaved").exists());
    fs::write(theirs.join("second"), "by a")?;
    a.json(&["commit", "vm"])?;
    a.json(&["release", "vm"])?;
    a.json(&["create", "new"])?;
    let at_b = b.checkout("vm", &[])?;
    ensure!(read(&at_b, "second")? == "by a" && read(&at_b, "committed")? == "by c");
    fs::write(at_b.join("third"), "by b")?;
    b.json(&["commit", "vm"])?;
    b.checkout("new", &[])?;
    let d = world.stranger("d")?;
    let invite = a.json(&["device", "invite"])?;
    let line = invite["invite"].as_str().context("no invite")?;
    d.json(&["join", line, "--name", "c"])?;
    let at_d = d.checkout("vm", &["--read-only"])?;
    for (name, content) in [("committed", "by c"), ("second", "by a"), ("third", "by b")] {
        ensure!(read(&at_d, name)? == content, "{name}");
    }

    // A name is free again; who was revoked is shown as such, with when and by whom.
    let devices = a.json(&["device", "list"])?;
    let rows = devices.as_array().context("a list")?;
    let of_name: Vec<_> = rows.iter().filter(|row| row["name"] == "c").collect();
    ensure!(of_name.len() == 2, "{devices}");
    ensure!(
        of_name[0]["revoked"] == true && of_name[0]["revoked_by"] == "a",
        "{devices}"
    );
    ensure!(of_name[1]["revoked"] == false, "{devices}");
    let audit = a.json(&["log", "vm", "--audit"])?;
    let told = audit.as_array().context("an audit")?.iter();
    let told: Vec<_> = told.filter(|row| row["kind"] == "revoke").collect();
    ensure!(told.len() == 1 && told[0]["device"] == "a", "{audit}");

    // The words still work, and open what was written before and after.
    let r = world.stranger("r")?;
    let mut args: Vec<_> = command.iter().map(String::as_str).collect();
    args.extend(["--name", "r", "--json"]);
    let recovered = r.imgctl_reading(&words, &args)?;
    ensure!(recovered.ok(), "{recovered}");
    let at_r = r.checkout("vm", &["--read-only"])?;
    ensure!(read(&at_r, "committed")? == "by c" && read(&at_r, "third")? == "by b");

    // What is on the revoked device can be exported without the home, and after a crash.
    world.home.stop()?;
    c.kill()?;
    c.restart()?;
    let status = c.status("vm")?;
    ensure!(status["state"] == "orphan", "{status}");
    ensure!(c.fails(8, &["commit", "vm"])?["error"] == "revoked");
    for dest in ["saved", "saved.tar"] {
        let exported = c.json(&["export", "vm", dest])?;
        ensure!(exported["files"] == 4, "{exported}");
    }
    let saved = c.work().join("saved");
    for name in ["committed", "unsaved", "later", "log"] {
        ensure!(read(&saved, name)? == read(&mount, name)?, "{name}");
    }
    c.json(&["release", "vm", "--discard"])?;
    Ok(())
}

#[test]
fn what_a_revoked_device_never_fetched_is_named_by_its_export() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    let c = world.joined("c", &a)?;
    let source = a.work().join("source");
    fs::create_dir(&source)?;
    // More than lies inline, and nothing that compresses away.
    let mut far = vec![0; 4 << 20];
    getrandom(&mut far)?;
    fs::write(source.join("far"), &far)?;
    fs::write(source.join("near"), "small")?;
    a.json(&["create", "vm", "--from", "source"])?;
    let mount = c.checkout("vm", &[])?;
    fs::write(mount.join("work"), "of the day")?;
    let names: Vec<_> = fs::read_dir(&mount)?.collect::<Result<_, _>>()?;
    ensure!(names.len() == 3 && mount.join("far").metadata()?.len() == far.len() as u64);
    ensure!(read(&mount, "near")? == "small");
    a.json(&["device", "revoke", "c", "--yes"])?;
    revoked(&c, "vm")?;

    for dest in ["saved", "saved.tar"] {
        let exported = c.imgctl(&["export", "vm", dest, "--json"])?;
        ensure!(exported.code == Some(1), "{exported}");
        let line = exported.stdout.lines().next().context("no answer")?;
        let answer: Value = serde_json::from_str(line)?;
        let skipped = answer["skipped"].as_array().context("a list")?;
        ensure!(skipped.len() == 1, "{answer}");
        let path = skipped[0]["path"].as_str().unwrap_or_default();
        ensure!(path.ends_with("far"), "{answer}");
    }
    let saved = c.work().join("saved");
    ensure!(read(&saved, "work")? == "of the day" && read(&saved, "near")? == "small");
    Ok(())
}

#[test]
fn a_revocation_that_is_cut_off_is_done_or_not_and_can_be_asked_for_again() -> Result<()> {
    let mut world = World::new()?;
    let mut a = world.founder("a")?;
    let mut b = world.joined("b", &a)?;
    b.json(&["create", "vm"])?;
    b.checkout("vm", &[])?;
    for name in ["c", "d", "e"] {
        world.joined(name, &a)?;
    }
    world.home.stop()?;
    a.fails(6, &["device", "revoke", "b", "--yes"])?;
    b.kill()?;
    world.home.start()?;
    // Wherever it is when the daemon ends: before it is signed, on its way, or answered.
    for (epoch, name, after_ms) in [(1, "b", 16), (2, "c", 0), (3, "d", 64), (4, "e", 256)] {
        let revoke = ["device", "revoke", name, "--yes"];
        a.kill_during(&revoke, Duration::from_millis(after_ms))?;
        let done = a.json(&revoke)?;
        ensure!(done["key_epoch"] == epoch, "{done}");
    }
    // Who was off meanwhile hears of it at its first contact.
    b.restart()?;
    let status = revoked(&b, "vm")?;
    ensure!(status["lease"].is_null(), "{status}");
    Ok(())
}

fn getrandom(bytes: &mut [u8]) -> Result<()> {
    use std::io::Read;
    Ok(fs::File::open("/dev/urandom")?.read_exact(bytes)?)
}
