//! `imgctl create`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::args::{CreateArgs, Form};
use crate::failure::Failure;
use crate::{show, values};

#[derive(Debug, Deserialize)]
struct Created {
    logical_bytes: u64,
    sent_bytes: u64,
    skipped: Vec<Skipped>,
}

/// Something that is not there, or not as it was.
#[derive(Debug, Deserialize)]
pub(super) struct Skipped {
    path: String,
    reason: String,
}

impl Skipped {
    /// A line for each of them.
    pub(super) fn render(all: &[Self]) -> String {
        let line = |skipped: &Self| format!("left out: {}: {}\n", skipped.path, skipped.reason);
        all.iter().map(line).collect()
    }
}

/// Makes an image.
pub(super) async fn create(session: &Session, args: CreateArgs) -> Result<(), Failure> {
    let from = args.from.map(|path| values::absolute(&path)).transpose()?;
    if let Some(path) = from.as_ref().filter(|path| !path.exists()) {
        return Err(Failure::not_found(format!(
            "There is nothing at {}.",
            path.display()
        )));
    }
    let from = match &from {
        Some(path) => Some(path.to_str().ok_or_else(|| {
            Failure::usage("The path to import from is not UTF-8; give its parent another name.")
        })?),
        None => None,
    };
    let body = json!({
        "name": args.name.as_str(),
        "from": from,
        "as": args.kind.map(Form::word),
        "strict": args.strict,
    });
    let created = session.stream("/v1/images", &body).await?;
    session
        .output
        .answer(&created, |created| render(args.name.as_str(), created))?;
    match created["skipped"].as_array().map_or(0, Vec::len) {
        0 => Ok(()),
        count => Err(Failure::skipped(count)),
    }
}

fn render(name: &str, created: &Value) -> Result<String, serde_json::Error> {
    let created = Created::deserialize(created)?;
    let mut text = format!(
        "{name}: {} imported, {} sent.\n",
        show::bytes(created.logical_bytes),
        show::bytes(created.sent_bytes)
    );
    text.push_str(&Skipped::render(&created.skipped));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_named() {
        let created = json!({
            "logical_bytes": 2048, "sent_bytes": 1024,
            "skipped": [{"path": "run/sock", "reason": "a socket"}],
        });
        assert_eq!(
            render("vm", &created).unwrap(),
            "vm: 2.00 KiB imported, 1.00 KiB sent.\nleft out: run/sock: a socket\n"
        );
    }
}
