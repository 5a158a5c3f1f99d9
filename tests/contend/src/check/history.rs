//! The histories that the home shows at the end.

use std::collections::BTreeMap;

use img_records::{LogKind, Roster, commit_id};
use img_types::{CommitId, ImageId};

use super::lines::Line;
use super::{Entry, Evidence, Findings};

/// Checks that each history is linear, signed, receipted, and what the log says.
pub(super) fn check(
    evidence: &Evidence,
    roster: &Roster,
    lines: &BTreeMap<ImageId, Line>,
    findings: &mut Findings,
) {
    for (image, history) in &evidence.histories {
        findings.commits += history.len() as u64;
        let told = history.iter().map(|entry| id_of(entry, roster));
        let logged = lines.get(image).map(|line| line.heads.as_slice());
        let logged = logged.unwrap_or_default().iter().map(|(_, commit)| *commit);
        findings.ensure(told.eq(logged), || {
            format!("{image}: history and log differ")
        });
        let mut before: Option<&Entry> = None;
        for entry in history {
            if let Err(why) = continues(evidence, roster, before, entry) {
                let seq = entry.commit.record.seq.0;
                findings.problem(|| format!("{image}, commit {seq}: {why}"));
            }
            before = Some(entry);
        }
    }
    let kept = &evidence.home["commits"];
    findings.ensure(*kept == findings.commits, || {
        format!("imghome check counts {kept} commits")
    });
}

fn continues(
    evidence: &Evidence,
    roster: &Roster,
    before: Option<&Entry>,
    entry: &Entry,
) -> Result<(), &'static str> {
    let holds = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
    let record = &entry.commit.record;
    let parent = record.parent.map(|parent| parent.commit);
    let number = before.map_or(0, |before| before.commit.record.seq.0 + 1);
    holds(record.seq.0 == number, "its number does not follow")?;
    holds(
        parent == before.map(|before| id_of(before, roster)),
        "its parent is not the one before",
    )?;
    let epoch = |entry: &Entry| entry.commit.record.token.map(|token| token.epoch);
    let earlier = before.map(epoch);
    holds(
        earlier.is_none_or(|earlier| earlier <= epoch(entry)),
        "the epoch went down",
    )?;
    let signer = roster
        .member(&record.device)
        .ok_or("a stranger signed it")?;
    let verified = entry
        .commit
        .verify(&roster.home(), &signer.member.keys.sign);
    verified.map_err(|_| "its signature does not verify")?;

    let verified = entry.receipt.verify(&roster.home(), &evidence.home_key);
    verified.map_err(|_| "its receipt does not verify")?;
    let receipt = &entry.receipt.record;
    let same = (receipt.image, receipt.seq, receipt.commit)
        == (record.image, record.seq, id_of(entry, roster));
    holds(same, "its receipt is another's")?;
    let place = receipt
        .position
        .0
        .checked_sub(1)
        .and_then(|place| usize::try_from(place).ok());
    let logged = place
        .and_then(|place| evidence.log.get(place))
        .ok_or("its receipt names no place in the log")?;
    holds(
        logged.root == receipt.log_root,
        "its receipt has another root",
    )?;
    let (kind, subject) = (logged.entry.kind, logged.entry.subject);
    holds(
        (kind, subject) == (LogKind::Commit, *receipt.commit.as_bytes()),
        "its receipt names another entry",
    )?;
    let token = record.token.map(|token| token.epoch);
    holds(
        token == Some(logged.entry.epoch),
        "its token is not the one it moved the head with",
    )?;
    holds(
        record.device == logged.entry.device,
        "another device brought it",
    )
}

fn id_of(entry: &Entry, roster: &Roster) -> CommitId {
    commit_id(&entry.commit, &roster.home())
}
