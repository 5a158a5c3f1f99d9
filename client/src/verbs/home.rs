//! `imgctl home`: where the home is, and the ways on after it went back in time.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::args::HomeCommand;
use crate::failure::Failure;
use crate::show;

#[derive(Debug, Deserialize)]
struct Outcome {
    given: Vec<Given>,
    lost: Vec<Lost>,
    roster: u64,
}

#[derive(Debug, Deserialize)]
struct Given {
    name: String,
    commits: u64,
    seq: u64,
    commit: String,
    sent_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Lost {
    name: String,
    from: Place,
    to: Option<Place>,
}

#[derive(Debug, Deserialize)]
struct Place {
    seq: u64,
    commit: String,
}

/// Runs one of the verbs.
pub(super) async fn run(session: &Session, command: HomeCommand) -> Result<(), Failure> {
    let (answer, render): (_, fn(&Value) -> _) = match command {
        HomeCommand::Address { new: None } => (session.api.get("/v1/home").await?, render_address),
        HomeCommand::Address { new: Some(new) } => {
            let body = json!({ "address": new });
            (
                session.api.post("/v1/home/address", &body).await?,
                render_address,
            )
        }
        HomeCommand::Forward => (
            session.stream("/v1/home/forward", &json!({})).await?,
            render_forward,
        ),
        HomeCommand::AcceptRestore => (
            session
                .api
                .post("/v1/home/accept-restore", &json!({}))
                .await?,
            render_accepted,
        ),
    };
    session.output.answer(&answer, render)
}

fn render_address(home: &Value) -> Result<String, serde_json::Error> {
    let connected = if home["connected"] == true {
        "connected"
    } else {
        "not connected"
    };
    Ok(format!(
        "{}, {connected}\n  home      {}\n  key hash  {}",
        home["address"].as_str().unwrap_or("-"),
        home["home"].as_str().unwrap_or("-"),
        home["home_key_hash"].as_str().unwrap_or("-")
    ))
}

fn render_forward(outcome: &Value) -> Result<String, serde_json::Error> {
    let outcome = Outcome::deserialize(outcome)?;
    let mut lines: Vec<_> = outcome.given.iter().map(Given::sentence).collect();
    if outcome.roster > 0 {
        let changes = show::count(outcome.roster, "change", "changes");
        lines.push(format!(
            "{changes} of the list of devices went back to the home."
        ));
    }
    lines.push(match lines.is_empty() {
        true => "The home has all that this device knows of.".to_owned(),
        false => "The home has again all that this device knows of; work goes on.".to_owned(),
    });
    Ok(lines.join("\n"))
}

fn render_accepted(outcome: &Value) -> Result<String, serde_json::Error> {
    let outcome = Outcome::deserialize(outcome)?;
    let mut lines: Vec<_> = outcome.lost.iter().map(Lost::sentence).collect();
    lines.push("This device goes on with the home as it is.".to_owned());
    if !outcome.lost.is_empty() {
        lines.push("What is checked out of a lost commit is an orphan now; save it with: imgctl commit NAME --branch NEW".to_owned());
    }
    Ok(lines.join("\n"))
}

impl Given {
    fn sentence(&self) -> String {
        format!(
            "{}: {} given back ({}), up to commit {} ({}).",
            self.name,
            show::count(self.commits, "commit", "commits"),
            show::bytes(self.sent_bytes),
            self.seq,
            show::short(&self.commit)
        )
    }
}

impl Lost {
    fn sentence(&self) -> String {
        let words =
            |place: &Place| format!("commit {} ({})", place.seq, show::short(&place.commit));
        match &self.to {
            Some(to) => format!(
                "{} goes on from {}, without {}.",
                self.name,
                words(to),
                words(&self.from)
            ),
            None => format!("{} is lost, with {}.", self.name, words(&self.from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seq: u64) -> Value {
        json!({"seq": seq, "commit": "ab".repeat(32)})
    }

    #[test]
    fn what_went_back_and_what_is_lost_is_said() {
        let given = json!({"given": [{"name": "vm", "image": "x", "commits": 2, "seq": 5,
            "commit": "ab".repeat(32), "sent_bytes": 1024}], "lost": [], "roster": 1});
        let text = render_forward(&given).unwrap();
        assert!(
            text.starts_with("vm: 2 commits given back (1.00 KiB), up to commit 5 (ababababab).")
        );
        assert!(text.contains("1 change of the list of devices"));
        let nothing = json!({"given": [], "lost": [], "roster": 0});
        assert!(render_forward(&nothing).unwrap().contains("has all"));
        let lost = json!({"given": [], "roster": 0, "lost": [
            {"name": "vm", "from": place(5), "to": place(3)}, {"name": "new", "from": place(0), "to": null}]});
        let text = render_accepted(&lost).unwrap();
        assert!(text.contains("vm goes on from commit 3 (ababababab), without commit 5"));
        assert!(text.contains("new is lost") && text.contains("--branch NEW"));
    }
}
