//! Each answer of each client, beside what held between request and answer.

mod accepted;
mod exchange;
mod refused;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use img_proto::{Call, Refusal, Request};
use img_records::{Commit, Roster, SignedCommit, commit_id};
use img_types::{CommitId, ImageId, Instance, RequestId, Token};

use self::exchange::{Exchange, Floors, exchanges, name_of};
use super::lines::{Line, Tenure};
use super::{Evidence, Findings};
use crate::client::NOWHERE;
use crate::journal::{self, Line as Written, Nanos};
use crate::papers::{self, Device, FOUNDER};

/// How much the clocks of two processes may disagree: the home counts whole milliseconds.
const CLOCKS_NS: u64 = 5_000_000;

/// When the home knew a life, and as which instance.
type Known = (Nanos, Instance);

/// What all answers together tell.
struct Answers<'a> {
    roster: &'a Roster,
    lines: &'a BTreeMap<ImageId, Line>,
    receipts: BTreeMap<CommitId, Vec<u8>>,
    floors: Floors,
    first_sent: BTreeMap<RequestId, Nanos>,
    /// Requests that had an effect.
    kept: BTreeSet<RequestId>,
    /// Ids of refused requests that were used for something else.
    reused: BTreeSet<RequestId>,
    /// The lives of each client, as far as the home answered their Hello.
    lives: BTreeMap<u32, Vec<Option<Known>>>,
    granted: BTreeMap<(ImageId, u64), RequestId>,
    grants: BTreeMap<RequestId, (ImageId, u64)>,
    /// Until when a lease was promised, at least.
    promised: BTreeMap<(ImageId, u64), Nanos>,
    /// When a lease was last told of, and until when it was promised then, at most.
    last_told: BTreeMap<(ImageId, u64), (Nanos, Nanos)>,
    acknowledged: BTreeSet<CommitId>,
}

/// Reads all journals twice: first for the times, then for the answers.
pub(super) fn check(
    evidence: &Evidence,
    roster: &Roster,
    lines: &BTreeMap<ImageId, Line>,
    findings: &mut Findings,
) -> Result<()> {
    let receipts = evidence.histories.values().flatten().map(|entry| {
        let id = commit_id(&entry.commit, &roster.home());
        (id, entry.receipt.to_bytes())
    });
    let mut answers = Answers {
        roster,
        lines,
        receipts: receipts.collect(),
        floors: Floors::default(),
        first_sent: BTreeMap::new(),
        kept: BTreeSet::new(),
        reused: BTreeSet::new(),
        lives: BTreeMap::new(),
        granted: BTreeMap::new(),
        grants: BTreeMap::new(),
        promised: BTreeMap::new(),
        last_told: BTreeMap::new(),
        acknowledged: BTreeSet::new(),
    };
    for number in FOUNDER..=evidence.plan.clients {
        let mut known = Vec::new();
        for path in journal::lives(&evidence.dir, number)? {
            known.push(answers.scan(evidence, number, &journal::read(&path)?, findings));
        }
        answers.lives.insert(number, known);
    }
    answers.floors.settle();
    for number in FOUNDER..=evidence.plan.clients {
        let device = Device::of(number);
        for (life, path) in journal::lives(&evidence.dir, number)?.iter().enumerate() {
            let written = journal::read(path)?;
            for (sent, heard, request, reply) in exchanges(&written) {
                let first = request
                    .id
                    .and_then(|id| answers.first_sent.get(&id).copied());
                let exchange = Exchange {
                    number,
                    life,
                    device: device.id(),
                    sent,
                    heard,
                    request,
                    reply,
                    floor: answers.floors.at(sent),
                    first_floor: answers.floors.at(first.unwrap_or(sent)),
                    at: reply.at.map_or(u64::MAX, |at| at.position.0),
                };
                let name = name_of(&request.call);
                let (answered, refused) = findings.calls.entry(name.clone()).or_default();
                *answered += 1;
                *refused += u64::from(reply.result.is_err());
                findings.held_up +=
                    u64::from(matches!(reply.result, Err(Refusal::StagedWork { .. })));
                findings.late += u64::from(answers.late(&exchange, &evidence.home_killed));
                if let Err(why) = answers.judge(&device, &exchange) {
                    findings.problem(|| {
                        let result = format!("{:?}", reply.result);
                        let result: String = result.chars().take(300).collect();
                        format!("client {number}, life {life}, {name} at {sent}: {why}: {result}")
                    });
                }
            }
        }
    }
    answers.close(findings);
    Ok(())
}

impl Answers<'_> {
    /// Takes the times of one life.
    fn scan(
        &mut self,
        evidence: &Evidence,
        number: u32,
        lines: &[Written],
        findings: &mut Findings,
    ) -> Option<Known> {
        let mut known = None;
        let mut last: Option<&Request> = None;
        for line in lines {
            match line {
                Written::Sent(at, request) => {
                    if let Some(id) = request.id {
                        let first = self.first_sent.entry(id).or_insert(*at);
                        *first = (*first).min(*at);
                    }
                    last = Some(request);
                }
                Written::Answered(time, reply) => {
                    let id = last.and_then(|request| request.id);
                    let id = id.filter(|_| reply.result.is_ok());
                    match last.is_some_and(is_reuse) {
                        true => self.reused.extend(id),
                        false => self.kept.extend(id),
                    }
                    let Some(at) = reply.at else { continue };
                    self.floors.0.push((*time, at.position.0));
                    let place = at
                        .position
                        .0
                        .checked_sub(1)
                        .and_then(|place| usize::try_from(place).ok());
                    let logged = place.and_then(|place| evidence.log.get(place));
                    findings.ensure(logged.is_some_and(|logged| logged.root == at.root), || {
                        format!("client {number} was told of another log: {at:?}")
                    });
                }
                Written::Hello(time, instance) => {
                    let first = *known.get_or_insert((*time, *instance));
                    findings.ensure(first.1 == *instance, || {
                        format!("client {number}: a daemon became another instance")
                    });
                }
                Written::Fenced(_) => findings.fenced += 1,
                Written::Broken(_, why) => findings.problem(|| format!("client {number}: {why}")),
            }
        }
        known
    }

    fn judge(&mut self, device: &Device, exchange: &Exchange<'_>) -> Result<(), &'static str> {
        holds(exchange.at >= exchange.floor, "the home went back")?;
        match &exchange.reply.result {
            Err(Refusal::InstanceFenced) => holds(
                self.may_be_fenced(exchange),
                "fenced without a newer daemon",
            ),
            Ok(answer) => {
                let acts = exchange.request.id.is_some();
                holds(
                    !(acts && self.fenced(exchange)),
                    "a call of an earlier daemon was taken",
                )?;
                self.accepted(device, exchange, answer)
            }
            Err(refusal) => self.refused(device, exchange, refusal),
        }
    }

    /// The other lives of a client, as far as the home answered their Hello.
    fn others(&self, exchange: &Exchange<'_>) -> impl Iterator<Item = Option<Known>> {
        let own = exchange.life;
        let lives = self.lives.get(&exchange.number).into_iter().flatten();
        let others = lives.enumerate().filter(move |(life, _)| *life != own);
        others.map(|(_, known)| *known)
    }

    fn instance(&self, exchange: &Exchange<'_>) -> Option<Instance> {
        let known = self.lives.get(&exchange.number)?.get(exchange.life)?;
        known.map(|(_, instance)| instance)
    }

    /// Whether there may have been a newer daemon: a life that was killed may not have heard which one it was.
    fn may_be_fenced(&self, exchange: &Exchange<'_>) -> bool {
        let own = self.instance(exchange);
        self.others(exchange)
            .any(|other| other.is_none_or(|(_, other)| Some(other) > own))
    }

    /// Whether the home knew a newer daemon when the request was sent.
    fn fenced(&self, exchange: &Exchange<'_>) -> bool {
        let own = self.instance(exchange);
        self.others(exchange)
            .flatten()
            .any(|(known, other)| Some(other) > own && known < exchange.sent)
    }

    /// Looks at what only all answers together can tell.
    fn close(&self, findings: &mut Findings) {
        // A life that was fenced may not have heard what its last request did.
        let unheard = findings.fenced;
        let tenures = || {
            self.lines
                .iter()
                .flat_map(|(image, line)| line.tenures.iter().map(move |tenure| (*image, tenure)))
        };
        let untold =
            tenures().filter(|(image, tenure)| !self.granted.contains_key(&(*image, tenure.epoch)));
        let untold = untold.count() as u64;
        findings.ensure(untold <= unheard, || {
            format!("nobody was told of {untold} grants")
        });
        let heads = self.lines.values().flat_map(|line| &line.heads);
        let untold = heads
            .filter(|(_, commit)| !self.acknowledged.contains(commit))
            .count() as u64;
        findings.ensure(untold <= unheard, || {
            format!("nobody was told of {untold} commits")
        });
        for (image, tenure) in tenures().filter(|(_, tenure)| tenure.lapsed) {
            let promised = self
                .promised
                .get(&(image, tenure.epoch))
                .copied()
                .unwrap_or_default();
            let ended = self.floors.told(tenure.end);
            let early = ended.is_some_and(|ended| ended + CLOCKS_NS < promised);
            findings.ensure(!early, || {
                format!(
                    "{image}: epoch {} was granted away before its time",
                    tenure.epoch
                )
            });
        }
    }

    fn line(&self, image: ImageId) -> Result<&Line, &'static str> {
        self.lines.get(&image).ok_or("an image that nobody made")
    }

    fn tenure(&self, image: ImageId, token: Token) -> Result<&Tenure, &'static str> {
        let tenure = self.line(image)?.tenure(token.epoch.0);
        tenure.ok_or("a token that the log does not know")
    }

    fn decode(&self, record: &[u8]) -> Result<(CommitId, Commit), &'static str> {
        let signed = SignedCommit::decode(record).map_err(|_| "a commit does not decode")?;
        Ok((commit_id(&signed, &self.roster.home()), signed.record))
    }
}

/// Whether a client used a request id for something else, on purpose.
fn is_reuse(request: &Request) -> bool {
    matches!(&request.call, Call::Unstage { image, .. } if *image == papers::image(NOWHERE))
}

fn holds(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}
