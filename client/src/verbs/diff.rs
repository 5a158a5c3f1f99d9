//! `imgctl diff`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::show;
use crate::values::CheckoutRef;

#[derive(Debug, Deserialize)]
struct Change {
    change: String,
    path: String,
    #[serde(default)]
    from: Option<String>,
    kind: String,
    what: Vec<String>,
}

/// Shows what differs between two states of an image.
pub(super) async fn diff(
    session: &Session,
    checkout: &CheckoutRef,
    from: Option<&String>,
    to: Option<&String>,
) -> Result<(), Failure> {
    let mut printed = Ok(());
    let compared = session
        .api
        .stream(
            &checkout.verb("diff"),
            &json!({ "from": from, "to": to }),
            |line| {
                // Lines of progress name no path.
                if line.get("path").is_some() && printed.is_ok() {
                    printed = session.output.answer(line, render);
                }
            },
        )
        .await?;
    printed?;
    if session.output.json() {
        return Ok(());
    }
    let found = ["added", "removed", "modified", "renamed"];
    if found.iter().all(|word| compared[word] == 0) {
        show::print("Nothing differs.")?;
    }
    Ok(())
}

fn render(change: &Value) -> Result<String, serde_json::Error> {
    let change = Change::deserialize(change)?;
    let letter = match change.change.as_str() {
        "added" => 'A',
        "removed" => 'D',
        "renamed" => 'R',
        _ => 'M',
    };
    let shown = |path: &str| {
        // A name may hold a line break or worse.
        let mut shown: String = path.chars().map(show_char).collect();
        if change.kind == "directory" {
            shown.push('/');
        }
        shown
    };
    let mut text = match &change.from {
        Some(from) => format!("{letter}  {} -> {}", shown(from), shown(&change.path)),
        None => format!("{letter}  {}", shown(&change.path)),
    };
    // That contents changed, and when, is what one expects.
    let what: Vec<_> = change.what.iter().map(String::as_str).collect();
    let expected = matches!(what[..], [] | ["content"] | ["content", "times"]);
    if !expected {
        text.push_str(&format!("  ({})", what.join(", ")));
    }
    Ok(text)
}

fn show_char(character: char) -> String {
    match character.is_control() {
        true => character.escape_default().collect(),
        false => character.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_became_of_a_path() {
        let line = |change: &str, from: Value, kind: &str, what: Value| {
            let line =
                json!({"change": change, "path": "a\nb", "from": from, "kind": kind, "what": what});
            render(&line).unwrap()
        };
        let none = json!([]);
        assert_eq!(line("added", json!(null), "file", none.clone()), "A  a\\nb");
        assert_eq!(
            line("removed", json!(null), "directory", none.clone()),
            "D  a\\nb/"
        );
        assert_eq!(
            line("renamed", json!("c"), "file", json!(["content", "mode"])),
            "R  c -> a\\nb  (content, mode)"
        );
        let times = json!(["content", "times"]);
        assert_eq!(line("modified", json!(null), "file", times), "M  a\\nb");
        assert_eq!(
            line("modified", json!(null), "file", json!(["times"])),
            "M  a\\nb  (times)"
        );
    }
}
