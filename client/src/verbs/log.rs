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
    stale: bool,
}

/// Shows an image's history, newest first.
pub(super) async fn log(session: &Session, name: &ImageName, limit: u32) -> Result<(), Failure> {
    let path = format!("{}/log?limit={limit}", values::image_resource(name));
    let commits = session.api.get(&path).await?;
    session.output.answer(&commits, render)
}

fn render(commits: &Value) -> Result<String, serde_json::Error> {
    let commits = Vec::<Commit>::deserialize(commits)?;
    let stale = commits.iter().any(|commit| commit.stale);
    let rows = commits.into_iter().map(|commit| {
        let note = if commit.home {
            commit.kind
        } else {
            format!("{}, only here", commit.kind)
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
    let mut text = show::table(["SEQ", "COMMIT", "TIME", "DEVICE", "KIND", "MESSAGE"], rows);
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
    fn checkpoints_that_are_only_here_are_marked() {
        let log = json!([
            {"commit": "cc".repeat(32), "seq": null, "device": "laptop", "time": "2026-11-21T12:00:00Z",
             "message": "", "kind": "checkpoint", "home": false},
            {"commit": "ab".repeat(32), "seq": 0, "device": "laptop", "time": "2026-11-21T11:00:00Z",
             "message": "first", "kind": "import", "home": true},
        ]);
        let text = render(&log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains("cccccccccc") && lines[1].contains("checkpoint, only here"));
        assert!(lines[2].starts_with("0") && lines[2].ends_with("first"));
        assert_eq!(lines.len(), 3);
        let mut offline = log;
        offline[1]["stale"] = json!(true);
        assert!(render(&offline).unwrap().contains("known of it here"));
    }
}
