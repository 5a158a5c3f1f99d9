//! `imgctl join` and `imgctl recover`.

use std::io::{BufRead, IsTerminal, Write};

use img_types::DeviceName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::show;

#[derive(Debug, Deserialize)]
struct Joined {
    name: String,
    role: String,
    #[serde(default)]
    founded: bool,
    #[serde(default)]
    already: bool,
}

#[derive(Debug, Deserialize)]
struct Words {
    recovery_words: String,
    recover: String,
}

/// Enrols this device with an invite.
pub(super) async fn join(
    session: &Session,
    invite: &str,
    name: Option<DeviceName>,
) -> Result<(), Failure> {
    let body = json!({"invite": invite, "name": name.as_ref().map(DeviceName::as_str)});
    enrol(session, "/v1/home/join", &body).await
}

/// Enrols this device with the recovery words.
pub(super) async fn recover(
    session: &Session,
    address: &str,
    home_key_hash: &str,
    name: Option<DeviceName>,
) -> Result<(), Failure> {
    let words = read_words()?;
    let body = json!({
        "address": address, "home_key_hash": home_key_hash, "words": words,
        "name": name.as_ref().map(DeviceName::as_str),
    });
    enrol(session, "/v1/home/recover", &body).await
}

async fn enrol(session: &Session, path: &str, body: &Value) -> Result<(), Failure> {
    let mut progress = Progress::new();
    let json = session.output.json();
    let joined = session
        .api
        .stream(path, body, |line| match Words::deserialize(line) {
            // The words come once; a closed output must not keep them from the terminal.
            Ok(words) => progress.suspend(|| {
                let text = if json {
                    line.to_string()
                } else {
                    render_words(&words)
                };
                if show::print(&text).is_err() {
                    let _ = writeln!(std::io::stderr(), "{text}");
                }
            }),
            Err(_) => progress.update(line),
        })
        .await?;
    drop(progress);
    session.output.answer(&joined, render_joined)
}

fn render_words(words: &Words) -> String {
    let numbered: Vec<_> = words.recovery_words.split_whitespace().collect();
    let lines: Vec<_> = numbered
        .chunks(6)
        .map(|line| format!("    {}", line.join(" ")))
        .collect();
    format!(
        "These words bring everything back if all devices are lost. They are shown this once: write them \
         down and keep them in a safe place.\n\n{}\n\nA new device is enrolled with them by:\n\n    {}\n",
        lines.join("\n"),
        words.recover
    )
}

fn render_joined(joined: &Value) -> Result<String, serde_json::Error> {
    let joined = Joined::deserialize(joined)?;
    let next = if joined.founded {
        "Make an image with: imgctl create NAME --from PATH"
    } else {
        "See the images with: imgctl ls"
    };
    let role = if joined.role == "admin" {
        "an admin"
    } else {
        "a member"
    };
    let already = if joined.already { " already" } else { "" };
    Ok(format!(
        "This device is {}, {role} of the home{already}.\n{next}",
        joined.name
    ))
}

fn read_words() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let mut stderr = std::io::stderr();
        // Without a visible prompt the words can be typed all the same.
        let _ = write!(stderr, "The 24 recovery words, in order: ");
        let _ = stderr.flush();
    }
    let mut line = String::new();
    stdin
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::usage(format!("The words cannot be read: {error}.")))?;
    if line.trim().is_empty() {
        return Err(Failure::usage(
            "The recovery words are read from the terminal or from standard input.",
        ));
    }
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_shown_six_to_a_line_with_what_to_do() {
        let text = render_words(&Words {
            recovery_words: vec!["word"; 24].join(" "),
            recover: "imgctl recover host:4460 abcd".to_owned(),
        });
        assert_eq!(
            text.matches("    word word word word word word\n").count(),
            4
        );
        assert!(text.contains("    imgctl recover host:4460 abcd\n"));
    }
}
