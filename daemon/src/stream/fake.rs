//! A home for tests: real connections, real lease rules, objects in memory, and faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use img_lease::grantor::{self, History};
use img_lease::holder::{Granted, Holder};
use img_lease::{Caller, Head, ImageState, Proposal, Refused, Terms};
use img_net::{Peer, RequestStream, Server, TlsIdentity, key_hash};
use img_proto::frame::REQUEST_LEN_MAX;
use img_proto::{Answer, Call, ImageRow, LeaseTerms, Refusal, Reply, Request, Standing, StealRow};
use img_records::{Receipt, Signed, SignedCommit, SigningSecret, commit_id};
use img_store::Cache;
use img_types::object::Parsed;
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, DeviceName, Epoch, HomeId, ImageId, Incarnation,
    Instance, LeaseMode, LogPosition, LogRoot, ObjectId, Token, UploadId, WallMillis,
};

use crate::enrol::papers;
use crate::events::Events;
use crate::home::Home;
use crate::identity::Identity;
use crate::keeper::{self, Clock, Keeper, Label};
use crate::state::{CheckoutRow, HomePin, Stage, State};
use crate::uplink::Uplink;

pub(crate) const IMAGE: ImageId = ImageId::from_bytes([0xaa; 32]);
pub(crate) const CHECKOUT: CheckoutId = CheckoutId::from_bytes([0xcc; 32]);
const HOME_SEED: [u8; 32] = [7; 32];
const INCARNATION: Incarnation = Incarnation::from_bytes([1; 32]);
const TTL_MS: u64 = 3_600_000;

/// Looks at a signed record.
pub(crate) type Witness = Box<dyn Fn(&[u8]) + Send>;

/// The home; clones are the same one.
#[derive(Clone)]
pub(crate) struct FakeHome {
    inner: Arc<Mutex<Inner>>,
    address: String,
}

/// What it keeps and what it is told to do wrong.
pub(crate) struct Inner {
    pub(crate) home: HomeId,
    pub(crate) image: ImageState,
    pub(crate) objects: BTreeMap<ObjectId, Bytes>,
    /// Every object that arrived, in order, repetitions included.
    pub(crate) arrived: Vec<ObjectId>,
    pub(crate) commits: BTreeMap<CommitId, Bytes>,
    /// Calls other than Hello and Roster, by name, in order.
    pub(crate) calls: Vec<&'static str>,
    /// Hangs up after this many more objects.
    pub(crate) hang_up_after: Option<usize>,
    /// Hangs up instead of sending the next receipt.
    pub(crate) lose_receipt: bool,
    /// Takes this many more calls with a request id; for those after it a newer daemon has come.
    pub(crate) fence_after: Option<usize>,
    /// Refuses the next release so.
    pub(crate) refuse_release: Option<Refusal>,
    /// Says of every record that is to be staged that objects are missing.
    pub(crate) stays_incomplete: bool,
    /// How far the device that is to be revoked has acted, as it says.
    pub(crate) log_moved: LogPosition,
    /// Refuses the next commit.
    pub(crate) refuse_commit: Option<Refusal>,
    /// Looks at every commit record before it is answered.
    pub(crate) witness: Option<Witness>,
    /// Says once that the upload session has ended.
    pub(crate) end_session: bool,
    /// Who took the image over, and why.
    pub(crate) steal: Option<StealRow>,
    /// Says that it has these, although it has not.
    pub(crate) pretends: BTreeSet<ObjectId>,
    /// What it shows as its images.
    pub(crate) listed: Vec<ImageRow>,
    /// First commits, as its logs show them; the log of another image fails.
    pub(crate) firsts: BTreeMap<ImageId, Bytes>,
    peers: Vec<Peer>,
    position: u64,
}

impl FakeHome {
    pub(crate) async fn start() -> Self {
        let identity = TlsIdentity::from_seed(&HOME_SEED);
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
        let address = server.local_address().unwrap().to_string();
        let inner = Inner {
            home: HomeId::from_bytes([0; 32]),
            image: ImageState {
                image: IMAGE,
                head: None,
                epoch: Epoch(0),
                lease: None,
                staged: Vec::new(),
                tombstone_ms: None,
            },
            objects: BTreeMap::new(),
            arrived: Vec::new(),
            commits: BTreeMap::new(),
            calls: Vec::new(),
            hang_up_after: None,
            lose_receipt: false,
            fence_after: None,
            refuse_release: None,
            stays_incomplete: false,
            log_moved: LogPosition(0),
            refuse_commit: None,
            witness: None,
            end_session: false,
            steal: None,
            pretends: BTreeSet::new(),
            listed: Vec::new(),
            firsts: BTreeMap::new(),
            peers: Vec::new(),
            position: 1,
        };
        let fake = Self {
            inner: Arc::new(Mutex::new(inner)),
            address,
        };
        tokio::spawn(fake.clone().serve(server));
        fake
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    async fn serve(self, server: Server) {
        while let Some(arriving) = server.accept().await {
            let Ok(peer) = arriving.establish().await else {
                continue;
            };
            peer.admit();
            self.lock().peers.push(peer.clone());
            let fake = self.clone();
            tokio::spawn(async move {
                while let Ok(stream) = peer.accept().await {
                    let fake = fake.clone();
                    tokio::spawn(async move { fake.answer(stream).await });
                }
            });
        }
    }

    async fn answer(&self, mut stream: RequestStream) {
        let Ok(request) = stream.read_request(REQUEST_LEN_MAX).await else {
            return;
        };
        if let Call::Push { .. } = request.call {
            return self.take_push(stream).await;
        }
        let reply = self.lock().decide(request);
        if let Some(reply) = reply {
            // A device that was hung up on hears nothing.
            let _ = stream.reply(&reply).await;
            stream.finish();
        }
    }

    /// Acknowledges every second object, and the last.
    async fn take_push(&self, stream: RequestStream) {
        let (mut uploads, mut replies) = stream.split();
        let (mut objects, mut bytes) = (0, 0);
        loop {
            let Ok(object) = uploads.next().await else {
                return;
            };
            let last = object.is_none();
            if let Some(object) = object {
                objects += 1;
                bytes += object.len() as u64;
                if !self.lock().take(object) {
                    return;
                }
            }
            if last || objects % 2 == 0 {
                let reply = self.lock().reply(Ok(Answer::Pushed { objects, bytes }));
                if replies.reply(&reply).await.is_err() {
                    return;
                }
            }
            if last {
                return replies.finish();
            }
        }
    }
}

impl Inner {
    fn take(&mut self, object: Bytes) -> bool {
        if let Some(left) = &mut self.hang_up_after {
            if *left == 0 {
                self.hang_up_after = None;
                self.hang_up();
                return false;
            }
            *left -= 1;
        }
        let id = Parsed::decode(&object).unwrap().id();
        self.arrived.push(id);
        self.objects.insert(id, object);
        true
    }

    pub(crate) fn hang_up(&mut self) {
        for peer in self.peers.drain(..) {
            peer.close("a fault on demand");
        }
    }

    /// Grants the image to somebody else.
    pub(crate) fn steal(&mut self) -> DeviceId {
        let thief = Caller {
            device: DeviceId::from_bytes([0x66; 32]),
            member: true,
            instance: Instance(1),
            newest_instance: Instance(1),
            incarnation: INCARNATION,
        };
        let expect = grantor::Expectation {
            epoch: self.image.epoch,
            head: self.image.head_commit(),
            staged: None,
        };
        let own = CheckoutId::from_bytes([0x66; 32]);
        let stolen = grantor::steal(&self.image, &thief, own, Terms::usual(), &expect).unwrap();
        self.image = stolen.effect.image;
        thief.device
    }

    fn decide(&mut self, request: Request) -> Option<Reply> {
        let caller = self.caller();
        if let Some(left) = self.fence_after.as_mut().filter(|_| request.id.is_some()) {
            if *left == 0 {
                return Some(self.reply(Err(Refusal::InstanceFenced)));
            }
            *left -= 1;
        }
        let result = match request.call {
            Call::Hello { seen, .. } => Ok(Answer::Hello {
                instance: Instance(1),
                at_seen: seen.map(|seen| standing(seen.position.0)),
            }),
            Call::Roster { .. } => Ok(Answer::Roster {
                entries: Vec::new(),
                more: false,
            }),
            Call::OpenUpload { .. } => {
                self.calls.push("open");
                Ok(Answer::Upload {
                    upload: UploadId::from_bytes([1; 32]),
                })
            }
            Call::Missing { ids, .. } => {
                self.calls.push("missing");
                if std::mem::take(&mut self.end_session) {
                    Err(Refusal::SessionClosed)
                } else {
                    // What is here without all that is below it is not here, as at a real home.
                    let absent = (0..).zip(&ids).filter(|(_, id)| {
                        !self.pretends.contains(id) && !self.incomplete(**id).is_empty()
                    });
                    Ok(Answer::Missing {
                        positions: absent.map(|(position, _)| position).collect(),
                    })
                }
            }
            Call::Renew {
                checkout, token, ..
            } => {
                self.calls.push("renew");
                grantor::renew(&self.image, &caller, checkout, token, None)
                    .map(|grant| {
                        self.image = grant.effect.image;
                        Answer::Renewed {
                            ttl_ms: grant.ttl_ms,
                        }
                    })
                    .map_err(refusal)
            }
            Call::Release {
                checkout, token, ..
            } => {
                self.calls.push("release");
                match self.refuse_release.take() {
                    Some(refusal) => Err(refusal),
                    None => grantor::release(&self.image, &caller, checkout, token)
                        .map(|effect| {
                            if let Some(effect) = effect {
                                self.image = effect.image;
                            }
                            Answer::Done
                        })
                        .map_err(refusal),
                }
            }
            Call::Images { .. } => {
                self.calls.push("images");
                let (images, more) = (self.listed.clone(), false);
                Ok(Answer::Images { images, more })
            }
            Call::Log { image, .. } => {
                self.calls.push("log");
                let first = self.firsts.get(&image).cloned();
                let first = first.ok_or_else(|| Refusal::Internal("a fault on demand".into()));
                first.map(|first| Answer::Log {
                    commits: vec![(first.clone(), self.receipt(&first))],
                    more: false,
                })
            }
            Call::StolenBy { .. } => Ok(Answer::StolenBy {
                steal: self.steal.clone(),
            }),
            Call::Pin { .. } => {
                self.calls.push("pin");
                Ok(Answer::Done)
            }
            Call::Acquire {
                checkout,
                terms,
                expect_head,
                take_over,
                ..
            } => {
                self.calls.push("acquire");
                let want = grantor::Acquire {
                    checkout,
                    terms: Terms {
                        ttl_ms: terms.ttl_ms,
                        mode: terms.mode,
                    },
                    expect_head,
                    take_over,
                };
                grantor::acquire(&self.image, &caller, &want)
                    .map(|grant| {
                        self.image = grant.effect.image;
                        let head = self.image.head_commit();
                        Answer::Granted {
                            token: grant.token,
                            ttl_ms: grant.ttl_ms,
                            head: head.and_then(|head| self.commits.get(&head).cloned()),
                            current: true,
                            trace: None,
                        }
                    })
                    .map_err(refusal)
            }
            Call::RosterAppend { .. } => {
                self.calls.push("append");
                let position = self.log_moved;
                Err(Refusal::LogMoved { position })
            }
            Call::Stage { commit } => {
                self.calls.push("stage");
                let missing = self.incomplete(SignedCommit::decode(&commit).unwrap().record.root);
                match missing.is_empty() && !self.stays_incomplete {
                    true => Ok(Answer::Done),
                    false => Err(Refusal::Incomplete { missing }),
                }
            }
            Call::Commit { commit } => {
                self.calls.push("commit");
                if let Some(witness) = &self.witness {
                    witness(&commit);
                }
                if let Some(refusal) = self.refuse_commit.take() {
                    return Some(self.reply(Err(refusal)));
                }
                let outcome = self.commit(&caller, commit);
                if std::mem::take(&mut self.lose_receipt) {
                    self.hang_up();
                    return None;
                }
                outcome
            }
            other => panic!("the fake home does not know {other:?}"),
        };
        Some(self.reply(result))
    }

    fn commit(&mut self, caller: &Caller, bytes: Bytes) -> Result<Answer, Refusal> {
        let signed = SignedCommit::decode(&bytes).unwrap();
        let record = &signed.record;
        let commit = commit_id(&signed, &self.home);
        let proposal = Proposal {
            commit,
            image: record.image,
            seq: record.seq,
            parent: record.parent.map(|parent| parent.commit),
            root: record.root,
            token: record.token,
            device: record.device,
            checkout: record.checkout,
            instance: record.instance,
            clock: record.clock,
        };
        let history = History {
            has_commit: self.commits.contains_key(&commit),
            has_parent: true,
        };
        let effect = grantor::commit(&self.image, caller, &proposal, history).map_err(refusal)?;
        if let Some(effect) = effect {
            let missing = self.incomplete(record.root);
            if !missing.is_empty() {
                return Err(Refusal::Incomplete { missing });
            }
            self.image = effect.image;
            self.position += 1;
        }
        self.commits.insert(commit, bytes.clone());
        let receipt = self.receipt(&bytes);
        Ok(Answer::Committed { receipt })
    }

    fn receipt(&self, commit: &[u8]) -> Bytes {
        let signed = SignedCommit::decode(commit).unwrap();
        let at = standing(self.position);
        let receipt = Receipt {
            incarnation: at.incarnation,
            position: at.position,
            log_root: at.root,
            image: signed.record.image,
            seq: signed.record.seq,
            commit: commit_id(&signed, &self.home),
        };
        let key = SigningSecret::from_bytes(HOME_SEED);
        Signed::sign(receipt, &self.home, &key).to_bytes().into()
    }

    /// What is absent below a root.
    fn incomplete(&self, root: ObjectId) -> Vec<ObjectId> {
        let mut missing = Vec::new();
        let mut ahead = vec![root];
        while let Some(id) = ahead.pop() {
            match self.objects.get(&id) {
                Some(object) => ahead.extend(Parsed::decode(object).unwrap().header.children),
                None => missing.push(id),
            }
        }
        missing
    }

    fn caller(&self) -> Caller {
        // The one device that knows this home.
        let device = self.image.lease.map(|lease| lease.device);
        Caller {
            device: device.unwrap_or(DeviceId::from_bytes([0; 32])),
            member: true,
            instance: Instance(1),
            newest_instance: Instance(1),
            incarnation: INCARNATION,
        }
    }

    fn reply(&self, result: Result<Answer, Refusal>) -> Reply {
        Reply {
            at: Some(standing(self.position)),
            result,
        }
    }
}

fn standing(position: u64) -> Standing {
    Standing {
        incarnation: INCARNATION,
        position: LogPosition(position),
        root: LogRoot::from_bytes(*blake3::hash(&position.to_le_bytes()).as_bytes()),
    }
}

fn refusal(refused: Refused) -> Refusal {
    match refused {
        Refused::TokenStale {
            epoch,
            holder,
            mode,
        } => Refusal::TokenStale {
            epoch,
            holder,
            mode,
        },
        Refused::HeadMoved { head } => Refusal::HeadMoved { head },
        other => panic!("{other}"),
    }
}

/// A device that has been enrolled at the fake home and has one leased checkout.
pub(crate) struct Device {
    pub(crate) home: Arc<Home>,
    pub(crate) state: State,
    pub(crate) keeper: Keeper,
    pub(crate) events: Events,
}

impl Device {
    /// Enrols in an empty folder; the checkout's lease is granted at the home.
    pub(crate) async fn enrol(dir: &Path, fake: &FakeHome, mode: LeaseMode) -> Self {
        let state = State::open(dir).unwrap();
        let identity = Arc::new(Identity::load_or_create(&state.identity_dir()).unwrap());
        let name = DeviceName::parse("laptop").unwrap();
        let founding = papers::found(&identity, &name, WallMillis(1)).unwrap();
        let genesis = founding.genesis.to_bytes();
        let home = papers::replay(std::slice::from_ref(&genesis))
            .unwrap()
            .home();
        let pin = HomePin {
            address: fake.address.clone(),
            home_key_hash: key_hash(&TlsIdentity::from_seed(&HOME_SEED).public_key()),
            home_key: None,
            home,
            seen: None,
        };
        state.now(|db| db.enrolled(&pin, &[genesis])).unwrap();
        let terms = Terms {
            ttl_ms: TTL_MS,
            mode,
        };
        let lease = img_lease::Lease {
            device: identity.device(),
            checkout: CHECKOUT,
            epoch: Epoch(1),
            mode,
            ttl_ms: TTL_MS,
            remaining_ms: TTL_MS,
            lapsed: false,
            base: None,
        };
        {
            let mut inner = fake.lock();
            inner.home = home;
            inner.image.epoch = Epoch(1);
            inner.image.lease = Some(lease);
        }
        let granted = Granted {
            token: Token {
                incarnation: INCARNATION,
                epoch: Epoch(1),
            },
            terms,
            head: None,
            sent: Clock::new().now(),
            luck: 0,
        };
        let row = CheckoutRow {
            checkout: CHECKOUT,
            image: IMAGE,
            name: "vm".into(),
            dir: "/vm".into(),
            stage: Stage::Open,
            read_only: false,
            owner_map: false,
            terms: LeaseTerms {
                ttl_ms: TTL_MS,
                mode,
            },
            opened: WallMillis(1),
            descriptor: Vec::new(),
            base: None,
            holder: Some(keeper::encode(&Holder::leased(IMAGE, CHECKOUT, &granted))),
            sealed_bytes: 0,
            sent_bytes: 0,
        };
        state.now(|db| db.add_checkout(&row)).unwrap();
        drop(state);
        Self::boot(dir, 1).await
    }

    /// Starts a daemon over the folder.
    pub(crate) async fn boot(dir: &Path, nonce: u8) -> Self {
        let state = State::open(dir).unwrap();
        let identity = Arc::new(Identity::load_or_create(&state.identity_dir()).unwrap());
        let pin = state.now(|db| db.home()).unwrap().unwrap();
        let cache = Cache::open(&state.objects_dir(), 1 << 30).unwrap();
        let events = Events::new();
        let nonce = DaemonNonce::from_bytes([nonce; 32]);
        let home = Home::open(
            &state,
            identity,
            nonce,
            pin,
            cache,
            Uplink::default(),
            events.clone(),
        )
        .await
        .unwrap();
        let kept: Vec<_> = state
            .now(|db| db.checkouts())
            .unwrap()
            .into_iter()
            .map(|row| {
                let label = Label {
                    name: row.name,
                    dir: row.dir.display().to_string(),
                };
                (label, keeper::decode(&row.holder.unwrap()).unwrap())
            })
            .collect();
        let keeper = Keeper::start(Arc::clone(&home), state.clone(), events.clone(), kept);
        Self {
            home,
            state,
            keeper,
            events,
        }
    }

    pub(crate) fn row(&self) -> CheckoutRow {
        self.state.now(|db| db.checkout(CHECKOUT)).unwrap().unwrap()
    }

    pub(crate) fn token(&self) -> Token {
        self.keeper.holder(CHECKOUT).unwrap().token().unwrap()
    }
}

impl Inner {
    pub(crate) fn head(&self) -> Option<Head> {
        self.image.head
    }
}
