//! `imgctl leases`.

use serde::Deserialize;
use serde_json::Value;

use super::Session;
use crate::failure::Failure;
use crate::show;

#[derive(Debug, Deserialize)]
struct Lease {
    name: String,
    device: String,
    this: bool,
    dir: Option<String>,
    until: String,
    mode: String,
    lapsed: bool,
    #[serde(default)]
    staged: Option<String>,
}

/// Lists leases.
pub(super) async fn leases(session: &Session) -> Result<(), Failure> {
    let leases = session.api.get("/v1/leases").await?;
    session.output.answer(&leases, render)
}

fn render(leases: &Value) -> Result<String, serde_json::Error> {
    let leases = Vec::<Lease>::deserialize(leases)?;
    if leases.is_empty() {
        return Ok("Nobody holds a lease.".to_owned());
    }
    let rows = leases.into_iter().map(|lease| {
        let until = if lease.lapsed {
            "lapsed".to_owned()
        } else {
            show::time(&lease.until)
        };
        let place = match (lease.this, lease.dir) {
            (true, Some(dir)) => dir,
            (true, None) => "here".to_owned(),
            (false, _) => String::new(),
        };
        let staged = show::short_or_dash(lease.staged.as_deref());
        [lease.name, lease.device, until, lease.mode, staged, place]
    });
    Ok(show::table(
        ["NAME", "DEVICE", "UNTIL", "MODE", "STAGED", "HERE"],
        rows,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lapsed_lease_has_no_time() {
        let leases = json!([{"name": "vm", "device": "laptop", "this": true, "dir": "/x/vm",
            "until": "2026-11-21T14:05:00Z", "mode": "online", "lapsed": true}]);
        let text = render(&leases).unwrap();
        assert!(
            text.lines()
                .nth(1)
                .is_some_and(|line| line.contains("lapsed") && line.ends_with("/x/vm"))
        );
        assert_eq!(render(&json!([])).unwrap(), "Nobody holds a lease.");
    }
}
