//! A client process: a daemon without files, that does what daemons do and what they must not.
//!
//! Whatever it knows follows from its journals, so that a new life begins where the one before was killed:
//! with the request that was not answered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use img_proto::{Answer, Call, LeaseTerms, Refusal, Reply, Request, Standing, StealExpectation};
use img_records::{Roster, SignedCommit, commit_id};
use img_types::{CommitId, Epoch, ImageId, LeaseMode, ObjectId, Seq, Token, WallMillis};

use crate::journal::{self, Journal, Line};
use crate::luck::Luck;
use crate::papers::{self, Device, Draft};
use crate::talk::{Over, Plan, Talk, new_request};

/// The number of an image that is not there.
pub const NOWHERE: u32 = u32::MAX;

/// What a client asks of an image that lapses: once in so many times that it comes to it.
const SELDOM: usize = 400;
/// How long the holder of such an image sleeps: around its deadline, and not much longer, so that rivals
/// come before it or do not.
const SLEEP_MS: std::ops::Range<u64> = 9_500..13_000;

/// Exit code of a life that a newer one has taken over from.
pub const FENCED: u8 = 3;

/// What a client knows of an image.
#[derive(Debug, Clone, Default)]
struct View {
    /// The token that it believes to be current.
    token: Option<Token>,
    /// One that was superseded or given back.
    stale: Option<Token>,
    /// The newest head that it was told.
    head: Option<(CommitId, Seq)>,
}

/// A life of a client.
#[derive(Debug)]
pub struct Client {
    device: Device,
    roster: Roster,
    talk: Talk,
    luck: Luck,
    images: BTreeMap<ImageId, View>,
    /// Images that nobody steals, so that their leases lapse.
    lapsing: BTreeSet<ImageId>,
    /// Roots that are in history, which need no upload.
    roots: Vec<ObjectId>,
    /// The request that an earlier life had no answer to.
    pending: Option<Request>,
    /// The last mutating request.
    last: Option<Request>,
    answered: u64,
    calls: u64,
}

/// What the journals of earlier lives tell.
#[derive(Debug, Default)]
struct Memory {
    pending: Option<Request>,
    exchanges: Vec<(Request, Reply)>,
    seen: Option<Standing>,
}

impl Client {
    /// Begins another life of a client.
    ///
    /// # Errors
    /// The plan or a journal cannot be read.
    pub fn begin(dir: &Path, number: u32, life: u32) -> Result<Self> {
        let plan = Plan::read(dir)?;
        let (roster, _) = papers::roster(plan.clients)?;
        let mut memory = Memory::default();
        for path in journal::lives(dir, number)? {
            memory.read(journal::read(&path)?);
        }
        let device = Device::of(number);
        let journal = Journal::create(&journal::path(dir, number, life))?;
        let talk = Talk::begin(&plan, &device, journal, memory.seen)?;
        let seed = plan.seed ^ (u64::from(number) << 32) ^ u64::from(life);
        let images = (0..plan.images).map(|n| (papers::image(n), View::default()));
        let mut client = Self {
            device,
            roster,
            talk,
            luck: Luck::new(seed),
            images: images.collect(),
            lapsing: (plan.images.saturating_sub(plan.lapsing)..plan.images)
                .map(papers::image)
                .collect(),
            roots: Vec::new(),
            pending: memory.pending,
            last: None,
            answered: 0,
            calls: plan.calls_each,
        };
        for (request, reply) in &memory.exchanges {
            client.learn(request, reply);
        }
        Ok(client)
    }

    /// Contends until its share of calls is answered, then gives everything back.
    ///
    /// # Errors
    /// It was fenced, or something happened that must not.
    pub async fn run(&mut self) -> Result<(), Over> {
        if let Some(pending) = self.pending.take() {
            match pending.call {
                // An object that was not acknowledged is sent with another root.
                Call::Push { .. } => {}
                _ => drop(self.ask(pending).await?),
            }
        }
        while self.answered < self.calls {
            let image = self.pick();
            let lapses = self.lapsing.contains(&image);
            match self.images[&image].token {
                Some(_) if lapses && self.luck.chance(25) => self.sleep().await,
                Some(token) => self.hold(image, token).await?,
                None if lapses && self.luck.below(SELDOM) > 0 => {}
                None => self.want(image).await?,
            }
        }
        let held: Vec<_> = self
            .images
            .iter()
            .filter_map(|(image, view)| Some((*image, view.token?)))
            .collect();
        for (image, token) in held {
            self.release(image, token).await?;
        }
        Ok(())
    }

    /// An image: mostly one that it holds.
    fn pick(&mut self) -> ImageId {
        let held: Vec<_> = self
            .images
            .iter()
            .filter(|(_, view)| view.token.is_some())
            .map(|(image, _)| *image)
            .collect();
        if !held.is_empty() && self.luck.chance(75) {
            return held[self.luck.below(held.len())];
        }
        let place = self.luck.below(self.images.len());
        *self
            .images
            .keys()
            .nth(place)
            .expect("below the number of images")
    }

    /// Sleeps, as a laptop does whose lease runs out meanwhile.
    async fn sleep(&mut self) {
        let span = usize::try_from(SLEEP_MS.end - SLEEP_MS.start).unwrap_or(usize::MAX);
        let more = u64::try_from(self.luck.below(span)).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(SLEEP_MS.start + more)).await;
    }

    /// Does something with an image that it holds.
    async fn hold(&mut self, image: ImageId, token: Token) -> Result<(), Over> {
        match self.luck.below(100) {
            0..40 => self.renew(image, token).await,
            40..62 => self.commit(image, token, false).await,
            62..70 => self.commit(image, token, true).await,
            70..90 => self.release(image, token).await,
            90..95 => self.repeat().await,
            // What it holds itself is held.
            95..98 => self.acquire(image).await,
            _ => self.reuse().await,
        }
    }

    /// Does something with an image that it does not hold.
    async fn want(&mut self, image: ImageId) -> Result<(), Over> {
        let stale = self.images[&image].stale;
        match (self.luck.below(100), stale) {
            (0..70, _) | (_, None) => self.acquire(image).await,
            (70..82, _) if !self.lapsing.contains(&image) => self.steal(image).await,
            (82..85, Some(token)) => self.renew(image, token).await,
            (85..88, Some(token)) => self.commit(image, token, false).await,
            (88..91, Some(token)) => self.commit(image, token, true).await,
            (91..93, Some(token)) => self.release(image, token).await,
            (93..96, _) => self.repeat().await,
            (96..98, _) => {
                let checkout = self.device.checkout(image);
                self.call(Call::Unstage { image, checkout }).await.map(drop)
            }
            _ => {
                let call = Call::Log {
                    image,
                    before: None,
                    limit: 3,
                };
                self.call(call).await.map(drop)
            }
        }
    }

    async fn acquire(&mut self, image: ImageId) -> Result<(), Over> {
        let head = self.images[&image].head;
        let call = Call::Acquire {
            image,
            checkout: self.device.checkout(image),
            terms: self.terms(image),
            expect_head: head
                .filter(|_| self.luck.chance(20))
                .map(|(commit, _)| commit),
            take_over: self.luck.chance(50),
        };
        self.call(call).await.map(drop)
    }

    async fn renew(&mut self, image: ImageId, token: Token) -> Result<(), Over> {
        let terms = self.luck.chance(50).then(|| self.terms(image));
        let checkout = self.device.checkout(image);
        self.call(Call::Renew {
            image,
            checkout,
            token,
            terms,
        })
        .await
        .map(drop)
    }

    async fn release(&mut self, image: ImageId, token: Token) -> Result<(), Over> {
        let checkout = self.device.checkout(image);
        self.call(Call::Release {
            image,
            checkout,
            token,
        })
        .await
        .map(drop)
    }

    async fn steal(&mut self, image: ImageId) -> Result<(), Over> {
        let listed = self.call(Call::Images { after: None }).await?;
        let Ok(Answer::Images { images, .. }) = listed.result else {
            return Ok(());
        };
        let Some(row) = images.into_iter().find(|row| row.image == image) else {
            return Err(Over::Broken("an image is not listed".to_owned()));
        };
        let Some(lease) = row.lease else {
            return Ok(());
        };
        let staged = row
            .staged
            .iter()
            .find(|staged| staged.checkout == lease.checkout);
        let expect = StealExpectation {
            epoch: row.epoch,
            head: row
                .head
                .as_deref()
                .and_then(|head| self.head_of(head))
                .map(|(commit, _)| commit),
            staged: staged.map(|staged| staged.commit),
        };
        let call = Call::Steal {
            image,
            checkout: self.device.checkout(image),
            terms: self.terms(image),
            expect,
            reason: vec![4; 40].into(),
            branch: None,
        };
        self.call(call).await.map(drop)
    }

    /// Commits or stages upon the head that it knows.
    async fn commit(&mut self, image: ImageId, token: Token, stage: bool) -> Result<(), Over> {
        let Some((parent, seq)) = self.images[&image].head else {
            return self.release(image, token).await;
        };
        let Some(root) = self.root(image).await? else {
            return Ok(());
        };
        let draft = Draft {
            image,
            seq: seq
                .next()
                .ok_or_else(|| Over::Broken("no more numbers".to_owned()))?,
            parent: Some(parent),
            root,
            token,
            clock: WallMillis(self.luck.bits().cast_signed() >> 16),
        };
        let commit = self.device.commit(&self.roster, &draft).to_bytes().into();
        let call = if stage {
            Call::Stage { commit }
        } else {
            Call::Commit { commit }
        };
        self.call(call).await.map(drop)
    }

    /// A root that is complete at home; nothing if the upload was cut short by another life.
    async fn root(&mut self, image: ImageId) -> Result<Option<ObjectId>, Over> {
        if !self.roots.is_empty() && self.luck.chance(75) {
            return Ok(Some(self.roots[self.luck.below(self.roots.len())]));
        }
        let checkout = self.device.checkout(image);
        let opened = self.call(Call::OpenUpload { checkout }).await?;
        let Ok(Answer::Upload { upload }) = opened.result else {
            return Ok(None);
        };
        let (id, object) = papers::root(self.luck.bits());
        let pushed = self.talk.push(upload, &object).await?;
        self.answered += 1;
        Ok(pushed.result.is_ok().then_some(id))
    }

    /// Sends the last request once more, as if its answer had been lost.
    async fn repeat(&mut self) -> Result<(), Over> {
        match self.last.clone() {
            Some(last) => self.ask(last).await.map(drop),
            None => Ok(()),
        }
    }

    /// Uses the last request's id for something else.
    async fn reuse(&mut self) -> Result<(), Over> {
        // What was refused left no outcome: then this takes the id, and the other content may not have it.
        let Some(Request { id: Some(id), .. }) = self.last.take() else {
            return Ok(());
        };
        let image = papers::image(NOWHERE);
        let checkout = self.device.checkout(image);
        let call = Call::Unstage { image, checkout };
        let request = Request { id: Some(id), call };
        self.talk.request(&request).await?;
        self.answered += 1;
        Ok(())
    }

    async fn call(&mut self, call: Call) -> Result<Reply, Over> {
        self.ask(new_request(call)?).await
    }

    async fn ask(&mut self, request: Request) -> Result<Reply, Over> {
        let reply = self.talk.request(&request).await?;
        self.learn(&request, &reply);
        if request.id.is_some() {
            self.last = Some(request);
        }
        Ok(reply)
    }

    /// Leases that lapse within a run, and leases that do not.
    fn terms(&mut self, image: ImageId) -> LeaseTerms {
        LeaseTerms {
            ttl_ms: if self.lapsing.contains(&image) || self.luck.chance(30) {
                10_000
            } else {
                3_600_000
            },
            mode: LeaseMode::Online,
        }
    }

    /// Takes from an answer what it says about images.
    fn learn(&mut self, request: &Request, reply: &Reply) {
        self.answered += 1;
        let told = match (&request.call, &reply.result) {
            (
                Call::Acquire { image, .. } | Call::Steal { image, .. },
                Ok(Answer::Granted {
                    token,
                    head,
                    current: true,
                    ..
                }),
            ) => {
                let head = head.as_deref().and_then(|head| self.head_of(head));
                (*image, Told::Token(*token, head))
            }
            (Call::Commit { commit }, result) => {
                let Ok(record) = SignedCommit::decode(commit) else {
                    return;
                };
                let id = commit_id(&record, &self.roster.home());
                let image = record.record.image;
                match result {
                    Ok(_) => {
                        self.roots.push(record.record.root);
                        (
                            image,
                            Told::Head(
                                id,
                                record.record.seq,
                                record.record.token.map(|token| token.epoch),
                            ),
                        )
                    }
                    Err(Refusal::TokenStale { .. } | Refusal::HeadMoved { .. }) => {
                        (image, Told::Lost(record.record.token))
                    }
                    Err(_) => return,
                }
            }
            (Call::Renew { image, token, .. }, Err(Refusal::TokenStale { .. }))
            | (Call::Release { image, token, .. }, Ok(_)) => (*image, Told::Lost(Some(*token))),
            _ => return,
        };
        let (image, told) = told;
        let Some(view) = self.images.get_mut(&image) else {
            return;
        };
        match told {
            Told::Token(token, head) => {
                view.token = Some(token);
                view.head = head.or(view.head);
            }
            Told::Head(commit, seq, epoch) => {
                let current = view.token.is_none() || view.token.map(|token| token.epoch) == epoch;
                if current && view.head.is_none_or(|(_, known)| seq > known) {
                    view.head = Some((commit, seq));
                }
            }
            Told::Lost(lost) => {
                view.stale = lost.or(view.stale);
                if view.token == lost {
                    view.token = None;
                }
            }
        }
    }

    fn head_of(&self, record: &[u8]) -> Option<(CommitId, Seq)> {
        let signed = SignedCommit::decode(record).ok()?;
        Some((commit_id(&signed, &self.roster.home()), signed.record.seq))
    }
}

/// What an answer tells of an image.
enum Told {
    Token(Token, Option<(CommitId, Seq)>),
    Head(CommitId, Seq, Option<Epoch>),
    Lost(Option<Token>),
}

impl Memory {
    fn read(&mut self, lines: Vec<Line>) {
        for line in lines {
            match line {
                Line::Sent(_, request) => self.pending = Some(request),
                Line::Answered(_, reply) => {
                    let position = |standing: &Option<Standing>| standing.map(|at| at.position);
                    if position(&reply.at) > position(&self.seen) {
                        self.seen = reply.at;
                    }
                    self.exchanges
                        .extend(self.pending.take().map(|request| (request, reply)));
                }
                Line::Hello(..) | Line::Fenced(_) | Line::Broken(..) => {}
            }
        }
    }
}

/// Lives one life of a client; tells whether its share of calls is answered, or a newer daemon took over.
///
/// # Errors
/// Something happened that must not.
pub fn live(dir: &Path, number: u32, life: u32) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let mut client = Client::begin(dir, number, life)?;
        match client.run().await {
            Ok(()) => Ok(true),
            Err(Over::Fenced) => Ok(false),
            Err(Over::Broken(why)) => Err(anyhow::anyhow!(why)),
        }
    });
    ended.with_context(|| format!("client {number}, life {life}"))
}
