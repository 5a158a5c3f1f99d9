//! `imgctl run`: an application from its checkout to its release.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Device, Outcome, World, binary};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// An `imgctl run` under way.
pub(crate) struct Running(Option<Child>);

impl Running {
    /// Starts it on a device.
    pub(crate) fn start(device: &Device, args: &[&str]) -> Result<Self> {
        Self::start_by(Command::new(binary("imgctl")?), device, args)
    }

    fn start_by(mut command: Command, device: &Device, args: &[&str]) -> Result<Self> {
        let child = command
            .env("IMGD_SOCKET", device.socket())
            .env("IMGD_STATE", device.state())
            .current_dir(device.work())
            .args(["--no-start", "run"])
            .args(args)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self(Some(child)))
    }

    fn child(&self) -> Result<&Child> {
        self.0.as_ref().context("it has ended")
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child()?.id())?);
        Ok(kill_process(pid.context("a process id")?, signal)?)
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Result<Outcome> {
        let output = self.0.take().context("it has ended")?.wait_with_output()?;
        let code = output.status.code();
        Ok(Outcome {
            code: code.or(output.status.signal().map(|signal| 128 + signal)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Ends `imgctl` at once; the application goes on.
    fn kill(mut self) -> Result<()> {
        let mut child = self.0.take().context("it has ended")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The folder of the application's cgroup.
    fn cgroup(&self, device: &Device) -> Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let dir = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(dir))
        });
        let status = device.status("vm")?;
        let checkout = status["checkout"].as_str().context("no id")?;
        let name = format!("{}-{}", &checkout[..16], self.child()?.id());
        Ok(root.context("no cgroup2")?.join("imgctl").join(name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // The application is in its group.
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            drop(child.wait());
        }
    }
}

fn device() -> Result<(World, Device)> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    Ok((world, a))
}

fn run(device: &Device, script: &str) -> Result<Outcome> {
    device.imgctl(&["run", "vm", "--", "sh", "-c", script])
}

fn wait_for_file(device: &Device, name: &str) -> Result<()> {
    let path = device.work().join("vm").join(name);
    e2e::wait_for(name, || Ok(path.exists().then_some(())))
}

/// What the image's head holds.
fn committed(world: &World, device: &Device, name: &str) -> Result<String> {
    let dest = world.path("committed");
    device.json(&["export", "vm", dest.to_str().context("UTF-8")?])?;
    let text = fs::read_to_string(dest.join(name));
    fs::remove_dir_all(dest)?;
    Ok(text?)
}

#[test]
fn an_application_is_committed_and_released_whatever_its_exit_code() -> Result<()> {
    let (world, a) = device()?;
    for (script, code) in [
        ("cat - > f; echo $PWD; true", 0),
        ("echo new > f; exit 3", 3),
    ] {
        let outcome = a.imgctl_reading("typed", &["run", "vm", "--", "sh", "-c", script])?;
        ensure!(outcome.code == Some(code), "{outcome}");
        ensure!(outcome.stderr.contains("is released"), "{outcome}");
        a.fails(3, &["status", "vm"])?;
        let expected = if code == 0 { "typed" } else { "new\n" };
        ensure!(committed(&world, &a, "f")? == expected);
        if code == 0 {
            let mount = a.work().join("vm").canonicalize()?;
            ensure!(
                outcome.stdout.trim() == mount.to_str().context("UTF-8")?,
                "{outcome}"
            );
        }
    }
    // What a process writes that outlives the first one is waited for.
    let outcome = run(&a, "(sleep 1; echo late > late) > /dev/null 2>&1 & exit 0")?;
    ensure!(
        outcome.ok() && committed(&world, &a, "late")? == "late\n",
        "{outcome}"
    );
    // What cannot be started leaves nothing behind.
    let outcome = a.imgctl(&["run", "vm", "--", "./nothing-there"])?;
    ensure!(
        outcome.code == Some(3) && outcome.stderr.contains("cannot be started"),
        "{outcome}"
    );
    a.fails(3, &["status", "vm"])?;
    Ok(())
}

#[test]
fn an_application_that_crashes_is_committed_and_stays_checked_out() -> Result<()> {
    let (world, a) = device()?;
    let outcome = run(&a, "echo work > f; kill -SEGV $$")?;
    ensure!(
        outcome.code == Some(139) && outcome.stderr.contains("stays checked out"),
        "{outcome}"
    );
    let status = a.status("vm")?;
    ensure!(
        status["state"] == "leased" && status["changed"] == false,
        "{status}"
    );
    ensure!(committed(&world, &a, "f")? == "work\n");
    // Started again it goes on there, wherever the person stands.
    let outcome = run(&a, "cat f")?;
    ensure!(outcome.ok() && outcome.stdout == "work\n", "{outcome}");
    a.fails(3, &["status", "vm"])?;
    Ok(())
}

#[test]
fn signals_reach_the_application_and_not_its_release() -> Result<()> {
    let (world, a) = device()?;
    let waits = "echo > ready; while :; do sleep 0.05; done";
    for (signal, code) in [(Signal::INT, 5), (Signal::TERM, 5), (Signal::HUP, 5)] {
        let script =
            format!("rm -f ready; trap 'echo {code} > f; exit {code}' INT TERM HUP; {waits}");
        let running = Running::start(&a, &["vm", "--", "sh", "-c", &script])?;
        wait_for_file(&a, "ready")?;
        running.signal(signal)?;
        let outcome = running.wait()?;
        ensure!(outcome.code == Some(code), "{signal:?}: {outcome}");
        a.fails(3, &["status", "vm"])?;
        ensure!(committed(&world, &a, "f")? == "5\n");
        run(&a, "rm ready")?;
    }
    // What nohup has switched off stays so, for the application as well.
    let mut nohup = Command::new("sh");
    nohup
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(binary("imgctl")?);
    let script = "echo > ready; while [ ! -e end ]; do sleep 0.05; done";
    let running = Running::start_by(nohup, &a, &["vm", "--", "sh", "-c", script])?;
    wait_for_file(&a, "ready")?;
    let group = Pid::from_raw(i32::try_from(running.child()?.id())?).context("a group")?;
    kill_process_group(group, Signal::HUP)?;
    fs::write(a.work().join("vm/end"), "")?;
    let outcome = running.wait()?;
    ensure!(outcome.ok(), "{outcome}");
    run(&a, "rm ready end")?;
    // One that ends by the signal it was sent has not crashed.
    let running = Running::start(&a, &["vm", "--", "sh", "-c", waits])?;
    wait_for_file(&a, "ready")?;
    running.signal(Signal::TERM)?;
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(143), "{outcome}");
    a.fails(3, &["status", "vm"])?;
    Ok(())
}

#[test]
fn an_application_outlives_who_started_it_and_keeps_its_lease() -> Result<()> {
    let (_world, mut a) = device()?;
    let script = "echo > ready; while [ ! -e end ]; do sleep 0.05; done; echo > ended";
    let running = Running::start(&a, &["vm", "--", "sh", "-c", script])?;
    wait_for_file(&a, "ready")?;
    let cgroup = running.cgroup(&a)?;
    running.kill()?;
    let status = a.status("vm")?;
    ensure!(
        status["application"] == true && status["state"] == "leased",
        "{status}"
    );
    let outcome = run(&a, "true")?;
    ensure!(
        outcome.code == Some(1) && outcome.stderr.contains("runs already"),
        "{outcome}"
    );
    ensure!(
        a.status("vm")?["state"] == "leased",
        "a refused run releases nothing"
    );
    // In another place it is refused as any second checkout is.
    let outcome = a.imgctl(&["run", "vm", "elsewhere", "--", "true"])?;
    ensure!(outcome.code == Some(4), "{outcome}");
    fs::write(a.work().join("vm/end"), "")?;
    e2e::wait_for("the application to end", || {
        Ok((a.status("vm")?["application"] == false).then_some(()))
    })?;
    wait_for_file(&a, "ended")?;
    let status = a.status("vm")?;
    ensure!(status["state"] == "leased", "{status}");
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    a.kill()?;
    a.restart()?;
    let outcome = run(&a, "true")?;
    ensure!(outcome.ok(), "{outcome}");
    Ok(())
}

#[test]
fn a_daemon_that_died_while_an_application_was_stopped_lets_it_go_on() -> Result<()> {
    let (_world, mut a) = device()?;
    let script = "echo > ready; while :; do sleep 0.05; done";
    let running = Running::start(&a, &["vm", "--", "sh", "-c", script])?;
    wait_for_file(&a, "ready")?;
    let cgroup = running.cgroup(&a)?;
    // As in the middle of a cut.
    fs::write(cgroup.join("cgroup.freeze"), "1")?;
    e2e::wait_for("the application to stand still", || {
        let events = fs::read_to_string(cgroup.join("cgroup.events"))?;
        Ok(events.contains("frozen 1").then_some(()))
    })?;
    a.kill()?;
    a.restart()?;
    ensure!(fs::read_to_string(cgroup.join("cgroup.freeze"))?.trim() == "0");
    let status = a.status("vm")?;
    ensure!(
        status["application"] == true && status["state"] == "leased",
        "{status}"
    );
    running.signal(Signal::TERM)?;
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(143), "{outcome}");
    a.fails(3, &["status", "vm"])?;
    Ok(())
}

#[test]
fn an_application_that_waits_for_the_home_does_not_hold_up_a_checkpoint() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    for name in ["one", "two"] {
        let mut content = vec![0; 16 << 20];
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes());
        hasher.finalize_xof().fill(&mut content);
        fs::write(source.join(name), content)?;
    }
    a.json(&["create", "vm", "--from", source.to_str().context("UTF-8")?])?;
    let b = world.joined("b", &a)?;
    let home = Pid::from_raw(i32::try_from(world.home.process_id()?)?).context("a process id")?;
    // What it reads has a map of its own, or is what may be mapped.
    for (script, mapped) in [
        (
            "exec 3<>map; echo > ready; while [ ! -e go ]; do sleep 0.05; done; rm go ready; cat one",
            false,
        ),
        (
            "exec 3<>two; echo > ready; while [ ! -e go ]; do sleep 0.05; done; rm go ready; cat <&3",
            true,
        ),
    ] {
        let script = format!("{{ {script}; }} | wc -c");
        let running = Running::start(&b, &["vm", "--", "bash", "-c", &script])?;
        wait_for_file(&b, "ready")?;
        let cgroup = running.cgroup(&b)?;
        let mount = b.work().join("vm");
        kill_process(home, Signal::STOP)?;
        fs::write(mount.join("go"), "")?;
        // Without the home only a few checkpoints can be taken: none before it reads.
        e2e::wait_for("the application to read", || {
            let processes = fs::read_to_string(cgroup.join("cgroup.procs"))?;
            let mut names = processes
                .lines()
                .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default());
            Ok(names.any(|name| name == "cat\n").then_some(()))
        })?;
        let mut round = 0;
        let waited = e2e::wait_for("a checkpoint without the application", || {
            round += 1;
            fs::write(mount.join("round"), round.to_string())?;
            let start = Instant::now();
            b.json(&["checkpoint", "vm"])?;
            ensure!(
                start.elapsed() < Duration::from_secs(15),
                "{:?}",
                start.elapsed()
            );
            let status = b.status("vm")?;
            let stopped_us = status["stopped_us"].as_u64();
            ensure!(stopped_us.is_none_or(|us| us <= 100_000), "{status}");
            let flushed = status["maps"] == "last flush";
            Ok((flushed && stopped_us.is_some() != mapped).then_some(()))
        });
        kill_process(home, Signal::CONT)?;
        waited?;
        ensure!(fs::read_to_string(cgroup.join("cgroup.freeze"))?.trim() == "0");
        let outcome = running.wait()?;
        ensure!(
            outcome.ok() && outcome.stdout.trim() == (16 << 20).to_string(),
            "{outcome}"
        );
    }
    Ok(())
}

#[test]
fn a_run_id_is_renewed_when_the_state_becomes_anothers() -> Result<()> {
    let (_world, a) = device()?;
    let outcome = run(
        &a,
        "echo $IMGCTL_RUN_ID; cat $IMGCTL_RUN_ID_FILE; echo $IMGCTL_RUN_ID_FILE",
    )?;
    let lines: Vec<_> = outcome.stdout.lines().collect();
    let &[first, in_file, file] = &lines[..] else {
        anyhow::bail!("{outcome}");
    };
    ensure!(first.len() == 32 && first == in_file, "{outcome}");
    ensure!(!PathBuf::from(file).exists(), "it ends with the checkout");
    let script = "cat $IMGCTL_RUN_ID_FILE > ready; while [ ! -e end ]; do sleep 0.05; done; cat $IMGCTL_RUN_ID_FILE";
    let running = Running::start(&a, &["vm", "--", "sh", "-c", script])?;
    wait_for_file(&a, "ready")?;
    let mount = a.work().join("vm");
    a.json(&["commit", "vm", "--branch", "other"])?;
    let before = fs::read_to_string(mount.join("ready"))?;
    ensure!(before.trim() != first, "every checkout has its own");
    fs::write(mount.join("end"), "")?;
    let outcome = running.wait()?;
    ensure!(
        outcome.ok() && outcome.stdout.len() == before.len() && outcome.stdout != before,
        "{outcome}"
    );
    Ok(())
}

#[test]
fn a_restore_is_another_life_too() -> Result<()> {
    let (_world, a) = device()?;
    let script = "cat $IMGCTL_RUN_ID_FILE > ready; while [ ! -e end ]; do sleep 0.05; done; cat $IMGCTL_RUN_ID_FILE";
    let running = Running::start(&a, &["vm", "--", "sh", "-c", script])?;
    wait_for_file(&a, "ready")?;
    let mount = a.work().join("vm");
    a.json(&["commit", "vm"])?;
    fs::write(mount.join("more"), "")?;
    a.json(&["restore", "vm"])?;
    ensure!(!mount.join("more").exists());
    let before = fs::read_to_string(mount.join("ready"))?;
    fs::write(mount.join("end"), "")?;
    let outcome = running.wait()?;
    ensure!(
        outcome.ok() && outcome.stdout.len() == before.len() && outcome.stdout != before,
        "{outcome}"
    );
    Ok(())
}

#[test]
fn nothing_is_started_where_it_could_not_be_committed() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    a.checkout("vm", &[])?;
    let b = world.joined("b", &a)?;
    b.json(&["steal", "vm"])?;
    e2e::wait_for("the loser to know", || {
        Ok((a.status("vm")?["state"] == "orphan").then_some(()))
    })?;
    let outcome = run(&a, "echo > started")?;
    ensure!(outcome.code == Some(5), "{outcome}");
    ensure!(!a.work().join("vm/started").exists() && a.status("vm")?["state"] == "orphan");
    Ok(())
}
