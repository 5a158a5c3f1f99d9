//! Rows that are not the lease rules' own.

use std::hash::{Hash, Hasher};

use img_lease::{ImageState, Logged, Proposal};
use img_records::{LogEntry, LogKind};
use img_types::{LogRoot, NameTag};

use super::Receipt;

/// An image with its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRow {
    /// The tag of its name.
    pub tag: NameTag,
    /// What the rules decide on.
    pub state: ImageState,
}

/// A commit as it was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommitRow {
    /// The commit.
    pub proposal: Proposal,
    /// What its device was given.
    pub receipt: Receipt,
}

/// An entry of the log and the root of the log up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRow {
    /// What happened.
    pub entry: LogEntry,
    /// The chain up to here.
    pub root: LogRoot,
}

impl Hash for LogRow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The root stands for the entry and for all before it.
        self.root.hash(state);
    }
}

/// A line of the rules as the log has it.
pub(super) fn line(line: &Logged, image: &ImageState) -> (LogKind, [u8; 32]) {
    match line {
        Logged::Commit(commit) => (LogKind::Commit, *commit.as_bytes()),
        Logged::Grant(checkout) => (LogKind::Grant, *checkout.as_bytes()),
        Logged::Steal(checkout) => (LogKind::Steal, *checkout.as_bytes()),
        Logged::Release(checkout) => (LogKind::Release, *checkout.as_bytes()),
        Logged::Readmit(commit) => (LogKind::Readmit, *commit.as_bytes()),
        Logged::Delete => {
            let head = image.head_commit();
            (
                LogKind::Delete,
                head.map_or([0; 32], |head| *head.as_bytes()),
            )
        }
    }
}
