//! A bounded exhaustive model of the lease rules, over the code that ships.
//!
//! The home is `img-testkit`'s, around `img-lease`'s grantor; each device has `img-lease`'s holder and the
//! small journal that a daemon keeps. People, machines, the network and time do whatever they like, as often
//! as a [`Config`] allows; a bystander says when something that must hold does not. Every reachable state is
//! visited once. A home with a fault ([`Mutant`]) shows that the bystander would see it.

mod bystander;
pub mod configs;
mod machine;
mod steps;
mod world;

use std::time::{Duration, Instant};

use img_lease::holder::{Before, Holder, Kind};
use img_testkit::home::Mutant;
use img_types::Instance;
use stateright::{Checker, HasDiscoveries, Model, Property};

pub use bystander::{Breach, Bystander, Seen};
pub use machine::{Machine, TERMS};
pub use steps::Step;
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
