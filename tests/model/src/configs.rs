//! What is explored: in short, by the tests; in full, by `cargo xtask model`; and with each mutant.

use img_lease::Proposal;
use img_testkit::home::{Call, ModelHome, Mutant, Naming};
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, ImageId, Incarnation, Instance, NameTag, ObjectId,
    RequestId, Seq, Token, WallMillis,
};

use crate::bystander::Bystander;
use crate::machine::{Machine, TERMS};
use crate::{Bounds, Config, MAIN, World, reach};

const NOTHING: Bounds = Bounds {
    opens: 0,
    reads: 0,
    steals: 0,
    branch_steals: 0,
    records: 0,
    lates: 0,
    stages: 0,
    branches: 0,
    renewals: 0,
    creates: 0,
    deletes: 0,
    revokes: 0,
    kills: 0,
    reboots: 0,
    clones: 0,
    restarts: 0,
    restores: 0,
    readmits: 0,
    meddles: 0,
    reuses: 0,
    time: 0,
};

const PLAIN: Config = Config {
    name: "",
    devices: 2,
    in_flight: 1,
    duplicates: true,
    losses: true,
    lapses: true,
    bounds: NOTHING,
    mutant: None,
    reaches: &[],
};

/// Explorations that end within seconds.
pub const SHORT: &[Config] = &[
    Config {
        name: "leases, commits, a steal",
        bounds: Bounds {
            opens: 1,
            steals: 1,
            records: 2,
            ..NOTHING
        },
        reaches: &[reach::ORPHAN, reach::THREE_COMMITS],
        ..PLAIN
    },
    Config {
        name: "late commits",
        losses: false,
        bounds: Bounds {
            opens: 1,
            reads: 1,
            steals: 1,
            records: 1,
            lates: 1,
            ..NOTHING
        },
        reaches: &[reach::LATE_READER, reach::ADOPTED],
        ..PLAIN
    },
    Config {
        name: "work that a thief keeps for its loser",
        losses: false,
        bounds: Bounds {
            opens: 1,
            branch_steals: 1,
            stages: 1,
            records: 2,
            ..NOTHING
        },
        reaches: &[reach::FOLLOWED, reach::BRANCH, reach::STAGED_LAPSED],
        ..PLAIN
    },
    Config {
        name: "a clone of a device",
        devices: 1,
        losses: false,
        bounds: Bounds {
            opens: 1,
            clones: 1,
            records: 2,
            branches: 1,
            ..NOTHING
        },
        reaches: &[reach::TWO_STARTS, reach::BRANCH],
        ..PLAIN
    },
    Config {
        name: "a backup is restored",
        losses: false,
        bounds: Bounds {
            opens: 2,
            records: 1,
            restores: 1,
            readmits: 1,
            ..NOTHING
        },
        reaches: &[reach::NOTICED, reach::READMITTED],
        ..PLAIN
    },
    Config {
        name: "deadlines here and there",
        devices: 1,
        bounds: Bounds {
            opens: 1,
            renewals: 1,
            restarts: 1,
            time: 4,
            ..NOTHING
        },
        ..PLAIN
    },
    Config {
        name: "bad members, deletion, revocation",
        losses: false,
        lapses: false,
        bounds: Bounds {
            opens: 1,
            records: 1,
            meddles: 1,
            reuses: 1,
            deletes: 1,
            revokes: 1,
            ..NOTHING
        },
        reaches: &[reach::DELETED, reach::REVOKED],
        ..PLAIN
    },
];

/// The full explorations.
pub const FULL: &[Config] = &[
    Config {
        name: "two devices: leases, commits, a steal",
        bounds: Bounds {
            opens: 2,
            steals: 1,
            records: 2,
            ..NOTHING
        },
        reaches: &[reach::ORPHAN, reach::THREE_COMMITS],
        ..PLAIN
    },
    Config {
        name: "two devices, two messages at once",
        in_flight: 2,
        bounds: Bounds {
            opens: 2,
            records: 1,
            kills: 1,
            ..NOTHING
        },
        reaches: &[reach::TWO_STARTS],
        ..PLAIN
    },
    Config {
        name: "three devices",
        devices: 3,
        bounds: Bounds {
            opens: 2,
            steals: 1,
            records: 1,
            ..NOTHING
        },
        reaches: &[reach::ORPHAN],
        ..PLAIN
    },
    Config {
        name: "late commits of readers and orphans",
        bounds: Bounds {
            opens: 1,
            reads: 1,
            steals: 1,
            records: 2,
            lates: 1,
            ..NOTHING
        },
        reaches: &[reach::LATE_READER, reach::ADOPTED, reach::THREE_COMMITS],
        ..PLAIN
    },
    Config {
        name: "steals with a branch, daemons that die",
        bounds: Bounds {
            opens: 1,
            branch_steals: 1,
            stages: 1,
            records: 2,
            kills: 1,
            ..NOTHING
        },
        reaches: &[reach::FOLLOWED, reach::STAGED_LAPSED, reach::TWO_STARTS],
        ..PLAIN
    },
    Config {
        name: "a restore, with commits given back",
        losses: false,
        bounds: Bounds {
            opens: 2,
            records: 2,
            restores: 1,
            readmits: 1,
            ..NOTHING
        },
        reaches: &[reach::NOTICED, reach::READMITTED],
        ..PLAIN
    },
    Config {
        name: "clones and restarts, with branches",
        devices: 1,
        bounds: Bounds {
            opens: 1,
            clones: 1,
            kills: 1,
            records: 2,
            branches: 1,
            ..NOTHING
        },
        reaches: &[reach::TWO_STARTS, reach::BRANCH],
        ..PLAIN
    },
    Config {
        name: "time, with renewals, reboots and a restart",
        devices: 1,
        bounds: Bounds {
            opens: 1,
            renewals: 1,
            reboots: 1,
            restarts: 1,
            time: 5,
            ..NOTHING
        },
        reaches: &[reach::TWO_STARTS],
        ..PLAIN
    },
    Config {
        name: "renewals, a restart of the home and of a daemon",
        bounds: Bounds {
            opens: 1,
            steals: 1,
            records: 1,
            renewals: 1,
            kills: 1,
            restarts: 1,
            ..NOTHING
        },
        reaches: &[reach::ORPHAN, reach::TWO_STARTS],
        ..PLAIN
    },
    Config {
        name: "adoption and take-over over staged work",
        bounds: Bounds {
            opens: 1,
            steals: 1,
            lates: 1,
            stages: 1,
            records: 2,
            ..NOTHING
        },
        reaches: &[reach::ADOPTED, reach::STAGED_LAPSED],
        ..PLAIN
    },
    Config {
        name: "late commits again and again, with a daemon that dies",
        bounds: Bounds {
            opens: 1,
            reads: 1,
            lates: 2,
            kills: 1,
            records: 2,
            ..NOTHING
        },
        reaches: &[reach::LATE_READER, reach::THREE_COMMITS],
        ..PLAIN
    },
    Config {
        name: "images begun, deleted; a device revoked",
        bounds: Bounds {
            creates: 2,
            records: 2,
            deletes: 1,
            revokes: 1,
            ..NOTHING
        },
        reaches: &[reach::DELETED, reach::REVOKED],
        ..PLAIN
    },
];

/// One checkout, and a bad member that knows its token.
const MEDDLED: Config = Config {
    losses: false,
    bounds: Bounds {
        opens: 1,
        meddles: 1,
        records: 1,
        ..NOTHING
    },
    ..PLAIN
};

/// Each mutant with an exploration that meets it.
pub const MUTANTS: &[(Mutant, Config)] = &[
    (
        Mutant::NoTokenCheck,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 1,
                steals: 1,
                records: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::LateCommitIgnoresLease,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 1,
                reads: 1,
                lates: 1,
                records: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::NoHeadCheck,
        Config {
            losses: false,
            devices: 1,
            bounds: Bounds {
                opens: 1,
                clones: 1,
                records: 2,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::HeadComparedByRoot,
        Config {
            losses: false,
            devices: 1,
            bounds: Bounds {
                opens: 1,
                clones: 1,
                records: 3,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::NoIdempotency,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::EpochDroppedOnRelease,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::RestoreKeepsIncarnation,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 2,
                restores: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (Mutant::TokenNotBound, MEDDLED),
    (
        Mutant::InstanceNotChecked,
        Config {
            losses: false,
            devices: 1,
            bounds: Bounds {
                opens: 1,
                clones: 1,
                records: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (Mutant::ReleasedTokenCounts, MEDDLED),
    (
        Mutant::StagedTakenForCommit,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 1,
                stages: 1,
                records: 2,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::ReadmitKeepsLease,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 2,
                records: 1,
                restores: 1,
                readmits: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
    (
        Mutant::TakeOverCheckedLate,
        Config {
            losses: false,
            bounds: Bounds {
                opens: 2,
                stages: 1,
                records: 1,
                ..NOTHING
            },
            ..PLAIN
        },
    ),
];

/// The name of an image that was there before.
pub fn name_of(image: ImageId) -> Naming {
    Naming {
        image,
        tag: NameTag::from_bytes(*image.as_bytes()),
    }
}

/// The state in which an exploration begins: one image with one commit and no lease, unless images are made.
pub fn beginning(config: &Config) -> World {
    let founder = DeviceId::from_bytes([0xf0; 32]);
    let machines: Vec<_> = (1..=config.devices).map(Machine::new).collect();
    let members = machines.iter().map(Machine::device).chain([founder]);
    let home = ModelHome::new(Incarnation::from_bytes([1; 32]), members);
    let mut world = World {
        home,
        backup: None,
        machines,
        net: std::collections::BTreeMap::new(),
        bystander: Bystander::default(),
        spent: NOTHING,
        now: 0,
    };
    if config.bounds.creates == 0 {
        found(&mut world, founder);
    }
    world.home = world.home.with_mutant(config.mutant);
    for number in 0..world.machines.len() {
        world.greet(number, config.bounds.restores > 0);
    }
    world
}

fn found(world: &mut World, founder: DeviceId) {
    let nonce = DaemonNonce::from_bytes([0xf0; 32]);
    let greeted = world.home.hello(founder, nonce, None);
    debug_assert!(greeted.is_ok());
    let Some(by) = world.home.connection(founder, nonce) else {
        return;
    };
    let checkout = CheckoutId::from_bytes([0xf0; 32]);
    let first = Proposal {
        commit: CommitId::from_bytes([0xcc; 32]),
        image: MAIN,
        seq: Seq(0),
        parent: None,
        root: ObjectId::from_bytes([0; 32]),
        token: None,
        device: founder,
        checkout,
        instance: Instance(1),
        clock: WallMillis(0),
    };
    let branch = Call::Branch {
        name: name_of(MAIN),
        first,
        terms: TERMS,
    };
    let token = Token {
        incarnation: world.home.incarnation(),
        epoch: img_types::Epoch(1),
    };
    let release = Call::Release {
        image: MAIN,
        checkout,
        token,
    };
    for (number, call) in [(1, branch), (2, release)] {
        let done = world.call(by, RequestId::from_bytes([number; 32]), &call);
        debug_assert!(done.is_ok());
    }
}
