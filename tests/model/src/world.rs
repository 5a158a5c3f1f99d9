//! One state of the whole: the home, the machines, what is on its way between them, and the bystander.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use img_lease::grantor::Expectation;
use img_lease::holder::{Event, Holder, Kind, Moment};
use img_testkit::home::{Answer, Call, Connection, Failure, ModelHome, Standing};
use img_types::{BootMillis, CheckoutId, ImageId, LeaseMode, RequestId, Token};

use crate::bystander::{Breach, Bystander, Seen};
use crate::machine::{Machine, TERMS};

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "there are only a few of them")]
pub enum Message {
    /// A call to the home.
    Request {
        /// The machine that sent it.
        from: usize,
        /// Its daemon start then.
        start: u8,
        /// As the home knows it.
        by: Connection,
        /// The request id.
        request: RequestId,
        /// When it was sent first.
        sent: Moment,
        /// The call.
        call: Call,
    },
    /// An answer of the home.
    Reply {
        /// The machine that asked.
        to: usize,
        /// Its daemon start then.
        start: u8,
        /// The request id.
        request: RequestId,
        /// When the call was sent first.
        sent: Moment,
        /// Where the home stood.
        at: Standing,
        /// The answer.
        result: Result<Answer, Failure>,
    },
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The home.
    pub home: ModelHome,
    /// What the home and the bystander were when the backup was made.
    pub backup: Option<Box<(ModelHome, Bystander)>>,
    /// Devices, and clones of them.
    pub machines: Vec<Machine>,
    /// Messages by a hash of theirs.
    pub net: BTreeMap<u64, Message>,
    /// The bystander.
    pub bystander: Bystander,
    /// How often each bounded thing has happened.
    pub spent: crate::Bounds,
    /// Time, in steps, where it is counted.
    pub now: u8,
}

/// The image that everybody works on.
pub const MAIN: ImageId = ImageId::from_bytes([0xaa; 32]);
/// A step of time: a third of a lease.
pub const STEP_MS: u64 = TERMS.ttl_ms / 3;

impl World {
    /// Milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        u64::from(self.now) * STEP_MS
    }

    /// Whether a machine is like that.
    pub fn any(&self, is: impl Fn(&Machine) -> bool) -> bool {
        self.machines.iter().any(is)
    }

    /// The image that a machine works on.
    pub fn image_of(&self, machine: usize) -> ImageId {
        self.machines[machine]
            .holder
            .as_ref()
            .map_or(MAIN, Holder::image)
    }

    /// The connection of a machine that is greeted.
    pub fn connection(&self, machine: usize) -> Option<Connection> {
        let machine = &self.machines[machine];
        Some(Connection {
            device: machine.device(),
            instance: machine.contact?,
        })
    }

    /// What a thief sees.
    pub fn expectation(&self, image: ImageId) -> Option<Expectation> {
        let row = self.home.image(image)?;
        let staged = row.staged_by(&row.lease?.checkout);
        Some(Expectation {
            epoch: row.epoch,
            head: row.head_commit(),
            staged: staged.map(|staged| staged.proposal.commit),
        })
    }

    /// Puts a journaled call on its way.
    pub fn send(&mut self, machine: usize, request: RequestId) {
        if let Some(call) = self.machines[machine].outbox.get(&request).cloned() {
            self.send_call(machine, request, call);
        }
    }

    /// Puts a call on its way, as far as there is room.
    pub fn send_call(&mut self, from: usize, request: RequestId, call: Call) {
        let Some(by) = self.connection(from) else {
            return;
        };
        let machine = &self.machines[from];
        let message = Message::Request {
            from,
            start: machine.start(),
            by,
            request,
            sent: machine.moment(self.now_ms()),
            call,
        };
        self.put(message);
    }

    /// Whether anything of a request is on its way.
    pub fn is_under_way(&self, request: RequestId) -> bool {
        self.net.values().any(|message| match message {
            Message::Request {
                request: under_way, ..
            }
            | Message::Reply {
                request: under_way, ..
            } => *under_way == request,
        })
    }

    /// Takes a message off its way, or a copy of it, and lets it arrive.
    pub fn deliver(&mut self, key: u64, keep: bool, in_flight: usize) {
        let Some(message) = self.net.get(&key).cloned() else {
            return;
        };
        if !keep {
            self.net.remove(&key);
        }
        match message {
            Message::Request {
                from,
                start,
                by,
                request,
                sent,
                call,
            } => {
                let result = self.call(by, request, &call);
                let listens =
                    self.machines[from].start() == start && self.machines[from].contact.is_some();
                if listens && self.net.len() < in_flight {
                    self.put(Message::Reply {
                        to: from,
                        start,
                        request,
                        sent,
                        at: self.home.standing(),
                        result,
                    });
                }
            }
            Message::Reply {
                to,
                request,
                sent,
                at,
                result,
                ..
            } => {
                let machine = &mut self.machines[to];
                if machine.seen.is_some_and(|seen| seen.position < at.position) {
                    machine.seen = Some(at);
                }
                machine.hear(request, &result, sent);
            }
        }
    }

    /// A call in its transaction, watched.
    pub fn call(
        &mut self,
        by: Connection,
        request: RequestId,
        call: &Call,
    ) -> Result<Answer, Failure> {
        let before = self.home.clone();
        let result = self.home.call(by, request, call);
        self.bystander.watch(&Seen {
            before: &before,
            after: &self.home,
            by,
            request,
            call,
            result: &result,
        });
        result
    }

    /// A machine connects and says Hello.
    pub fn greet(&mut self, number: usize, remembers: bool) {
        let machine = &mut self.machines[number];
        let seen = machine.seen.filter(|_| !machine.noticed);
        let (device, nonce) = (machine.device(), machine.nonce());
        let greeting = self.home.hello(device, nonce, seen);
        let went_back = matches!(greeting, Err(Failure::WentBack { .. }));
        self.bystander.watch_hello(seen, went_back);
        machine.noticed |= went_back;
        if went_back {
            return;
        }
        let connection = self.home.connection(device, nonce);
        machine.contact = connection.map(|connection| connection.instance);
        if remembers && greeting.is_ok() {
            machine.seen = Some(self.home.standing());
        }
    }

    /// A machine looks at the home's images and learns who took its lease, and what kept its work.
    pub fn look(&mut self, number: usize) -> bool {
        let incarnation = self.home.incarnation();
        let now = self.now_ms();
        let machine = &mut self.machines[number];
        let device = machine.device();
        let Some(holder) = &machine.holder else {
            return false;
        };
        let (image, checkout) = (holder.image(), holder.checkout());
        let mut changed = false;
        if let Some((token, row)) = holder.token().zip(self.home.image(image))
            && token.incarnation == incarnation
            && row.epoch > token.epoch
        {
            let rival = row.lease.map(|lease| lease.device);
            changed |= machine.apply(Event::TokenStale {
                image,
                token,
                rival,
            });
        }
        let kept = self.home.images().find(|row| {
            let lease = row.lease.filter(|lease| lease.mode == LeaseMode::Offline);
            row.image != image
                && lease.is_some_and(|lease| (lease.device, lease.checkout) == (device, checkout))
        });
        if let Some(kept) = kept
            && machine.kind() == Some(Kind::Orphan)
            && !machine.is_busy()
            && let Some((lease, head)) = kept.lease.zip(kept.head)
        {
            let token = Token {
                incarnation,
                epoch: lease.epoch,
            };
            let sent = machine.moment(now);
            changed |= machine.follow(kept.image, token, head, sent);
        }
        changed
    }

    /// The device's deadline passes: it slept for long.
    pub fn sleep(&mut self, number: usize) -> bool {
        let machine = &mut self.machines[number];
        let now = machine.moment(0);
        let late = Moment {
            boot: BootMillis(now.boot.0 + 365 * 86_400_000),
            ..now
        };
        machine.apply(Event::Tick(late))
    }

    /// A step of time passes everywhere.
    pub fn pass(&mut self) {
        self.now += 1;
        self.home.advance(STEP_MS);
        let now = self.now_ms();
        for machine in &mut self.machines {
            let moment = machine.moment(now);
            machine.apply(Event::Tick(moment));
        }
        self.check_deadlines();
    }

    /// No device believes in its lease for longer than the home.
    pub fn check_deadlines(&mut self) {
        let now = self.now_ms();
        let late = self.machines.iter().any(|machine| {
            let Some(holder) = &machine.holder else {
                return false;
            };
            let Some(tenure) = holder.tenure() else {
                return false;
            };
            let claim = (machine.device(), holder.checkout(), tenure.token);
            let row = self.home.image(holder.image()).and_then(|row| row.lease);
            holder.kind() == Kind::Leased
                && !tenure.term.past(&machine.moment(now))
                && self.bystander.holder(holder.image()) == Some(claim)
                && row.is_none_or(|lease| lease.lapsed)
        });
        if late {
            self.bystander.report(Breach::DeadlineTooLate);
        }
    }

    /// The home's process ends: connections and what was on its way end with it.
    pub fn disconnect(&mut self) {
        self.net.clear();
        for machine in &mut self.machines {
            machine.contact = None;
        }
    }

    /// A machine's daemon dies: answers to it are lost.
    pub fn cut(&mut self, number: usize) {
        self.net
            .retain(|_, message| !matches!(message, Message::Reply { to, .. } if *to == number));
    }

    /// The checkout of the lease that an image's row has.
    pub fn leased_checkout(&self, image: ImageId) -> Option<CheckoutId> {
        Some(self.home.image(image)?.lease?.checkout)
    }

    fn put(&mut self, message: Message) {
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        self.net.insert(hasher.finish(), message);
    }
}
