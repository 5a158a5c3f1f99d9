//! `imgctl log`.

use img_types::ImageName;
use serde::Deserialize;
use serde_json::Value;

use super::Session;
use crate::failure::Failure;
use crate::{show, values};

#[derive(Debug, Deserialize)]
struct Commit {
    commit: String,
    seq: Option<u64>,
    device: String,
    time: String,
    message: String,
    kind: String,
    home: bool,
    #[serde(default)]
    automatic: Option<bool>,
    #[serde(default)]
    stale: bool,
    #[serde(default)]
    branches: Vec<Named>,
    parent: Option<String>,
    parent_image: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Event {
    kind: String,
    time: String,
    device: Option<String>,
    call: Option<String>,
    reason: Option<String>,
}

/// Shows an image's history, newest first.
pub(super) async fn log(session: &Session, name: &ImageName, limit: u32) -> Result<(), Failure> {
    let path = format!("{}/log?limit={limit}", values::image_resource(name));
    let commits = session.api.get(&path).await?;
    session.output.answer(&commits, render)
}

/// Shows who had an image, who took it and what was refused, newest first.
pub(super) async fn audit(session: &Session, name: &ImageName, limit: u32) -> Result<(), Failure> {
    let path = format!("{}/audit?limit={limit}", values::image_resource(name));
    let events = session.api.get(&path).await?;
    session.output.answer(&events, render_audit)
}

fn render_audit(events: &Value) -> Result<String, serde_json::Error> {
    let events = Vec::<Event>::deserialize(events)?;
    let rows = events.into_iter().map(|event| {
        let what = match event.call {
            Some(call) => format!("{} {call}", event.kind),
            None => event.kind,
        };
        let device = event.device.unwrap_or_else(|| "a stranger".to_owned());
        [
            show::time(&event.time),
            device,
            what,
            event.reason.unwrap_or_default(),
        ]
    });
    Ok(show::table(["TIME", "DEVICE", "WHAT", "WHY"], rows))
}

fn render(commits: &Value) -> Result<String, serde_json::Error> {
    let commits = Vec::<Commit>::deserialize(commits)?;
    let stale = commits.iter().any(|commit| commit.stale);
    let mut drawn: Vec<Vec<String>> = Vec::new();
    for commit in &commits {
        let name = |named: &Named| named.name.clone().unwrap_or_else(|| "an image".to_owned());
        let left = commit
            .branches
            .iter()
            .map(|branch| format!("  ├─▶ {}", name(branch)));
        let mut lines: Vec<_> = left.collect();
        if let (Some(from), Some(parent)) = (&commit.parent_image, &commit.parent) {
            lines.push(format!(
                "  └── left {} at {}",
                name(from),
                show::short(parent)
            ));
        }
        drawn.push(lines);
    }
    let rows = commits.into_iter().map(|commit| {
        let kind = match commit.automatic {
            Some(true) => format!("{}, automatic", commit.kind),
            Some(false) | None => commit.kind,
        };
        let note = match (commit.home, commit.seq) {
            (false, _) => format!("{kind}, only here"),
            (true, None) => format!("{kind}, staged"),
            (true, Some(_)) => kind,
        };
        [
            commit.seq.map_or("-".to_owned(), |seq| seq.to_string()),
            show::short(&commit.commit).to_owned(),
            show::time(&commit.time),
            commit.device,
            note,
            commit.message,
        ]
    });
    let table = show::table(["SEQ", "COMMIT", "TIME", "DEVICE", "KIND", "MESSAGE"], rows);
    // Below each commit, where branches left it or it left another image.
    let mut lines: Vec<String> = Vec::new();
    for (at, line) in table.lines().enumerate() {
        lines.push(line.to_owned());
        let below = at.checked_sub(1).and_then(|at| drawn.get_mut(at));
        lines.extend(below.map(std::mem::take).unwrap_or_default());
    }
    let mut text = lines.join("\n");
    if stale {
        text.push_str("\nThe home cannot be reached: this is what is known of it here.");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn branches_are_drawn_where_they_left() {
        let row = |seq: u64, branches: Value, parent_image: Value| {
            json!({"commit": "ab".repeat(32), "seq": seq, "device": "laptop", "time": "2026-11-21T11:00:00Z", "message": "",
                "kind": "branch", "home": true, "branches": branches, "parent": "cd".repeat(32), "parent_image": parent_image})
        };
        let log = json!([
            row(1, json!([{"name": "vm-laptop"}]), json!(null)),
            row(0, json!([]), json!({"name": "base"}))
        ]);
        let text = render(&log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2], "  ├─▶ vm-laptop");
        assert_eq!(lines[4], "  └── left base at cdcdcdcdcd");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn an_audit_says_who_and_why() {
        let audit = json!([
            {"kind": "steal", "time": "2026-11-21T12:00:00Z", "device": "desktop", "reason": "the train leaves"},
            {"kind": "refused", "time": "2026-11-21T11:00:00Z", "device": null, "call": "Acquire", "reason": "leased"},
        ]);
        let text = render_audit(&audit).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains("desktop") && lines[1].ends_with("the train leaves"));
        assert!(lines[2].contains("a stranger") && lines[2].contains("refused Acquire"));
    }

    #[test]
    fn what_is_not_in_the_history_yet_is_marked() {
        let log = json!([
            {"commit": "cc".repeat(32), "seq": null, "device": "laptop", "time": "2026-11-21T12:00:00Z",
             "message": "", "kind": "checkpoint", "automatic": true, "home": false},
            {"commit": "dd".repeat(32), "seq": null, "device": "desktop", "time": "2026-11-21T11:30:00Z",
             "message": "", "kind": "checkpoint", "home": true},
            {"commit": "ab".repeat(32), "seq": 0, "device": "laptop", "time": "2026-11-21T11:00:00Z",
             "message": "first", "kind": "import", "home": true},
        ]);
        let text = render(&log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].contains("cccccccccc")
                && lines[1].contains("checkpoint, automatic, only here")
        );
        assert!(lines[2].contains("dddddddddd") && lines[2].contains("checkpoint, staged"));
        assert!(lines[3].starts_with("0") && lines[3].ends_with("first"));
        assert_eq!(lines.len(), 4);
        let mut offline = log;
        offline[1]["stale"] = json!(true);
        assert!(render(&offline).unwrap().contains("known of it here"));
    }
}
