//! How answers look: tables and sentences for people, JSON for scripts.

use std::io::Write;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Standard output, in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether scripts read it.
    pub(crate) fn json(self) -> bool {
        self.json
    }

    /// Prints an answer: the JSON as it came, or what `render` makes of it for people.
    pub(crate) fn answer(
        self,
        answer: &Value,
        render: impl FnOnce(&Value) -> Result<String, serde_json::Error>,
    ) -> Result<(), Failure> {
        if self.json {
            print(&json_lines(answer))
        } else {
            let text = render(answer).map_err(|error| {
                Failure::failed(format!("The daemon's answer is odd: {error}."))
            })?;
            print(text.trim_end())
        }
    }
}

/// A list as one object per line, anything else as one object; fields stay as they came.
fn json_lines(answer: &Value) -> String {
    match answer {
        Value::Array(rows) => {
            let lines: Vec<_> = rows.iter().map(Value::to_string).collect();
            lines.join("\n")
        }
        other => other.to_string(),
    }
}

/// Prints one text and a line end to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    if text.is_empty() {
        return Ok(());
    }
    writeln!(std::io::stdout().lock(), "{text}")
        .map_err(|error| Failure::failed(format!("cannot print: {error}")))
}

/// Tells a person something beside the answer.
pub(crate) fn note(text: &str) {
    // There is nobody to tell when it is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Tells about a failure.
pub(crate) fn failure(failure: &Failure, as_json: bool) {
    if failure.is_quiet || (as_json && failure.in_answer) {
        return;
    }
    let text = failure_text(failure, as_json);
    // There is nobody to tell when the output is closed.
    let _ = if as_json {
        writeln!(std::io::stdout().lock(), "{text}")
    } else {
        writeln!(std::io::stderr().lock(), "{text}")
    };
}

fn failure_text(failure: &Failure, as_json: bool) -> String {
    if as_json {
        let mut object = json!({
            "error": failure.error,
            "message": failure.message,
            "hint": failure.hint,
            "exit_code": failure.exit_code,
        });
        if let Value::Object(fields) = &mut object {
            fields.extend(failure.more.clone());
        }
        return object.to_string();
    }
    let mut text = format!("imgctl: {}", failure.message);
    let processes = failure.more.get("processes").and_then(Value::as_array);
    for process in processes.into_iter().flatten() {
        let command = process["command"].as_str().unwrap_or("?");
        text.push_str(&format!("\n  {} {command}", process["pid"]));
    }
    if !failure.hint.is_empty() {
        text.push('\n');
        text.push_str(&failure.hint);
    }
    text
}

/// A table without lines, with a header.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// An RFC 3339 time for people, as the daemon's sentences have it: to the second, since leases may be short.
pub(crate) fn time(time: &str) -> String {
    match (time.get(..10), time.get(11..19)) {
        (Some(day), Some(second)) => format!("{day} {second} UTC"),
        _ => time.to_owned(),
    }
}

/// A number of things for people.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A time of so many seconds for people.
pub(crate) fn seconds(count: u64) -> String {
    humantime::format_duration(Duration::from_secs(count)).to_string()
}

/// The first digits of an id.
pub(crate) fn short(id: &str) -> &str {
    id.get(..10).unwrap_or(id)
}

/// The first digits of an id, or a dash.
pub(crate) fn short_or_dash(id: Option<&str>) -> String {
    id.map_or("-", short).to_owned()
}

/// Who took an image over from a checkout that goes on as a branch.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Taken {
    device: String,
    reason: Option<String>,
    name: String,
    branch: String,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} took {} over", self.device, self.name)?;
        if let Some(reason) = &self.reason {
            write!(f, ": \"{reason}\"")?;
        }
        write!(f, "; this checkout goes on as {}", self.branch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_and_aligned() {
        let text = table(
            ["NAME", "SIZE"],
            [
                ["a".to_owned(), "1".to_owned()],
                ["longer".to_owned(), "22".to_owned()],
            ],
        );
        assert_eq!(text, "NAME    SIZE\na       1\nlonger  22");
    }

    #[test]
    fn scripts_get_every_field_of_status_listing_and_log() {
        let status = json!({"name": "vm", "state": "leased", "streaming": null, "later": 1});
        assert_eq!(
            serde_json::from_str::<Value>(&json_lines(&status)).unwrap(),
            status
        );
        let rows = [
            json!({"name": "vm", "image": "ab".repeat(32), "lease": null}),
            json!({"commit": "cd".repeat(32), "seq": null, "message": "two\nlines", "home": false}),
        ];
        let text = json_lines(&Value::Array(rows.to_vec()));
        let read: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(read, rows);
        assert_eq!(json_lines(&json!([])), "", "nothing is no line");
    }

    #[test]
    fn failures_are_sentences_for_people_and_objects_for_scripts() {
        let failure: Failure = serde_json::from_value(json!({
            "error": "busy", "message": "Files of vm are open.", "hint": "Close them.",
            "exit_code": 1, "processes": [{"pid": 7, "command": "vim"}],
        }))
        .unwrap();
        assert_eq!(
            failure_text(&failure, false),
            "imgctl: Files of vm are open.\n  7 vim\nClose them."
        );
        let object: Value = serde_json::from_str(&failure_text(&failure, true)).unwrap();
        assert_eq!(object["processes"][0]["pid"], 7);
        assert_eq!(object["error"], "busy");
    }

    #[test]
    fn times_and_ids_are_short_for_people() {
        assert_eq!(time("2026-11-21T14:05:00Z"), "2026-11-21 14:05:00 UTC");
        assert_eq!(time("soon"), "soon");
        assert_eq!(count(1, "entry", "entries"), "1 entry");
        assert_eq!(count(0, "entry", "entries"), "0 entries");
        assert_eq!(seconds(320), "5m 20s");
        assert_eq!(short("0123456789abcdef"), "0123456789");
        assert_eq!(short_or_dash(None), "-");
    }
}
