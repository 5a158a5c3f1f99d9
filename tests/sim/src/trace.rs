//! What happened in a run, as lines; written only where somebody will read them.

use std::collections::VecDeque;
use std::fmt::Write as _;

use crate::clock::{DAY, HOUR, MINUTE, Millis, SECOND};

/// How much of a run is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: a campaign repeats the seed that fails.
    Nothing,
    /// So many lines of its end.
    Last(usize),
    /// Everything.
    All,
}

/// The lines of a run.
#[derive(Debug)]
pub struct Trace {
    keep: Keep,
    lines: VecDeque<String>,
}

impl Trace {
    /// A trace that keeps so much.
    pub fn new(keep: Keep) -> Self {
        Self {
            keep,
            lines: VecDeque::new(),
        }
    }

    /// Adds a line, which is only made if it is kept.
    pub fn line(&mut self, now: Millis, who: &str, what: impl FnOnce() -> String) {
        if self.keep == Keep::Nothing {
            return;
        }
        let mut line = String::new();
        let (days, rest) = (now / DAY, now % DAY);
        // Writing to a string cannot fail.
        let _ = write!(
            line,
            "{days:4}d {:02}:{:02}:{:02}.{:03} {who:>8} {}",
            rest / HOUR,
            rest % HOUR / MINUTE,
            rest % MINUTE / SECOND,
            rest % SECOND,
            what()
        );
        self.lines.push_back(line);
        if let Keep::Last(most) = self.keep
            && self.lines.len() > most
        {
            self.lines.pop_front();
        }
    }

    /// The lines that were kept.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
