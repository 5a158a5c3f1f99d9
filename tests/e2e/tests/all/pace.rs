//! Checkpoints that nobody asks for, and what they may take of the link.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Device, Program, World, wait_for};
use serde_json::Value;

/// A home, and a laptop with this configuration that has the empty image `vm` checked out.
fn paced(config: &str) -> Result<(World, Device, PathBuf)> {
    let world = World::new()?;
    let mut laptop = world.founder("laptop")?;
    laptop.stop()?;
    laptop.configure(config)?;
    laptop.restart()?;
    laptop.json(&["create", "vm"])?;
    let mount = laptop.checkout("vm", &[])?;
    Ok((world, laptop, mount))
}

fn log(device: &Device, image: &str) -> Result<Vec<Value>> {
    Ok(match device.json(&["log", image])? {
        Value::Array(rows) => rows,
        row => vec![row],
    })
}

/// How many commits an image has at home.
fn commits(device: &Device, image: &str) -> Result<usize> {
    let rows = log(device, image)?;
    let home = rows.iter().filter(|row| row["home"] == true);
    Ok(home.filter(|row| row["seq"].is_u64()).count())
}

/// Waits for one more commit of an image.
fn commits_again(device: &Device, image: &str, seen: usize) -> Result<()> {
    wait_for("a commit", || {
        Ok((commits(device, image)? > seen).then_some(()))
    })
}

/// Waits until the status says something.
fn status_where(device: &Device, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for(what, || {
        let status = device.status("vm")?;
        Ok(is_so(&status).then_some(status))
    })
}

/// Waits until everything is in a commit.
fn comes_home(device: &Device) -> Result<Value> {
    status_where(device, "everything to be home", |status| {
        status["changed"] == false && status["streaming"].is_null()
    })
}

fn checkpoints_local(status: &Value) -> u64 {
    status["checkpoints_local"].as_u64().unwrap_or(0)
}

#[test]
fn what_a_program_writes_comes_home_by_itself_and_a_crash_costs_one_interval() -> Result<()> {
    let (world, mut laptop, mount) = paced("[checkpoints]\ninterval = \"2s\"\n")?;
    let desktop = world.joined("desktop", &laptop)?;
    let status = laptop.status("vm")?;
    let automatic = &status["checkpoints"];
    ensure!(
        automatic["interval_s"] == 2 && automatic["policy"] == "every",
        "{automatic}"
    );
    ensure!(automatic["next_in_s"].as_u64() <= Some(2), "{automatic}");

    let (newest, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    let written = std::thread::scope(|scope| -> Result<u64> {
        // A program that writes, and is there when the daemon dies.
        scope.spawn(|| {
            for tick in 1.. {
                let opened = fs::File::options()
                    .append(true)
                    .create(true)
                    .open(mount.join("ticks"));
                if opened.and_then(|mut file| writeln!(file, "{tick}")).is_ok() {
                    newest.store(tick, Ordering::SeqCst);
                }
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let mut killed = || {
            commits_again(&laptop, "vm", 1)?;
            // The first that comes may have been cut before, the second is cut when that is home.
            let (written, seen) = (newest.load(Ordering::SeqCst), commits(&laptop, "vm")?);
            commits_again(&laptop, "vm", seen + 1)?;
            laptop.kill()?;
            Ok(written)
        };
        let killed = killed();
        ends.store(true, Ordering::SeqCst);
        killed
    })?;

    let stolen = desktop.json(&["steal", "vm", "--branch", "--reason", "it died"])?;
    ensure!(stolen["state"] == "leased", "{stolen}");
    let ticks = fs::read_to_string(desktop.work().join("vm/ticks"))?;
    let there: u64 = ticks.lines().last().context("no tick")?.parse()?;
    ensure!(
        there >= written,
        "{written} were written before the last interval, {there} came home"
    );
    let rows = log(&desktop, "vm")?;
    let commits: Vec<_> = rows
        .iter()
        .filter(|row| row["seq"].as_u64() > Some(0))
        .collect();
    ensure!(commits.len() >= 3);
    for commit in commits {
        ensure!(
            commit["kind"] == "checkpoint" && commit["automatic"] == true && commit["home"] == true,
            "{commit}"
        );
    }
    Ok(())
}

#[test]
fn nothing_is_cut_where_nothing_changes() -> Result<()> {
    let (_world, laptop, mount) = paced("[checkpoints]\ninterval = \"1s\"\n")?;
    laptop.json(&["create", "busy"])?;
    let busy = laptop.checkout("busy", &[])?;
    fs::write(mount.join("once"), "written")?;
    commits_again(&laptop, "vm", 1)?;
    comes_home(&laptop)?;
    let before = log(&laptop, "vm")?;
    // The other one shows that intervals pass.
    for round in 0..4 {
        let seen = commits(&laptop, "busy")?;
        fs::write(busy.join("round"), format!("{round}"))?;
        commits_again(&laptop, "busy", seen)?;
    }
    ensure!(log(&laptop, "vm")? == before);
    let status = laptop.status("vm")?;
    ensure!(checkpoints_local(&status) == 0, "{status}");
    // What a person says about the state that came home by itself is history too.
    let said = laptop.json(&["commit", "vm", "-m", "as it should be"])?;
    ensure!(said["unchanged"] == false && said["seq"] == 2, "{said}");
    let again = laptop.json(&["commit", "vm", "-m", "as it should be"])?;
    ensure!(again["unchanged"] == true, "{again}");
    let newest = &log(&laptop, "vm")?[0];
    ensure!(
        newest["message"] == "as it should be" && newest["kind"] == "commit",
        "{newest}"
    );
    Ok(())
}

#[test]
fn where_a_person_commits_checkpoints_are_only_staged() -> Result<()> {
    let config = "[checkpoints]\ninterval = \"1s\"\ncommit = \"hand\"\n";
    let (_world, laptop, mount) = paced(config)?;
    fs::write(mount.join("first"), "1")?;
    let status = status_where(&laptop, "a staged checkpoint", |status| {
        status["staged"].is_string()
    })?;
    ensure!(status["checkpoints"]["policy"] == "hand", "{status}");
    let rows = log(&laptop, "vm")?;
    ensure!(
        rows.iter()
            .all(|row| row["seq"].is_null() || row["seq"] == 0)
    );
    let local = rows.iter().find(|row| row["home"] == false);
    ensure!(
        local.is_some_and(|row| row["automatic"] == true && row["staged"].is_string()),
        "{rows:?}"
    );
    fs::write(mount.join("second"), "2")?;
    let first = status["staged"].clone();
    status_where(&laptop, "the next one", |status| {
        status["staged"].is_string() && status["staged"] != first
    })?;
    let committed = laptop.json(&["commit", "vm", "-m", "by hand"])?;
    ensure!(committed["seq"] == 1, "{committed}");
    let newest = &log(&laptop, "vm")?[0];
    ensure!(
        newest["kind"] == "commit" && newest["automatic"] == false,
        "{newest}"
    );
    Ok(())
}

#[test]
fn now_and_then_means_the_newest_checkpoint_also_where_nothing_changes_any_more() -> Result<()> {
    let config = "[checkpoints]\ninterval = \"1s\"\ncommit = \"5s\"\n";
    let (_world, laptop, mount) = paced(config)?;
    fs::write(mount.join("only"), "1")?;
    let status = comes_home(&laptop)?;
    ensure!(status["staged"].is_null(), "{status}");
    ensure!(status["checkpoints"]["policy"] == "5s", "{status}");
    let rows = log(&laptop, "vm")?;
    ensure!(
        rows[0]["seq"] == 1 && rows[0]["automatic"] == true,
        "{rows:?}"
    );
    Ok(())
}

#[test]
fn with_the_home_away_cuts_go_on_and_all_that_was_asked_comes_home_in_order() -> Result<()> {
    let (mut world, laptop, mount) = paced("[checkpoints]\ninterval = \"1s\"\n")?;
    fs::write(mount.join("first"), "1")?;
    commits_again(&laptop, "vm", 1)?;
    world.home.kill()?;
    fs::write(mount.join("before"), "2")?;
    status_where(&laptop, "a cut without a home", |status| {
        checkpoints_local(status) >= 1
    })?;
    laptop.fails(6, &["commit", "vm", "-m", "by hand"])?;
    for round in 0..10 {
        let last = laptop.status("vm")?["checkpoints"]["last"].clone();
        fs::write(mount.join("after"), format!("{round}"))?;
        status_where(&laptop, "cuts to go on", |status| {
            status["checkpoints"]["last"] != last
        })?;
    }
    let status = laptop.status("vm")?;
    ensure!(
        checkpoints_local(&status) >= 10,
        "all of the last hour are kept: {status}"
    );

    world.home.start()?;
    comes_home(&laptop)?;
    let rows = log(&laptop, "vm")?;
    let by_hand = rows.iter().position(|row| row["message"] == "by hand");
    let by_hand = by_hand.with_context(|| format!("no commit by hand in {rows:?}"))?;
    ensure!(by_hand > 0, "what was cut later comes after it: {rows:?}");
    ensure!(rows[by_hand]["automatic"] == false && rows[0]["automatic"] == true);
    let at = rows[by_hand]["commit"].as_str().context("an id")?;
    let then = laptop.work().join("then");
    let then_text = then.to_str().context("a path")?;
    laptop.json(&["checkout", "vm", then_text, "--read-only", "--at", at])?;
    ensure!(then.join("before").exists() && !then.join("after").exists());
    Ok(())
}

#[test]
fn an_orphan_is_cut_here_and_stays_here() -> Result<()> {
    let (world, laptop, mount) = paced("[checkpoints]\ninterval = \"1s\"\n")?;
    let desktop = world.joined("desktop", &laptop)?;
    desktop.json(&["steal", "vm"])?;
    status_where(&laptop, "the orphan", |status| status["state"] == "orphan")?;
    fs::write(mount.join("mine"), "kept")?;
    let status = status_where(&laptop, "a checkpoint", |status| {
        checkpoints_local(status) >= 1 && !status["checkpoints"]["last"].is_null()
    })?;
    ensure!(
        status["staged"].is_null()
            && status["hint"]
                .as_str()
                .is_some_and(|hint| hint.contains("--branch")),
        "{status}"
    );
    ensure!(
        !log(&desktop, "vm")?
            .iter()
            .any(|row| row["automatic"] == true)
    );
    laptop.json(&[
        "commit",
        mount.to_str().context("a path")?,
        "--branch",
        "mine",
    ])?;
    Ok(())
}

#[test]
fn a_read_only_checkout_is_cut_by_nobody() -> Result<()> {
    let (_world, laptop, mount) = paced("[checkpoints]\ninterval = \"1s\"\n")?;
    let view = laptop.work().join("view");
    let view_text = view.to_str().context("a path")?;
    let opened = laptop.json(&["checkout", "vm", view_text, "--read-only"])?;
    ensure!(opened["checkpoints"]["interval_s"].is_null(), "{opened}");
    fs::write(view.join("private"), "mine")?;
    // The leased one shows that intervals pass.
    for round in 0..3 {
        let seen = commits(&laptop, "vm")?;
        fs::write(mount.join("round"), format!("{round}"))?;
        commits_again(&laptop, "vm", seen)?;
    }
    let status = laptop.status(view_text)?;
    ensure!(
        checkpoints_local(&status) == 0 && status["changed"] == true,
        "{status}"
    );
    ensure!(!mount.join("private").exists());
    // A lease that is taken for one commit of a person is none for more.
    laptop.json(&["release", "vm"])?;
    laptop.json(&["release", view_text, "--discard"])?;
    laptop.json(&["checkout", "vm", view_text, "--read-only"])?;
    fs::write(view.join("shared"), "everybody's")?;
    laptop.json(&["commit", view_text, "-m", "by hand"])?;
    fs::write(view.join("private"), "mine")?;
    let mount = laptop.checkout("vm", &[])?;
    ensure!(mount.join("shared").exists());
    let seen = commits(&laptop, "vm")?;
    fs::write(mount.join("round"), "last")?;
    commits_again(&laptop, "vm", seen)?;
    ensure!(!mount.join("private").exists());
    let status = laptop.status(view_text)?;
    ensure!(checkpoints_local(&status) == 0, "{status}");
    Ok(())
}

#[test]
fn on_a_metered_link_nothing_is_sent_until_a_person_asks() -> Result<()> {
    let config =
        "[checkpoints]\ninterval = \"1s\"\n[link]\npause_on_metered = true\nmetered = \"yes\"\n";
    let (_world, laptop, mount) = paced(config)?;
    fs::write(mount.join("big"), noise(1 << 20))?;
    let status = status_where(&laptop, "the link to be too dear", |status| {
        status["checkpoints"]["waits_for"]
            .as_str()
            .is_some_and(|what| what.contains("metered"))
    })?;
    let text = laptop.imgctl(&["status", "vm"])?.stdout;
    ensure!(text.contains("not metered"), "{text}");
    // Cuts go on meanwhile.
    let last = status["checkpoints"]["last"].clone();
    fs::write(mount.join("more"), "2")?;
    status_where(&laptop, "the next cut", |status| {
        status["checkpoints"]["last"] != last
    })?;
    ensure!(
        log(&laptop, "vm")?
            .iter()
            .all(|row| row["seq"].is_null() || row["seq"] == 0)
    );
    laptop.json(&["commit", "vm", "-m", "now"])?;
    comes_home(&laptop)?;
    Ok(())
}

#[test]
fn the_upload_limit_holds_for_everybody() -> Result<()> {
    let (_world, mut laptop, mount) = paced("[checkpoints]\ninterval = \"off\"\n")?;
    laptop.stop()?;
    laptop.restart_with(&["--up", "512K"])?;
    fs::write(mount.join("big"), noise(2 << 20))?;
    let start = Instant::now();
    let committed = laptop.json(&["commit", "vm"])?;
    let sent = committed["sent_bytes"].as_f64().context("bytes")?;
    let least = Duration::from_secs_f64((sent - 2.0 * 65_536.0) / 524_288.0);
    ensure!(least > Duration::from_secs(3), "{committed}");
    ensure!(
        start.elapsed() >= least,
        "{:?} for {committed}",
        start.elapsed()
    );
    Ok(())
}

#[test]
fn a_configuration_that_is_not_understood_is_refused_by_name() -> Result<()> {
    let world = World::new()?;
    let state = world.path("state");
    fs::create_dir_all(&state)?;
    fs::write(
        state.join("config.toml"),
        "[checkpoints]\nintervall = \"5m\"\n",
    )?;
    let state = state.to_str().context("a path")?;
    let imgd = Program::new("imgd")?.args(["--state", state]);
    let outcome = imgd
        .env("IMGD_SOCKET", Path::new(&world.path("socket")))
        .run()?;
    ensure!(outcome.code == Some(1), "{outcome}");
    for word in ["config.toml", "line 2", "intervall"] {
        ensure!(outcome.stderr.contains(word), "{word}: {outcome}");
    }
    Ok(())
}

/// Bytes that do not get smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}
