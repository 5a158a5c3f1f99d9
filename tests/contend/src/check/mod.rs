//! Whether everything that clients were told can have happened, and happened once.
//!
//! The home's log is the order of all grants, steals, releases and commits. It is replayed by the lease
//! rules ([`lines`]); the histories that the home shows at the end are compared with it ([`history`]); and
//! each answer of each client is compared with what held at some moment between request and answer
//! ([`answers`]). The log position in a reply says how far the home had got: whatever was answered before a
//! request was sent has happened before it, also across a kill of the home.

mod answers;
mod history;
mod lines;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use img_records::{LogEntry, SignedCommit, SignedReceipt};
use img_types::bytes::Reader;
use img_types::{ImageId, LogRoot};
use rusqlite::{Connection, OpenFlags};

use crate::journal::Nanos;
use crate::papers;
use crate::talk::Plan;

/// Problems that are told; the others are counted.
const TOLD_MAX: usize = 30;

/// Everything that a run leaves.
#[derive(Debug)]
pub struct Evidence {
    /// What all processes agreed on.
    pub plan: Plan,
    /// Where the journals are.
    pub dir: PathBuf,
    /// The key of the home's receipts.
    pub home_key: [u8; 32],
    /// When the home was killed: what was leased before does not lapse soon after.
    pub home_killed: Vec<Nanos>,
    /// The home's log from position 1 on.
    pub log: Vec<Logged>,
    /// What the home told of each image at the end.
    pub histories: Histories,
    /// What `imghome check --json` printed.
    pub home: serde_json::Value,
}

/// The whole history of each image, oldest first.
pub type Histories = BTreeMap<ImageId, Vec<Entry>>;

/// An entry of the home's log with the chain's root after it.
#[derive(Debug, Clone, Copy)]
pub struct Logged {
    /// The entry.
    pub entry: LogEntry,
    /// The root that the home keeps.
    pub root: LogRoot,
}

/// A commit in history.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The record.
    pub commit: SignedCommit,
    /// The home's receipt for it.
    pub receipt: SignedReceipt,
}

impl Entry {
    /// Takes the two apart.
    ///
    /// # Errors
    /// One does not decode.
    pub fn decode(commit: &[u8], receipt: &[u8]) -> Result<Self> {
        Ok(Self {
            commit: SignedCommit::decode(commit).context("a commit in history")?,
            receipt: SignedReceipt::decode(receipt).context("a receipt in history")?,
        })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What cannot have happened.
    pub problems: Vec<String>,
    /// Problems that are not told.
    pub untold: u64,
    /// Answered calls by name, with how many of them were refused.
    pub calls: BTreeMap<String, (u64, u64)>,
    /// Grants in the log, steals included.
    pub grants: u64,
    /// Leases that a rival took after they had lapsed.
    pub lapses: u64,
    /// Acquires of a lapsed lease that were refused for the work that its holder had staged.
    pub held_up: u64,
    /// Renewals and commits by holders whose lease had lapsed without a rival.
    pub late: u64,
    /// Commits in history.
    pub commits: u64,
    /// Lives that were told that a newer one is known.
    pub fenced: u64,
}

impl Findings {
    /// Answered calls.
    pub fn answered(&self) -> u64 {
        self.calls.values().map(|(answered, _)| answered).sum()
    }

    fn problem(&mut self, what: impl FnOnce() -> String) {
        if self.problems.len() < TOLD_MAX {
            self.problems.push(what());
        } else {
            self.untold += 1;
        }
    }

    fn ensure(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.problem(what);
        }
    }
}

/// Reads the log of a home that does not run.
///
/// # Errors
/// It cannot be read.
pub fn read_log(database: &Path) -> Result<Vec<Logged>> {
    let database = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut query = database.prepare("SELECT position, entry, root FROM log ORDER BY position")?;
    let mut rows = query.query(())?;
    let mut log = Vec::new();
    while let Some(row) = rows.next()? {
        let (position, entry): (u64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        anyhow::ensure!(position == log.len() as u64 + 1, "the log has a gap");
        log.push(Logged {
            entry: LogEntry::decode(&mut Reader::new(&entry))?,
            root: LogRoot::from_bytes(row.get(2)?),
        });
    }
    Ok(log)
}

/// Compares everything with everything.
///
/// # Errors
/// A journal cannot be read.
pub fn check(evidence: &Evidence) -> Result<Findings> {
    let mut findings = Findings::default();
    let problems = &evidence.home["problems"];
    findings.ensure(problems.as_array().is_some_and(Vec::is_empty), || {
        format!("imghome check: {problems}")
    });
    let (roster, _) = papers::roster(evidence.plan.clients)?;
    let lines = lines::replay(evidence, &mut findings);
    history::check(evidence, &roster, &lines, &mut findings);
    answers::check(evidence, &roster, &lines, &mut findings)?;
    Ok(findings)
}

#[cfg(test)]
mod tests;
