//! Three devices, one image, and a network that repeats and reorders everything: whatever happens, in
//! whatever order, invariants 1 to 9 and 11 of the lease rules hold. The world's home checks the first
//! nine after every call; the deadlines are checked here after every step.

use std::collections::BTreeSet;

use crate::world::{self, Answer, Call, Connection, Failure, Home, Outcome};
use img_lease::Proposal;
use img_lease::grantor::{Acquire, Grace};
use img_lease::holder::{BootId, Event, Granted, Holder, Kind, Moment};
use img_types::{BootMillis, CommitId, DaemonNonce, ImageId, RequestId, Seq, WallMillis};
use proptest::prelude::*;

const MAIN: u8 = 0xaa;
const TTL_MINUTES: u64 = 10;

#[derive(Debug, Clone)]
enum Step {
    Acquire { by: usize, take_over: bool },
    Steal { by: usize },
    Renew { by: usize },
    Release { by: usize },
    Work { by: usize },
    Commit { by: usize },
    Stage { by: usize },
    Branch { by: usize },
    Close { by: usize },
    RestartDaemon { by: usize },
    RestartHome,
    Advance { seconds: u64 },
    DeliverCall { pick: prop::sample::Index },
    DeliverReply { pick: prop::sample::Index },
    ForgeId { pick: prop::sample::Index },
}

fn step() -> impl Strategy<Value = Step> {
    let by = 0..3usize;
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        3 => (by.clone(), any::<bool>()).prop_map(|(by, take_over)| Step::Acquire { by, take_over }),
        1 => by.clone().prop_map(|by| Step::Steal { by }),
        2 => by.clone().prop_map(|by| Step::Renew { by }),
        1 => by.clone().prop_map(|by| Step::Release { by }),
        3 => by.clone().prop_map(|by| Step::Work { by }),
        3 => by.clone().prop_map(|by| Step::Commit { by }),
        1 => by.clone().prop_map(|by| Step::Stage { by }),
        1 => by.clone().prop_map(|by| Step::Branch { by }),
        1 => by.clone().prop_map(|by| Step::Close { by }),
        1 => by.prop_map(|by| Step::RestartDaemon { by }),
        1 => Just(Step::RestartHome),
        3 => (1..900u64).prop_map(|seconds| Step::Advance { seconds }),
        12 => pick().prop_map(|pick| Step::DeliverCall { pick }),
        12 => pick().prop_map(|pick| Step::DeliverReply { pick }),
        1 => pick().prop_map(|pick| Step::ForgeId { pick }),
    ]
}

/// A device: one checkout, and what its daemon keeps.
struct Device {
    connection: Connection,
    checkout: img_types::CheckoutId,
    holder: Option<Holder>,
    /// The one acquire or steal that is waited for, and since when.
    wanted: Option<(RequestId, Moment)>,
    /// The signed record that waits for its answer.
    record: Option<Proposal>,
    acknowledged: BTreeSet<CommitId>,
    boot_ms: u64,
}

impl Device {
    /// Runs at 249/250 of the home's pace, the slowest that the deadline allows for.
    fn now(&self) -> Moment {
        Moment {
            boot_id: BootId([1; 16]),
            boot: BootMillis(self.boot_ms),
            wall: WallMillis(self.boot_ms as i64),
        }
    }
}

struct Network {
    home: Home,
    devices: Vec<Device>,
    calls: Vec<(usize, Connection, RequestId, Call)>,
    replies: Vec<(usize, RequestId, Call, Outcome)>,
    numbers: u32,
    images: u8,
}

fn main_image() -> ImageId {
    world::image(MAIN)
}

impl Network {
    fn new() -> Self {
        let mut home = Home::with_image(main_image());
        let devices = (1..=3)
            .map(|n| Device {
                connection: home
                    .hello(world::device(n), DaemonNonce::from_bytes([n; 32]))
                    .unwrap(),
                checkout: world::checkout(n),
                holder: None,
                wanted: None,
                record: None,
                acknowledged: BTreeSet::new(),
                boot_ms: 0,
            })
            .collect();
        Self {
            home,
            devices,
            calls: Vec::new(),
            replies: Vec::new(),
            numbers: 0,
            images: 0,
        }
    }

    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    fn send(&mut self, by: usize, call: Call) -> RequestId {
        let request = world::request_id(self.number());
        self.calls
            .push((by, self.devices[by].connection, request, call));
        request
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Acquire { by, take_over } => {
                let device = &self.devices[by];
                let adopts = device.holder.as_ref();
                if device.wanted.is_some()
                    || adopts.is_some_and(|h| matches!(h.kind(), Kind::Leased | Kind::Closed))
                {
                    return;
                }
                let want = Acquire {
                    checkout: device.checkout,
                    terms: world::minutes(TTL_MINUTES),
                    expect_head: adopts.and_then(Holder::base),
                    take_over,
                };
                let image = adopts.map_or(main_image(), Holder::image);
                let now = device.now();
                let request = self.send(by, Call::Acquire(image, want));
                self.devices[by].wanted = Some((request, now));
            }
            Step::Steal { by } => {
                let device = &self.devices[by];
                if device.holder.is_some() || device.wanted.is_some() {
                    return;
                }
                let expect = self.home.expectation(main_image());
                let terms = world::minutes(TTL_MINUTES);
                let (checkout, now) = (device.checkout, device.now());
                let request = self.send(by, Call::Steal(main_image(), checkout, terms, expect));
                self.devices[by].wanted = Some((request, now));
            }
            Step::Renew { by } => {
                let request = world::request_id(self.number());
                let device = &mut self.devices[by];
                let now = device.now();
                let Some(holder) = &mut device.holder else {
                    return;
                };
                if let Some(renewal) = holder.ask_renewal(request, None, now) {
                    let call = Call::Renew(
                        holder.image(),
                        device.checkout,
                        renewal.token,
                        renewal.terms,
                    );
                    self.calls
                        .push((by, device.connection, renewal.request, call));
                }
            }
            Step::Release { by } => {
                let device = &mut self.devices[by];
                let Some(holder) = &device.holder else {
                    return;
                };
                if let (Some(token), None) = (holder.token(), device.record) {
                    let call = Call::Release(holder.image(), device.checkout, token);
                    device.holder = None;
                    self.send(by, call);
                }
            }
            Step::Work { by } => {
                let n = self.number();
                let device = &mut self.devices[by];
                let Some(holder) = &device.holder else {
                    return;
                };
                if device.record.is_some() || holder.kind() == Kind::Closed {
                    return;
                }
                let seq = holder
                    .base()
                    .map_or(0, |base| self.home.commits[&base].seq.0 + 1);
                device.record = Some(Proposal {
                    seq: Seq(seq),
                    parent: holder.base(),
                    token: holder.token(),
                    ..world::proposal(n, holder.image(), device.connection, device.checkout)
                });
            }
            Step::Commit { by } => {
                if let Some(record) = self.devices[by].record {
                    self.send(by, Call::Commit(record));
                }
            }
            Step::Stage { by } => {
                if let Some(record) = self.devices[by].record {
                    self.send(by, Call::Stage(record));
                }
            }
            Step::Branch { by } => {
                let n = self.number();
                let device = &self.devices[by];
                let (Some(holder), Some(record)) = (&device.holder, device.record) else {
                    return;
                };
                if holder.kind() != Kind::Orphan || self.images == 100 {
                    return;
                }
                self.images += 1;
                let first = Proposal {
                    parent: record.parent,
                    root: record.root,
                    ..world::proposal(
                        n,
                        world::image(self.images),
                        device.connection,
                        device.checkout,
                    )
                };
                self.send(by, Call::Branch(first, world::minutes(TTL_MINUTES)));
            }
            Step::Close { by } => {
                let device = &mut self.devices[by];
                if device.record.is_none()
                    && device.holder.as_ref().is_some_and(|h| h.token().is_none())
                {
                    device.holder = None;
                }
            }
            Step::RestartDaemon { by } => {
                let n = self.number();
                let mut nonce = [0xee; 32];
                nonce[..4].copy_from_slice(&n.to_be_bytes());
                let device = &mut self.devices[by];
                device.connection = self
                    .home
                    .hello(device.connection.device, DaemonNonce::from_bytes(nonce))
                    .unwrap();
                let kept = serde_json::to_string(&device.holder).unwrap();
                device.holder = serde_json::from_str(&kept).unwrap();
                // What was journaled and is not answered is sent again over the new connection.
                let connection = device.connection;
                let again: Vec<_> = self
                    .calls
                    .iter()
                    .filter(|(of, ..)| *of == by)
                    .map(|(_, _, request, call)| (by, connection, *request, call.clone()))
                    .collect();
                self.calls.extend(again.into_iter().rev().take(2));
            }
            Step::RestartHome => self.home.grace = Grace::begin(TTL_MINUTES * 60_000),
            Step::Advance { seconds } => {
                self.home.advance(seconds * 1_000);
                for device in &mut self.devices {
                    device.boot_ms += seconds * 1_000 * 249 / 250;
                    let now = device.now();
                    if let Some(holder) = &mut device.holder {
                        holder.apply(Event::Tick(now)).unwrap();
                    }
                }
            }
            Step::DeliverCall { pick } => {
                if self.calls.is_empty() {
                    return;
                }
                let (by, connection, request, call) =
                    self.calls[pick.index(self.calls.len())].clone();
                let outcome = self.home.call(connection, request, &call);
                self.replies.push((by, request, call, outcome));
            }
            Step::DeliverReply { pick } => {
                if self.replies.is_empty() {
                    return;
                }
                let (by, request, call, outcome) =
                    self.replies[pick.index(self.replies.len())].clone();
                self.hear(by, request, &call, &outcome);
            }
            Step::ForgeId { pick } => {
                if self.calls.is_empty() {
                    return;
                }
                let (_, connection, request, call) =
                    self.calls[pick.index(self.calls.len())].clone();
                let other = Call::Delete(main_image(), false);
                let images = self.home.images.clone();
                let used = self.home.call(connection, request, &call).is_ok();
                if used {
                    let images = self.home.images.clone();
                    let outcome = self.home.call(connection, request, &other);
                    // A fenced daemon may make a branch, and nothing that the forged call asks for.
                    let fenced = Err(Failure::Refused(img_lease::Refused::InstanceFenced));
                    assert!(outcome == Err(Failure::RequestReused) || outcome == fenced);
                    assert_eq!(images, self.home.images);
                } else {
                    assert_eq!(images, self.home.images);
                }
            }
        }
    }

    /// What a daemon does with a reply, which may be one that it has had before.
    fn hear(&mut self, by: usize, request: RequestId, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (
                Call::Acquire(image, _) | Call::Steal(image, ..),
                Ok(Answer::Granted {
                    token,
                    terms,
                    head,
                    stands,
                }),
            ) => {
                let device = &mut self.devices[by];
                let waited = device.wanted.filter(|(wanted, _)| *wanted == request);
                let Some((_, sent)) = waited else {
                    let keeps = device.holder.as_ref().and_then(Holder::token) == Some(*token);
                    if !keeps {
                        let call = Call::Release(*image, device.checkout, *token);
                        self.send(by, call);
                    }
                    return;
                };
                device.wanted = None;
                let granted = Granted {
                    token: *token,
                    terms: *terms,
                    head: *head,
                    sent,
                    luck: 7,
                };
                if !stands {
                    return;
                }
                let taken = match &mut device.holder {
                    None => {
                        device.holder = Some(Holder::leased(*image, device.checkout, &granted));
                        true
                    }
                    Some(holder) => holder.apply(Event::Granted(granted)) == Ok(true),
                };
                if !taken {
                    let call = Call::Release(*image, device.checkout, *token);
                    self.send(by, call);
                } else if let Some(record) = &mut self.devices[by].record {
                    // A late commit is signed anew under the token that it is sent with.
                    let fresh = world::commit_id(self.numbers + 1);
                    self.numbers += 1;
                    *record = Proposal {
                        commit: fresh,
                        token: Some(*token),
                        ..*record
                    };
                }
            }
            (Call::Acquire(..) | Call::Steal(..), Err(_)) => {
                let wanted = &mut self.devices[by].wanted;
                if wanted.is_some_and(|(wanted, _)| wanted == request) {
                    *wanted = None;
                }
            }
            (Call::Renew(..), Ok(Answer::Renewed(ttl_ms))) => {
                if let Some(holder) = &mut self.devices[by].holder {
                    let event = Event::Renewed {
                        request,
                        ttl_ms: *ttl_ms,
                        luck: 3,
                    };
                    holder.apply(event).unwrap();
                }
            }
            (
                Call::Renew(image, _, token, _)
                | Call::Commit(Proposal {
                    image,
                    token: Some(token),
                    ..
                }),
                Err(Failure::Refused(refused)),
            ) => {
                let event = match refused {
                    img_lease::Refused::TokenStale { holder, .. } => Event::TokenStale {
                        image: *image,
                        token: *token,
                        rival: *holder,
                    },
                    img_lease::Refused::HeadMoved { head } => Event::HeadMoved {
                        image: *image,
                        token: *token,
                        head: *head,
                    },
                    _ => return,
                };
                if let Some(holder) = &mut self.devices[by].holder {
                    holder.apply(event).unwrap();
                }
            }
            (Call::Commit(record), Ok(_)) => {
                let device = &mut self.devices[by];
                device.acknowledged.insert(record.commit);
                if device.record.is_some_and(|own| own.commit == record.commit) {
                    device.record = None;
                }
                if let Some(holder) = &mut device.holder
                    && holder.image() == record.image
                    && holder.kind() != Kind::ReadOnly
                {
                    holder
                        .apply(Event::Committed {
                            commit: record.commit,
                            parent: record.parent,
                        })
                        .unwrap();
                }
            }
            (Call::Branch(first, _), Ok(_)) => {
                let device = &mut self.devices[by];
                device.acknowledged.insert(first.commit);
                if device
                    .record
                    .is_some_and(|own| own.parent == first.parent && own.root == first.root)
                {
                    device.record = None;
                }
            }
            _ => {}
        }
    }

    fn check(&self) {
        for device in &self.devices {
            for commit in &device.acknowledged {
                let record = &self.home.commits[commit];
                assert!(self.home.chain(record.image).contains(commit));
            }
            let Some(holder) = device.holder.as_ref().filter(|h| h.kind() == Kind::Leased) else {
                continue;
            };
            let Some(lease) = self.home.images[&holder.image()].lease else {
                continue;
            };
            let token = holder.token().unwrap();
            if token == self.home.token(holder.image()) && lease.device == device.connection.device
            {
                let left = holder.tenure().unwrap().term.remaining_ms(&device.now());
                assert!(
                    left == 0 || left <= lease.remaining_ms,
                    "the device's deadline is later than the home's"
                );
                assert!(left == 0 || !lease.lapsed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_that_must_hold_is_ever_broken(steps in prop::collection::vec(step(), 1..120)) {
        let mut network = Network::new();
        for step in &steps {
            network.take(step);
            network.check();
        }
    }
}

/// Guards the test above against a generator that never gets anywhere.
#[test]
fn an_ordinary_day_reaches_commits_orphans_and_branches() {
    let mut network = Network::new();
    let last_call = |network: &mut Network| {
        let end = network.calls.len() - 1;
        let (by, connection, request, call) = network.calls[end].clone();
        let outcome = network.home.call(connection, request, &call);
        network.hear(by, request, &call, &outcome);
        network.check();
    };
    network.take(&Step::Acquire {
        by: 0,
        take_over: false,
    });
    last_call(&mut network);
    for _ in 0..3 {
        network.take(&Step::Work { by: 0 });
        network.take(&Step::Commit { by: 0 });
        last_call(&mut network);
    }
    assert_eq!(network.home.chain(main_image()).len(), 4);
    network.take(&Step::Work { by: 0 });
    network.take(&Step::Steal { by: 1 });
    last_call(&mut network);
    network.take(&Step::Work { by: 1 });
    network.take(&Step::Commit { by: 1 });
    last_call(&mut network);
    assert_eq!(network.home.chain(main_image()).len(), 5);
    network.take(&Step::Commit { by: 0 });
    last_call(&mut network);
    let loser = network.devices[0].holder.as_ref().unwrap();
    assert_eq!(loser.kind(), Kind::Orphan);
    network.take(&Step::Branch { by: 0 });
    last_call(&mut network);
    assert_eq!(network.devices[0].record, None);
    assert_eq!(network.home.chain(world::image(1)).len(), 1);
    network.take(&Step::RestartDaemon { by: 1 });
    network.take(&Step::Advance { seconds: 250 });
    network.take(&Step::Renew { by: 1 });
    last_call(&mut network);
    network.take(&Step::Advance { seconds: 500 });
    let winner = network.devices[1].holder.as_ref().unwrap();
    assert_eq!(winner.kind(), Kind::Leased);
}
