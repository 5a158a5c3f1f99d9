//! A lease from the side of who has lost it, or never had one: adopting, late commits, releases, lost objects.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use rustix::process::Signal;
use serde_json::Value;

use crate::scene::{events, held, stage, told};

fn hint(error: &Value) -> &str {
    error["hint"].as_str().unwrap_or_default()
}

/// The promise is a second from the thief's answer to the loser's news; half of five may be later on a machine that
/// runs other tests too.
#[test]
fn a_connected_loser_is_told_within_a_second() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    let events = events(&laptop)?;
    let mut delays = Vec::new();
    for round in 0..5 {
        desktop.json(&["steal", "vm"])?;
        let stolen = Instant::now();
        delays.push(
            told(&events, "orphan")?
                .at
                .saturating_duration_since(stolen),
        );
        desktop.json(&["release", "vm"])?;
        fs::write(mount.join("round"), round.to_string())?;
        laptop.json(&["commit", "vm", "--adopt-orphan"])?;
        told(&events, "leased")?;
    }
    delays.sort();
    ensure!(delays[2] <= Duration::from_secs(1), "{delays:?}");
    Ok(())
}

#[test]
fn an_orphan_is_adopted_over_staged_work_only_if_that_is_said() -> Result<()> {
    let (_world, laptop, mut desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("mine"), "1")?;
    let events = events(&laptop)?;
    desktop.json(&["steal", "vm"])?;
    told(&events, "orphan")?;
    desktop.json(&["release", "vm"])?;
    let theirs = desktop.checkout("vm", &["--lease", "10s"])?;
    fs::write(theirs.join("theirs"), "2")?;
    stage(&desktop, "vm")?;
    let refused = laptop.fails(4, &["commit", "vm", "--adopt-orphan"])?;
    ensure!(refused["error"] == "leased", "{refused}");
    desktop.kill()?;
    let refused = e2e::wait_for("the desktop's lease to lapse", || {
        let refused = laptop.fails(4, &["commit", "vm", "--adopt-orphan"])?;
        Ok((refused["error"] == "staged_work").then_some(refused))
    })?;
    ensure!(
        refused["holder"] == "desktop" && hint(&refused).contains("--take-over"),
        "{refused}"
    );
    ensure!(laptop.status("vm")?["state"] == "orphan");
    let committed = laptop.json(&["commit", "vm", "--adopt-orphan", "--take-over"])?;
    ensure!(committed["seq"] == 2, "{committed}");
    ensure!(laptop.status("vm")?["state"] == "leased");

    // Nothing of the other's is lost either.
    desktop.restart()?;
    e2e::wait_for("the desktop to know", || {
        Ok((desktop.status("vm")?["state"] == "orphan").then_some(()))
    })?;
    desktop.json(&["commit", "vm", "--branch", "theirs"])?;
    ensure!(fs::read_to_string(theirs.join("theirs"))? == "2");
    Ok(())
}

#[test]
fn an_orphan_is_not_adopted_once_the_head_has_moved() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("mine"), "1")?;
    let events = events(&laptop)?;
    desktop.json(&["steal", "vm"])?;
    told(&events, "orphan")?;
    fs::write(desktop.work().join("vm/theirs"), "2")?;
    desktop.json(&["release", "vm"])?;
    let dir = mount.to_str().context("a path in UTF-8")?;
    let refused = laptop.fails(5, &["commit", "vm", "--adopt-orphan", "--take-over"])?;
    ensure!(
        hint(&refused).contains(&format!("imgctl commit {dir} --branch")),
        "{refused}"
    );
    ensure!(laptop.json(&["ls"])?["lease"].is_null(), "nothing is held");
    ensure!(laptop.status("vm")?["state"] == "orphan");
    laptop.json(&["commit", dir, "--branch", "mine"])?;
    ensure!(fs::read_to_string(mount.join("mine"))? == "1");
    Ok(())
}

#[test]
fn a_name_of_an_orphan_and_a_leased_checkout_drops_neither() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let orphan = laptop.work().join("vm");
    fs::write(orphan.join("mine"), "1")?;
    let events = events(&laptop)?;
    desktop.json(&["steal", "vm"])?;
    told(&events, "orphan")?;
    laptop.json(&["steal", "vm", "again"])?;
    let leased = laptop.work().join("again");
    fs::write(leased.join("new"), "2")?;

    let refused = laptop.fails(2, &["release", "vm", "--discard"])?;
    let listed = format!(
        "{} (leased), {} (orphan)",
        leased.display(),
        orphan.display()
    );
    ensure!(
        refused["message"]
            .as_str()
            .is_some_and(|message| message.contains(&listed))
            && hint(&refused).contains("imgctl release DIR --discard"),
        "{refused}"
    );
    ensure!(fs::read_to_string(leased.join("new"))? == "2");
    ensure!(fs::read_to_string(orphan.join("mine"))? == "1");
    let refused = laptop.fails(2, &["commit", "again", "--adopt-orphan"])?;
    ensure!(hint(&refused).contains("imgctl commit "), "{refused}");

    // The orphan is meant: it waits for the lease of the other, and gets it once that is given back.
    laptop.fails(4, &["commit", "vm", "--adopt-orphan"])?;
    let dropped = laptop.imgctl(&["release", "again", "--discard"])?;
    ensure!(
        dropped.ok() && dropped.stdout.contains(&leased.display().to_string()),
        "{dropped}"
    );
    // A name of which only one is left says which.
    laptop.json(&["commit", "vm", "--adopt-orphan"])?;
    ensure!(laptop.status("vm")?["state"] == "leased");
    ensure!(fs::read_to_string(orphan.join("mine"))? == "1");
    Ok(())
}

#[test]
fn a_read_only_checkout_keeps_the_lease_of_a_late_commit_if_asked() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = desktop.checkout("vm", &["--read-only"])?;
    fs::write(mount.join("private"), "mine")?;
    let refused = desktop.fails(4, &["commit", "vm", "--keep"])?;
    ensure!(refused["holder"] == "laptop", "{refused}");
    ensure!(desktop.status("vm")?["state"] == "read-only");
    ensure!(laptop.json(&["ls"])?["lease"]["device"] == "laptop");
    laptop.json(&["release", "vm"])?;
    let committed = desktop.json(&["commit", "vm", "--keep"])?;
    ensure!(committed["seq"] == 2, "{committed}");
    ensure!(desktop.status("vm")?["state"] == "leased");
    ensure!(laptop.json(&["ls"])?["lease"]["device"] == "desktop");
    fs::write(mount.join("more"), "mine")?;
    let committed = desktop.json(&["commit", "vm"])?;
    ensure!(committed["seq"] == 3, "{committed}");
    desktop.json(&["release", "vm"])?;
    ensure!(laptop.json(&["ls"])?["lease"].is_null());
    Ok(())
}

#[test]
fn what_is_staged_ends_with_a_commit_or_a_discard() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    let branch =
        |name: &str, staged: &str| ["branch", "vm", name, "--at", staged].map(str::to_owned);
    let mut names = 0..;
    let mut at = |staged: &str| {
        let args = branch(&format!("try-{}", names.next().unwrap_or(0)), staged);
        desktop.imgctl(&args.each_ref().map(String::as_str))
    };
    fs::write(mount.join("one"), "1")?;
    let staged = stage(&laptop, "vm")?;
    ensure!(at(&staged)?.ok());
    laptop.json(&["commit", "vm"])?;
    let gone = at(&staged)?;
    ensure!(gone.code == Some(3), "{gone}");

    // Dropped by its owner, while it has the lease and after it has lost it.
    fs::write(mount.join("two"), "2")?;
    let staged = stage(&laptop, "vm")?;
    ensure!(at(&staged)?.ok());
    laptop.json(&["release", "vm", "--discard"])?;
    let gone = at(&staged)?;
    ensure!(gone.code == Some(3), "{gone}");
    let mount = laptop.checkout("vm", &[])?;
    fs::write(mount.join("three"), "3")?;
    let staged = stage(&laptop, "vm")?;
    let events = events(&laptop)?;
    desktop.json(&["steal", "vm"])?;
    told(&events, "orphan")?;
    ensure!(at(&staged)?.ok());
    laptop.json(&["release", "vm", "--discard"])?;
    let gone = at(&staged)?;
    ensure!(gone.code == Some(3), "{gone}");
    Ok(())
}

#[test]
fn a_release_that_waited_for_the_home_ends_on_the_branch_of_a_thief() -> Result<()> {
    let (mut world, mut laptop, desktop) = held()?;
    fs::write(laptop.work().join("vm/staged"), "at home")?;
    stage(&laptop, "vm")?;
    fs::write(laptop.work().join("vm/rest"), "only here")?;
    world.home.stop()?;
    laptop.fails(6, &["release", "vm"])?;
    laptop.kill()?;
    world.home.start()?;
    e2e::wait_for("the steal", || {
        Ok(desktop
            .imgctl(&["steal", "vm", "--branch=kept"])?
            .ok()
            .then_some(()))
    })?;
    laptop.restart()?;
    e2e::wait_for("the release to end", || {
        let status = laptop.json(&["status"])?;
        Ok(status.as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    let branch = desktop.checkout("kept", &[])?;
    ensure!(fs::read_to_string(branch.join("staged"))? == "at home");
    ensure!(fs::read_to_string(branch.join("rest"))? == "only here");
    Ok(())
}

#[test]
fn a_release_that_lost_its_lease_is_called_off_and_says_so() -> Result<()> {
    let (mut world, mut laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("rest"), "only here")?;
    world.home.stop()?;
    laptop.fails(6, &["release", "vm"])?;
    laptop.kill()?;
    world.home.start()?;
    e2e::wait_for("the steal", || {
        Ok(desktop.imgctl(&["steal", "vm"])?.ok().then_some(()))
    })?;
    laptop.restart()?;
    let status = e2e::wait_for("the release to be called off", || {
        let status = laptop.json(&["status"])?;
        Ok((status["state"] == "orphan" && status["releasing"] == false).then_some(status))
    })?;
    ensure!(
        status["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("could not be released")),
        "{status}"
    );
    ensure!(fs::read_to_string(mount.join("rest"))? == "only here");
    let refused = laptop.fails(5, &["release", "vm"])?;
    ensure!(hint(&refused).contains("--branch"), "{refused}");
    laptop.json(&["commit", "vm", "--branch", "mine"])?;
    laptop.json(&["release", "mine"])?;
    let branch = desktop.checkout("mine", &[])?;
    ensure!(fs::read_to_string(branch.join("rest"))? == "only here");
    Ok(())
}

#[test]
fn a_person_who_releases_while_somebody_steals_is_answered() -> Result<()> {
    for branch in [false, true] {
        let (_world, laptop, desktop) = held()?;
        let mount = laptop.work().join("vm");
        fs::write(mount.join("rest"), "only here")?;
        fs::File::open(mount.join("rest"))?.sync_all()?;
        let dir = mount.to_str().context("a path in UTF-8")?;
        // The daemon hears of both at once.
        laptop.signal(Signal::STOP)?;
        let steal = ["steal", "vm", "--branch=kept"];
        let stolen = desktop.json(&steal[..2 + usize::from(branch)]);
        let released = std::thread::scope(|scope| {
            let release = scope.spawn(|| laptop.imgctl(&["release", dir, "--json"]));
            laptop.signal(Signal::CONT)?;
            release.join().expect("no panic")
        })?;
        stolen?;
        if branch {
            ensure!(released.ok(), "{released}");
            let kept = desktop.checkout("kept", &[])?;
            ensure!(fs::read_to_string(kept.join("rest"))? == "only here");
        } else {
            ensure!(released.code == Some(5), "{released}");
            ensure!(released.stdout.contains("--branch"), "{released}");
            ensure!(fs::read_to_string(mount.join("rest"))? == "only here");
            laptop.json(&["commit", dir, "--branch", "mine"])?;
        }
    }
    Ok(())
}

#[test]
fn a_deleted_image_is_remembered_while_the_home_is_away() -> Result<()> {
    let (mut world, mut laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("rest"), "only here")?;
    fs::File::open(mount.join("rest"))?.sync_all()?;
    let events = events(&laptop)?;
    desktop.json(&["delete", "vm", "--force"])?;
    told(&events, "orphan")?;
    e2e::wait_for("the laptop to know", || {
        Ok((laptop.status("vm")?["image_deleted"] == true).then_some(()))
    })?;
    world.home.stop()?;
    laptop.kill()?;
    laptop.restart()?;
    let status = laptop.status("vm")?;
    ensure!(
        status["image_deleted"] == true && status["state"] == "orphan",
        "{status}"
    );
    let refused = laptop.fails(5, &["commit", "vm"])?;
    ensure!(!hint(&refused).contains("--adopt-orphan"), "{refused}");
    // Of a new image with the name nothing is said.
    world.home.start()?;
    e2e::wait_for("a new image", || {
        Ok(desktop.imgctl(&["create", "vm"])?.ok().then_some(()))
    })?;
    let dir = mount.to_str().context("a path in UTF-8")?;
    let refused = laptop.fails(5, &["commit", dir, "--adopt-orphan"])?;
    ensure!(
        hint(&refused).contains(&format!("imgctl commit {dir} --branch")),
        "{refused}"
    );
    Ok(())
}

/// Random bytes, which no compression makes smaller.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    content
}

#[test]
fn reads_that_another_machine_would_have_to_answer_fail_at_once() -> Result<()> {
    let (mut world, laptop, desktop) = held()?;
    fs::write(laptop.work().join("vm/big"), noise(1 << 20))?;
    laptop.json(&["release", "vm"])?;
    let mount = desktop.checkout("vm", &[])?;
    world.home.stop()?;
    let _impostor = world.home.impostor(&world.path("impostor"))?;
    e2e::wait_for("the desktop to notice", || {
        let outcome = desktop.imgctl(&["hydrate", "vm", "--json"])?;
        Ok(outcome
            .stdout
            .contains("does not answer this device")
            .then_some(()))
    })?;
    let began = Instant::now();
    ensure!(fs::read(mount.join("big")).is_err());
    ensure!(began.elapsed() < Duration::from_secs(15), "waited in vain");
    Ok(())
}

/// Changes a byte of everything large that a home has stored.
pub(crate) fn damage(world: &World) -> Result<()> {
    let mut damaged = 0;
    let mut folders = vec![
        world.home.dir().join("spool"),
        world.home.dir().join("objects"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.metadata()?.len() > DAMAGED_AT {
                let file = fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(entry.path())?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, DAMAGED_AT)?;
                file.write_all_at(&[byte[0] ^ 1], DAMAGED_AT)?;
                damaged += 1;
            }
        }
    }
    ensure!(damaged > 0, "nothing large is stored");
    Ok(())
}

/// Within the blocks of the large file, far from the small objects around them.
const DAMAGED_AT: u64 = 300_000;

#[test]
fn what_is_lost_here_and_at_home_is_named_and_left_out_if_asked() -> Result<()> {
    let (mut world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::create_dir(mount.join("disks"))?;
    fs::write(mount.join("disks/big"), noise(1 << 20))?;
    fs::hard_link(mount.join("disks/big"), mount.join("link"))?;
    laptop.json(&["release", "vm"])?;
    world.home.stop()?;
    damage(&world)?;
    world.home.start()?;
    let mount = e2e::wait_for("a checkout", || {
        let opened = desktop.imgctl(&["checkout", "vm"])?;
        Ok(opened.ok().then(|| desktop.work().join("vm")))
    })?;
    ensure!(fs::read(mount.join("disks/big")).is_err(), "it is lost");

    // As long as nothing names it anew it is in nobody's way.
    fs::write(mount.join("whole"), "2")?;
    let mut big = fs::OpenOptions::new()
        .append(true)
        .open(mount.join("disks/big"))?;
    big.write_all(b"more")?;
    drop(big);
    let refused = desktop.fails(7, &["commit", "vm"])?;
    let lost = refused["lost"].as_array().cloned().unwrap_or_default();
    let paths: Vec<_> = lost
        .iter()
        .filter_map(|file| file["path"].as_str())
        .collect();
    ensure!(
        paths == ["/link", "/disks/big"] || paths == ["/disks/big", "/link"],
        "{refused}"
    );
    ensure!(
        refused["message"]
            .as_str()
            .is_some_and(|message| message.contains("/disks/big"))
            && hint(&refused).contains("--branch NEW --partial"),
        "{refused}"
    );
    desktop.fails(7, &["commit", "vm", "--branch", "saved"])?;
    desktop.fails(7, &["release", "vm"])?;
    ensure!(
        fs::read_to_string(mount.join("whole"))? == "2",
        "mounted again"
    );
    ensure!(fs::metadata(mount.join("disks/big"))?.len() == (1 << 20) + 4);

    let saved = desktop.json(&["commit", "vm", "--branch", "saved", "--partial"])?;
    let left_out = saved["left_out"].as_array().map_or(0, Vec::len);
    ensure!(
        left_out == 2 && saved["branch"]["name"] == "saved",
        "{saved}"
    );
    let status = desktop.status("saved")?;
    ensure!(
        status["state"] == "leased" && status["changed"] == false,
        "{status}"
    );
    for name in ["disks/big", "link"] {
        ensure!(!mount.join(name).exists(), "{name} is still shown");
    }
    ensure!(mount.join("disks").is_dir());
    fs::write(mount.join("later"), "3")?;
    desktop.json(&["release", "saved"])?;
    let branch = laptop.checkout("saved", &[])?;
    for (name, content) in [("first", "1"), ("whole", "2"), ("later", "3")] {
        ensure!(fs::read_to_string(branch.join(name))? == content, "{name}");
    }
    ensure!(!branch.join("link").exists());
    Ok(())
}

#[test]
fn a_late_commit_whose_daemon_was_killed_is_made_by_the_next() -> Result<()> {
    let (_world, mut laptop, desktop) = held()?;
    laptop.json(&["release", "vm"])?;
    for round in 0..8_u32 {
        let dir = laptop.work().join(format!("late-{round}"));
        let dir = dir.to_str().context("a path in UTF-8")?.to_owned();
        laptop.json(&["checkout", "vm", &dir, "--read-only"])?;
        let name = format!("late-{round}");
        let path = std::path::Path::new(&dir).join(&name);
        fs::write(&path, "kept")?;
        fs::File::open(&path)?.sync_all()?;
        laptop.kill_during(
            &["commit", &dir],
            Duration::from_millis(u64::from(round) * 9),
        )?;
        laptop.json(&["commit", &dir])?;
        // Nobody has the lease then, and the commit is what the next one gets.
        let got = desktop.checkout("vm", &[])?;
        ensure!(fs::read_to_string(got.join(&name))? == "kept", "{name}");
        desktop.json(&["release", "vm"])?;
        laptop.json(&["release", &dir, "--discard"])?;
    }
    Ok(())
}
