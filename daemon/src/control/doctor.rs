//! `GET /v1/doctor`: what this machine needs, checked one by one.

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use img_types::limits::DISK_RESERVE;
use rustix::fs::Access;
use serde_json::{Value, json};

use super::body::Answer;
use crate::daemon::Daemon;
use crate::error::Kind;

/// One check: its name, and the sentence and hint of its outcome.
struct Check {
    name: &'static str,
    ok: bool,
    message: String,
    hint: String,
}

pub(super) async fn doctor(State(daemon): State<Arc<Daemon>>) -> Answer {
    let dir = daemon.state().dir().to_owned();
    let local = tokio::task::spawn_blocking(move || {
        [
            fuse(),
            fusermount(),
            permissions(&dir),
            space(&dir),
            clock(),
        ]
    });
    let mut checks = Vec::from(local.await.map_err(crate::error::ApiError::failed)?);
    checks.push(home(&daemon).await);
    checks.push(checkouts(&daemon));
    checks.push(calls(&daemon).await);
    let checks = checks.into_iter().map(|check| {
        let hint = if check.ok { "" } else { &check.hint };
        json!({
            "check": check.name,
            "ok": check.ok,
            "message": check.message,
            "hint": hint,
        })
    });
    Ok(Json(Value::Array(checks.collect())))
}

fn fuse() -> Check {
    let usable = rustix::fs::access("/dev/fuse", Access::READ_OK | Access::WRITE_OK);
    Check {
        name: "fuse",
        ok: usable.is_ok(),
        message: match usable {
            Ok(()) => "/dev/fuse can be used.".into(),
            Err(error) => format!("/dev/fuse cannot be used: {error}."),
        },
        hint: "Load the module (modprobe fuse) and make /dev/fuse readable and writable for users."
            .into(),
    }
}

fn fusermount() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("fusermount3"))
        .find(|program| program.exists());
    let root = rustix::process::geteuid().is_root();
    Check {
        name: "fusermount",
        ok: found.is_some() || root,
        message: match (&found, root) {
            (Some(program), _) => format!("{} is there.", program.display()),
            (None, true) => "fusermount3 is not there; root mounts without it.".into(),
            (None, false) => "fusermount3 is not there.".into(),
        },
        hint: "Install fuse3: apt-get install fuse3".into(),
    }
}

fn permissions(dir: &Path) -> Check {
    use std::os::unix::fs::MetadataExt;
    let checked = std::fs::metadata(dir).map(|found| {
        found.mode() & 0o077 == 0 && found.uid() == rustix::process::geteuid().as_raw()
    });
    let ok = matches!(checked, Ok(true));
    Check {
        name: "permissions",
        ok,
        message: if ok {
            "Only this user enters the state folder.".into()
        } else {
            format!("{} is open to others, or another user's.", dir.display())
        },
        hint: "Make the state folder this user's own, mode 0700.".into(),
    }
}

fn space(dir: &Path) -> Check {
    let free = rustix::fs::statvfs(dir).map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    let ok = free.is_ok_and(|free| free > 2 * DISK_RESERVE);
    Check {
        name: "space",
        ok,
        message: match free {
            Ok(free) => format!("{} MiB are free in the state folder.", free >> 20),
            Err(error) => format!("The free space cannot be read: {error}."),
        },
        hint: "Make room: writes are refused below the reserve of 256 MiB.".into(),
    }
}

/// The clock decides nothing that protects data; a wrong one shows wrong times and warns late.
fn clock() -> Check {
    let ok = crate::events::now().0 > CLOCK_MIN_MS;
    Check {
        name: "clock",
        ok,
        message: format!(
            "The clock says {}.",
            crate::events::time(crate::events::now())
        ),
        hint: "Set the clock; times of leases are shown wrong meanwhile.".into(),
    }
}

async fn home(daemon: &Daemon) -> Check {
    let (ok, message, hint) = match daemon.member() {
        Err(_) => (
            true,
            "This device has not joined a home yet.".into(),
            String::new(),
        ),
        Ok(member) => {
            let address = member.home.pin().address.clone();
            match member.home.catch_up().await {
                Ok(()) => (
                    true,
                    format!("The home at {address} answers."),
                    String::new(),
                ),
                Err(error) => {
                    let error = member.home.explain(&error, "the home");
                    let hint = match error.kind {
                        Kind::HomeAway => "Check the network, or ask whoever runs the home. What is checked out goes on working.".into(),
                        _ => error.hint,
                    };
                    (false, format!("{address}: {}", error.message), hint)
                }
            }
        }
    };
    Check {
        name: "home",
        ok,
        message,
        hint,
    }
}

/// What is checked out and does not go on by itself. What the home is to blame for stands above.
fn checkouts(daemon: &Daemon) -> Check {
    let member = daemon.member().ok();
    let home = member.as_ref().and_then(|member| member.home.trouble());
    let listed = member.map_or_else(Vec::new, |member| member.checkouts.list_json());
    let troubled = listed.iter().filter(|status| {
        let problem = status["problem"].as_str();
        problem.is_some() && problem != home.as_ref().map(|told| told.message.as_str())
    });
    let troubled: Vec<_> = troubled.collect();
    let words = troubled.iter().map(|status| {
        let text = |field: &str| status[field].as_str().unwrap_or_default();
        format!("{}: {}", text("dir"), text("problem"))
    });
    let hints = troubled.iter().filter_map(|status| status["hint"].as_str());
    Check {
        name: "checkouts",
        ok: troubled.is_empty(),
        message: match troubled.len() {
            0 => "What is checked out here goes on.".into(),
            _ => words.collect::<Vec<_>>().join(" "),
        },
        hint: hints.collect::<Vec<_>>().join(" "),
    }
}

/// Calls that were cut off by the end of a daemon may have had their effect, or have it once they are repeated.
async fn calls(daemon: &Daemon) -> Check {
    let unanswered = match daemon.member() {
        Err(_) => Ok(0),
        Ok(member) => member.home.unanswered().await.map(|calls| calls.len()),
    };
    let (ok, message) = match unanswered {
        Ok(0) => (
            true,
            "Everything that was asked of the home is answered.".into(),
        ),
        Ok(1) => (
            false,
            "The home has not answered one call of before.".into(),
        ),
        Ok(calls) => (
            false,
            format!("The home has not answered {calls} calls of before."),
        ),
        Err(error) => (false, format!("The state folder cannot be read: {error}.")),
    };
    Check {
        name: "calls",
        ok,
        message,
        hint: "Nothing is to be done: they are repeated by themselves as soon as the home answers."
            .into(),
    }
}

/// The day this was written; no clock that is right stands before it.
const CLOCK_MIN_MS: i64 = 1_795_000_000_000;
