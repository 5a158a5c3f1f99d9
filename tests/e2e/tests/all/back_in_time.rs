//! A home that went back in time: noticed at first contact, and two ways on from there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::{Device, Program, World};
use serde_json::Value;

fn imghome(args: &[&str]) -> Result<()> {
    let outcome = Program::new("imghome")?.args(args.iter().copied()).run()?;
    ensure!(outcome.ok(), "imghome {args:?}: {outcome}");
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Makes a backup of the running home.
fn backup(world: &World) -> Result<PathBuf> {
    let to = world.path("backup");
    imghome(&["backup", text(world.home.dir()), text(&to)])?;
    Ok(to)
}

/// Loses the home, and restores it from a backup.
fn restore(world: &mut World, from: &Path) -> Result<()> {
    let dir = world.home.dir().to_owned();
    world.home.stop()?;
    fs::rename(&dir, world.path("lost"))?;
    imghome(&["restore", text(from), text(&dir)])?;
    world.home.start()
}

/// The error of a device that has met the restored home.
fn noticed(device: &Device) -> Result<Value> {
    let what = format!("{} to notice", device.name());
    e2e::wait_for(&what, || {
        let outcome = device.imgctl(&["ls", "--json"])?;
        if outcome.code == Some(7) {
            return Ok(Some(serde_json::from_str(outcome.stdout.trim())?));
        }
        ensure!(outcome.code == Some(6), "not noticed: {outcome}");
        Ok(None)
    })
}

fn commit(device: &Device, image: &str, file: &str) -> Result<Value> {
    fs::write(device.work().join(image).join(file), file)?;
    device.json(&["commit", image, "-m", file])
}

fn heads(device: &Device, image: &str) -> Result<Vec<Value>> {
    let log = device.json(&["log", image])?;
    let log = match log {
        Value::Array(rows) => rows,
        row => vec![row],
    };
    let at_home = log.into_iter().filter(|row| row["home"] == true);
    Ok(at_home.map(|row| row["commit"].clone()).collect())
}

/// Waits until a checkout is in a state.
fn becomes(device: &Device, image: &str, state: &str) -> Result<Value> {
    e2e::wait_for(&format!("{image} to be {state}"), || {
        let status = device.status(image)?;
        Ok((status["state"] == state).then_some(status))
    })
}

/// A home with an image that a laptop holds, one commit of it in a backup.
fn backed_up() -> Result<(World, Device, PathBuf)> {
    let world = World::new()?;
    let laptop = world.founder("laptop")?;
    laptop.json(&["create", "vm"])?;
    laptop.checkout("vm", &[])?;
    commit(&laptop, "vm", "first")?;
    let to = backup(&world)?;
    Ok((world, laptop, to))
}

#[test]
fn what_a_restored_home_lost_is_given_back() -> Result<()> {
    let (mut world, mut laptop, to) = backed_up()?;
    let kept = laptop.json(&["ls"])?["head"].clone();
    let desktop = world.joined("desktop", &laptop)?;
    commit(&laptop, "vm", "second")?;
    let newest = commit(&laptop, "vm", "third")?;
    laptop.json(&["create", "newer"])?;
    laptop.checkout("newer", &[])?;
    let other = commit(&laptop, "newer", "other")?;
    let before = heads(&desktop, "vm")?;
    desktop.json(&["ls"])?;

    restore(&mut world, &to)?;
    let error = noticed(&laptop)?;
    ensure!(error["error"] == "went_back", "{error}");
    for way in ["imgctl home forward", "imgctl home accept-restore"] {
        ensure!(
            error["hint"]
                .as_str()
                .is_some_and(|hint| hint.contains(way)),
            "{error}"
        );
    }
    let images = error["images"].as_array().cloned().unwrap_or_default();
    let of = |name: &str| images.iter().find(|image| image["name"] == name);
    let vm = of("vm").context("vm is named")?;
    ensure!(
        vm["from"]["commit"] == newest["commit"] && vm["from"]["seq"] == 3,
        "{vm}"
    );
    ensure!(vm["to"]["commit"] == kept && vm["to"]["seq"] == 1, "{vm}");
    let newer = of("newer").context("newer is named")?;
    ensure!(
        newer["from"]["commit"] == other["commit"] && newer["to"].is_null(),
        "{newer}"
    );
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("vm went back from commit 3 (") && message.contains("to commit 1 ("),
        "{message}"
    );
    // The device that joined after the backup is unknown there.
    e2e::wait_for("the desktop to hear that it is unknown", || {
        let outcome = desktop.imgctl(&["ls"])?;
        Ok((outcome.code == Some(8)).then_some(()))
    })?;

    // The mount goes on, over a restart as well, and nothing is sent.
    let mount = laptop.work().join("vm");
    fs::write(mount.join("meanwhile"), "4")?;
    laptop.json(&["checkpoint", "vm"])?;
    laptop.fails(7, &["commit", "vm"])?;
    laptop.kill()?;
    laptop.restart()?;
    noticed(&laptop)?;
    ensure!(fs::read_to_string(mount.join("meanwhile"))? == "4");
    ensure!(fs::read_to_string(mount.join("third"))? == "third");

    let forward = laptop.json(&["home", "forward"])?;
    ensure!(forward["lost"] == Value::Array(Vec::new()), "{forward}");
    ensure!(forward["roster"] == 1, "{forward}");
    let given = forward["given"].as_array().cloned().unwrap_or_default();
    let of = |name: &str| given.iter().find(|image| image["name"] == name);
    ensure!(
        of("vm").is_some_and(|vm| vm["commits"] == 2 && vm["commit"] == newest["commit"]),
        "{forward}"
    );
    ensure!(
        of("newer").is_some_and(|newer| newer["commits"] == 2),
        "{forward}"
    );
    // The commit that was asked for meanwhile may be there already.
    ensure!(heads(&laptop, "vm")?.ends_with(&before));

    // Everything goes on: the leases were taken anew by themselves, and the wish of before is fulfilled.
    becomes(&laptop, "vm", "leased")?;
    becomes(&laptop, "newer", "leased")?;
    let after = laptop.json(&["commit", "vm"])?;
    ensure!(after["seq"] == 4, "{after}");
    laptop.json(&["release", "vm"])?;
    // The other device gives back nothing and goes on too.
    noticed(&desktop)?;
    let nothing = desktop.json(&["home", "forward"])?;
    ensure!(nothing["given"] == Value::Array(Vec::new()), "{nothing}");
    let theirs = desktop.checkout("vm", &[])?;
    for name in ["first", "second", "third", "meanwhile"] {
        ensure!(theirs.join(name).exists(), "{name}");
    }
    let again = desktop.json(&["home", "forward"])?;
    ensure!(again["roster"] == 0, "{again}");
    Ok(())
}

#[test]
fn a_restore_is_accepted_and_lost_commits_are_saved_as_branches() -> Result<()> {
    let (mut world, laptop, to) = backed_up()?;
    laptop.json(&["create", "untouched"])?;
    let to = {
        fs::remove_dir_all(&to)?;
        laptop.checkout("untouched", &[])?;
        backup(&world)?
    };
    commit(&laptop, "vm", "second")?;
    fs::write(laptop.work().join("vm/uncommitted"), "mine")?;
    restore(&mut world, &to)?;
    noticed(&laptop)?;
    let accepted = laptop.json(&["home", "accept-restore"])?;
    ensure!(accepted["lost"][0]["name"] == "vm", "{accepted}");
    // What stands on what the home has goes on under a new lease; the other is an orphan.
    becomes(&laptop, "untouched", "leased")?;
    let orphan = becomes(&laptop, "vm", "orphan")?;
    ensure!(orphan["durable_home"].is_null(), "{orphan}");
    let went = commit(&laptop, "untouched", "onwards")?;
    ensure!(went["seq"] == 1, "{went}");
    laptop.fails(5, &["commit", "vm"])?;
    laptop.json(&["commit", "vm", "--branch", "vm-saved"])?;
    laptop.json(&["release", "vm-saved"])?;

    let desktop = world.joined("desktop", &laptop)?;
    let saved = desktop.checkout("vm-saved", &[])?;
    for name in ["first", "second"] {
        ensure!(fs::read_to_string(saved.join(name))? == name);
    }
    ensure!(fs::read_to_string(saved.join("uncommitted"))? == "mine");
    let vm = desktop.checkout("vm", &[])?;
    ensure!(vm.join("first").exists() && !vm.join("second").exists());
    // It stays accepted.
    laptop.json(&["ls"])?;
    Ok(())
}

#[test]
fn an_old_folder_that_was_copied_back_is_noticed_and_begins_anew() -> Result<()> {
    let (mut world, laptop, _) = backed_up()?;
    let mut desktop = world.joined("desktop", &laptop)?;
    desktop.stop()?;
    let dir = world.home.dir().to_owned();
    world.home.stop()?;
    let copied = Program::any(Path::new("cp"))
        .args(["-a", text(&dir), text(&world.path("copy"))])
        .run()?;
    ensure!(copied.ok(), "{copied}");
    world.home.start()?;
    let newest = e2e::wait_for("the laptop to commit", || {
        fs::write(laptop.work().join("vm/second"), "second")?;
        let outcome = laptop.imgctl(&["commit", "vm", "--json"])?;
        Ok(outcome.ok().then_some(outcome.stdout))
    })?;
    let newest: Value = serde_json::from_str(newest.trim())?;
    let before = laptop.json(&["home", "address"])?["incarnation"].clone();

    world.home.stop()?;
    fs::rename(&dir, world.path("lost"))?;
    fs::rename(world.path("copy"), &dir)?;
    world.home.start()?;
    noticed(&laptop)?;
    // Its receipt proved it: a new incarnation has begun. Whoever saw nothing of what is lost goes on.
    desktop.restart()?;
    desktop.json(&["ls"])?;
    let now = desktop.json(&["home", "address"])?;
    ensure!(now["incarnation"] != before, "{now}");
    // The laptop's lease is void there; its commits come back all the same.
    let forward = laptop.json(&["home", "forward"])?;
    ensure!(
        forward["given"][0]["commit"] == newest["commit"],
        "{forward}"
    );
    becomes(&laptop, "vm", "leased")?;
    let home = laptop.json(&["home", "address"])?;
    ensure!(home["incarnation"] == now["incarnation"], "{home}");
    let next = commit(&laptop, "vm", "third")?;
    ensure!(next["seq"] == 3, "{next}");
    Ok(())
}

#[test]
fn leases_of_a_home_that_lost_no_commit_are_taken_anew_by_themselves() -> Result<()> {
    let (mut world, laptop, to) = backed_up()?;
    let epoch = laptop.status("vm")?["lease"]["epoch"].clone();
    fs::write(laptop.work().join("vm/open"), "yes")?;
    restore(&mut world, &to)?;
    let taken = e2e::wait_for("the lease to be taken anew", || {
        let status = laptop.status("vm")?;
        ensure!(status["state"] != "orphan", "{status}");
        let lease = &status["lease"]["epoch"];
        // It has none in between.
        Ok((lease.is_u64() && *lease != epoch).then_some(status))
    })?;
    ensure!(taken["state"] == "leased", "{taken}");
    let next = laptop.json(&["commit", "vm"])?;
    ensure!(next["seq"] == 2, "{next}");
    Ok(())
}

#[test]
fn what_is_nowhere_is_named_and_given_up_only_by_a_person() -> Result<()> {
    let (mut world, laptop, to) = backed_up()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("big"), vec![7; 3 << 20])?;
    laptop.json(&["commit", "vm"])?;
    // A small disk: what can be fetched again goes.
    laptop.json(&["cache", "--limit", "0"])?;
    restore(&mut world, &to)?;
    noticed(&laptop)?;
    let error = laptop.fails(7, &["home", "forward"])?;
    ensure!(error["lost"][0]["name"] == "vm", "{error}");
    let reason = error["lost"][0]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("not on this device"), "{error}");
    // It has not gone on: a person decides.
    noticed(&laptop)?;
    laptop.json(&["home", "accept-restore"])?;
    becomes(&laptop, "vm", "orphan")?;
    Ok(())
}

/// Images whose line two devices made after the backup: "vm" was in it, "late" was not.
struct TwoMakers {
    world: World,
    laptop: Device,
    desktop: Device,
    backup: PathBuf,
    /// Commits 1 and 2 of "vm": the laptop's and the desktop's.
    vm: [Value; 2],
}

fn two_makers() -> Result<TwoMakers> {
    let world = World::new()?;
    let laptop = world.founder("laptop")?;
    let desktop = world.joined("desktop", &laptop)?;
    laptop.json(&["create", "vm"])?;
    let backup = backup(&world)?;
    laptop.json(&["create", "late"])?;
    let mut vm = Vec::new();
    for image in ["vm", "late"] {
        let mount = laptop.checkout(image, &[])?;
        fs::write(mount.join("big"), vec![7; 3 << 20])?;
        vm.push(commit(&laptop, image, "first")?["commit"].clone());
        laptop.json(&["release", image])?;
        desktop.checkout(image, &[])?;
        vm.push(commit(&desktop, image, "second")?["commit"].clone());
    }
    laptop.json(&["ls"])?;
    desktop.json(&["ls"])?;
    Ok(TwoMakers {
        world,
        laptop,
        desktop,
        backup,
        vm: [vm[0].clone(), vm[1].clone()],
    })
}

/// The row of an image in one of an answer's lists.
fn row<'a>(answer: &'a Value, list: &str, image: &str) -> Result<&'a Value> {
    let mut rows = answer[list].as_array().into_iter().flatten();
    let found = rows.find(|row| row["name"] == image);
    found.with_context(|| format!("no {image} in {list} of {answer}"))
}

fn says(error: &Value, field: &str, text: &str) -> Result<()> {
    let said = error[field]
        .as_str()
        .is_some_and(|said| said.contains(text));
    ensure!(said, "{field} without {text:?}: {error}");
    Ok(())
}

/// The whole line is there again, and both devices go on with it.
fn whole_again(two: &TwoMakers) -> Result<()> {
    let nothing = two.laptop.json(&["home", "forward"])?;
    ensure!(nothing["lost"] == Value::Array(Vec::new()), "{nothing}");
    let line = heads(&two.laptop, "vm")?;
    ensure!(line.len() == 3 && line[0] == two.vm[1] && line[1] == two.vm[0]);
    for image in ["vm", "late"] {
        becomes(&two.desktop, image, "leased")?;
        let next = commit(&two.desktop, image, "third")?;
        ensure!(next["seq"] == 3, "{next}");
        two.desktop.json(&["release", image])?;
        let mount = two.laptop.checkout(image, &[])?;
        ensure!(fs::read(mount.join("big"))? == vec![7; 3 << 20]);
        for name in ["first", "second", "third"] {
            ensure!(fs::read_to_string(mount.join(name))? == name);
        }
    }
    Ok(())
}

#[test]
fn what_two_devices_made_comes_back_from_each_the_maker_of_the_older_first() -> Result<()> {
    let mut two = two_makers()?;
    restore(&mut two.world, &two.backup)?;
    noticed(&two.laptop)?;
    noticed(&two.desktop)?;
    let error = two.laptop.fails(7, &["home", "forward"])?;
    let given = row(&error, "given", "vm")?;
    ensure!(
        given["commits"] == 1 && given["commit"] == two.vm[0],
        "{error}"
    );
    ensure!(row(&error, "given", "late")?["commits"] == 2, "{error}");
    for image in ["vm", "late"] {
        let missing = &row(&error, "lost", image)?["missing"];
        ensure!(
            missing[0]["first"] == 2 && missing[0]["device"] == "desktop",
            "{error}"
        );
    }
    // Whoever reads no JSON is told so too.
    says(
        &error,
        "message",
        "got back 1 commit of vm, up to commit 1 (",
    )?;
    says(&error, "message", "made by desktop is not on this device")?;
    says(
        &error,
        "hint",
        "`imgctl home forward` on desktop, then here",
    )?;
    // Asked again it gives nothing twice.
    let again = two.laptop.fails(7, &["home", "forward"])?;
    ensure!(again["given"] == Value::Array(Vec::new()), "{again}");

    let forward = two.desktop.json(&["home", "forward"])?;
    for image in ["vm", "late"] {
        ensure!(row(&forward, "given", image)?["commits"] == 1, "{forward}");
    }
    whole_again(&two)
}

#[test]
fn what_two_devices_made_comes_back_from_each_the_maker_of_the_newer_first() -> Result<()> {
    let mut two = two_makers()?;
    restore(&mut two.world, &two.backup)?;
    noticed(&two.laptop)?;
    noticed(&two.desktop)?;
    // It has the receipts of all, but never read the big file of commit 1, nor anything of commit 0.
    let error = two.desktop.fails(7, &["home", "forward"])?;
    for (image, first) in [("vm", 1), ("late", 0)] {
        let missing = &row(&error, "lost", image)?["missing"];
        ensure!(
            missing[0]["first"] == first
                && missing[0]["last"] == first
                && missing[0]["device"] == "laptop"
                && missing[1].is_null(),
            "{error}"
        );
    }
    let lost = row(&error, "lost", "vm")?;
    ensure!(lost["missing"][0]["commit"] == two.vm[0], "{error}");
    says(lost, "reason", "made by laptop needs")?;
    says(&error, "hint", "`imgctl home forward` on laptop, then here")?;

    let error = two.laptop.fails(7, &["home", "forward"])?;
    ensure!(row(&error, "given", "vm")?["commits"] == 1, "{error}");
    let forward = two.desktop.json(&["home", "forward"])?;
    ensure!(row(&forward, "given", "vm")?["commits"] == 1, "{forward}");
    whole_again(&two)
}

#[test]
fn a_device_gives_back_what_another_made_if_it_has_all_of_it() -> Result<()> {
    let mut two = two_makers()?;
    for name in ["big", "first"] {
        fs::read(two.desktop.work().join("vm").join(name))?;
    }
    restore(&mut two.world, &two.backup)?;
    noticed(&two.laptop)?;
    noticed(&two.desktop)?;
    let error = two.desktop.fails(7, &["home", "forward"])?;
    ensure!(row(&error, "given", "vm")?["commits"] == 2, "{error}");
    let rest = error["lost"].as_array().map(Vec::len);
    ensure!(
        rest == Some(1) && error["lost"][0]["name"] == "late",
        "{error}"
    );
    two.laptop.fails(7, &["home", "forward"])?;
    two.desktop.json(&["home", "forward"])?;
    whole_again(&two)
}

#[test]
fn a_home_that_moves_is_looked_for_at_its_new_address() -> Result<()> {
    let (mut world, laptop, _) = backed_up()?;
    let old = world.home.address().to_owned();
    let new = std::net::UdpSocket::bind("127.0.0.1:0")?
        .local_addr()?
        .to_string();
    let nowhere = std::net::UdpSocket::bind("127.0.0.1:0")?;
    laptop.fails(2, &["home", "address", "home.example"])?;
    laptop.fails(6, &["home", "address", &nowhere.local_addr()?.to_string()])?;
    ensure!(laptop.json(&["home", "address"])?["address"] == old.as_str());
    world.home.stop()?;
    world.home.start_at(&new)?;
    let moved = laptop.json(&["home", "address", &new])?;
    ensure!(
        moved["address"] == new.as_str() && moved["connected"] == true,
        "{moved}"
    );
    commit(&laptop, "vm", "second")?;
    Ok(())
}
