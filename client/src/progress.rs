//! Progress of long operations, on standard error and only on a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::Value;

const BAR: &str =
    "{msg:>10} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left{prefix}";
const SPINNER: &str = "{msg:>10} {spinner} {bytes}, {bytes_per_sec}{prefix}";
const WAITING: &str = "{msg:>10} {spinner}{prefix}";

/// One line of a long operation's answer.
#[derive(Debug, Deserialize)]
struct Line {
    phase: String,
    #[serde(default)]
    done_bytes: u64,
    #[serde(default)]
    total_bytes: Option<u64>,
    #[serde(default)]
    files: Option<u64>,
    #[serde(default)]
    waits_for: Option<String>,
}

/// A bar that follows the phases of one operation.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    phase: String,
}

impl Progress {
    /// Starts silent: nothing is drawn before the first line, and nothing at all off a terminal.
    pub(crate) fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bar: ProgressBar::with_draw_target(None, target),
            phase: String::new(),
        }
    }

    /// Takes one line; lines that are no progress are left alone.
    pub(crate) fn update(&mut self, line: &Value) {
        let Ok(line) = Line::deserialize(line) else {
            return;
        };
        let template = match (line.total_bytes, line.done_bytes) {
            (Some(_), _) => BAR,
            (None, 0) => WAITING,
            (None, _) => SPINNER,
        };
        if line.phase != self.phase {
            self.bar.reset();
            self.phase.clone_from(&line.phase);
            self.bar.set_message(line.phase);
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        match line.total_bytes {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_position(line.done_bytes);
        let mut notes = String::new();
        if let Some(files) = line.files {
            notes.push_str(&format!(", {files} files"));
        }
        if let Some(waits_for) = line.waits_for {
            notes.push_str(&format!(", waiting for {waits_for}"));
        }
        self.bar.set_prefix(notes);
        self.bar.tick();
    }

    /// Lets other output through without breaking the bar.
    pub(crate) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
