//! `imgctl checkout` and `hydrate`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::args::{CheckoutArgs, Owner};
use crate::failure::Failure;
use crate::show;
use crate::values::{self, CheckoutRef};

#[derive(Debug, Deserialize)]
struct Opened {
    name: String,
    dir: String,
    state: String,
    lease: Option<Lease>,
}

#[derive(Debug, Deserialize)]
struct Lease {
    until: String,
}

#[derive(Debug, Deserialize)]
struct Hydrated {
    fetched_objects: u64,
    fetched_bytes: u64,
}

/// Mounts an image.
pub(super) async fn checkout(session: &Session, args: CheckoutArgs) -> Result<(), Failure> {
    let dir = values::mount_dir(args.dir, &args.name)?;
    let body = json!({
        "name": args.name.as_str(),
        "dir": dir,
        "read_only": args.read_only,
        "at": args.at,
        "lease_ms": args.lease.map(millis),
        "offline_ms": args.offline.map(millis),
        "hydrate": args.hydrate,
        "take_over": args.take_over,
        "owner": args.owner.map(Owner::word),
    });
    let opened = session.stream("/v1/checkouts", &body).await?;
    session.output.answer(&opened, render)
}

/// Fetches all of a checkout.
pub(super) async fn hydrate(session: &Session, checkout: &CheckoutRef) -> Result<(), Failure> {
    let path = checkout.verb("hydrate");
    let hydrated = session.stream(&path, &json!({})).await?;
    session.output.answer(&hydrated, |hydrated| {
        let hydrated = Hydrated::deserialize(hydrated)?;
        Ok(format!(
            "Everything is here: {}, {} fetched.",
            show::count(hydrated.fetched_objects, "object", "objects"),
            show::bytes(hydrated.fetched_bytes)
        ))
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn render(opened: &Value) -> Result<String, serde_json::Error> {
    let opened = Opened::deserialize(opened)?;
    Ok(match opened.lease {
        Some(lease) => format!(
            "{} is mounted at {}, leased until {}.",
            opened.name,
            opened.dir,
            show::time(&lease.until)
        ),
        None => format!(
            "{} is mounted at {}, {}.",
            opened.name, opened.dir, opened.state
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_and_until_when() {
        let opened = json!({"name": "vm", "dir": "/x/vm", "state": "leased",
            "lease": {"until": "2026-11-21T14:05:00Z"}});
        assert_eq!(
            render(&opened).unwrap(),
            "vm is mounted at /x/vm, leased until 2026-11-21 14:05:00 UTC."
        );
        let opened = json!({"name": "vm", "dir": "/x/vm", "state": "read-only", "lease": null});
        assert_eq!(
            render(&opened).unwrap(),
            "vm is mounted at /x/vm, read-only."
        );
    }
}
