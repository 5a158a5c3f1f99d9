//! A failed command: a stable word, a sentence, a way out, and an exit code.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::show;

/// What the daemon answers when it refuses, and what this program makes of its own failures.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Failure {
    /// Stable word for scripts.
    pub(crate) error: String,
    /// What happened, as a sentence.
    pub(crate) message: String,
    /// What to type next; may be empty.
    #[serde(default)]
    pub(crate) hint: String,
    /// What the program exits with.
    pub(crate) exit_code: u8,
    /// Further fields of the daemon's answer.
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
    /// Whether the answer that was printed says it already, so that scripts get one object.
    #[serde(skip)]
    pub(crate) in_answer: bool,
    /// Whether an application has said what there was to say: only its exit code is passed on.
    #[serde(skip)]
    pub(crate) is_quiet: bool,
}

impl Failure {
    fn new(error: &str, exit_code: u8, message: impl Into<String>, hint: &str) -> Self {
        Self {
            error: error.to_owned(),
            message: message.into(),
            hint: hint.to_owned(),
            exit_code,
            more: Map::new(),
            in_answer: false,
            is_quiet: false,
        }
    }

    /// Something went wrong that nothing else names.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new("failed", 1, message, "")
    }

    /// The command makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(
            "usage",
            2,
            message,
            "imgctl --help lists the commands and options.",
        )
    }

    /// A path that does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new("not_found", 3, message, "")
    }

    /// No daemon answers.
    pub(crate) fn no_daemon(message: impl Into<String>) -> Self {
        Self::new("no_daemon", 1, message, "Start it with: imgd")
    }

    /// The daemon takes connections and says nothing.
    pub(crate) fn silent(socket: &std::path::Path, pid: Option<i32>) -> Self {
        let socket = socket.display();
        let (who, look) = match pid {
            Some(pid) => (
                format!("imgd (process {pid}, {socket})"),
                format!(
                    "Where `ps -o stat= -p {pid}` says T it was stopped: `kill -CONT {pid}` lets it go on. \
                     Else it is starting or its disk hangs; its log says more. Ctrl-C ends the waiting."
                ),
            ),
            None => (
                format!("imgd ({socket})"),
                "It was stopped, is starting, or its disk hangs; its log says more. Ctrl-C ends the waiting."
                    .to_owned(),
            ),
        };
        Self::new("no_answer", 1, format!("{who} does not answer."), &look)
    }

    /// Something in the import was left out.
    pub(crate) fn skipped(count: usize) -> Self {
        let entries = show::count(count as u64, "entry", "entries");
        let message = format!("{entries} could not be imported; the rest is there.");
        Self {
            in_answer: true,
            ..Self::new("skipped", 1, message, "")
        }
    }

    /// A check of the doctor failed.
    pub(crate) fn unhealthy(count: usize) -> Self {
        let message = format!("{} failed.", show::count(count as u64, "check", "checks"));
        Self {
            in_answer: true,
            ..Self::new("unhealthy", 1, message, "")
        }
    }

    /// An application ended with another code than 0.
    pub(crate) fn of_application(exit_code: u8) -> Self {
        Self {
            is_quiet: true,
            ..Self::new("application", exit_code, "", "")
        }
    }

    /// The person pressed Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self::new(
            "interrupted",
            130,
            "Interrupted.",
            "Type the same command again to go on where it was.",
        )
    }
}
