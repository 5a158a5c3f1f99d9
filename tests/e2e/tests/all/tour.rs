//! The main job: one home, two devices, one image that moves between them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::{World, tree};

/// A tree with every kind of entry and every edge of the format's size classes.
pub(crate) fn varied_tree(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("deep/er/still"))?;
    fs::create_dir(root.join("empty"))?;
    for len in [0, 1, 2_047, 2_048, 2_049, 65_535, 65_536, 65_537, 300_000] {
        let mut content = vec![0; len];
        for (place, byte) in content.iter_mut().enumerate() {
            *byte = (place.wrapping_mul(2_654_435_761) >> 7) as u8;
        }
        fs::write(root.join(format!("deep/{len}")), content)?;
    }
    fs::write(root.join("zeros"), vec![0; 200_000])?;
    let sparse = fs::File::create(root.join("sparse"))?;
    sparse.set_len(10 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 5 << 20)?;
    fs::write(root.join("deep/er/umlaut-\u{e4}"), "text")?;
    fs::hard_link(root.join("deep/er/umlaut-\u{e4}"), root.join("linked"))?;
    std::os::unix::fs::symlink("../nowhere", root.join("deep/dangling"))?;
    let script = root.join("script");
    fs::write(&script, "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::chown(&script, Some(1234), Some(4321))?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )?;
    let name = "user.comment";
    for (path, len) in [("zeros", 5), ("deep/er", 3_000)] {
        let value = vec![b'v'; len];
        rustix::fs::setxattr(
            root.join(path),
            name,
            &value,
            rustix::fs::XattrFlags::empty(),
        )?;
    }
    Ok(())
}

#[test]
fn an_image_moves_between_two_devices() -> Result<()> {
    let world = World::new()?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    varied_tree(&source)?;
    let a = world.founder("laptop")?;

    let created = a.json(&["create", "session", "--from", source.to_str().unwrap()])?;
    ensure!(
        created["skipped"].as_array().is_some_and(Vec::is_empty),
        "{created}"
    );
    let listed = a.json(&["ls"])?;
    ensure!(
        listed["name"] == "session" && listed["seq"] == 0,
        "{listed}"
    );

    let mount = a.checkout("session", &[])?;
    tree::assert_equal(&source, &mount)?;

    for root in [&source, &mount] {
        fs::write(root.join("deep/65536"), "rewritten")?;
        fs::rename(root.join("zeros"), root.join("empty/zeros"))?;
        fs::remove_file(root.join("deep/1"))?;
        let big = fs::OpenOptions::new()
            .write(true)
            .open(root.join("deep/300000"))?;
        std::os::unix::fs::FileExt::write_all_at(&big, b"patched", 123_456)?;
        big.set_len(250_000)?;
    }
    let copied = std::process::Command::new("cp")
        .args(["-a", "--no-preserve=links"])
        .arg(mount.join("deep"))
        .arg(mount.join("copy"))
        .status()?;
    ensure!(copied.success());
    let checkpoint = a.json(&["checkpoint", "session", "-m", "half way"])?;
    ensure!(checkpoint["freeze_us"].is_u64(), "{checkpoint}");
    let committed = a.json(&["commit", "session", "-m", "first day"])?;
    ensure!(committed["seq"] == 1, "{committed}");
    fs::write(mount.join("last"), "words")?;
    let on_a = world.path("on-a");
    let kept = std::process::Command::new("cp")
        .arg("-a")
        .args([&mount, &on_a])
        .status()?;
    ensure!(kept.success());
    a.json(&["release", "session"])?;
    ensure!(!mount.join("last").exists(), "released, so not mounted");

    let b = world.joined("desktop", &a)?;
    let mount = b.checkout("session", &[])?;
    let entries = tree::assert_equal(&on_a, &mount)?;
    ensure!(entries > 20);
    let status = b.status("session")?;
    ensure!(status["state"] == "leased", "{status}");

    let log = b.json(&["log", "session"])?;
    let log = log.as_array().cloned().unwrap_or_default();
    ensure!(log.len() == 3, "{log:?}");
    ensure!(
        log[1]["message"] == "first day" && log[1]["device"] == "laptop",
        "{log:?}"
    );
    b.json(&["release", "session"])?;

    let exported = world.path("exported");
    a.json(&["export", "session", exported.to_str().unwrap()])?;
    tree::assert_equal(&on_a, &exported)?;
    Ok(())
}

#[test]
fn only_what_is_touched_is_fetched() -> Result<()> {
    let world = World::new()?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    for n in 0..200u32 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&n.to_le_bytes());
        let mut content = vec![0; 100_000];
        hasher.finalize_xof().fill(&mut content);
        fs::write(source.join(format!("file-{n}")), content)?;
    }
    let a = world.founder("a")?;
    a.json(&["create", "big", "--from", source.to_str().unwrap()])?;
    let b = world.joined("b", &a)?;
    let mount = b.checkout("big", &[])?;
    let names = fs::read_dir(&mount)?.count();
    ensure!(names == 200);
    let fetched = b.status("big")?["fetched_bytes"]
        .as_u64()
        .unwrap_or(u64::MAX);
    ensure!(
        fetched < 400_000,
        "a listing fetched {fetched} bytes of 20 MB"
    );
    ensure!(fs::read(mount.join("file-7"))? == fs::read(source.join("file-7"))?);
    let fetched = b.status("big")?["fetched_bytes"]
        .as_u64()
        .unwrap_or(u64::MAX);
    ensure!(
        fetched < 900_000,
        "one file of 100 KB fetched {fetched} bytes of 20 MB"
    );
    Ok(())
}

#[test]
fn a_second_device_is_told_who_holds_the_lease() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    a.checkout("vm", &[])?;
    let b = world.joined("b", &a)?;
    let refused = b.fails(4, &["checkout", "vm"])?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(message.contains("vm") && message.contains('a'), "{refused}");

    let read_only = b.checkout("vm", &["--read-only"])?;
    fs::write(read_only.join("private"), "mine")?;
    let a_mount = a.work().join("vm");
    fs::write(a_mount.join("shared"), "ours")?;
    a.json(&["commit", "vm"])?;
    ensure!(
        !read_only.join("shared").exists(),
        "a read-only checkout does not move"
    );
    ensure!(!a_mount.join("private").exists());
    b.json(&["release", "vm", "--discard"])?;
    a.json(&["release", "vm"])?;
    let mount = b.checkout("vm", &[])?;
    ensure!(fs::read_to_string(mount.join("shared"))? == "ours");
    ensure!(mount.join("shared").metadata()?.nlink() == 1);
    Ok(())
}

#[test]
fn a_device_that_stands_still_loses_its_lease_and_nothing_else() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    let b = world.joined("b", &a)?;
    a.json(&["create", "vm"])?;
    a.fails(2, &["checkout", "vm", "--lease", "9s"])?;
    let lost = a.checkout("vm", &["--lease", "10s"])?;
    fs::write(lost.join("work"), "of a")?;
    a.signal(rustix::process::Signal::STOP)?;
    let taken = e2e::wait_for("the lease to lapse", || {
        let outcome = b.imgctl(&["checkout", "vm"])?;
        ensure!(matches!(outcome.code, Some(0 | 4)), "{outcome}");
        Ok(outcome.ok().then(|| b.work().join("vm")))
    });
    a.signal(rustix::process::Signal::CONT)?;
    let taken = taken?;
    e2e::wait_for("the loser to hear of it", || {
        Ok((a.status("vm")?["state"] == "orphan").then_some(()))
    })?;
    fs::write(taken.join("new"), "of b")?;
    b.json(&["commit", "vm"])?;
    a.fails(5, &["commit", "vm"])?;
    a.fails(5, &["release", "vm"])?;
    fs::write(lost.join("more"), "of a")?;
    ensure!(fs::read_to_string(lost.join("work"))? == "of a");
    ensure!(!lost.join("new").exists());
    a.json(&["release", "vm", "--discard"])?;
    Ok(())
}

#[test]
fn an_open_checkout_gets_the_lease_that_is_asked_for() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    a.checkout("vm", &[])?;
    let before = a.status("vm")?["lease"].clone();
    let renewed = a.json(&["checkout", "vm", "--offline", "30d"])?;
    ensure!(
        renewed["lease"]["mode"] == "offline"
            && renewed["lease"]["epoch"] == before["epoch"]
            && renewed["lease"]["until"].as_str() > before["until"].as_str(),
        "{before} {renewed}"
    );
    Ok(())
}

#[test]
fn what_is_checked_out_is_deleted_by_force_only_and_not_lost() -> Result<()> {
    let world = World::new()?;
    let mut a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    fs::write(mount.join("work"), "precious")?;
    let refused = a.fails(2, &["delete", "vm"])?;
    ensure!(refused["error"] == "checked_out", "{refused}");
    ensure!(a.json(&["ls"])?["name"] == "vm", "it is still there");
    a.json(&["delete", "vm", "--force"])?;
    let status = a.status("vm")?;
    ensure!(
        status["state"] == "orphan" && status["image_deleted"] == true,
        "{status}"
    );
    a.fails(5, &["commit", "vm"])?;

    // Another image of that name is another image.
    a.json(&["create", "vm"])?;
    a.fails(2, &["checkout", "vm"])?;
    a.json(&["checkout", "vm", "other"])?;
    ensure!(a.status("vm")?["state"] == "leased");
    ensure!(a.status("./vm")?["state"] == "orphan");
    fs::write(a.work().join("other/new"), "new")?;
    a.json(&["commit", "vm"])?;
    a.json(&["release", "other"])?;
    ensure!(
        a.json(&["release", "other"])?["already"] == true,
        "done already"
    );

    a.json(&["checkpoint", "./vm"])?;
    a.kill()?;
    a.restart()?;
    ensure!(fs::read_to_string(mount.join("work"))? == "precious");
    fs::write(mount.join("work"), "still precious")?;
    a.fails(5, &["release", "./vm"])?;
    a.json(&["release", "./vm", "--discard"])?;
    ensure!(a.json(&["ls"])?["name"] == "vm", "the new one stays");
    Ok(())
}

#[test]
fn nothing_changed_means_no_commit() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "still"])?;
    let mount = a.checkout("still", &[])?;
    ensure!(fs::read_dir(&mount)?.count() == 0);
    a.json(&["release", "still"])?;
    let log = a.json(&["log", "still"])?;
    ensure!(log["seq"] == 0, "{log}");
    Ok(())
}

#[test]
fn work_goes_on_and_is_committed_while_the_home_was_away() -> Result<()> {
    let mut world = World::new()?;
    let mut a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    fs::write(mount.join("before"), "1")?;
    a.json(&["commit", "vm"])?;
    a.json(&["ls"])?;
    world.home.kill()?;
    // A home that vanished without a word is not waited for until its connection is over.
    let asked = std::time::Instant::now();
    ensure!(a.json(&["ls"])?["stale"] == true);
    ensure!(asked.elapsed() < std::time::Duration::from_secs(15));
    let log = a.json(&["log", "vm"])?;
    ensure!(log[0]["seq"] == 1 && log[0]["stale"] == true, "{log}");
    fs::write(mount.join("away"), "2")?;
    let asked = std::time::Instant::now();
    let waits = a.fails(6, &["commit", "vm", "-m", "while away"])?;
    ensure!(waits.to_string().contains("finish by itself"), "{waits}");
    ensure!(
        asked.elapsed() < std::time::Duration::from_secs(6),
        "told soon"
    );
    // What was promised is kept by the next daemon too.
    a.kill()?;
    a.restart()?;
    ensure!(fs::read_to_string(mount.join("away"))? == "2");
    ensure!(fs::read_to_string(mount.join("before"))? == "1");
    a.json(&["checkpoint", "vm"])?;
    a.fails(6, &["release", "vm"])?;
    world.home.start()?;
    e2e::wait_for("the release to finish by itself", || {
        let images = a.json(&["ls"])?;
        Ok((images["seq"] == 2 && images["lease"].is_null()).then_some(()))
    })?;
    let log = a.json(&["log", "vm"])?;
    ensure!(log[0]["message"] == "while away", "{log}");
    let mount = a.checkout("vm", &[])?;
    ensure!(fs::read_to_string(mount.join("away"))? == "2");
    Ok(())
}
