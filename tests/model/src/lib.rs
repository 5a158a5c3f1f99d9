//! A bounded exhaustive model of the lease rules, over the code that ships.
//!
//! The home is `img-testkit`'s, around `img-lease`'s grantor; each device has `img-lease`'s holder and the
//! small journal that a daemon keeps. People, machines, the network and time do whatever they like, as often
//! as a [`Config`] allows; a bystander says when something that must hold does not. Every reachable state is
//! visited once. A home with a fault ([`Mutant`]) shows that the bystander would see it.

mod bystander;
pub mod configs;
mod machine;
mod world;

use std::time::{Duration, Instant};

use img_lease::holder::{Before, Holder, Kind};
use img_testkit::home::{Call, Mutant};
use img_types::{CheckoutId, ImageId, Incarnation, Instance, LogPosition, RequestId, Token};
use stateright::{Checker, HasDiscoveries, Model, Property};

pub use bystander::{Breach, Bystander, Seen};
pub use machine::{Machine, TERMS};
pub use world::{MAIN, Message, STEP_MS, World};

/// How often each thing may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Bounds {
    /// Leased checkouts opened.
    pub opens: u8,
    /// Read-only checkouts begun.
    pub reads: u8,
    /// Steals.
    pub steals: u8,
    /// Steals with a branch.
    pub branch_steals: u8,
    /// Records signed: commits, checkpoints, first commits.
    pub records: u8,
    /// Leases taken for a late commit.
    pub lates: u8,
    /// Checkpoints streamed home.
    pub stages: u8,
    /// Branches.
    pub branches: u8,
    /// Renewals.
    pub renewals: u8,
    /// Images begun.
    pub creates: u8,
    /// Images deleted.
    pub deletes: u8,
    /// Devices revoked.
    pub revokes: u8,
    /// Daemons that die and come back.
    pub kills: u8,
    /// Machines that boot again.
    pub reboots: u8,
    /// Disks cloned.
    pub clones: u8,
    /// Restarts of the home.
    pub restarts: u8,
    /// Backups made and restored.
    pub restores: u8,
    /// Readmissions.
    pub readmits: u8,
    /// Members that send a commit under a token that is not theirs.
    pub meddles: u8,
    /// Request ids used again for another content.
    pub reuses: u8,
    /// Steps of time; without any, deadlines come at any moment.
    pub time: u8,
}

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// What it is about.
    pub name: &'static str,
    /// Devices, clones not counted.
    pub devices: u8,
    /// Messages on their way at once.
    pub in_flight: usize,
    /// Whether the network may deliver a call twice.
    pub duplicates: bool,
    /// Whether messages may be lost.
    pub losses: bool,
    /// Whether deadlines come at all.
    pub lapses: bool,
    /// How often each thing may happen.
    pub bounds: Bounds,
    /// The home's fault.
    pub mutant: Option<Mutant>,
    /// What has to be reached, so that the exploration means something.
    pub reaches: &'static [&'static str],
}

/// What came of an exploration.
#[derive(Debug)]
pub struct Explored {
    /// States visited.
    pub states: usize,
    /// How long it took.
    pub took: Duration,
    /// What did not hold, and the way there.
    pub breach: Option<(Breach, Vec<String>)>,
    /// What was to be reached and was not.
    pub unreached: Vec<&'static str>,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A person begins an image.
    Create(usize),
    /// A person checks the image out.
    Open(usize),
    /// A person takes the lease over.
    Steal(usize, bool),
    /// A person begins a read-only checkout.
    Read(usize),
    /// A person commits.
    Commit(usize),
    /// A person commits without a lease, or over staged work.
    Late(usize, bool),
    /// A checkpoint streams home.
    Stage(usize),
    /// A person saves work as a branch.
    Branch(usize),
    /// A lease is renewed.
    Renew(usize),
    /// A person ends a checkout.
    Close(usize),
    /// A person deletes the image, by force.
    Delete(usize, bool),
    /// An administrator revokes a device.
    Revoke(usize, usize),
    /// A person has a device's commits given back.
    Readmit(usize),
    /// A lease for one commit of a read-only checkout ends after a restart.
    EndLate(usize),
    /// A daemon repeats what was not answered.
    Repeat(usize, RequestId),
    /// A daemon connects.
    Greet(usize),
    /// A daemon looks at the list of images.
    Look(usize),
    /// A device's deadline passes.
    Sleep(usize),
    /// A daemon dies and comes back.
    Kill(usize),
    /// A machine boots again.
    Reboot(usize),
    /// A disk is cloned, and the clone comes up.
    Clone(usize),
    /// A member commits under the newest token, which is not its own, for its own checkout or the holder's.
    Meddle(usize, bool),
    /// A member uses its last request id for another content.
    Reuse(usize),
    /// A message arrives, or a copy of it.
    Deliver(u64, bool),
    /// A message is lost.
    Lose(u64),
    /// A lease's deadline passes at the home.
    Lapse(ImageId),
    /// The home restarts.
    Restart,
    /// The restart's grace ends.
    EndGrace,
    /// A backup is made.
    Backup,
    /// The backup is restored.
    Restore,
    /// Time passes.
    Pass,
}

impl Step {
    fn is_a_persons(self) -> bool {
        matches!(
            self,
            Self::Create(_)
                | Self::Open(_)
                | Self::Steal(..)
                | Self::Read(_)
                | Self::Commit(_)
                | Self::Late(..)
                | Self::Stage(_)
                | Self::Branch(_)
                | Self::Renew(_)
                | Self::Close(_)
                | Self::Delete(..)
                | Self::Revoke(..)
                | Self::Readmit(_)
                | Self::EndLate(_)
                | Self::Meddle(..)
                | Self::Reuse(_)
        )
    }
}

impl Config {
    /// Visits every state until something does not hold: of a home with a fault from the nearest to the
    /// farthest, so that the way there is short; of any other along one way at a time, in little memory.
    pub fn explore(self, threads: usize) -> Explored {
        let began = Instant::now();
        let checker = self
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .threads(threads);
        if self.mutant.is_some() {
            self.conclude(&checker.spawn_bfs().join(), began)
        } else {
            self.conclude(&checker.spawn_dfs().join(), began)
        }
    }

    fn conclude(&self, checker: &impl Checker<Self>, began: Instant) -> Explored {
        let found = checker.discoveries();
        let breach = Breach::ALL.into_iter().find_map(|(breach, name)| {
            let path = found.get(name)?.clone().into_vec();
            let steps = path
                .into_iter()
                .filter_map(|(world, step)| Some(self.tell(&world, step?)));
            Some((breach, steps.collect()))
        });
        let unreached = self.reaches.iter().copied();
        Explored {
            states: checker.unique_state_count(),
            took: began.elapsed(),
            breach,
            unreached: unreached.filter(|name| !found.contains_key(name)).collect(),
        }
    }

    /// A step in words, with the message that it is about.
    fn tell(&self, world: &World, step: Step) -> String {
        match step {
            Step::Deliver(key, _) | Step::Lose(key) => {
                format!("{step:?} {:?}", world.net.get(&key))
            }
            step => format!("{step:?}"),
        }
    }

    fn people(&self, world: &World, number: usize, steps: &mut Vec<Step>) {
        let (machine, spent, bounds) = (&world.machines[number], &world.spent, &self.bounds);
        let image = world.image_of(number);
        if machine.contact.is_none() || machine.is_busy() {
            return;
        }
        let exists = world.home.image(MAIN).is_some();
        let may_write = spent.records < bounds.records;
        match machine.kind() {
            None => {
                if spent.creates < bounds.creates {
                    steps.push(Step::Create(number));
                }
                if spent.opens < bounds.opens && exists {
                    steps.push(Step::Open(number));
                }
                if spent.reads < bounds.reads && exists {
                    steps.push(Step::Read(number));
                }
                if spent.steals < bounds.steals && world.leased_checkout(MAIN).is_some() {
                    steps.push(Step::Steal(number, false));
                }
                if spent.branch_steals < bounds.branch_steals
                    && world.leased_checkout(MAIN).is_some()
                {
                    steps.push(Step::Steal(number, true));
                }
            }
            Some(kind) => {
                steps.push(Step::Close(number));
                let has_token = matches!(kind, Kind::Leased | Kind::Lapsed);
                if may_write && has_token {
                    steps.push(Step::Commit(number));
                }
                if may_write && !has_token && spent.lates < bounds.lates {
                    steps.push(Step::Late(number, false));
                    steps.push(Step::Late(number, true));
                }
                if may_write && spent.stages < bounds.stages {
                    steps.push(Step::Stage(number));
                }
                if may_write && spent.branches < bounds.branches {
                    steps.push(Step::Branch(number));
                }
                if has_token && spent.renewals < bounds.renewals {
                    steps.push(Step::Renew(number));
                }
                if kind == Kind::Leased && self.lapses && bounds.time == 0 {
                    steps.push(Step::Sleep(number));
                }
                if machine.is_late_reader() {
                    steps.push(Step::EndLate(number));
                }
            }
        }
        if spent.deletes < bounds.deletes && world.home.image(image).is_some() {
            steps.push(Step::Delete(number, false));
            steps.push(Step::Delete(number, true));
        }
        if spent.revokes < bounds.revokes {
            let others = (0..world.machines.len()).filter(|other| *other != number);
            steps.extend(others.map(|other| Step::Revoke(number, other)));
        }
        if spent.readmits < bounds.readmits && machine.noticed && !machine.receipts.is_empty() {
            steps.push(Step::Readmit(number));
        }
        if spent.meddles < bounds.meddles && may_write && exists {
            steps.push(Step::Meddle(number, true));
            steps.push(Step::Meddle(number, false));
        }
        if spent.reuses < bounds.reuses && machine.last_request().is_some() {
            steps.push(Step::Reuse(number));
        }
    }

    fn machines(&self, world: &World, number: usize, steps: &mut Vec<Step>) {
        let (machine, spent, bounds) = (&world.machines[number], &world.spent, &self.bounds);
        if machine.contact.is_none() {
            steps.push(Step::Greet(number));
        } else {
            steps.push(Step::Look(number));
            if world.net.len() < self.in_flight {
                let unsent = machine.outbox.keys().copied();
                let unsent = unsent.filter(|request| !world.is_under_way(*request));
                steps.extend(unsent.map(|request| Step::Repeat(number, request)));
            }
        }
        if spent.kills < bounds.kills {
            steps.push(Step::Kill(number));
        }
        if spent.reboots < bounds.reboots {
            steps.push(Step::Reboot(number));
        }
        if spent.clones < bounds.clones && machine.holder.is_some() {
            steps.push(Step::Clone(number));
        }
    }

    fn home(&self, world: &World, steps: &mut Vec<Step>) {
        let (spent, bounds) = (&world.spent, &self.bounds);
        if self.lapses && bounds.time == 0 {
            let held = world.home.images();
            let held = held.filter(|row| row.lease.is_some_and(|lease| !lease.lapsed));
            steps.extend(held.map(|row| Step::Lapse(row.image)));
        }
        if spent.restarts < bounds.restarts {
            steps.push(Step::Restart);
        }
        if bounds.restarts > 0 && world.home.uptime_ms() == 0 {
            steps.push(Step::EndGrace);
        }
        if spent.restores < bounds.restores {
            match world.backup {
                None => steps.push(Step::Backup),
                Some(_) => steps.push(Step::Restore),
            }
        }
        if world.now < bounds.time {
            steps.push(Step::Pass);
        }
    }

    fn network(&self, world: &World, steps: &mut Vec<Step>) {
        for (key, message) in &world.net {
            steps.push(Step::Deliver(*key, false));
            if self.duplicates && matches!(message, Message::Request { .. }) {
                steps.push(Step::Deliver(*key, true));
            }
            if self.losses {
                steps.push(Step::Lose(*key));
            }
        }
    }

    /// What people do; nothing if it changes nothing.
    fn person(&self, world: &mut World, step: Step) -> Option<()> {
        match step {
            Step::Create(number) => {
                world.spent.creates += 1;
                let machine = &mut world.machines[number];
                let checkout = machine.new_checkout();
                let name = configs::name_of(MAIN);
                let call = Call::CreateImage {
                    name,
                    checkout,
                    terms: TERMS,
                };
                let request = machine.wait_for(call);
                world.send(number, request);
            }
            Step::Open(number) => {
                world.spent.opens += 1;
                let machine = &mut world.machines[number];
                let want = img_lease::grantor::Acquire {
                    checkout: machine.new_checkout(),
                    terms: TERMS,
                    expect_head: None,
                    take_over: false,
                };
                let request = machine.wait_for(Call::Acquire { image: MAIN, want });
                world.send(number, request);
            }
            Step::Steal(number, branches) => {
                let expect = world.expectation(MAIN)?;
                let row = world.home.image(MAIN)?;
                let loser = row.lease?;
                let staged = row.staged_by(&loser.checkout).copied();
                let parent = staged.map_or(loser.base, |staged| staged.proposal.parent);
                let machine = &mut world.machines[number];
                let checkout = machine.new_checkout();
                let branch = branches.then(|| {
                    let name = machine.new_name();
                    let mut first = machine.first_commit(name, parent);
                    if let Some(staged) = staged {
                        first.root = staged.proposal.root;
                    }
                    (name, first)
                });
                let request = machine.wait_for(Call::Steal {
                    image: MAIN,
                    checkout,
                    terms: TERMS,
                    expect,
                    branch,
                });
                if branches {
                    world.spent.branch_steals += 1;
                } else {
                    world.spent.steals += 1;
                }
                world.send(number, request);
            }
            Step::Read(number) => {
                world.spent.reads += 1;
                let head = world.home.image(MAIN)?.head;
                world.machines[number].read(MAIN, head);
            }
            Step::Commit(number) => {
                world.spent.records += 1;
                let request = world.machines[number].sign_commit()?;
                world.send(number, request);
            }
            Step::Late(number, take_over) => {
                world.spent.lates += 1;
                world.spent.records += 1;
                let request = world.machines[number].acquire_late(take_over)?;
                world.send(number, request);
            }
            Step::Stage(number) => {
                world.spent.stages += 1;
                world.spent.records += 1;
                let request = world.machines[number].stage()?;
                world.send(number, request);
            }
            Step::Branch(number) => {
                world.spent.branches += 1;
                world.spent.records += 1;
                let request = world.machines[number].branch()?;
                world.send(number, request);
            }
            Step::Renew(number) => {
                world.spent.renewals += 1;
                let now = world.now_ms();
                let (request, call) = world.machines[number].renewal(now)?;
                world.send_call(number, request, call);
            }
            Step::Close(number) => {
                if let Some(request) = world.machines[number].close() {
                    world.send(number, request);
                }
            }
            Step::Delete(number, force) => {
                world.spent.deletes += 1;
                let image = world.image_of(number);
                let request = world.machines[number].journal(Call::DeleteImage { image, force });
                world.send(number, request);
            }
            Step::Revoke(number, other) => {
                world.spent.revokes += 1;
                let device = world.machines[other].device();
                let at = LogPosition(world.home.log().len() as u64);
                let request = world.machines[number].journal(Call::Revoke { device, at });
                world.send(number, request);
            }
            Step::Readmit(number) => {
                world.spent.readmits += 1;
                let machine = &mut world.machines[number];
                let commits = machine.receipts.iter().copied();
                let commits = commits.filter(|(proposal, _)| proposal.image == MAIN);
                let call = Call::Readmit {
                    image: MAIN,
                    commits: commits.collect(),
                };
                let request = machine.journal(call);
                world.send(number, request);
            }
            Step::EndLate(number) => {
                let request = world.machines[number].give_back()?;
                world.send(number, request);
            }
            Step::Meddle(number, as_holder) => self.meddle(world, number, as_holder)?,
            Step::Reuse(number) => {
                world.spent.reuses += 1;
                let request = world.machines[number].last_request()?;
                let call = Call::Unstage {
                    image: MAIN,
                    checkout: CheckoutId::from_bytes([0; 32]),
                };
                world.send_call(number, request, call);
            }
            _ => return None,
        }
        Some(())
    }

    fn meddle(&self, world: &mut World, number: usize, as_holder: bool) -> Option<()> {
        world.spent.meddles += 1;
        world.spent.records += 1;
        let row = world.home.image(MAIN)?;
        let (head, epoch) = (row.head, row.epoch);
        let checkout = row.lease.map(|lease| lease.checkout);
        let token = Token {
            incarnation: world.home.incarnation(),
            epoch,
        };
        let machine = &mut world.machines[number];
        let mut record = machine.record(MAIN, head, Some(token));
        if as_holder {
            record.checkout = checkout?;
        }
        let request = machine.request_id();
        world.send_call(number, request, Call::Commit(record));
        Some(())
    }

    /// What machines, the network and the home do.
    fn nature(&self, world: &mut World, step: Step) -> Option<()> {
        match step {
            Step::Repeat(number, request) => world.send(number, request),
            Step::Greet(number) => world.greet(number, self.bounds.restores > 0),
            Step::Look(number) => world.look(number).then_some(())?,
            Step::Sleep(number) => world.sleep(number).then_some(())?,
            Step::Kill(number) => {
                world.spent.kills += 1;
                world.machines[number].restart();
                world.cut(number);
            }
            Step::Reboot(number) => {
                world.spent.reboots += 1;
                let now = world.now_ms();
                world.machines[number].reboot(now);
                world.cut(number);
            }
            Step::Clone(number) => {
                world.spent.clones += 1;
                let clone = world.machines[number].cloned();
                world.machines.push(clone);
            }
            Step::Deliver(key, keep) => world.deliver(key, keep, self.in_flight),
            Step::Lose(key) => {
                world.net.remove(&key);
            }
            Step::Lapse(image) => {
                let remaining_ms = world.home.image(image)?.lease?.remaining_ms;
                let before = world.home.clone();
                world.home.advance_image(image, remaining_ms);
                (world.home != before).then_some(())?;
            }
            Step::Restart => {
                world.spent.restarts += 1;
                world.home.restart();
                world.disconnect();
            }
            Step::EndGrace => {
                // The clock alone: deadlines come by themselves.
                let before = world.home.clone();
                world.home.end_grace();
                (world.home != before).then_some(())?;
            }
            Step::Backup => {
                world.backup = Some(Box::new((world.home.clone(), world.bystander.clone())));
            }
            Step::Restore => {
                world.spent.restores += 1;
                let (home, bystander) = *world.backup.take()?;
                let at = home.standing();
                world.home = home.restored(Incarnation::from_bytes([2; 32]));
                world.bystander.watch_restore(&bystander, at);
                world.disconnect();
            }
            Step::Pass => world.pass(),
            _ => return None,
        }
        Some(())
    }
}

impl Model for Config {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![configs::beginning(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.bystander.breach.is_some() {
            return;
        }
        for number in 0..world.machines.len() {
            if world.net.len() < self.in_flight {
                self.people(world, number, steps);
            }
            self.machines(world, number, steps);
        }
        self.network(world, steps);
        self.home(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        if step.is_a_persons() {
            self.person(&mut next, step)?;
        } else {
            self.nature(&mut next, step)?;
        }
        if self.bounds.time > 0 {
            next.check_deadlines();
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("1: a token is granted at most once", |_, world: &World| {
                world.bystander.breach != Some(Breach::TokenGrantedTwice)
            }),
            Property::always("1: an epoch never goes down", |_, world: &World| {
                world.bystander.breach != Some(Breach::EpochWentDown)
            }),
            Property::always("2: at most one lease is outstanding", |_, world: &World| {
                world.bystander.breach != Some(Breach::TwoLeases)
            }),
            Property::always("3: history is linear", |_, world: &World| {
                world.bystander.breach != Some(Breach::NotLinear)
            }),
            Property::always(
                "4: nobody commits under another's token",
                |_, world: &World| world.bystander.breach != Some(Breach::UnderAnothersToken),
            ),
            Property::always(
                "5: what was acknowledged is in history",
                |_, world: &World| world.bystander.breach != Some(Breach::AcknowledgedLost),
            ),
            Property::always("6: nothing is applied twice", |_, world: &World| {
                world.bystander.breach != Some(Breach::AppliedTwice)
            }),
            Property::always("7: a refused call changes nothing", |_, world: &World| {
                world.bystander.breach != Some(Breach::RefusedChanged)
            }),
            Property::always("7: work can always be branched", |_, world: &World| {
                world.bystander.breach != Some(Breach::BranchRefused)
            }),
            Property::always(
                "9: a repeated request has one answer",
                |_, world: &World| world.bystander.breach != Some(Breach::ReplayDiffers),
            ),
            Property::always(
                "11: a device's deadline is never later than its home's",
                |_, world: &World| world.bystander.breach != Some(Breach::DeadlineTooLate),
            ),
            Property::always("12: the newest daemon wins", |_, world: &World| {
                world.bystander.breach != Some(Breach::OldDaemonActed)
            }),
            Property::always(
                "15: a home that went back is noticed",
                |_, world: &World| world.bystander.breach != Some(Breach::NotNoticed),
            ),
            Property::always(
                "16: nobody meets its own grant as a stranger's",
                |_, world: &World| world.bystander.breach != Some(Breach::OwnGrantRefused),
            ),
            Property::sometimes(reach::THREE_COMMITS, |_, world: &World| {
                world.bystander.chain(MAIN).len() > 2
            }),
            Property::sometimes(reach::ORPHAN, |_, world: &World| {
                world.any(|machine| machine.kind() == Some(Kind::Orphan))
            }),
            Property::sometimes(reach::ADOPTED, |_, world: &World| {
                world.any(|machine| machine.was() == Some(Before::Orphan))
            }),
            Property::sometimes(reach::LATE_READER, |_, world: &World| {
                world.any(|machine| machine.was() == Some(Before::ReadOnly))
            }),
            Property::sometimes(reach::BRANCH, |_, world: &World| {
                world.home.images().count() > 1
            }),
            Property::sometimes(reach::FOLLOWED, |_, world: &World| {
                world.any(|machine| {
                    let image = machine.holder.as_ref().map(Holder::image);
                    image.is_some_and(|image| image != MAIN) && machine.receipts.is_empty()
                })
            }),
            Property::sometimes(reach::NOTICED, |_, world: &World| {
                world.any(|machine| machine.noticed)
            }),
            Property::sometimes(reach::READMITTED, |_, world: &World| {
                world.home.has_readmitted()
            }),
            Property::sometimes(reach::STAGED_LAPSED, |_, world: &World| {
                world.home.images().any(|row| {
                    !row.staged.is_empty() && row.lease.is_some_and(|lease| lease.lapsed)
                })
            }),
            Property::sometimes(reach::TWO_STARTS, |_, world: &World| {
                world.machines.iter().any(|machine| {
                    let newest = world.home.newest_daemon(machine.device());
                    newest.is_some_and(|newest| newest.instance > Instance(1))
                })
            }),
            Property::sometimes(reach::DELETED, |_, world: &World| {
                world.home.images().any(|row| row.tombstone_ms.is_some())
            }),
            Property::sometimes(reach::REVOKED, |_, world: &World| {
                world.any(|machine| !world.home.is_member(machine.device()))
            }),
        ]
    }
}

/// Names of what can be reached.
pub mod reach {
    /// Three commits stand in a row.
    pub const THREE_COMMITS: &str = "three commits stand in a row";
    /// A checkout became an orphan.
    pub const ORPHAN: &str = "a checkout is an orphan";
    /// An orphan was adopted.
    pub const ADOPTED: &str = "an orphan has the lease again";
    /// A read-only checkout's commit is in history.
    pub const LATE_READER: &str = "a read-only checkout has the lease";
    /// There is a branch.
    pub const BRANCH: &str = "there is a branch";
    /// A loser goes on as a branch.
    pub const FOLLOWED: &str = "a loser goes on as a branch";
    /// A restore was noticed.
    pub const NOTICED: &str = "a device was told that the home went back";
    /// Commits were given back.
    pub const READMITTED: &str = "commits were given back";
    /// Work is staged while the lease has lapsed.
    pub const STAGED_LAPSED: &str = "work is staged under a lapsed lease";
    /// A daemon was fenced.
    pub const TWO_STARTS: &str = "a device has a second daemon start";
    /// An image was deleted.
    pub const DELETED: &str = "an image was deleted";
    /// A device was revoked.
    pub const REVOKED: &str = "a device was revoked";
}
