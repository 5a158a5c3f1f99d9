//! `imgctl run`.
//!
//! This program stands beside the application, not between it and its terminal: both are in one process group, so
//! that Ctrl-C, Ctrl-Z and reading from the terminal work as without it. If this program is killed the application
//! goes on, and its checkout with it; the daemon knows the cgroup.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Session, release};
use crate::args::RunArgs;
use crate::cgroup::Cgroup;
use crate::failure::Failure;
use crate::{show, until_interrupted, values};

#[derive(Debug, Deserialize)]
struct Place {
    checkout: String,
    name: String,
    dir: String,
    state: String,
}

#[derive(Debug, Deserialize)]
struct Registered {
    run_id: String,
    run_id_file: String,
}

/// Checks out, starts an application, and commits and releases when it has ended.
pub(super) async fn run(session: &Session, args: RunArgs) -> Result<(), Failure> {
    let (program, arguments) = args
        .command
        .split_first()
        .ok_or_else(|| Failure::usage("Say what to start: imgctl run NAME -- COMMAND"))?;
    let (place, was_open) = until_interrupted(open(session, &args)).await?;
    // From here on what is sent to this program is meant for the application.
    let mut signals = signals()?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&place.dir);
    let (child, cgroup) = match start(session, &place, command).await {
        Ok(started) => started,
        Err(failure) => {
            if !was_open {
                finish(session, &place).await?;
            }
            return Err(failure);
        }
    };
    let (status, asked) = wait(child, &mut signals).await?;
    if let Some(cgroup) = &cgroup {
        wait_for_rest(&place, cgroup, &mut signals).await;
        cgroup.remove();
    }
    let crash = status.signal().filter(|signal| !asked.contains(signal));
    match crash {
        Some(signal) => until_interrupted(keep(session, &place, signal)).await?,
        None => until_interrupted(finish(session, &place)).await?,
    }
    match exit_code(status) {
        0 => Ok(()),
        code => Err(Failure::of_application(code)),
    }
}

/// Mounts the image where it is checked out already, or where it is wanted; says whether it was open.
async fn open(session: &Session, args: &RunArgs) -> Result<(Place, bool), Failure> {
    let odd = |error| Failure::failed(format!("The daemon's answer is odd: {error}."));
    let listed = session.api.get("/v1/checkouts").await?;
    let listed = Vec::<Place>::deserialize(&listed).map_err(odd)?;
    let mut leased = listed.iter().filter(|place| {
        place.name == args.name.as_str() && matches!(place.state.as_str(), "leased" | "lapsed")
    });
    let there = leased.next();
    let dir = match (&args.dir, &there) {
        (None, Some(there)) => there.dir.clone(),
        (dir, _) => values::mount_dir(dir.clone(), &args.name)?,
    };
    let body = json!({ "name": args.name.as_str(), "dir": dir });
    let opened = session.stream("/v1/checkouts", &body).await?;
    let place = Place::deserialize(&opened).map_err(odd)?;
    let was_open = listed.iter().any(|listed| listed.dir == place.dir);
    Ok((place, was_open))
}

/// Starts the application, in a cgroup that the daemon knows if one can be made.
async fn start(
    session: &Session,
    place: &Place,
    mut command: Command,
) -> Result<(Child, Option<Cgroup>), Failure> {
    let short = place.checkout.get(..16).unwrap_or(&place.checkout);
    let cgroup = Cgroup::make(&format!("{short}-{}", std::process::id()));
    if cgroup.is_none() {
        show::note(
            "No cgroup can be made for the application: checkpoints hold shared memory maps as of their last flush.",
        );
    }
    let path = format!("{}/run", values::folder_resource(&place.dir));
    let body = json!({ "cgroup": cgroup.as_ref().map(Cgroup::dir).and_then(Path::to_str) });
    // The daemon takes no empty cgroup: this program keeps it from being one until the application is in it.
    let entered = cgroup.as_ref().map(Cgroup::enter).transpose();
    // A daemon that was started from here would be in it too.
    let registered = session.api.without_start().post(&path, &body).await;
    let spawned = registered.and_then(|registered| {
        entered
            .map_err(|error| Failure::failed(format!("The cgroup cannot be entered: {error}.")))?;
        let registered = Registered::deserialize(&registered)
            .map_err(|error| Failure::failed(format!("The daemon's answer is odd: {error}.")))?;
        command
            .env("IMGCTL_RUN_ID", registered.run_id)
            .env("IMGCTL_RUN_ID_FILE", registered.run_id_file);
        command.spawn().map_err(|error| {
            let program = command.as_std().get_program().display().to_string();
            Failure::not_found(format!("{program} cannot be started: {error}."))
        })
    });
    if let Some(cgroup) = &cgroup {
        let left = cgroup.leave();
        if spawned.is_err() {
            cgroup.remove();
        }
        left.map_err(|error| Failure::failed(format!("The cgroup cannot be left: {error}.")))?;
    }
    Ok((spawned?, cgroup))
}

/// Waits for the application's first process and passes signals on to it. Returns how it ended, and which signals
/// had been sent.
async fn wait(
    mut child: Child,
    signals: &mut mpsc::Receiver<Signal>,
) -> Result<(ExitStatus, BTreeSet<i32>), Failure> {
    let mut asked = BTreeSet::new();
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|error| {
                    Failure::failed(format!("The application cannot be waited for: {error}."))
                })?;
                return Ok((status, asked));
            }
            Some(signal) = signals.recv() => {
                asked.insert(signal.as_raw());
                if !came_from_terminal(signal) {
                    send(pid.as_slice(), signal);
                }
            }
        }
    }
}

/// Waits for what the application has left in its cgroup.
async fn wait_for_rest(place: &Place, cgroup: &Cgroup, signals: &mut mpsc::Receiver<Signal>) {
    let mut looks = 0;
    while cgroup.is_populated() {
        looks += 1;
        if looks == LOOKS_QUIET {
            show::note(&format!(
                "Processes of the application still run; {} is committed and released when they have ended.",
                place.name
            ));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_PAUSE) => {}
            Some(signal) = signals.recv() => send(&cgroup.processes(), signal),
        }
    }
}

/// Commits and releases.
async fn finish(session: &Session, place: &Place) -> Result<(), Failure> {
    let path = format!("{}/release", values::folder_resource(&place.dir));
    let released = session.stream(&path, &json!({})).await?;
    tell(session, &released, &release::render(&released))
}

/// Commits after a crash: what is there may be looked at, or gone on with.
async fn keep(session: &Session, place: &Place, signal: i32) -> Result<(), Failure> {
    let Place { name, dir, .. } = place;
    show::note(&format!(
        "The application was ended by signal {signal}. {name} stays checked out at {dir}; its state is committed."
    ));
    show::note(&format!(
        "Start it again with `imgctl run {name} -- COMMAND`, or close it with `imgctl release {name}`."
    ));
    let path = format!("{}/commit", values::folder_resource(dir));
    let committed = session.stream(&path, &json!({})).await?;
    match session.output.json() {
        true => show::print(&committed.to_string()),
        false => Ok(()),
    }
}

/// What became of the image, beside the application's output: on standard error, but for scripts.
fn tell(session: &Session, answer: &Value, text: &str) -> Result<(), Failure> {
    match session.output.json() {
        true => show::print(&answer.to_string()),
        false => {
            show::note(text);
            Ok(())
        }
    }
}

/// What is sent to this program from now on, and would end it otherwise.
fn signals() -> Result<mpsc::Receiver<Signal>, Failure> {
    let (sender, received) = mpsc::channel(SIGNALS_MAX);
    for passed in [
        Signal::INT,
        Signal::TERM,
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
    ] {
        // Whoever switched it off, as nohup does, did so for the application too; listening would switch it on.
        if is_ignored(passed) {
            continue;
        }
        let mut listened = signal(SignalKind::from_raw(passed.as_raw()))
            .map_err(|error| Failure::failed(format!("Signals cannot be heard: {error}.")))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while listened.recv().await.is_some() && sender.send(passed).await.is_ok() {}
        });
    }
    Ok(received)
}

/// Whether this program was started with a signal switched off.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(signal.as_raw() - 1).unwrap_or(u32::MAX);
    mask.and_then(|mask| mask.checked_shr(bit))
        .is_some_and(|rest| rest & 1 == 1)
}

/// Whether a signal came from the terminal, which has sent it to the application too.
fn came_from_terminal(signal: Signal) -> bool {
    if !matches!(signal, Signal::INT | Signal::QUIT) {
        return false;
    }
    let terminal = std::fs::File::open("/dev/tty");
    let foreground = terminal
        .ok()
        .and_then(|tty| rustix::termios::tcgetpgrp(tty).ok());
    foreground == Some(rustix::process::getpgrp())
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // One that has ended needs none.
        kill_process(pid, signal).ok();
    }
}

/// As a shell says it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Signals that wait to be passed on.
const SIGNALS_MAX: usize = 16;
/// How often it is looked whether all of an application has ended.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Looks before a person is told what is waited for.
const LOOKS_QUIET: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_switched_off_is_known() {
        // Rust switches it off at every start.
        assert!(is_ignored(Signal::PIPE));
        assert!(!is_ignored(Signal::USR2));
    }

    #[test]
    fn codes_are_those_of_a_shell() {
        for (raw, code) in [(0, 0), (7 << 8, 7), (9, 137), (15, 143)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
        }
    }
}
