//! Each answer of each client, beside what held between request and answer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use img_proto::{Answer, Call, ImageRow, LeaseRow, Refusal, Reply, Request, StealExpectation};
use img_records::{Commit, Roster, SignedCommit, commit_id};
use img_types::{CheckoutId, CommitId, DeviceId, ImageId, Instance, RequestId, Token};

use super::lines::{Line, Tenure};
use super::{Evidence, Findings};
use crate::client::NOWHERE;
use crate::journal::{self, Line as Written, Nanos};
use crate::papers::{self, Device, FOUNDER};

/// How much the clocks of two processes may disagree: the home counts whole milliseconds.
const CLOCKS_NS: u64 = 5_000_000;

/// A request and its answer.
struct Exchange<'a> {
    number: u32,
    life: usize,
    device: DeviceId,
    sent: Nanos,
    request: &'a Request,
    reply: &'a Reply,
    /// Where the home stood at least when the request was sent.
    floor: u64,
    /// The same for the first time that this request was sent.
    first_floor: u64,
    /// Where the home stood when it answered.
    at: u64,
}

/// Where the home stood at least, over time.
#[derive(Default)]
struct Floors(Vec<(Nanos, u64)>);

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
            for (sent, request, reply) in exchanges(&written) {
                let first = request
                    .id
                    .and_then(|id| answers.first_sent.get(&id).copied());
                let exchange = Exchange {
                    number,
                    life,
                    device: device.id(),
                    sent,
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

/// Requests with their answers, and when they were sent.
fn exchanges(lines: &[Written]) -> impl Iterator<Item = (Nanos, &Request, &Reply)> {
    // A Hello may be answered between a request and its answer, on a new connection.
    let mut sent = None;
    lines.iter().filter_map(move |line| match line {
        Written::Sent(at, request) => {
            sent = Some((*at, request));
            None
        }
        Written::Answered(_, reply) => sent.take().map(|(at, request)| (at, request, reply)),
        Written::Hello(..) | Written::Fenced(_) | Written::Broken(..) => None,
    })
}

fn name_of(call: &Call) -> String {
    let shown = format!("{call:?}");
    shown
        .split([' ', '{', '('])
        .next()
        .unwrap_or_default()
        .to_owned()
}

impl Floors {
    /// Makes each floor at least as high as those before.
    fn settle(&mut self) {
        self.0.sort_unstable();
        let mut highest = 0;
        for (_, position) in &mut self.0 {
            highest = highest.max(*position);
            *position = highest;
        }
    }

    fn at(&self, time: Nanos) -> u64 {
        let before = self.0.partition_point(|(at, _)| *at < time);
        before.checked_sub(1).map_or(0, |last| self.0[last].1)
    }

    /// When somebody was first told of a position.
    fn told(&self, position: u64) -> Option<Nanos> {
        let before = self.0.partition_point(|(_, at)| *at < position);
        self.0.get(before).map(|(time, _)| *time)
    }
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

    fn accepted(
        &mut self,
        device: &Device,
        exchange: &Exchange<'_>,
        answer: &Answer,
    ) -> Result<(), &'static str> {
        match (&exchange.request.call, answer) {
            (
                call,
                Answer::Granted {
                    token,
                    ttl_ms,
                    head,
                    current,
                    ..
                },
            ) => {
                let head = head.as_deref().map(|head| self.decode(head)).transpose()?;
                let (image, checkout) = granting(call)?;
                holds(
                    checkout.is_none_or(|checkout| checkout == device.checkout(image)),
                    "an answer to somebody else",
                )?;
                let tenure = *self.tenure(image, *token)?;
                self.grant(exchange, image, &tenure)?;
                let line = self.line(image)?;
                if *current {
                    holds(
                        tenure.was_current(exchange.floor, exchange.at),
                        "a grant that was over is told as current",
                    )?;
                    let head = head.map(|(id, _)| id);
                    let told = head.map_or(line.head_at(exchange.floor).is_none(), |head| {
                        line.was_head(head, exchange.floor, exchange.at)
                    });
                    holds(told, "the grant came with another head")?;
                } else {
                    holds(tenure.end <= exchange.at, "a current grant is told as over")?;
                }
                let before = line.head_at(tenure.start);
                match call {
                    Call::Acquire {
                        expect_head: Some(expected),
                        ..
                    } => {
                        holds(
                            before == Some(*expected),
                            "granted over another head than expected",
                        )?;
                    }
                    Call::Steal { expect, .. } => {
                        let StealExpectation { epoch, head, .. } = expect;
                        holds(
                            epoch.0 + 1 == tenure.epoch && before == *head,
                            "stolen in spite of a change",
                        )?;
                    }
                    _ => {}
                }
                self.promise(exchange, image, &tenure, *ttl_ms);
                Ok(())
            }
            (Call::Renew { image, token, .. }, Answer::Renewed { ttl_ms }) => {
                let tenure = *self.tenure(*image, *token)?;
                holds(
                    tenure.device == exchange.device,
                    "renewed for somebody else",
                )?;
                holds(
                    tenure.was_current(exchange.floor, exchange.at),
                    "renewed although not current",
                )?;
                self.promise(exchange, *image, &tenure, *ttl_ms);
                Ok(())
            }
            (Call::Release { image, token, .. }, Answer::Done) => holds(
                self.tenure(*image, *token)?.end <= exchange.at,
                "a released token is still current",
            ),
            (Call::Commit { commit }, Answer::Committed { receipt }) => {
                let (id, _) = self.decode(commit)?;
                self.acknowledged.insert(id);
                let kept = self
                    .receipts
                    .get(&id)
                    .ok_or("an acknowledged commit is not in history")?;
                holds(*kept == receipt[..], "history has another receipt")?;
                self.moved(exchange, id, commit)
            }
            (Call::Images { .. }, Answer::Images { images, .. }) => {
                images.iter().try_for_each(|row| self.listed(exchange, row))
            }
            (Call::Log { image, .. }, Answer::Log { commits, .. }) => {
                for (commit, receipt) in commits {
                    let (id, _) = self.decode(commit)?;
                    holds(
                        self.receipts
                            .get(&id)
                            .is_some_and(|kept| *kept == receipt[..]),
                        "a commit left history",
                    )?;
                }
                let newest = commits
                    .first()
                    .map(|(commit, _)| self.decode(commit))
                    .transpose()?;
                let line = self.line(*image)?;
                holds(
                    newest.is_some_and(|(id, _)| line.was_head(id, exchange.floor, u64::MAX)),
                    "an old history",
                )
                .or_else(|why| {
                    if matches!(
                        exchange.request.call,
                        Call::Log {
                            before: Some(_),
                            ..
                        }
                    ) {
                        Ok(())
                    } else {
                        Err(why)
                    }
                })
            }
            (Call::Unstage { image, .. }, Answer::Done) if *image == papers::image(NOWHERE) => {
                let kept = exchange
                    .request
                    .id
                    .is_some_and(|id| self.kept.contains(&id));
                holds(!kept, "one request id was taken for two things")
            }
            (
                Call::Stage { .. } | Call::Unstage { .. } | Call::RosterAppend { .. },
                Answer::Done,
            )
            | (Call::OpenUpload { .. }, Answer::Upload { .. })
            | (Call::Push { .. }, Answer::Pushed { objects: 1, .. }) => Ok(()),
            _ => Err("an answer to something else"),
        }
    }

    fn refused(
        &self,
        device: &Device,
        exchange: &Exchange<'_>,
        refusal: &Refusal,
    ) -> Result<(), &'static str> {
        let (floor, at) = (exchange.floor, exchange.at);
        match (&exchange.request.call, refusal) {
            (Call::Acquire { image, .. }, Refusal::Leased(row)) => {
                self.holder(exchange, *image, row)
            }
            (Call::Acquire { image, take_over: false, .. }, Refusal::StagedWork { lease, .. }) => {
                holds(lease.checkout != device.checkout(*image), "held up by its own work")?;
                self.holder(exchange, *image, lease)
            }
            (Call::Acquire { image, expect_head: Some(expected), .. }, Refusal::HeadMoved { head }) => {
                holds(*head != Some(*expected), "the head is the expected one")?;
                holds(head.is_some_and(|head| self.lines[image].was_head(head, floor, at)), "a head that never was")
            }
            (Call::Renew { image, token, .. }, Refusal::TokenStale { epoch, .. }) => {
                self.stale(exchange, *image, *token, epoch.0)
            }
            (Call::Commit { commit }, Refusal::TokenStale { epoch, .. }) => {
                let (_, record) = self.decode(commit)?;
                self.stale(exchange, record.image, record.token.ok_or("no token")?, epoch.0)
            }
            (Call::Commit { commit }, Refusal::HeadMoved { head }) => {
                let (_, record) = self.decode(commit)?;
                holds(*head != record.parent.map(|parent| parent.commit), "the head is the parent")?;
                holds(head.is_some_and(|head| self.lines[&record.image].was_head(head, floor, at)), "a head that never was")
            }
            (Call::Steal { image, .. }, Refusal::NobodyHolds) => {
                holds(!self.line(*image)?.held_throughout(floor, at), "somebody held it all the time")
            }
            (Call::Steal { .. }, Refusal::Changed)
            | (Call::Stage { .. }, Refusal::OverLimit(_))
            // Another life of this client has ended the session.
            | (Call::Push { .. }, Refusal::SessionClosed) => Ok(()),
            (_, Refusal::RequestReused) => {
                // Another life may have used the id of a refused request that this one repeats.
                let id = exchange.request.id;
                let reused = id.is_some_and(|id| self.reused.contains(&id));
                holds(reused || is_reuse(exchange.request), "a new request id is called used")
            }
            _ => Err("a refusal without a reason"),
        }
    }

    /// A token is granted by one request, and a request grants one token.
    fn grant(
        &mut self,
        exchange: &Exchange<'_>,
        image: ImageId,
        tenure: &Tenure,
    ) -> Result<(), &'static str> {
        let id = exchange.request.id.ok_or("a grant without a request id")?;
        let place = (image, tenure.epoch);
        holds(
            tenure.device == exchange.device,
            "the token is another device's",
        )?;
        holds(
            *self.granted.entry(place).or_insert(id) == id,
            "a token was granted twice",
        )?;
        holds(
            *self.grants.entry(id).or_insert(place) == place,
            "two tokens for one request",
        )?;
        holds(
            tenure.start > exchange.first_floor,
            "granted before it was asked for",
        )?;
        holds(tenure.start <= exchange.at, "granted after it was answered")
    }

    fn promise(&mut self, exchange: &Exchange<'_>, image: ImageId, tenure: &Tenure, ttl_ms: u64) {
        let until = exchange
            .sent
            .saturating_add(ttl_ms.saturating_mul(1_000_000));
        let promised = self.promised.entry((image, tenure.epoch)).or_default();
        *promised = (*promised).max(until);
    }

    /// A commit moved the head while its token was current, between request and answer.
    fn moved(
        &self,
        exchange: &Exchange<'_>,
        id: CommitId,
        commit: &[u8],
    ) -> Result<(), &'static str> {
        let (_, record) = self.decode(commit)?;
        let line = self.line(record.image)?;
        let mut heads = line.heads.iter().filter(|(_, head)| *head == id);
        let (Some((position, _)), None) = (heads.next(), heads.next()) else {
            return Err("the log does not have the commit once");
        };
        holds(
            *position > exchange.first_floor,
            "committed before it was sent",
        )?;
        holds(*position <= exchange.at, "committed after it was answered")?;
        let tenure = self.tenure(record.image, record.token.ok_or("no token")?)?;
        let (device, checkout) = (record.device, record.checkout);
        holds(
            (tenure.device, tenure.checkout) == (device, checkout),
            "committed under another's token",
        )?;
        holds(
            tenure.start < *position && *position < tenure.end,
            "committed although not current",
        )
    }

    fn listed(&self, exchange: &Exchange<'_>, row: &ImageRow) -> Result<(), &'static str> {
        let line = self.line(row.image)?;
        holds(
            row.epoch.0 >= line.epoch_at(exchange.floor),
            "an old epoch is listed",
        )?;
        let head = row
            .head
            .as_deref()
            .ok_or("an image without a commit is listed")?;
        let (head, _) = self.decode(head)?;
        holds(
            line.was_head(head, exchange.floor, u64::MAX),
            "an old head is listed",
        )?;
        let Some(lease) = &row.lease else {
            return Ok(());
        };
        let tenure = line
            .tenure(lease.epoch.0)
            .ok_or("an unknown holder is listed")?;
        holds(
            lease.epoch == row.epoch,
            "a holder of another epoch is listed",
        )?;
        holds(
            tenure.checkout == lease.checkout && tenure.end > exchange.floor,
            "an old holder is listed",
        )
    }

    fn holder(
        &self,
        exchange: &Exchange<'_>,
        image: ImageId,
        row: &LeaseRow,
    ) -> Result<(), &'static str> {
        let tenure = self
            .line(image)?
            .tenure(row.epoch.0)
            .ok_or("an unknown holder")?;
        holds(
            (tenure.device, tenure.checkout) == (row.device, row.checkout),
            "another holder than the log's",
        )?;
        holds(
            tenure.was_current(exchange.floor, exchange.at),
            "the holder had lost it",
        )
    }

    fn stale(
        &self,
        exchange: &Exchange<'_>,
        image: ImageId,
        token: Token,
        epoch: u64,
    ) -> Result<(), &'static str> {
        let line = self.line(image)?;
        let known = line.epoch_at(exchange.floor)..=line.epoch_at(exchange.at);
        holds(known.contains(&epoch), "an epoch that was not the image's")?;
        let tenure = self.tenure(image, token)?;
        holds(
            tenure.end <= exchange.at || tenure.device != exchange.device,
            "a current token is called stale",
        )
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

/// The image that a call asks for, and for which checkout.
fn granting(call: &Call) -> Result<(ImageId, Option<CheckoutId>), &'static str> {
    match call {
        Call::Acquire {
            image, checkout, ..
        }
        | Call::Steal {
            image, checkout, ..
        } => Ok((*image, Some(*checkout))),
        Call::CreateImage { descriptor, .. } => {
            let signed = img_records::SignedDescriptor::decode(descriptor);
            Ok((
                signed
                    .map_err(|_| "a descriptor does not decode")?
                    .record
                    .image,
                None,
            ))
        }
        _ => Err("a grant that nobody asked for"),
    }
}

/// Whether a client used a request id for something else, on purpose.
fn is_reuse(request: &Request) -> bool {
    matches!(&request.call, Call::Unstage { image, .. } if *image == papers::image(NOWHERE))
}

fn holds(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}
