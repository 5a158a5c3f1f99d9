//! Bad input of every kind: a clear error, the right exit code, nothing left behind.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use e2e::{World, wait_for};

#[test]
fn mistakes_get_the_right_exit_code_and_leave_nothing_behind() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let file = world.path("empty.raw");
    fs::write(&file, "")?;
    let file = file.to_str().context("UTF-8")?;
    let pipe = world.path("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)?;
    let pipe = pipe.to_str().context("UTF-8")?;
    let full = world.path("full");
    fs::create_dir(&full)?;
    fs::write(full.join("x"), "x")?;
    let full = full.to_str().context("UTF-8")?;
    for (code, args) in [
        (2, &["create", "a/b"][..]),
        (2, &["create", "-x"]),
        (2, &["create", ".hidden"]),
        (2, &["create", "vm"]),
        (3, &["create", "new", "--from", "/no/such/path"]),
        (2, &["create", "new", "--from", file, "--as", "disk"]),
        (2, &["create", "new", "--from", pipe]),
        (3, &["checkout", "nothing"]),
        (2, &["checkout", "vm", full]),
        (2, &["checkout", "vm", "--lease", "soon"]),
        (
            3,
            &["checkout", "vm", "--read-only", "--at", "abcdef012345"],
        ),
        (3, &["log", "nothing"]),
        (3, &["commit", "vm"]),
        (3, &["release", "vm"]),
        (2, &["rename", "vm", "a b"]),
        (3, &["delete", "nothing"]),
        (2, &["nonsense"]),
    ] {
        let outcome = a.imgctl(&[args, &["--json"]].concat())?;
        ensure!(
            outcome.code == Some(code),
            "imgctl {args:?} should end with {code}: {outcome}"
        );
    }
    let images = a.json(&["ls"])?;
    ensure!(images["name"] == "vm", "only vm is there: {images}");
    ensure!(
        fs::read_dir(a.work())?.count() == 0,
        "no folder was left behind"
    );
    Ok(())
}

#[test]
fn a_file_that_makes_no_image_is_refused_with_a_way_out() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), vec![7; 200_000])?;
    let made = |args: &[&str]| -> Result<()> {
        let status = std::process::Command::new("tar")
            .current_dir(world.path(""))
            .args(args)
            .status()?;
        ensure!(status.success(), "tar {args:?}");
        Ok(())
    };
    made(&["-czf", "a.tar.gz", "source"])?;
    made(&["-cf", "whole.tar", "source"])?;
    made(&["-cf", "none.tar", "-T", "/dev/null"])?;
    fs::write(world.path("notes.txt"), "no disk\n".repeat(64))?;
    fs::write(world.path("empty"), "")?;
    let whole = fs::read(world.path("whole.tar"))?;
    fs::write(world.path("cut.tar"), &whole[..100_000])?;
    for (code, file, word) in [
        (2, "a.tar.gz", "gzip"),
        (2, "notes.txt", "raw disk"),
        (2, "empty", "size 0"),
        (1, "cut.tar", "cut short"),
    ] {
        let path = world.path(file);
        let refused = a.fails(code, &["create", "new", "--from", path.to_str().unwrap()])?;
        let message = refused["message"].as_str().context("no message")?;
        ensure!(message.contains(word), "{file}: {message}");
        let hint = refused["hint"].as_str().context("no hint")?;
        ensure!(!hint.is_empty(), "{file} has no way out");
    }
    let images = a.json(&["ls"])?;
    ensure!(images.as_array().is_some_and(Vec::is_empty), "{images}");
    // The name is free, and what is what it looks like is taken.
    for (name, file) in [("new", "whole.tar"), ("nothing", "none.tar")] {
        let path = world.path(file);
        a.json(&["create", name, "--from", path.to_str().unwrap()])?;
    }
    let path = world.path("notes.txt");
    a.json(&[
        "create",
        "notes",
        "--from",
        path.to_str().unwrap(),
        "--as",
        "disk",
    ])?;
    Ok(())
}

#[test]
fn an_export_names_what_it_leaves_out() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    drop(std::os::unix::net::UnixListener::bind(
        mount.join("socket"),
    )?);
    fs::write(mount.join("file"), "text")?;
    a.json(&["release", "vm"])?;
    let folder = world.path("folder");
    let whole = a.imgctl(&["export", "vm", folder.to_str().unwrap()])?;
    ensure!(whole.ok(), "{whole}");
    let tar = world.path("vm.tar");
    let partly = a.imgctl(&["export", "vm", tar.to_str().unwrap()])?;
    ensure!(partly.code == Some(1), "{partly}");
    ensure!(partly.stdout.contains("left out: ./socket"), "{partly}");
    ensure!(partly.stderr.contains("1 entry could not"), "{partly}");
    Ok(())
}

#[test]
fn release_is_refused_while_files_are_open_and_names_the_process() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    let open = fs::File::create(mount.join("open"))?;
    let refused = a.fails(1, &["release", "vm"])?;
    let own = std::process::id().to_string();
    ensure!(refused.to_string().contains(&own), "{refused}");
    drop(open);
    a.json(&["release", "vm"])?;
    Ok(())
}

/// Flips a byte in the middle of every stored object file below a folder.
fn corrupt(folder: &std::path::Path, min_len: u64) -> Result<usize> {
    let mut corrupted = 0;
    for path in crate::secrecy::files_below(folder)? {
        let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
        let len = file.metadata()?.len();
        if len < min_len {
            continue;
        }
        for at in (0..len).step_by(4_096) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 0x10], at)?;
        }
        corrupted += 1;
    }
    Ok(corrupted)
}

#[test]
fn a_corrupted_cache_is_fetched_anew() -> Result<()> {
    let world = World::new()?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    crate::tour::varied_tree(&source)?;
    let a = world.founder("a")?;
    a.json(&["create", "vm", "--from", source.to_str().unwrap()])?;
    let mut b = world.joined("b", &a)?;
    let mount = b.checkout("vm", &[])?;
    e2e::tree::assert_equal(&source, &mount)?;
    b.stop()?;
    let objects = b.state().join("objects");
    ensure!(corrupt(&objects, 1_000)? > 0, "there is a cache to corrupt");
    b.restart()?;
    wait_for("the mount to be back", || {
        Ok(fs::read_dir(&mount).ok().map(drop))
    })?;
    e2e::tree::assert_equal(&source, &mount)?;
    Ok(())
}

#[test]
fn a_corrupted_pack_at_home_is_an_error_and_never_a_wrong_byte() -> Result<()> {
    let mut world = World::new()?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), vec![7; 500_000])?;
    for n in 0..50 {
        fs::write(
            source.join(format!("{n}")),
            blake3::hash(&[n]).as_bytes().repeat(4_000),
        )?;
    }
    let a = world.founder("a")?;
    a.json(&["create", "vm", "--from", source.to_str().unwrap()])?;
    world.home.stop()?;
    let before = fs::read_dir(world.home.dir())?.count();
    ensure!(before > 0);
    for folder in ["objects", "spool"] {
        let folder = world.home.dir().join(folder);
        if folder.exists() {
            corrupt(&folder, 100_000)?;
        }
    }
    world.home.start()?;
    let b = world.joined("b", &a)?;
    let outcome = b.imgctl(&["checkout", "vm", "--json"])?;
    if outcome.ok() {
        let mount = b.work().join("vm");
        for n in 0..50 {
            if let Ok(bytes) = fs::read(mount.join(format!("{n}"))) {
                ensure!(
                    bytes == fs::read(source.join(format!("{n}")))?,
                    "a wrong byte in {n}"
                );
            }
        }
    } else {
        ensure!(matches!(outcome.code, Some(1 | 7)), "{outcome}");
    }
    Ok(())
}

#[test]
fn another_home_at_the_same_address_is_not_believed() -> Result<()> {
    let mut world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    fs::write(mount.join("mine"), "1")?;
    world.home.stop()?;
    let impostor = world.home.impostor(&world.path("impostor"))?;
    let refused = wait_for("the device to notice", || {
        let outcome = a.imgctl(&["commit", "vm", "--json"])?;
        Ok((outcome.code == Some(7)).then_some(outcome))
    })?;
    ensure!(refused.stdout.contains("wrong_home"), "{refused}");
    ensure!(
        fs::read_to_string(mount.join("mine"))? == "1",
        "the mount goes on"
    );
    drop(impostor);
    world.home.start()?;
    wait_for("the commit to be taken", || {
        Ok(a.imgctl(&["commit", "vm"])?.ok().then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_lost_file_without_a_name_does_not_keep_the_rest_from_being_saved() -> Result<()> {
    let (mut world, laptop, desktop) = crate::scene::held()?;
    fs::write(laptop.work().join("vm/big"), crate::leases::noise(1 << 20))?;
    laptop.json(&["release", "vm"])?;
    world.home.stop()?;
    crate::leases::damage(&world)?;
    world.home.start()?;
    let mount = wait_for("a checkout", || {
        let opened = desktop.imgctl(&["checkout", "vm"])?;
        Ok(opened.ok().then(|| desktop.work().join("vm")))
    })?;
    let began = std::time::Instant::now();
    ensure!(fs::read(mount.join("big")).is_err(), "it is lost");
    ensure!(began.elapsed().as_secs() < 10, "that is known at once");

    // Its new end is named by the next root, although no name leads to it any more.
    let big = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.join("big"))?;
    big.write_all_at(b"more", 1 << 20)?;
    fs::remove_file(mount.join("big"))?;
    fs::write(mount.join("whole"), "2")?;
    desktop.fails(7, &["commit", "vm", "--branch", "saved"])?;
    let ended = std::sync::atomic::AtomicBool::new(false);
    let saved = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                // A program that writes all the time.
                let _ = fs::write(mount.join("busy"), "now");
                std::thread::yield_now();
            }
        });
        let saved = desktop.imgctl(&["commit", "vm", "--branch", "saved", "--partial", "--json"]);
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        saved
    })?;
    ensure!(saved.ok(), "{saved}");
    let mut byte = [0];
    ensure!(big.read_at(&mut byte, 0).is_err(), "never zeros");
    drop(big);
    desktop.json(&["release", "saved"])?;
    let branch = laptop.checkout("saved", &[])?;
    ensure!(fs::read_to_string(branch.join("whole"))? == "2");
    ensure!(!branch.join("big").exists());
    Ok(())
}
