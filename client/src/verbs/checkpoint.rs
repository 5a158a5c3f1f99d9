//! `imgctl checkpoint` and `commit`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::show;
use crate::values::CheckoutRef;

#[derive(Debug, Deserialize)]
struct Checkpoint {
    checkpoint: String,
    #[serde(default)]
    freeze_us: u64,
    #[serde(default)]
    stopped_us: Option<u64>,
    #[serde(default)]
    maps: Option<String>,
    #[serde(default)]
    unchanged: bool,
}

#[derive(Debug, Deserialize)]
struct Commit {
    commit: String,
    seq: u64,
    sent_bytes: u64,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    branch: Option<Branch>,
    #[serde(default)]
    left_out: Vec<LeftOut>,
    #[serde(default)]
    adopted: bool,
    #[serde(default)]
    taken: Option<show::Taken>,
    unchanged: bool,
}

#[derive(Debug, Deserialize)]
struct LeftOut {
    path: String,
}

#[derive(Debug, Deserialize)]
struct Branch {
    name: String,
}

/// Cuts a checkpoint.
pub(super) async fn checkpoint(
    session: &Session,
    checkout: &CheckoutRef,
    message: Option<String>,
) -> Result<(), Failure> {
    let path = checkout.verb("checkpoint");
    let message = message.unwrap_or_default();
    let cut = session
        .api
        .post(&path, &json!({"message": message}))
        .await?;
    session.output.answer(&cut, render_checkpoint)
}

/// Commits a checkout's state.
pub(super) async fn commit(
    session: &Session,
    checkout: &CheckoutRef,
    body: &Value,
    no_wait: bool,
) -> Result<(), Failure> {
    let path = checkout.verb("commit");
    let committed = session.stream(&path, body).await?;
    if no_wait {
        session.output.answer(&committed, render_checkpoint)
    } else {
        let wanted = body["message"].as_str().unwrap_or_default();
        session
            .output
            .answer(&committed, |commit| render_commit(commit, wanted))
    }
}

fn render_checkpoint(cut: &Value) -> Result<String, serde_json::Error> {
    let cut = Checkpoint::deserialize(cut)?;
    let id = show::short(&cut.checkpoint);
    if cut.unchanged {
        return Ok(format!("Nothing has changed since checkpoint {id}."));
    }
    let held_up = cut.stopped_us.unwrap_or(0).max(cut.freeze_us);
    let mut text = format!("Checkpoint {id}; writers were held up for {held_up} µs.");
    if cut.maps.as_deref() == Some("last flush") {
        text.push_str(" Shared memory maps are as of their last flush.");
    }
    Ok(text)
}

fn render_commit(commit: &Value, wanted: &str) -> Result<String, serde_json::Error> {
    let commit = Commit::deserialize(commit)?;
    let id = show::short(&commit.commit);
    let mut text = if let Some(Branch { name }) = commit.branch {
        format!(
            "Saved as {name} ({id}), {} sent. This checkout goes on as {name}.",
            show::bytes(commit.sent_bytes)
        )
    } else if commit.adopted {
        format!(
            "Nothing has changed since commit {} ({id}); this checkout has the lease again.",
            commit.seq
        )
    } else if commit.unchanged {
        format!("Nothing has changed since commit {} ({id}).", commit.seq)
    } else {
        format!(
            "Commit {} ({id}), {} sent.",
            commit.seq,
            show::bytes(commit.sent_bytes)
        )
    };
    if !commit.left_out.is_empty() {
        text.push_str("\nLeft out, because parts exist neither here nor at home:");
        for left_out in &commit.left_out {
            text.push_str(&format!("\n  {}", left_out.path));
        }
    }
    if let Some(taken) = commit.taken {
        // What was committed is not in the image that was named.
        text = format!("{taken}.\n{text}");
    }
    let message = commit.message.as_deref().unwrap_or(wanted);
    if !wanted.is_empty() && message != wanted {
        text.push_str(&format!(
            "\nIt was made before, with the message {message:?}; a commit's message does not change."
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_became_of_the_state() {
        let id = "ab".repeat(32);
        let cut = json!({"checkpoint": id, "freeze_us": 12, "dirty_bytes": 0});
        assert_eq!(
            render_checkpoint(&cut).unwrap(),
            "Checkpoint ababababab; writers were held up for 12 µs."
        );
        let cut =
            json!({"checkpoint": id, "freeze_us": 12, "stopped_us": 9_000, "maps": "last flush"});
        assert_eq!(
            render_checkpoint(&cut).unwrap(),
            "Checkpoint ababababab; writers were held up for 9000 µs. Shared memory maps are as of their last flush."
        );
        let commit = json!({"commit": id, "seq": 4, "sent_bytes": 10, "sealed_bytes": 10, "unchanged": false});
        assert_eq!(
            render_commit(&commit, "").unwrap(),
            "Commit 4 (ababababab), 10 B sent."
        );
        let commit =
            json!({"commit": id, "seq": 4, "sent_bytes": 0, "sealed_bytes": 0, "unchanged": true});
        assert_eq!(
            render_commit(&commit, "").unwrap(),
            "Nothing has changed since commit 4 (ababababab)."
        );
        let commit = json!({"commit": id, "seq": 1, "sent_bytes": 10, "unchanged": false,
            "taken": {"device": "desktop", "reason": null, "name": "vm", "branch": "vm-laptop"}});
        assert_eq!(
            render_commit(&commit, "").unwrap(),
            "desktop took vm over; this checkout goes on as vm-laptop.\nCommit 1 (ababababab), 10 B sent."
        );
        let adopted =
            json!({"commit": id, "seq": 4, "sent_bytes": 0, "unchanged": true, "adopted": true});
        assert_eq!(
            render_commit(&adopted, "").unwrap(),
            "Nothing has changed since commit 4 (ababababab); this checkout has the lease again."
        );
        let branch = json!({"commit": id, "seq": 0, "sent_bytes": 10, "unchanged": false,
            "branch": {"name": "mine"}});
        assert_eq!(
            render_commit(&branch, "").unwrap(),
            "Saved as mine (ababababab), 10 B sent. This checkout goes on as mine."
        );
        let partial = json!({"commit": id, "seq": 0, "sent_bytes": 10, "unchanged": false,
            "branch": {"name": "mine"}, "left_out": [{"path": "/a"}, {"path": "/b/c"}]});
        let text = render_commit(&partial, "").unwrap();
        assert!(text.ends_with("nor at home:\n  /a\n  /b/c"), "{text}");
        let older = json!({"commit": id, "seq": 4, "sent_bytes": 0, "sealed_bytes": 0,
            "message": "one", "unchanged": false});
        assert!(
            render_commit(&older, "two")
                .unwrap()
                .contains("with the message \"one\"")
        );
        assert!(!render_commit(&older, "one").unwrap().contains("message"));
    }
}
