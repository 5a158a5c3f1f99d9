//! What can happen in a state, and what it does.

use img_lease::grantor::Acquire;
use img_lease::holder::Kind;
use img_testkit::home::Call;
use img_types::{CheckoutId, ImageId, Incarnation, LogPosition, RequestId, Token};

use crate::machine::TERMS;
use crate::world::{MAIN, Message, World};
use crate::{Config, configs};

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
    pub(crate) fn is_a_persons(self) -> bool {
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
    pub(crate) fn people(&self, world: &World, number: usize, steps: &mut Vec<Step>) {
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

    pub(crate) fn machines(&self, world: &World, number: usize, steps: &mut Vec<Step>) {
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

    pub(crate) fn home(&self, world: &World, steps: &mut Vec<Step>) {
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

    pub(crate) fn network(&self, world: &World, steps: &mut Vec<Step>) {
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
    pub(crate) fn person(&self, world: &mut World, step: Step) -> Option<()> {
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
                let want = Acquire {
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
    pub(crate) fn nature(&self, world: &mut World, step: Step) -> Option<()> {
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
