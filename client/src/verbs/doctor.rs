//! `imgctl doctor`.

use serde::Deserialize;
use serde_json::Value;

use super::Session;
use crate::failure::Failure;

#[derive(Debug, Deserialize)]
struct Check {
    check: String,
    ok: bool,
    message: String,
    #[serde(default)]
    hint: String,
}

/// Checks this machine and the way home.
pub(super) async fn doctor(session: &Session) -> Result<(), Failure> {
    let checks = session.api.get("/v1/doctor").await?;
    session.output.answer(&checks, render)?;
    let failed = checks
        .as_array()
        .into_iter()
        .flatten()
        .filter(|check| check["ok"] == false)
        .count();
    match failed {
        0 => Ok(()),
        count => Err(Failure::unhealthy(count)),
    }
}

fn render(checks: &Value) -> Result<String, serde_json::Error> {
    let checks = Vec::<Check>::deserialize(checks)?;
    let lines: Vec<_> = checks
        .into_iter()
        .map(|check| {
            let mark = if check.ok { "ok  " } else { "FAIL" };
            let mut line = format!("{mark}  {:<12}{}", check.check, check.message);
            if !check.ok && !check.hint.is_empty() {
                line.push_str(&format!("\n                  {}", check.hint));
            }
            line
        })
        .collect();
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_failed_check_comes_with_its_way_out() {
        let checks = json!([
            {"check": "fuse", "ok": true, "message": "/dev/fuse is there", "hint": ""},
            {"check": "home", "ok": false, "message": "no answer", "hint": "Check the network."},
        ]);
        assert_eq!(
            render(&checks).unwrap(),
            "ok    fuse        /dev/fuse is there\nFAIL  home        no answer\n                  Check the network."
        );
    }
}
