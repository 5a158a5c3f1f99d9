//! A device: the holder that ships, with the small journal that a daemon keeps around it.
//!
//! Durable: the holder, the base, the journaled calls, the signed commit, receipts, what was seen of the
//! home's log. In memory: the connection, and who waits for a grant.

use std::collections::{BTreeMap, BTreeSet};

use img_lease::grantor::Acquire;
use img_lease::holder::{Before, BootId, Event, Granted, Holder, Kind, Moment};
use img_lease::{Head, Proposal, Refused, Terms};
use img_testkit::home::{Answer, Call, Failure, Naming, Receipt, Standing};
use img_types::{
    BootMillis, CheckoutId, CommitId, DaemonNonce, DeviceId, ImageId, Instance, LeaseMode, NameTag,
    ObjectId, RequestId, Seq, Token, WallMillis,
};

/// One device, or a clone of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    number: u8,
    copy: u8,
    start: u8,
    boot: u8,
    booted_ms: u64,
    requests: u8,
    opened: u8,
    written: u8,
    /// The daemon start of the present connection, as the home counts it.
    pub contact: Option<Instance>,
    /// The newest that was seen of the home's log.
    pub seen: Option<Standing>,
    /// A person has been told that the home went back.
    pub noticed: bool,
    /// The checkout's lease.
    pub holder: Option<Holder>,
    base: Option<Head>,
    /// The signed commit that is not answered.
    pub pending: Option<CommitId>,
    staged: Option<Proposal>,
    /// Journaled calls that are not answered.
    pub outbox: BTreeMap<RequestId, Call>,
    waiting: BTreeSet<RequestId>,
    /// Acknowledged commits with their receipts.
    pub receipts: Vec<(Proposal, Receipt)>,
}

/// The terms that everybody asks for.
pub const TERMS: Terms = Terms {
    ttl_ms: 600_000,
    mode: LeaseMode::Online,
};

impl Machine {
    /// A device without a checkout.
    pub fn new(number: u8) -> Self {
        Self {
            number,
            copy: 0,
            start: 0,
            boot: 0,
            booted_ms: 0,
            requests: 0,
            opened: 0,
            written: 0,
            contact: None,
            seen: None,
            noticed: false,
            holder: None,
            base: None,
            pending: None,
            staged: None,
            outbox: BTreeMap::new(),
            waiting: BTreeSet::new(),
            receipts: Vec::new(),
        }
    }

    /// The device whose keys these are.
    pub fn device(&self) -> DeviceId {
        DeviceId::from_bytes([self.number; 32])
    }

    /// The nonce of this daemon start.
    pub fn nonce(&self) -> DaemonNonce {
        DaemonNonce::from_bytes(self.id(0, 0))
    }

    /// Which daemon start this is, among this machine's own.
    pub fn start(&self) -> u8 {
        self.start
    }

    /// The machine as its cloned disk comes up elsewhere.
    pub fn cloned(&self) -> Self {
        let mut clone = self.clone();
        clone.copy += 1;
        clone.restart();
        clone
    }

    /// The daemon dies and comes back.
    pub fn restart(&mut self) {
        self.start += 1;
        self.requests = 0;
        self.contact = None;
        self.waiting.clear();
    }

    /// The machine boots again.
    pub fn reboot(&mut self, now_ms: u64) {
        self.restart();
        self.boot += 1;
        self.booted_ms = now_ms;
    }

    /// What the clocks show.
    pub fn moment(&self, now_ms: u64) -> Moment {
        let mut boot_id = [0; 16];
        boot_id[..3].copy_from_slice(&[self.number, self.copy, self.boot]);
        Moment {
            boot_id: BootId(boot_id),
            boot: BootMillis(now_ms - self.booted_ms),
            wall: WallMillis(i64::try_from(now_ms).unwrap_or(i64::MAX)),
        }
    }

    /// The state of the checkout, if there is one.
    pub fn kind(&self) -> Option<Kind> {
        self.holder.as_ref().map(Holder::kind)
    }

    /// Whether an operation is under way, so that the next one has to wait. A checkout that has ended
    /// may still be giving back its lease.
    pub fn is_busy(&self) -> bool {
        let own = self.holder.as_ref().map(Holder::checkout);
        self.outbox.values().any(|call| match call {
            Call::Release { checkout, .. } => Some(*checkout) == own,
            _ => true,
        })
    }

    /// What the checkout stands on.
    pub fn base(&self) -> Option<CommitId> {
        self.base.map(|base| base.commit)
    }

    /// Writes a call down under a request id of this start.
    pub fn journal(&mut self, call: Call) -> RequestId {
        let request = self.request_id();
        self.outbox.insert(request, call);
        request
    }

    /// The request id of this start that was used last.
    pub fn last_request(&self) -> Option<RequestId> {
        let last = self.requests.checked_sub(1)?;
        Some(RequestId::from_bytes(self.id(last + 1, 0)))
    }

    /// A request id of this start.
    pub fn request_id(&mut self) -> RequestId {
        self.requests += 1;
        RequestId::from_bytes(self.id(self.requests, 0))
    }

    /// A checkout that was not there before.
    pub fn new_checkout(&mut self) -> CheckoutId {
        self.opened += 1;
        CheckoutId::from_bytes(self.id(self.opened, 1))
    }

    /// A name and an id that no image has had.
    pub fn new_name(&mut self) -> Naming {
        let id = self.id(self.written + 1, 2);
        Naming {
            image: ImageId::from_bytes(id),
            tag: NameTag::from_bytes(id),
        }
    }

    /// Waits for a grant.
    pub fn wait_for(&mut self, call: Call) -> RequestId {
        let request = self.journal(call);
        self.waiting.insert(request);
        request
    }

    /// Begins a read-only checkout of a commit.
    pub fn read(&mut self, image: ImageId, head: Option<Head>) {
        let checkout = self.new_checkout();
        let commit = head.map(|head| head.commit);
        self.holder = Some(Holder::read_only(image, checkout, commit));
        self.base = head;
    }

    /// A record of new work upon a parent. Every second one has the same contents, so that comparing
    /// contents instead of commits would show.
    pub fn record(
        &mut self,
        image: ImageId,
        parent: Option<Head>,
        token: Option<Token>,
    ) -> Proposal {
        self.written += 1;
        let own = self.holder.as_ref().map(Holder::checkout);
        Proposal {
            commit: CommitId::from_bytes(self.id(self.written, 3)),
            image,
            seq: parent
                .and_then(|parent| parent.seq.next())
                .unwrap_or(Seq(0)),
            parent: parent.map(|parent| parent.commit),
            root: ObjectId::from_bytes([self.written % 2; 32]),
            token,
            device: self.device(),
            checkout: own.unwrap_or(CheckoutId::from_bytes(self.id(0, 1))),
            instance: self.contact.unwrap_or(Instance(0)),
            clock: WallMillis(i64::from(self.written)),
        }
    }

    /// Signs a commit of the checkout's work, or the record that is staged already, and journals it.
    pub fn sign_commit(&mut self) -> Option<RequestId> {
        let holder = self.holder.as_ref()?;
        let (image, token) = (holder.image(), holder.token()?);
        let staged = self.staged.filter(|staged| {
            (staged.image, staged.parent, staged.token) == (image, self.base(), Some(token))
        });
        let record = match staged {
            Some(staged) => staged,
            None => self.record(image, self.base, Some(token)),
        };
        self.pending = Some(record.commit);
        Some(self.journal(Call::Commit(record)))
    }

    /// Streams a checkpoint home.
    pub fn stage(&mut self) -> Option<RequestId> {
        let holder = self.holder.as_ref()?;
        let (image, token) = (holder.image(), holder.token());
        let record = self.record(image, self.base, token);
        self.staged = Some(record);
        Some(self.journal(Call::Stage(record)))
    }

    /// Saves the checkout's work as a branch.
    pub fn branch(&mut self) -> Option<RequestId> {
        self.holder.as_ref()?;
        let name = self.new_name();
        let first = self.first_commit(name, self.base());
        Some(self.journal(Call::Branch {
            name,
            first,
            terms: TERMS,
        }))
    }

    /// The first commit of a branch.
    pub fn first_commit(&mut self, name: Naming, parent: Option<CommitId>) -> Proposal {
        Proposal {
            parent,
            ..self.record(name.image, None, None)
        }
    }

    /// Takes the lease for a late commit.
    pub fn acquire_late(&mut self, take_over: bool) -> Option<RequestId> {
        let holder = self.holder.as_ref()?;
        let call = Call::Acquire {
            image: holder.image(),
            want: Acquire {
                checkout: holder.checkout(),
                terms: TERMS,
                expect_head: self.base(),
                take_over,
            },
        };
        Some(self.wait_for(call))
    }

    /// The call that renews the lease, durable with the holder.
    pub fn renewal(&mut self, now_ms: u64) -> Option<(RequestId, Call)> {
        let under_way = self.holder.as_ref()?.tenure()?.renewal.is_some();
        let request = if under_way {
            RequestId::from_bytes([0; 32])
        } else {
            self.request_id()
        };
        let now = self.moment(now_ms);
        let holder = self.holder.as_mut()?;
        let renewal = holder.ask_renewal(request, None, now)?;
        let call = Call::Renew {
            image: holder.image(),
            checkout: holder.checkout(),
            token: renewal.token,
            terms: renewal.terms,
        };
        Some((renewal.request, call))
    }

    /// Ends the checkout; its lease is given back.
    pub fn close(&mut self) -> Option<RequestId> {
        let holder = self.holder.take()?;
        let mut closed = holder.clone();
        let ended = closed.apply(Event::Closed);
        debug_assert!(ended.is_ok());
        self.base = None;
        self.staged = None;
        let token = holder.token()?;
        Some(self.journal(Call::Release {
            image: holder.image(),
            checkout: holder.checkout(),
            token,
        }))
    }

    /// Gives back a lease that was taken for one late commit.
    pub fn give_back(&mut self) -> Option<RequestId> {
        let holder = self.holder.as_mut()?;
        let (image, checkout, token) = (holder.image(), holder.checkout(), holder.token()?);
        holder.apply(Event::GivenBack).ok()?;
        Some(self.journal(Call::Release {
            image,
            checkout,
            token,
        }))
    }

    /// What the checkout was before its lease, if that was taken late.
    pub fn was(&self) -> Option<Before> {
        self.holder.as_ref()?.tenure()?.before
    }

    /// Whether the lease was taken for one commit of a read-only checkout.
    pub fn is_late_reader(&self) -> bool {
        self.was() == Some(Before::ReadOnly)
    }

    /// Lets an event happen to the checkout's lease, if there is one.
    pub fn apply(&mut self, event: Event) -> bool {
        let holder = self.holder.as_mut();
        holder.is_some_and(|holder| holder.apply(event) == Ok(true))
    }

    /// Goes on as a branch that keeps this checkout's work.
    pub fn follow(&mut self, image: ImageId, token: Token, head: Head, sent: Moment) -> bool {
        let granted = granted(token, TERMS.ttl_ms, Some(head.commit), sent);
        let followed = self.apply(Event::Branched { image, granted });
        if followed {
            self.base = Some(head);
            self.staged = None;
        }
        followed
    }

    /// Takes an answer. `first_sent` is when its call was sent first.
    pub fn hear(
        &mut self,
        request: RequestId,
        result: &Result<Answer, Failure>,
        first_sent: Moment,
    ) {
        if self.hear_renewal(request, result) {
            return;
        }
        let Some(call) = self.outbox.remove(&request) else {
            return;
        };
        let waited = self.waiting.remove(&request);
        match (call, result) {
            (
                call,
                Ok(Answer::Granted {
                    token,
                    ttl_ms,
                    head,
                    current: true,
                }),
            ) => {
                let (image, checkout, late) = match call {
                    Call::Acquire { image, want } => {
                        (image, want.checkout, want.expect_head.is_some())
                    }
                    Call::Steal {
                        image, checkout, ..
                    } => (image, checkout, false),
                    Call::CreateImage { name, checkout, .. } => (name.image, checkout, false),
                    _ => return,
                };
                let grant = granted(*token, *ttl_ms, head.map(|head| head.commit), first_sent);
                self.take_grant(image, checkout, &grant, *head, waited, late);
            }
            (Call::Commit(record), Ok(Answer::Committed { receipt })) => {
                self.pending = None;
                self.receipts.push((record, *receipt));
                let event = Event::Committed {
                    commit: record.commit,
                    parent: record.parent,
                };
                if self.apply(event) {
                    self.base = Some(Head {
                        commit: record.commit,
                        seq: record.seq,
                    });
                }
                if self.is_late_reader() {
                    self.give_back();
                }
            }
            (Call::Commit(record), Err(Failure::Refused(refused))) => {
                self.pending = None;
                if let Some(token) = record.token {
                    self.superseded(record.image, token, refused);
                }
            }
            (
                Call::Branch { first, .. },
                Ok(Answer::Branched {
                    token,
                    ttl_ms,
                    receipt,
                }),
            ) => {
                self.receipts.push((first, *receipt));
                let head = Head {
                    commit: first.commit,
                    seq: first.seq,
                };
                let granted = granted(*token, *ttl_ms, Some(first.commit), first_sent);
                let event = Event::Branched {
                    image: first.image,
                    granted,
                };
                if self.apply(event) {
                    self.base = Some(head);
                    self.staged = None;
                }
            }
            _ => {}
        }
    }

    fn hear_renewal(&mut self, request: RequestId, result: &Result<Answer, Failure>) -> bool {
        let Some(holder) = &self.holder else {
            return false;
        };
        let image = holder.image();
        let renewal = holder.tenure().and_then(|tenure| tenure.renewal);
        let Some(renewal) = renewal.filter(|renewal| renewal.request == request) else {
            return false;
        };
        match result {
            Ok(Answer::Renewed { ttl_ms }) => {
                let ttl_ms = *ttl_ms;
                self.apply(Event::Renewed {
                    request,
                    ttl_ms,
                    luck: 0,
                });
            }
            Err(Failure::Refused(refused)) => {
                self.superseded(image, renewal.token, refused);
            }
            _ => {}
        }
        true
    }

    fn superseded(&mut self, image: ImageId, token: Token, refused: &Refused) {
        let event = match refused {
            Refused::TokenStale { holder, .. } => Event::TokenStale {
                image,
                token,
                rival: *holder,
            },
            Refused::UnknownImage => Event::TokenStale {
                image,
                token,
                rival: None,
            },
            Refused::HeadMoved { head } => Event::HeadMoved {
                image,
                token,
                head: *head,
            },
            _ => return,
        };
        self.apply(event);
    }

    /// Takes a grant that somebody waits for; any other is released.
    fn take_grant(
        &mut self,
        image: ImageId,
        checkout: CheckoutId,
        grant: &Granted,
        head: Option<Head>,
        waited: bool,
        late: bool,
    ) {
        let held = self.holder.as_ref().and_then(Holder::token) == Some(grant.token);
        let taken = if held {
            true
        } else if !waited {
            false
        } else if late {
            let taken = self.apply(Event::Granted(*grant));
            if taken {
                self.sign_commit();
            }
            taken
        } else {
            self.holder = Some(Holder::leased(image, checkout, grant));
            self.base = head;
            true
        };
        if !taken {
            self.journal(Call::Release {
                image,
                checkout,
                token: grant.token,
            });
        }
    }

    fn id(&self, number: u8, kind: u8) -> [u8; 32] {
        let mut id = [0xee; 32];
        let start = if kind == 0 { self.start } else { 0 };
        id[..5].copy_from_slice(&[kind, self.number, self.copy, start, number]);
        id
    }
}

fn granted(token: Token, ttl_ms: u64, head: Option<CommitId>, sent: Moment) -> Granted {
    Granted {
        token,
        terms: Terms { ttl_ms, ..TERMS },
        head,
        sent,
        luck: 0,
    }
}
