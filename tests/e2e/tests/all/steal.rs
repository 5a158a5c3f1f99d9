//! Taking an image over, and what becomes of the work of who had it.

use std::fs;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::scene::{events, held, moment, stage, told};

/// What a steal, or saving as a branch, takes.
const STEAL: Duration = Duration::from_millis(128);

#[test]
fn a_loser_is_told_keeps_its_work_and_saves_it_as_a_branch() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    let mut open = fs::File::create(mount.join("unsaved"))?;
    open.write_all(b"mine")?;
    let events = events(&laptop)?;

    let stolen = desktop.json(&["steal", "vm", "--reason", "the train leaves"])?;
    ensure!(stolen["takes_from"]["device"] == "laptop", "{stolen}");
    ensure!(
        stolen["state"] == "leased" && stolen["branch"].is_null(),
        "{stolen}"
    );
    let event = told(&events, "orphan")?.event;
    ensure!(
        event["name"] == "vm" && event["rival"] == "desktop",
        "{event}"
    );
    let status = laptop.status("vm")?;
    ensure!(
        status["state"] == "orphan" && status["rival"] == "desktop",
        "{status}"
    );
    let text = laptop.imgctl(&["status", "vm"])?.stdout;
    ensure!(text.contains("desktop has taken it over"), "{text}");

    // The mount goes on, for files that were open too.
    open.write_all(b" still")?;
    drop(open);
    ensure!(fs::read_to_string(mount.join("unsaved"))? == "mine still");
    let theirs = desktop.work().join("vm");
    ensure!(fs::read_to_string(theirs.join("first"))? == "1");
    ensure!(!theirs.join("unsaved").exists());
    fs::write(theirs.join("second"), "2")?;
    desktop.json(&["commit", "vm"])?;

    // What can be done is said, and nothing else is.
    let refused = laptop.fails(5, &["commit", "vm"])?;
    ensure!(
        refused["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("--branch")),
        "{refused}"
    );
    laptop.fails(5, &["release", "vm"])?;
    laptop.fails(4, &["commit", "vm", "--adopt-orphan"])?;

    let saved = laptop.json(&["commit", "vm", "--branch", "vm-mine", "-m", "saved"])?;
    ensure!(
        saved["seq"] == 0 && saved["branch"]["name"] == "vm-mine",
        "{saved}"
    );
    let status = laptop.status("vm-mine")?;
    ensure!(
        status["state"] == "leased" && status["changed"] == false,
        "{status}"
    );
    ensure!(fs::read_to_string(mount.join("unsaved"))? == "mine still");
    fs::write(mount.join("onwards"), "3")?;
    let next = laptop.json(&["commit", "vm-mine"])?;
    ensure!(next["seq"] == 1, "{next}");
    laptop.json(&["release", "vm-mine"])?;

    let branch = desktop.checkout("vm-mine", &[])?;
    ensure!(fs::read_to_string(branch.join("unsaved"))? == "mine still");
    ensure!(fs::read_to_string(branch.join("onwards"))? == "3");
    ensure!(!branch.join("second").exists());
    ensure!(theirs.join("second").exists() && !theirs.join("onwards").exists());
    Ok(())
}

#[test]
fn there_must_be_somebody_to_steal_from() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    // Who holds it has it already.
    laptop.fails(4, &["steal", "vm", "elsewhere"])?;
    // With a name that is taken for the branch nothing is taken over.
    laptop.json(&["create", "other"])?;
    let refused = desktop.fails(2, &["steal", "vm", "--branch=other"])?;
    ensure!(
        refused["message"]
            .as_str()
            .is_some_and(|message| message.contains("other")),
        "{refused}"
    );
    ensure!(laptop.status("vm")?["state"] == "leased");
    laptop.json(&["release", "vm"])?;
    let refused = desktop.fails(2, &["steal", "vm"])?;
    ensure!(
        refused["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("imgctl checkout vm")),
        "{refused}"
    );
    ensure!(
        !desktop.work().join("vm").exists(),
        "nothing is left behind"
    );
    desktop.fails(3, &["steal", "nothing"])?;
    Ok(())
}

#[test]
fn with_a_branch_the_loser_goes_on_there_by_itself() -> Result<()> {
    let (world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("staged"), "at home")?;
    stage(&laptop, "vm")?;
    let mut open = fs::File::create(mount.join("rest"))?;
    open.write_all(b"only")?;
    let events = events(&laptop)?;

    let stolen = desktop.json(&["steal", "vm", "--branch", "--reason", "the train leaves"])?;
    ensure!(stolen["branch"]["name"] == "vm-laptop", "{stolen}");
    let theirs = desktop.work().join("vm");
    ensure!(!theirs.join("staged").exists() && theirs.join("first").exists());

    let event = told(&events, "leased")?.event;
    ensure!(event["name"] == "vm-laptop", "{event}");
    // What was not staged follows without anybody asking, and the mount never stopped.
    open.write_all(b" here")?;
    drop(open);
    e2e::wait_for("the rest to be committed", || {
        let log = laptop.json(&["log", "vm-laptop"])?;
        Ok(log
            .as_array()
            .is_some_and(|log| log.len() > 1)
            .then_some(()))
    })?;
    fs::write(mount.join("more"), "more")?;
    laptop.json(&["release", "vm-laptop"])?;
    let log = laptop.json(&["log", "vm-laptop"])?;
    let first = log
        .as_array()
        .and_then(|log| log.last())
        .cloned()
        .unwrap_or_default();
    ensure!(
        first["kind"] == "branch" && first["device"] == "desktop",
        "{first}"
    );
    ensure!(
        first["message"]
            .as_str()
            .is_some_and(|message| message.ends_with("the train leaves")),
        "{first}"
    );
    ensure!(first["parent_image"]["name"] == "vm", "{first}");

    let branch = desktop.checkout("vm-laptop", &[])?;
    for (name, content) in [
        ("first", "1"),
        ("staged", "at home"),
        ("rest", "only here"),
        ("more", "more"),
    ] {
        ensure!(fs::read_to_string(branch.join(name))? == content, "{name}");
    }
    drop(world);
    Ok(())
}

#[test]
fn a_loser_that_was_away_finds_its_branch_when_it_is_back() -> Result<()> {
    let (_world, mut laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("staged"), "at home")?;
    stage(&laptop, "vm")?;
    fs::write(mount.join("rest"), "only here")?;
    fs::File::open(mount.join("rest"))?.sync_all()?;
    laptop.kill()?;
    desktop.json(&["steal", "vm", "--branch=kept"])?;
    fs::write(desktop.work().join("vm/theirs"), "2")?;
    desktop.json(&["commit", "vm"])?;
    laptop.restart()?;
    e2e::wait_for("the laptop to go on as the branch", || {
        let status = laptop.json(&["status"])?;
        let home = status["durable_home"] == status["durable_local"];
        let settled = status["changed"] == false && home && status["checkpoints_local"] == 0;
        Ok((status["name"] == "kept" && status["state"] == "leased" && settled).then_some(()))
    })?;
    ensure!(fs::read_to_string(mount.join("rest"))? == "only here");
    laptop.json(&["release", "kept"])?;
    let branch = desktop.checkout("kept", &[])?;
    ensure!(fs::read_to_string(branch.join("staged"))? == "at home");
    ensure!(fs::read_to_string(branch.join("rest"))? == "only here");
    ensure!(!branch.join("theirs").exists());
    Ok(())
}

#[test]
fn ten_branches_of_one_image_are_written_at_once() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    laptop.json(&["release", "vm"])?;
    let log = laptop.json(&["log", "vm"])?;
    let (head, first) = (log[0]["commit"].clone(), log[1]["commit"].clone());
    let names: Vec<_> = (0..10).map(|number| format!("try-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let at = if number < 5 { "head" } else { "head~1" };
        let branched = laptop.json(&["branch", "vm", name, "--at", at])?;
        let parent = if number < 5 { &head } else { &first };
        ensure!(branched["parent"] == *parent, "{branched}");
    }
    laptop.fails(2, &["branch", "vm", "try-0"])?;
    laptop.fails(3, &["branch", "vm", "try-10", "--at", "abcdef"])?;
    std::thread::scope(|scope| {
        let device = |number: usize| {
            if number.is_multiple_of(2) {
                &laptop
            } else {
                &desktop
            }
        };
        let works: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let device = device(number);
                scope.spawn(move || -> Result<()> {
                    let mount = device.checkout(name, &[])?;
                    ensure!(mount.join("first").exists() == (number < 5), "{name}");
                    for round in 0..3 {
                        fs::write(mount.join(format!("own-{round}")), name)?;
                        device.json(&["commit", name])?;
                    }
                    device.json(&["release", name])?;
                    Ok(())
                })
            })
            .collect();
        for work in works {
            work.join().expect("no thread panics")?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    for (number, name) in names.iter().enumerate() {
        let device = if number % 2 == 0 { &desktop } else { &laptop };
        let mount = device.checkout(name, &["--read-only"])?;
        for round in 0..3 {
            ensure!(fs::read_to_string(mount.join(format!("own-{round}")))? == *name);
        }
        let log = device.json(&["log", name])?;
        ensure!(log.as_array().is_some_and(|log| log.len() == 4), "{log}");
    }
    ensure!(laptop.json(&["log", "vm"])?[0]["commit"] == head);
    Ok(())
}

#[test]
fn a_read_only_checkout_commits_late_or_branches() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = desktop.checkout("vm", &["--read-only"])?;
    fs::write(mount.join("private"), "mine")?;
    // While somebody holds the lease, and after the head has moved, there is only the branch.
    desktop.fails(4, &["commit", "vm"])?;
    laptop.json(&["release", "vm"])?;
    let committed = desktop.json(&["commit", "vm"])?;
    ensure!(committed["seq"] == 2, "{committed}");
    ensure!(
        laptop.json(&["ls"])?["lease"].is_null(),
        "released in the same step"
    );
    ensure!(desktop.status("vm")?["state"] == "read-only");

    let ours = laptop.checkout("vm", &["--lease", "10m"])?;
    ensure!(fs::read_to_string(ours.join("private"))? == "mine");
    fs::write(ours.join("newer"), "ours")?;
    laptop.json(&["release", "vm"])?;
    fs::write(mount.join("later"), "mine")?;
    let refused = desktop.fails(5, &["commit", "vm"])?;
    ensure!(
        refused["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("--branch")),
        "{refused}"
    );
    ensure!(laptop.json(&["ls"])?["lease"].is_null());
    desktop.json(&["commit", "vm", "--branch", "mine"])?;
    let status = desktop.status("mine")?;
    ensure!(status["state"] == "leased", "{status}");
    desktop.json(&["release", "mine"])?;
    let branch = laptop.checkout("mine", &[])?;
    ensure!(branch.join("later").exists() && !branch.join("newer").exists());
    Ok(())
}

#[test]
fn the_rest_of_a_branch_that_was_taken_too_becomes_another() -> Result<()> {
    let (_world, mut laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("staged"), "at home")?;
    stage(&laptop, "vm")?;
    fs::write(mount.join("rest"), "only here")?;
    fs::File::open(mount.join("rest"))?.sync_all()?;
    laptop.kill()?;
    desktop.json(&["steal", "vm", "--branch=kept"])?;
    desktop.json(&["steal", "kept"])?;
    fs::write(desktop.work().join("kept/theirs"), "2")?;
    desktop.json(&["commit", "kept"])?;
    laptop.restart()?;
    e2e::wait_for("the rest to become a branch", || {
        let status = laptop.json(&["status"])?;
        Ok((status["name"] == "kept-2" && status["state"] == "leased").then_some(()))
    })?;
    // It stands on what the thief had kept.
    let kept = desktop.json(&["log", "kept"])?;
    let rest = laptop.json(&["log", "kept-2"])?;
    // Beside the commits stand checkpoints that are only here.
    let first = |log: &Value| {
        let mut rows = log.as_array().into_iter().flatten();
        rows.find(|row| row["seq"] == 0).unwrap_or(log).clone()
    };
    ensure!(first(&rest)["parent"] == first(&kept)["commit"], "{rest}");
    laptop.json(&["release", "kept-2"])?;
    let rest = desktop.checkout("kept-2", &[])?;
    ensure!(fs::read_to_string(rest.join("staged"))? == "at home");
    ensure!(fs::read_to_string(rest.join("rest"))? == "only here");
    ensure!(!rest.join("theirs").exists());
    Ok(())
}

#[test]
fn an_orphan_is_adopted_while_nothing_was_committed_since() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("mine"), "1")?;
    let events = events(&laptop)?;
    desktop.json(&["steal", "vm"])?;
    told(&events, "orphan")?;
    laptop.fails(4, &["commit", "vm", "--adopt-orphan"])?;
    desktop.json(&["release", "vm"])?;
    laptop.fails(5, &["commit", "vm"])?;
    let committed = laptop.json(&["commit", "vm", "--adopt-orphan"])?;
    ensure!(committed["seq"] == 2, "{committed}");
    ensure!(laptop.status("vm")?["state"] == "leased");

    // And dropped, if that is what its owner wants; the next checkout is the head.
    desktop.json(&["steal", "vm"])?;
    told(&events, "orphan")?;
    fs::write(mount.join("dropped"), "2")?;
    laptop.json(&["release", "vm", "--discard"])?;
    ensure!(!mount.join("mine").exists());
    ensure!(desktop.work().join("vm/mine").exists());
    Ok(())
}

#[test]
fn a_staged_checkpoint_is_branched_and_a_commit_does_not_wait_for_it() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("staged"), "at home")?;
    let staged = stage(&laptop, "vm")?;
    fs::write(mount.join("later"), "here")?;
    let head = laptop.json(&["ls"])?["head"].clone();
    let branched = desktop.json(&["branch", "vm", "try", "--at", &staged[..12]])?;
    ensure!(branched["parent"] == head, "{branched}");
    let branch = desktop.checkout("try", &[])?;
    ensure!(fs::read_to_string(branch.join("staged"))? == "at home");
    ensure!(!branch.join("later").exists());

    let mut content = vec![0; 8 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    fs::write(mount.join("large"), content)?;
    laptop.json(&["checkpoint", "vm"])?;
    fs::write(mount.join("small"), "3")?;
    laptop.json(&["commit", "vm"])?;
    let status = laptop.status("vm")?;
    ensure!(
        status["staged"].is_null() && status["changed"] == false,
        "{status}"
    );
    Ok(())
}

#[test]
fn whoever_is_killed_while_it_saves_its_work_has_saved_it() -> Result<()> {
    let (_world, mut laptop, desktop) = held()?;
    let events = events(&laptop)?;
    desktop.json(&["steal", "vm"])?;
    told(&events, "orphan")?;
    drop(events);
    let mount = laptop.work().join("vm");
    for round in 0..8 {
        let name = format!("save-{round}");
        fs::write(mount.join(&name), "kept")?;
        fs::File::open(mount.join(&name))?.sync_all()?;
        let dir = mount.to_str().context("a path in UTF-8")?;
        laptop.kill_during(&["commit", dir, "--branch", &name], moment(round, STEAL))?;
        e2e::wait_for("the work to be saved", || {
            let status = laptop.status(dir)?;
            if status["name"] != name.as_str() {
                // Asked again as a person would; the daemon may be faster.
                laptop.imgctl(&["commit", dir, "--branch", &name])?;
                return Ok(None);
            }
            Ok((status["state"] == "leased").then_some(()))
        })?;
        ensure!(fs::read_to_string(mount.join(&name))? == "kept");
        laptop.json(&["commit", dir])?;
    }
    // Each branch was left for the next one, and its lease with it.
    e2e::wait_for("the leases to be given back", || {
        let leases = laptop.json(&["leases"])?;
        let all = match &leases {
            Value::Array(all) => all.clone(),
            one => vec![one.clone()],
        };
        let own = all.iter().filter(|lease| lease["device"] == "laptop");
        Ok((own.count() == 1).then_some(()))
    })?;
    let copy = desktop.checkout("save-7", &["--read-only"])?;
    for round in 0..8 {
        ensure!(fs::read_to_string(copy.join(format!("save-{round}")))? == "kept");
    }
    Ok(())
}

#[test]
fn a_thief_that_is_killed_leaves_everything_with_somebody() -> Result<()> {
    let (_world, laptop, mut desktop) = held()?;
    let mount = laptop.work().join("vm");
    for round in 0..8 {
        let name = format!("round-{round}");
        fs::write(mount.join(&name), "kept")?;
        let image = laptop.json(&["status"])?["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let branch = format!("--branch={name}");
        desktop.kill_during(&["steal", &image, &branch], moment(round, STEAL))?;
        // A steal that had not arrived is repeated, and given back, some time after the start.
        e2e::wait_for("the desktop's calls to be answered", || {
            let checks = desktop.imgctl(&["doctor"])?.stdout;
            Ok(checks.contains("ok    calls").then_some(()))
        })?;
        let was_stolen = e2e::wait_for("the desktop to know what it has", || {
            let images = desktop.json(&["ls"])?;
            let images = images
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![images.clone()]);
            if images.iter().any(|image| image["stale"] == true) {
                return Ok(None);
            }
            let branched = images.iter().any(|image| image["name"] == name.as_str());
            let here = desktop.imgctl(&["status", &image])?.ok();
            let lease = images.iter().find(|row| row["name"] == image.as_str());
            let holder = lease.map(|row| row["lease"]["device"].clone());
            Ok(match (branched, holder.as_ref().and_then(Value::as_str)) {
                (true, Some("desktop")) if here => Some(true),
                (true, None) if !here => Some(true),
                (false, Some("laptop")) => Some(false),
                _ => None,
            })
        })?;
        let own = if was_stolen { &name } else { &image };
        e2e::wait_for("the laptop to go on", || {
            let status = laptop.json(&["status"])?;
            Ok((status["name"] == own.as_str() && status["state"] == "leased").then_some(()))
        })?;
        if desktop.imgctl(&["status", &image])?.ok() {
            desktop.json(&["release", &image])?;
        }
    }
    let own = laptop.json(&["status"])?["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    laptop.json(&["release", &own])?;
    let copy = desktop.checkout(&own, &["--read-only"])?;
    for round in 0..8 {
        ensure!(fs::read_to_string(copy.join(format!("round-{round}")))? == "kept");
    }
    Ok(())
}
