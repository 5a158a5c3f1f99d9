//! `imgctl steal`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::args::StealArgs;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{show, values};

#[derive(Debug, Deserialize)]
struct Stolen {
    name: String,
    dir: String,
    lease: Option<Lease>,
    takes_from: TakesFrom,
    branch: Option<Branch>,
}

#[derive(Debug, Deserialize)]
struct Lease {
    until: String,
}

#[derive(Debug, Deserialize)]
struct TakesFrom {
    name: String,
    device: String,
    until: String,
    lapsed: bool,
    staged: Option<Staged>,
    branch: Option<Branch>,
}

#[derive(Debug, Deserialize)]
struct Staged {
    time: String,
}

#[derive(Debug, Deserialize)]
struct Branch {
    name: String,
}

/// Takes an image over and mounts it here.
pub(super) async fn steal(session: &Session, args: StealArgs) -> Result<(), Failure> {
    let dir = values::mount_dir(args.dir, &args.name)?;
    let body = json!({
        "dir": dir,
        "branch": args.branch,
        "reason": args.reason.unwrap_or_default(),
    });
    let path = format!("{}/steal", values::image_resource(&args.name));
    let mut progress = Progress::new();
    let as_json = session.output.json();
    let stolen = session.api.stream(&path, &body, |line| {
        match line.get("takes_from").map(TakesFrom::deserialize) {
            Some(Ok(from)) if !as_json => {
                progress.suspend(|| show::note(&render_from(&from)));
            }
            Some(_) => {}
            None => progress.update(line),
        }
    });
    let stolen = stolen.await?;
    drop(progress);
    session.output.answer(&stolen, render)
}

fn render_from(from: &TakesFrom) -> String {
    let until = if from.lapsed {
        "whose lease has lapsed".to_owned()
    } else {
        format!("leased until {}", show::time(&from.until))
    };
    let work = match (&from.branch, &from.staged) {
        (Some(branch), _) => format!("Its work goes on as {}.", branch.name),
        (None, Some(staged)) => format!(
            "Its checkpoint of {} stays at the home; what it has beyond the head stays on {}.",
            show::time(&staged.time),
            from.device
        ),
        (None, None) => format!("What it has beyond the head stays on {}.", from.device),
    };
    format!("Taking {} from {}, {until}. {work}", from.name, from.device)
}

fn render(stolen: &Value) -> Result<String, serde_json::Error> {
    let stolen = Stolen::deserialize(stolen)?;
    let until = stolen.lease.map_or(String::new(), |lease| {
        format!(", leased until {}", show::time(&lease.until))
    });
    let loser = &stolen.takes_from.device;
    let work = match stolen.branch {
        Some(branch) => format!("{loser} goes on as {}.", branch.name),
        None => format!("{loser} decides what becomes of its work."),
    };
    Ok(format!(
        "{} is mounted at {}{until}. {work}",
        stolen.name, stolen.dir
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(lapsed: bool, branch: Option<&str>) -> Value {
        json!({"name": "vm", "device": "laptop", "until": "2026-11-21T14:05:00Z", "lapsed": lapsed,
            "staged": {"commit": "ab".repeat(32), "time": "2026-11-21T13:05:00Z"},
            "branch": branch.map(|name| json!({"name": name}))})
    }

    #[test]
    fn says_from_whom_and_what_becomes_of_the_work() {
        let said = |value| render_from(&TakesFrom::deserialize(&value).unwrap());
        assert_eq!(
            said(from(false, Some("vm-laptop"))),
            "Taking vm from laptop, leased until 2026-11-21 14:05:00 UTC. Its work goes on as vm-laptop."
        );
        let left = said(from(true, None));
        assert!(left.contains("whose lease has lapsed"), "{left}");
        assert!(
            left.contains("checkpoint of 2026-11-21 13:05:00 UTC"),
            "{left}"
        );
    }

    #[test]
    fn says_where_it_is_mounted() {
        let stolen = json!({"name": "vm", "dir": "/x/vm", "lease": {"until": "2026-11-21T17:05:00Z"},
            "takes_from": from(false, None), "branch": null});
        assert_eq!(
            render(&stolen).unwrap(),
            "vm is mounted at /x/vm, leased until 2026-11-21 17:05:00 UTC. laptop decides what becomes of its work."
        );
    }
}
