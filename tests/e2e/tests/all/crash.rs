//! `kill -9` at any moment: nothing acknowledged is missing and work goes on by itself.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::World;

use crate::scene::moment;

/// Kills per program.
const KILLS: u32 = 20;
/// What an operation takes.
const LONGEST: Duration = Duration::from_millis(256);

/// Appends numbered lines, each synced before it counts as written, until the mount fails.
fn append_until_it_fails(path: &Path, first: u64) -> u64 {
    let Ok(mut file) = fs::OpenOptions::new().create(true).append(true).open(path) else {
        return first;
    };
    let mut next = first;
    while writeln!(file, "{next}")
        .and_then(|()| file.sync_data())
        .is_ok()
    {
        next += 1;
    }
    next
}

fn lines(path: &Path) -> Result<Vec<u64>> {
    let text = fs::read_to_string(path)?;
    Ok(text.lines().map(str::parse).collect::<Result<_, _>>()?)
}

#[test]
fn a_killed_daemon_has_lost_nothing_that_was_synced() -> Result<()> {
    let world = World::new()?;
    let mut a = world.founder("a")?;
    a.json(&["create", "log"])?;
    let mount = a.checkout("log", &["--lease", "10m"])?;
    let epoch = a.status("log")?["lease"]["epoch"].clone();
    let path = mount.join("lines");
    let mut synced = 0;
    for round in 0..KILLS {
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || append_until_it_fails(&path, synced))
        };
        if round % 3 == 0 {
            // A checkpoint and its stream are under way when the daemon dies.
            a.json(&["checkpoint", "log"])?;
        }
        std::thread::sleep(moment(round, LONGEST));
        a.kill()?;
        let acknowledged = writer.join().expect("the writer does not panic");
        a.restart()?;
        e2e::wait_for("the mount to be back", || Ok(lines(&path).ok().map(drop)))?;
        let found = lines(&path)?;
        ensure!(
            found.len() as u64 >= acknowledged,
            "round {round}: {} lines of {acknowledged}",
            found.len()
        );
        ensure!(
            found.iter().copied().eq(0..found.len() as u64),
            "round {round}: a gap"
        );
        synced = found.len() as u64;
    }
    ensure!(synced > u64::from(KILLS), "only {synced} lines in all");
    let status = a.status("log")?;
    ensure!(
        status["state"] == "leased" && status["lease"]["epoch"] == epoch,
        "{status}"
    );
    a.json(&["release", "log"])?;
    let mount = a.checkout("log", &[])?;
    ensure!(lines(&mount.join("lines"))?.len() as u64 == synced);
    Ok(())
}

#[test]
fn a_killed_home_has_lost_no_commit() -> Result<()> {
    let mut world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "work"])?;
    let mount = a.checkout("work", &[])?;
    for round in 0..KILLS {
        let mut content = vec![0; 2 << 20];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&round.to_le_bytes());
        hasher.finalize_xof().fill(&mut content);
        fs::write(mount.join(format!("round-{round}")), content)?;
        let message = round.to_string();
        let args = ["commit", "work", "-m", &message, "--json"];
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| a.imgctl(&args));
            std::thread::sleep(moment(round, LONGEST));
            world.home.kill()?;
            world.home.start()?;
            let outcome = commit.join().expect("the commit does not panic")?;
            // On a busy machine imgctl may have stopped waiting; the commit goes on by itself.
            ensure!(
                matches!(outcome.code, Some(0 | 6)),
                "round {round}: {outcome}"
            );
            e2e::wait_for("the commit", || {
                let status = a.status("work")?;
                let done = status["checkpoints_local"] == 0 && status["streaming"].is_null();
                Ok((done && status["durable_home"] == status["durable_local"]).then_some(()))
            })
        })?;
    }
    let log = a.json(&["log", "work"])?;
    let log = log.as_array().cloned().unwrap_or_default();
    ensure!(log.len() as u32 == KILLS + 1, "{} commits", log.len());
    for round in 0..KILLS {
        let entry = &log[(KILLS - 1 - round) as usize];
        ensure!(entry["message"] == round.to_string().as_str(), "{entry}");
    }
    let b = world.joined("b", &a)?;
    a.json(&["release", "work"])?;
    let copy = b.checkout("work", &[])?;
    for round in 0..KILLS {
        let bytes = fs::read(copy.join(format!("round-{round}")))?;
        let mut expected = vec![0; 2 << 20];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&round.to_le_bytes());
        hasher.finalize_xof().fill(&mut expected);
        ensure!(bytes == expected, "round {round}");
    }
    Ok(())
}

#[test]
fn a_lease_of_a_checkout_that_is_not_known_here_is_given_back_by_the_next() -> Result<()> {
    let world = World::new()?;
    let mut a = world.founder("a")?;
    a.json(&["create", "box"])?;
    a.stop()?;
    let before = world.path("state-of-before");
    copy_folder(&a.state(), &before)?;
    a.restart()?;
    a.checkout("box", &[])?;
    a.kill()?;
    fs::remove_dir_all(a.state())?;
    copy_folder(&before, &a.state())?;
    a.restart()?;
    let there = a.work().join("anew");
    a.json(&["checkout", "box", &there.display().to_string()])?;
    fs::write(there.join("note"), "goes on")?;
    let commit = a.json(&["commit", "box"])?;
    ensure!(commit["seq"] == 1, "{commit}");
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    let copied = std::process::Command::new("cp")
        .args(["-a", &from, &to])
        .status()?;
    ensure!(copied.success(), "cp -a {from} {to}: {copied}");
    Ok(())
}
