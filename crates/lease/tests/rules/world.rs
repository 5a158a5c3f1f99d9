//! A home and its devices around the cores, in memory: calls in, outcomes out, one at a time.
//!
//! The home keeps what a database would: rows, histories, daemon starts and the outcome of every
//! request. After every call it checks what must hold against records of its own that are kept in the
//! plainest way, not in the way the cores keep theirs.

use std::collections::{BTreeMap, BTreeSet};

use img_lease::grantor::{self, Acquire, Expectation, Grace, History};
use img_lease::{Caller, Daemon, Effect, ImageState, Logged, Proposal, Refused, Terms};
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, ImageId, Incarnation, Instance, LeaseMode,
    ObjectId, RequestId, Seq, Token, WallMillis,
};

/// A call as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Acquire(ImageId, Acquire),
    Renew(ImageId, CheckoutId, Token, Option<Terms>),
    Release(ImageId, CheckoutId, Token),
    Steal(ImageId, CheckoutId, Terms, Expectation),
    Commit(Proposal),
    Stage(Proposal),
    Branch(Proposal, Terms),
    Readmit(ImageId, Vec<Proposal>),
    Delete(ImageId, bool),
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted {
        token: Token,
        terms: Terms,
        head: Option<CommitId>,
        stands: bool,
    },
    Renewed(u64),
    Committed(CommitId),
    Done,
}

/// What came of a call.
pub(crate) type Outcome = Result<Answer, Failure>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    Refused(Refused),
    RequestReused,
}

/// The connection that a call came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) device: DeviceId,
    pub(crate) instance: Instance,
}

pub(crate) struct Home {
    pub(crate) incarnation: Incarnation,
    pub(crate) images: BTreeMap<ImageId, ImageState>,
    pub(crate) commits: BTreeMap<CommitId, Proposal>,
    pub(crate) revoked: BTreeSet<DeviceId>,
    pub(crate) log: Vec<(ImageId, DeviceId, Logged)>,
    pub(crate) grace: Grace,
    daemons: BTreeMap<DeviceId, Daemon>,
    nonces: BTreeSet<DaemonNonce>,
    requests: BTreeMap<(DeviceId, RequestId), (Call, Outcome)>,
    witness: Witness,
}

/// What a bystander writes down.
#[derive(Default)]
struct Witness {
    granted: BTreeMap<(ImageId, [u8; 32], u64), (DeviceId, CheckoutId)>,
    holder: BTreeMap<ImageId, (DeviceId, CheckoutId, Token)>,
    chains: BTreeMap<ImageId, Vec<CommitId>>,
    acknowledged: BTreeSet<CommitId>,
}

pub(crate) fn device(n: u8) -> DeviceId {
    DeviceId::from_bytes([n; 32])
}

pub(crate) fn checkout(n: u8) -> CheckoutId {
    CheckoutId::from_bytes([n; 32])
}

pub(crate) fn image(n: u8) -> ImageId {
    ImageId::from_bytes([n; 32])
}

pub(crate) fn commit_id(n: u32) -> CommitId {
    let mut bytes = [0xcc; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    CommitId::from_bytes(bytes)
}

pub(crate) fn request_id(n: u32) -> RequestId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    RequestId::from_bytes(bytes)
}

pub(crate) fn minutes(n: u64) -> Terms {
    Terms {
        ttl_ms: n * 60_000,
        mode: LeaseMode::Online,
    }
}

/// A record upon the head of an image; every second one has the same root, so that comparing
/// contents instead of commits would show.
pub(crate) fn proposal(n: u32, image: ImageId, by: Connection, checkout: CheckoutId) -> Proposal {
    Proposal {
        commit: commit_id(n),
        image,
        seq: Seq(0),
        parent: None,
        root: ObjectId::from_bytes([(n % 2) as u8; 32]),
        token: None,
        device: by.device,
        checkout,
        instance: by.instance,
        clock: WallMillis(i64::from(n)),
    }
}

impl Home {
    /// Makes a home with one image that has a first commit and no lease.
    pub(crate) fn with_image(main: ImageId) -> Self {
        let founder = Connection {
            device: device(0xf0),
            instance: Instance(1),
        };
        let mut home = Self {
            incarnation: Incarnation::from_bytes([1; 32]),
            images: BTreeMap::new(),
            commits: BTreeMap::new(),
            revoked: BTreeSet::new(),
            log: Vec::new(),
            grace: Grace::over(),
            daemons: BTreeMap::new(),
            nonces: BTreeSet::new(),
            requests: BTreeMap::new(),
            witness: Witness::default(),
        };
        home.hello(founder.device, DaemonNonce::from_bytes([0xf0; 32]))
            .unwrap();
        let own = checkout(0xf0);
        let first = proposal(u32::MAX, main, founder, own);
        home.call(
            founder,
            request_id(u32::MAX),
            &Call::Branch(first, minutes(60)),
        )
        .unwrap();
        let token = home.token(main);
        home.call(
            founder,
            request_id(u32::MAX - 1),
            &Call::Release(main, own, token),
        )
        .unwrap();
        home
    }

    pub(crate) fn hello(
        &mut self,
        device: DeviceId,
        nonce: DaemonNonce,
    ) -> Result<Connection, Refused> {
        let seen = self.nonces.contains(&nonce);
        let daemon = grantor::hello(self.daemons.get(&device), nonce, seen)?;
        self.nonces.insert(nonce);
        self.daemons.insert(device, daemon);
        Ok(Connection {
            device,
            instance: daemon.instance,
        })
    }

    pub(crate) fn caller(&self, by: Connection) -> Caller {
        Caller {
            device: by.device,
            member: !self.revoked.contains(&by.device),
            instance: by.instance,
            newest_instance: self.daemons[&by.device].instance,
            incarnation: self.incarnation,
        }
    }

    /// The token of the newest grant of an image.
    pub(crate) fn token(&self, image: ImageId) -> Token {
        Token {
            incarnation: self.incarnation,
            epoch: self.images[&image].epoch,
        }
    }

    pub(crate) fn head(&self, image: ImageId) -> Option<CommitId> {
        self.images[&image].head_commit()
    }

    pub(crate) fn chain(&self, image: ImageId) -> &[CommitId] {
        &self.witness.chains[&image]
    }

    /// A record upon the present head, under the newest token.
    pub(crate) fn next(
        &self,
        n: u32,
        image: ImageId,
        by: Connection,
        checkout: CheckoutId,
    ) -> Proposal {
        let head = self.images[&image].head;
        Proposal {
            seq: head.map_or(Seq(0), |head| head.seq.next().unwrap()),
            parent: head.map(|head| head.commit),
            token: Some(self.token(image)),
            ..proposal(n, image, by, checkout)
        }
    }

    pub(crate) fn expectation(&self, image: ImageId) -> Expectation {
        let state = &self.images[&image];
        Expectation {
            epoch: state.epoch,
            head: state.head_commit(),
            staged: state
                .lease
                .and_then(|lease| state.staged_by(&lease.checkout))
                .map(|staged| staged.proposal.commit),
        }
    }

    /// One transaction: the outcome of a repeated request, or the effect of a new one with it.
    pub(crate) fn call(&mut self, by: Connection, request: RequestId, call: &Call) -> Outcome {
        if let Some((first, outcome)) = self.requests.get(&(by.device, request)) {
            if !matches!(call, Call::Branch(..)) {
                self.caller(by).acts().map_err(Failure::Refused)?;
            }
            if first != call {
                return Err(Failure::RequestReused);
            }
            return self.replay(by, call, outcome.clone());
        }
        let before = (self.images.clone(), self.commits.clone(), self.log.len());
        let outcome = self.decide(by, call).map_err(Failure::Refused);
        if outcome.is_err() {
            let after = (self.images.clone(), self.commits.clone(), self.log.len());
            assert!(
                before == after,
                "a refused call changed something: {call:?}"
            );
        } else {
            if let Call::Acquire(image, _) = call {
                let lease = before.0[image].lease;
                assert!(lease.is_none_or(|lease| lease.lapsed), "two leases");
            }
            self.requests
                .insert((by.device, request), (call.clone(), outcome.clone()));
        }
        self.bear_witness(by, call, &outcome);
        outcome
    }

    /// Lets the home's running time pass.
    pub(crate) fn advance(&mut self, elapsed_ms: u64) {
        self.grace = self.grace.after(elapsed_ms);
        for state in self.images.values_mut() {
            let after = grantor::tick(state, self.incarnation, elapsed_ms, self.grace);
            assert_eq!(
                (after.head, after.epoch, after.lease.map(|l| l.epoch)),
                (state.head, state.epoch, state.lease.map(|l| l.epoch)),
                "time moved more than a deadline"
            );
            *state = after;
        }
    }

    fn replay(&self, by: Connection, call: &Call, outcome: Outcome) -> Outcome {
        let (
            Ok(Answer::Granted {
                token, terms, head, ..
            }),
            Call::Acquire(image, want),
        ) = (&outcome, call)
        else {
            return outcome;
        };
        let stands =
            grantor::grant_stands(&self.images[image], &self.caller(by), want.checkout, *token);
        Ok(Answer::Granted {
            token: *token,
            terms: *terms,
            head: *head,
            stands,
        })
    }

    fn decide(&mut self, by: Connection, call: &Call) -> Result<Answer, Refused> {
        let caller = self.caller(by);
        match call {
            Call::Acquire(image, want) => {
                let grant = grantor::acquire(&self.images[image], &caller, want)?;
                Ok(self.granted(by, grant))
            }
            Call::Steal(image, checkout, terms, expect) => {
                let state = &self.images[image];
                let grant = grantor::steal(state, &caller, *checkout, *terms, expect)?;
                Ok(self.granted(by, grant))
            }
            Call::Renew(image, checkout, token, terms) => {
                let state = &self.images[image];
                let grant = grantor::renew(state, &caller, *checkout, *token, *terms)?;
                let ttl_ms = grant.ttl_ms;
                self.write(by, grant.effect);
                Ok(Answer::Renewed(ttl_ms))
            }
            Call::Release(image, checkout, token) => {
                let effect = grantor::release(&self.images[image], &caller, *checkout, *token)?;
                self.write_if(by, effect);
                Ok(Answer::Done)
            }
            Call::Commit(record) => {
                let state = &self.images[&record.image];
                let effect = grantor::commit(state, &caller, record, self.history(record))?;
                if effect.is_some() {
                    self.commits.insert(record.commit, *record);
                }
                self.write_if(by, effect);
                Ok(Answer::Committed(record.commit))
            }
            Call::Stage(record) => {
                let state = &self.images[&record.image];
                let effect = grantor::stage(state, &caller, record, self.history(record))?;
                self.write_if(by, effect);
                Ok(Answer::Done)
            }
            Call::Branch(first, terms) => {
                let grant = grantor::branch(&caller, first, *terms, self.history(first))?;
                if let Some(grant) = grant {
                    self.commits.insert(first.commit, *first);
                    self.write(by, grant.effect);
                }
                Ok(Answer::Committed(first.commit))
            }
            Call::Readmit(image, commits) => {
                let unknown: Vec<_> = commits
                    .iter()
                    .filter(|commit| !self.commits.contains_key(&commit.commit))
                    .copied()
                    .collect();
                let effect = grantor::readmit(&self.images[image], &caller, &unknown)?;
                for commit in unknown {
                    self.commits.insert(commit.commit, commit);
                }
                self.write_if(by, effect);
                Ok(Answer::Done)
            }
            Call::Delete(image, force) => {
                let effect = grantor::delete(&self.images[image], &caller, *force)?;
                self.write_if(by, effect);
                Ok(Answer::Done)
            }
        }
    }

    fn history(&self, record: &Proposal) -> History {
        History {
            has_commit: self.commits.contains_key(&record.commit),
            has_parent: record.parent.is_none_or(|parent| {
                self.commits
                    .get(&parent)
                    .is_some_and(|known| known.image == record.image)
            }),
        }
    }

    fn granted(&mut self, by: Connection, grant: img_lease::Grant) -> Answer {
        let lease = grant.effect.image.lease.unwrap();
        let answer = Answer::Granted {
            token: grant.token,
            terms: Terms {
                ttl_ms: grant.ttl_ms,
                mode: lease.mode,
            },
            head: grant.effect.image.head_commit(),
            stands: true,
        };
        self.write(by, grant.effect);
        answer
    }

    fn write_if(&mut self, by: Connection, effect: Option<Effect>) {
        if let Some(effect) = effect {
            self.write(by, effect);
        }
    }

    fn write(&mut self, by: Connection, effect: Effect) {
        let id = effect.image.image;
        let lines = effect.log.into_iter().map(|line| (id, by.device, line));
        self.log.extend(lines);
        if let Some(before) = self.images.insert(id, effect.image) {
            let after = &self.images[&id];
            assert!(after.epoch >= before.epoch, "the epoch went down");
        }
    }

    fn bear_witness(&mut self, by: Connection, call: &Call, outcome: &Outcome) {
        let witness = &mut self.witness;
        match (call, outcome) {
            (
                Call::Acquire(image, Acquire { checkout, .. }) | Call::Steal(image, checkout, ..),
                Ok(Answer::Granted { token, .. }),
            ) => {
                let key = (*image, *token.incarnation.as_bytes(), token.epoch.0);
                let twice = witness.granted.insert(key, (by.device, *checkout));
                assert_eq!(twice, None, "a token was granted twice");
                witness
                    .holder
                    .insert(*image, (by.device, *checkout, *token));
            }
            (Call::Release(image, checkout, token), Ok(_))
                if witness.holder.get(image) == Some(&(by.device, *checkout, *token)) =>
            {
                witness.holder.remove(image);
            }
            (Call::Commit(record), Ok(_)) => {
                let chain = witness.chains.get_mut(&record.image).unwrap();
                if !witness.acknowledged.contains(&record.commit) {
                    let token = record.token.unwrap();
                    let claim = (record.device, record.checkout, token);
                    assert_eq!(
                        witness.holder.get(&record.image),
                        Some(&claim),
                        "somebody else's token is current"
                    );
                    assert_eq!(by.device, record.device);
                    assert_eq!(record.parent, chain.last().copied(), "not upon the head");
                    chain.push(record.commit);
                    witness.acknowledged.insert(record.commit);
                }
            }
            (Call::Branch(first, _), Ok(_)) if witness.acknowledged.insert(first.commit) => {
                let fresh = witness.chains.insert(first.image, vec![first.commit]);
                assert_eq!(fresh, None, "a branch took the place of an image");
                let token = Token {
                    incarnation: self.incarnation,
                    epoch: img_types::Epoch(1),
                };
                witness
                    .holder
                    .insert(first.image, (by.device, first.checkout, token));
            }
            (Call::Readmit(image, commits), Ok(_)) => {
                let chain = witness.chains.get_mut(image).unwrap();
                for commit in commits {
                    if !chain.contains(&commit.commit) {
                        chain.push(commit.commit);
                        witness.holder.remove(image);
                    }
                }
            }
            _ => {}
        }
        self.check();
    }

    /// Compares the rows with what the bystander wrote down.
    fn check(&self) {
        for (id, chain) in &self.witness.chains {
            let state = &self.images[id];
            assert_eq!(state.head_commit().as_ref(), chain.last(), "head");
            let seq = state.head.map(|head| head.seq.0);
            assert_eq!(seq, Some(chain.len() as u64 - 1), "number of the head");
            for commit in chain {
                assert!(
                    self.commits.contains_key(commit),
                    "an acknowledged commit is gone"
                );
            }
            if let Some(lease) = state.lease {
                assert_eq!(lease.epoch, state.epoch);
                let holder = self.witness.holder.get(id).map(|(d, c, _)| (*d, *c));
                assert_eq!(holder, Some((lease.device, lease.checkout)), "holder");
            }
        }
        let all: Vec<_> = self.witness.chains.values().flatten().collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), distinct.len(), "a commit was applied twice");
    }

    /// Goes back to rows of before under a new incarnation, as after a restore from a backup.
    pub(crate) fn restore(&mut self, backup: &BTreeMap<ImageId, ImageState>) {
        self.incarnation = Incarnation::from_bytes([self.incarnation.as_bytes()[0] + 1; 32]);
        self.images = backup
            .iter()
            .map(|(id, state)| (*id, grantor::restored(state)))
            .collect();
        self.witness.holder.clear();
        for (id, chain) in &mut self.witness.chains {
            let head = self.images[id].head_commit();
            while chain.last() != head.as_ref() {
                let lost = chain.pop().expect("a backup's head is in its chain");
                self.commits.remove(&lost);
                self.witness.acknowledged.remove(&lost);
            }
        }
        self.requests.clear();
    }

    pub(crate) fn revoke(&mut self, device: DeviceId) {
        self.revoked.insert(device);
        for id in self.images.keys().copied().collect::<Vec<_>>() {
            if let Some(effect) = grantor::revoke(&self.images[&id], device) {
                self.witness.holder.remove(&id);
                self.images.insert(id, effect.image);
            }
        }
    }
}
