//! What must hold, each promise by its number and name, as far as the rules alone can show it.

use img_lease::grantor::{self, Acquire, Grace, History};
use img_lease::holder::{BootId, Event, Granted, Holder, Kind, Moment, Term};
use img_lease::{Logged, Proposal, Refused, Terms};
use img_types::{BootMillis, DaemonNonce, Epoch, Instance, LogPosition, Seq, Token, WallMillis};
use proptest::prelude::*;

use crate::world::{
    Answer, Call, Connection, Failure, Home, Outcome, checkout, commit_id, device, image, minutes,
    proposal, request_id,
};

const MAIN: u8 = 0xaa;

struct Scene {
    home: Home,
    a: Connection,
    b: Connection,
    requests: u32,
}

impl Scene {
    fn new() -> Self {
        let mut home = Home::with_image(image(MAIN));
        let [a, b] = [1, 2].map(|n| {
            home.hello(device(n), DaemonNonce::from_bytes([n; 32]))
                .unwrap()
        });
        Self {
            home,
            a,
            b,
            requests: 0,
        }
    }

    fn call(&mut self, by: Connection, call: Call) -> Outcome {
        self.requests += 1;
        self.home.call(by, request_id(self.requests), &call)
    }

    /// Acquires for the device's first checkout.
    fn acquire(&mut self, by: Connection) -> Outcome {
        self.call(by, acquire(by))
    }

    fn granted(&mut self, by: Connection) -> Token {
        match self.acquire(by) {
            Ok(Answer::Granted { token, .. }) => token,
            other => panic!("{other:?}"),
        }
    }

    fn steal(&mut self, by: Connection) -> Outcome {
        let expect = self.home.expectation(image(MAIN));
        self.call(by, Call::Steal(image(MAIN), own(by), minutes(10), expect))
    }

    fn commit(&mut self, n: u32, by: Connection) -> Proposal {
        let record = self.home.next(n, image(MAIN), by, own(by));
        let outcome = self.call(by, Call::Commit(record));
        assert_eq!(outcome, Ok(Answer::Committed(record.commit)));
        record
    }

    fn lapse(&mut self) {
        self.home.advance(600_000);
        assert!(self.home.images[&image(MAIN)].lease.unwrap().lapsed);
    }
}

fn own(by: Connection) -> img_types::CheckoutId {
    checkout(by.device.as_bytes()[0])
}

fn acquire(by: Connection) -> Call {
    Call::Acquire(
        image(MAIN),
        Acquire {
            checkout: own(by),
            terms: minutes(10),
            expect_head: None,
            take_over: false,
        },
    )
}

fn refused(outcome: &Outcome) -> &Refused {
    match outcome {
        Err(Failure::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

fn at(boot_ms: u64) -> Moment {
    Moment {
        boot_id: BootId([1; 16]),
        boot: BootMillis(boot_ms),
        wall: WallMillis(1_000_000 + boot_ms as i64),
    }
}

fn holder(token: Token, scene: &Scene, by: Connection) -> Holder {
    let granted = Granted {
        token,
        terms: minutes(10),
        head: scene.home.head(image(MAIN)),
        sent: at(0),
        luck: 0,
    };
    Holder::leased(image(MAIN), own(by), &granted)
}

#[test]
fn promise_01_a_token_is_granted_once_and_the_epoch_never_goes_down() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    let mut tokens = vec![scene.granted(a)];
    scene
        .call(a, Call::Release(image(MAIN), own(a), tokens[0]))
        .unwrap();
    tokens.push(scene.granted(a));
    scene.lapse();
    tokens.push(scene.granted(b));
    scene.steal(a).unwrap();
    tokens.push(scene.home.token(image(MAIN)));
    let backup = scene.home.images.clone();
    scene.call(a, Call::Delete(image(MAIN), false)).unwrap();
    assert_eq!(
        scene.home.images[&image(MAIN)].epoch,
        tokens[3].epoch,
        "deleted"
    );
    scene.home.restore(&backup);
    tokens.push(scene.granted(b));
    for (position, token) in tokens.iter().enumerate() {
        assert!(!tokens[..position].contains(token));
        assert!(position == 0 || token.epoch > tokens[position - 1].epoch);
    }
}

#[test]
fn promise_02_at_most_one_lease_is_outstanding() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    let outcome = scene.acquire(b);
    assert!(matches!(refused(&outcome), Refused::Leased(lease) if lease.device == a.device));
    // Not even the same checkout is granted a second one beside its own.
    assert!(matches!(refused(&scene.acquire(a)), Refused::Leased(_)));
    scene.lapse();
    scene.granted(b);
    assert!(matches!(refused(&scene.acquire(a)), Refused::Leased(_)));
}

#[test]
fn promise_03_history_is_linear() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.granted(a);
    let stale = scene.home.next(1, image(MAIN), a, own(a));
    let second = scene.commit(2, a);
    let outcome = scene.call(a, Call::Commit(stale));
    assert_eq!(
        refused(&outcome),
        &Refused::HeadMoved {
            head: Some(second.commit)
        }
    );
    // The same content at the same place is no excuse: the head is a commit, not a root.
    let third = scene.commit(3, a);
    let fourth = Proposal {
        parent: Some(stale.commit),
        root: third.root,
        ..scene.home.next(4, image(MAIN), a, own(a))
    };
    let outcome = scene.call(a, Call::Commit(fourth));
    assert!(matches!(refused(&outcome), Refused::HeadMoved { .. }));
    // Nor may a record skip a number.
    let skips = Proposal {
        seq: Seq(9),
        ..scene.home.next(5, image(MAIN), a, own(a))
    };
    let outcome = scene.call(a, Call::Commit(skips));
    assert!(matches!(refused(&outcome), Refused::BadRecord(_)));
}

#[test]
fn promise_04_nobody_commits_under_anothers_token() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    let good = scene.home.next(1, image(MAIN), a, own(a));
    let signed_by_b = Proposal {
        device: b.device,
        ..good
    };
    let other_checkout = Proposal {
        checkout: checkout(9),
        ..good
    };
    let other_database = Proposal {
        token: Some(Token {
            incarnation: img_types::Incarnation::from_bytes([9; 32]),
            ..good.token.unwrap()
        }),
        ..good
    };
    let older = Proposal {
        token: Some(Token {
            epoch: Epoch(1),
            ..good.token.unwrap()
        }),
        ..good
    };
    let none = Proposal {
        token: None,
        ..good
    };
    for (by, record) in [
        (b, good),
        (b, signed_by_b),
        (a, signed_by_b),
        (a, other_checkout),
        (a, other_database),
        (a, older),
        (a, none),
    ] {
        let outcome = scene.call(by, Call::Commit(record));
        assert!(
            matches!(refused(&outcome), Refused::TokenStale { .. }),
            "{record:?}"
        );
    }
    scene
        .call(a, Call::Release(image(MAIN), own(a), good.token.unwrap()))
        .unwrap();
    let outcome = scene.call(a, Call::Commit(good));
    assert!(
        matches!(refused(&outcome), Refused::TokenStale { holder: None, .. }),
        "released"
    );
}

#[test]
fn promise_05_an_acknowledged_commit_is_answered_for_ever() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    let first = scene.commit(1, a);
    scene.commit(2, a);
    scene.steal(b).unwrap();
    scene.commit(3, b);
    let outcome = scene.call(a, Call::Commit(first));
    assert_eq!(outcome, Ok(Answer::Committed(first.commit)));
    assert!(scene.home.chain(image(MAIN)).contains(&first.commit));
}

#[test]
fn promise_06_a_commit_is_applied_at_most_once() {
    let mut scene = Scene::new();
    let a = scene.a;
    scene.granted(a);
    let record = scene.commit(1, a);
    let state = scene.home.images[&image(MAIN)].clone();
    for _ in 0..3 {
        scene.call(a, Call::Commit(record)).unwrap();
        scene.call(a, Call::Stage(record)).unwrap();
    }
    assert_eq!(scene.home.images[&image(MAIN)], state);
}

#[test]
fn promise_07_a_refused_commit_changes_nothing_and_can_be_branched() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    let record = scene.home.next(1, image(MAIN), a, own(a));
    scene.steal(b).unwrap();
    let before = scene.home.images.clone();
    let outcome = scene.call(a, Call::Commit(record));
    assert!(matches!(refused(&outcome), Refused::TokenStale { .. }));
    assert_eq!(scene.home.images, before);
    let first = Proposal {
        parent: record.parent,
        root: record.root,
        ..proposal(2, image(1), a, own(a))
    };
    scene.call(a, Call::Branch(first, minutes(10))).unwrap();
    let branch = &scene.home.images[&image(1)];
    assert_eq!(branch.epoch, Epoch(1));
    assert_eq!(branch.lease.unwrap().checkout, own(a));
    assert_eq!(scene.home.images[&image(MAIN)], before[&image(MAIN)]);
    // Also upon a commit that this home does not know (any more), and by a fenced daemon.
    scene
        .home
        .hello(a.device, DaemonNonce::from_bytes([77; 32]))
        .unwrap();
    let unknown = Proposal {
        parent: Some(commit_id(999)),
        ..proposal(3, image(2), a, own(a))
    };
    scene.call(a, Call::Branch(unknown, minutes(10))).unwrap();
    // A revoked device is told that it is none of the members, and exports.
    scene.home.revoke(a.device);
    let late = proposal(4, image(3), a, own(a));
    let outcome = scene.call(a, Call::Branch(late, minutes(10)));
    assert_eq!(refused(&outcome), &Refused::NotMember);
}

#[test]
fn promise_08_commit_against_steal_is_decided_by_the_order_of_transactions() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    let record = scene.home.next(1, image(MAIN), a, own(a));
    let expect = scene.home.expectation(image(MAIN));
    let steal = Call::Steal(image(MAIN), own(b), minutes(10), expect);

    // Commit first: the thief saw something else, is told so, and steals again upon the new head.
    scene.call(a, Call::Commit(record)).unwrap();
    let outcome = scene.call(b, steal);
    assert!(
        matches!(refused(&outcome), Refused::Changed { head, .. } if *head == Some(record.commit))
    );
    let Ok(Answer::Granted { head, .. }) = scene.steal(b) else {
        panic!("stolen")
    };
    assert_eq!(head, Some(record.commit));

    // Steal first: the loser's commit is refused.
    let late = Proposal {
        token: record.token,
        ..scene.home.next(2, image(MAIN), a, own(a))
    };
    let outcome = scene.call(a, Call::Commit(late));
    assert!(
        matches!(refused(&outcome), Refused::TokenStale { holder, .. } if *holder == Some(b.device))
    );
}

#[test]
fn promise_09_a_request_id_means_one_content_and_a_replay_tells_the_present() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    let request = request_id(1_000);
    let stands = |outcome: Outcome| match outcome {
        Ok(Answer::Granted { stands, token, .. }) => (stands, token),
        other => panic!("{other:?}"),
    };
    let (now, token) = stands(scene.home.call(a, request, &acquire(a)));
    assert!(now);
    assert_eq!(
        stands(scene.home.call(a, request, &acquire(a))),
        (true, token)
    );
    let other = Call::Delete(image(MAIN), true);
    assert_eq!(
        scene.home.call(a, request, &other),
        Err(Failure::RequestReused)
    );
    scene.lapse();
    assert_eq!(
        stands(scene.home.call(a, request, &acquire(a))),
        (true, token),
        "lapsed without a rival"
    );
    scene.granted(b);
    assert_eq!(
        stands(scene.home.call(a, request, &acquire(a))),
        (false, token)
    );
}

#[test]
fn promise_10_no_clock_appears_in_the_guard_of_commit_or_branch() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    let record = scene.home.next(1, image(MAIN), a, own(a));
    let state = scene.home.images[&image(MAIN)].clone();
    let caller = scene.home.caller(a);
    let unknown = History {
        has_commit: false,
        has_parent: true,
    };
    let first = Proposal {
        token: None,
        seq: Seq(0),
        image: image(1),
        ..record
    };
    for elapsed_ms in [0, 1, 600_000, u64::MAX] {
        let later = grantor::tick(&state, scene.home.incarnation, elapsed_ms, Grace::over());
        for clock in [i64::MIN, 0, i64::MAX] {
            let clock = WallMillis(clock);
            let record = Proposal { clock, ..record };
            let moved = grantor::commit(&later, &caller, &record, unknown).unwrap();
            assert_eq!(
                moved.unwrap().image.head_commit(),
                Some(record.commit),
                "after {elapsed_ms}"
            );
            let first = Proposal { clock, ..first };
            let branched = grantor::branch(&caller, &first, minutes(10), unknown).unwrap();
            assert!(branched.is_some());
        }
    }
    // A lapse ends nothing; the next grant does.
    scene.lapse();
    scene.commit(2, a);
    scene.granted(b);
    let late = scene.home.next(3, image(MAIN), a, own(a));
    let outcome = scene.call(a, Call::Commit(late));
    assert!(matches!(refused(&outcome), Refused::TokenStale { .. }));
}

proptest! {
    #[test]
    fn promise_11_the_devices_deadline_is_never_later_than_the_homes(
        ttl_ms in 10_000u64..180 * 86_400_000,
        delay_ms in 0u64..60_000,
        step_ms in 1u64..86_400_000,
        wall_jump in -86_400_000i64..86_400_000,
    ) {
        let terms = Terms { ttl_ms, ..minutes(1) };
        let sent = at(5_000);
        let term = Term::new(sent, terms, 0);
        // The home counts from receipt; the device's clock runs at 249/250 of the home's.
        for home_ms in [delay_ms + ttl_ms, delay_ms + ttl_ms + step_ms] {
            let elapsed = home_ms - home_ms.div_ceil(250);
            let now = Moment {
                boot: BootMillis(sent.boot.0 + elapsed),
                wall: WallMillis(sent.wall.0 + wall_jump),
                ..sent
            };
            prop_assert!(term.past(&now));
        }
        // Sleep counts, a set-back clock after a reboot is not believed, an honest one is.
        let rebooted = |wall: i64| Moment {
            boot_id: BootId([2; 16]),
            boot: BootMillis(1),
            wall: WallMillis(sent.wall.0 + wall),
        };
        prop_assert!(term.past(&rebooted(-1)));
        prop_assert!(!term.past(&rebooted(0)));
        prop_assert!(term.past(&rebooted(ttl_ms as i64)));
    }
}

#[test]
fn promise_12_of_two_daemons_with_one_devices_keys_the_newer_wins() {
    let mut scene = Scene::new();
    let old = scene.a;
    let token = scene.granted(old);
    let first = DaemonNonce::from_bytes([1; 32]);
    assert_eq!(scene.home.hello(old.device, first), Ok(old), "reconnected");
    let second = DaemonNonce::from_bytes([50; 32]);
    let new = scene.home.hello(old.device, second).unwrap();
    assert_eq!(new.instance, Instance(2));
    assert_eq!(
        scene.home.hello(old.device, first),
        Err(Refused::InstanceFenced)
    );
    let record = scene.home.next(1, image(MAIN), old, own(old));
    for call in [
        Call::Commit(record),
        Call::Stage(record),
        Call::Renew(image(MAIN), own(old), token, None),
        Call::Release(image(MAIN), own(old), token),
        Call::Delete(image(MAIN), true),
        acquire(old),
    ] {
        let outcome = scene.call(old, call);
        assert_eq!(refused(&outcome), &Refused::InstanceFenced);
    }
    // The lease moved along, and a record signed before the restart is as good as before.
    scene
        .call(new, Call::Renew(image(MAIN), own(old), token, None))
        .unwrap();
    scene.call(new, Call::Commit(record)).unwrap();
}

#[test]
fn promise_13_what_is_staged_or_pinned_stays_as_long_as_it_is_promised() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    let record = scene.home.next(1, image(MAIN), a, own(a));
    scene.call(a, Call::Stage(record)).unwrap();
    let month_ms = 30 * 86_400_000;
    let staged = |scene: &Scene| !scene.home.images[&image(MAIN)].staged.is_empty();
    scene.home.advance(month_ms * 2);
    assert!(staged(&scene), "its token is still current");
    let outcome = scene.acquire(b);
    assert!(
        matches!(refused(&outcome), Refused::StagedWork { staged, .. } if *staged == record.commit)
    );
    scene.steal(b).unwrap();
    let first = Proposal {
        root: record.root,
        ..proposal(2, image(1), a, own(a))
    };
    scene.call(a, Call::Branch(first, minutes(10))).unwrap();
    scene.home.advance(month_ms - 1);
    assert!(staged(&scene), "a branch does not remove it");
    scene.home.advance(1);
    assert!(!staged(&scene));

    let pin = grantor::pin(&scene.home.caller(a), commit_id(1), own(a), true).unwrap();
    let later = grantor::tick_pin(&pin, month_ms - 1).unwrap();
    assert_eq!(grantor::tick_pin(&later, 1), None);
    assert_eq!(
        grantor::unpin(Some(&pin), &scene.home.caller(b)),
        Ok(false),
        "another device's"
    );
    assert_eq!(grantor::unpin(Some(&pin), &scene.home.caller(a)), Ok(true));
}

#[test]
fn promise_14_steal_and_revoke_name_a_device_and_stand_in_the_log() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    scene.granted(a);
    scene.steal(b).unwrap();
    let line = (image(MAIN), b.device, Logged::Steal(own(a)));
    assert_eq!(scene.home.log.last(), Some(&line));
    scene.call(a, Call::Delete(image(MAIN), true)).unwrap();
    let end = &scene.home.log[scene.home.log.len() - 2..];
    assert_eq!(
        end,
        [
            (image(MAIN), a.device, Logged::Steal(own(b))),
            (image(MAIN), a.device, Logged::Delete)
        ]
    );
    // A revocation names a position after which the device did nothing.
    let done = Some(LogPosition(7));
    assert_eq!(
        grantor::revocable(LogPosition(6), done),
        Err(Refused::LogMoved {
            position: LogPosition(7)
        })
    );
    assert_eq!(grantor::revocable(LogPosition(7), done), Ok(()));
    assert_eq!(grantor::revocable(LogPosition(0), None), Ok(()));
}

#[test]
fn promise_15_after_a_restore_no_old_token_counts_and_commits_can_be_given_back() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    let token = scene.granted(a);
    let mut device_a = holder(token, &scene, a);
    let backup = scene.home.images.clone();
    let lost = [scene.commit(1, a), scene.commit(2, a)];
    for record in lost {
        let event = Event::Committed {
            commit: record.commit,
            parent: record.parent,
        };
        assert_eq!(device_a.apply(event), Ok(true));
    }
    scene.home.restore(&backup);
    let outcome = scene.call(a, Call::Renew(image(MAIN), own(a), token, None));
    assert!(matches!(
        refused(&outcome),
        Refused::TokenStale { holder: None, .. }
    ));
    let event = Event::TokenStale {
        image: image(MAIN),
        token,
        rival: None,
    };
    assert_eq!(device_a.apply(event), Ok(true));
    assert_eq!(device_a.kind(), Kind::Orphan);

    // The way on: the lost commits are given back, also under another's lease, which ends.
    let granted = scene.granted(b);
    let gap = scene.call(a, Call::Readmit(image(MAIN), lost[1..].to_vec()));
    assert!(matches!(refused(&gap), Refused::HeadMoved { .. }));
    scene
        .call(a, Call::Readmit(image(MAIN), lost.to_vec()))
        .unwrap();
    let state = scene.home.images[&image(MAIN)].clone();
    assert_eq!(state.head_commit(), Some(lost[1].commit));
    assert_eq!((state.lease, state.epoch.0), (None, granted.epoch.0 + 1));
    scene
        .call(a, Call::Readmit(image(MAIN), lost.to_vec()))
        .unwrap();
    assert_eq!(scene.home.images[&image(MAIN)], state, "given back once");
    // The orphan stands on the head again and may go on.
    let adopted = scene.granted(a);
    let event = Event::Granted(Granted {
        token: adopted,
        terms: minutes(10),
        head: scene.home.head(image(MAIN)),
        sent: at(9),
        luck: 0,
    });
    assert_eq!(device_a.apply(event), Ok(true));
    assert_eq!(device_a.kind(), Kind::Leased);
}

#[test]
fn promise_16_a_restarted_daemon_holds_its_lease_and_finishes_its_commit() {
    let mut scene = Scene::new();
    let a = scene.a;
    let token = scene.granted(a);
    let mut before = holder(token, &scene, a);
    let renewal = before
        .ask_renewal(request_id(500), None, at(200_000))
        .unwrap();
    let record = scene.home.next(1, image(MAIN), a, own(a));
    scene.call(a, Call::Commit(record)).unwrap();

    // Killed before any answer: what was persisted comes back under a new instance.
    let kept = serde_json::to_string(&before).unwrap();
    let mut after: Holder = serde_json::from_str(&kept).unwrap();
    let a = scene
        .home
        .hello(a.device, DaemonNonce::from_bytes([60; 32]))
        .unwrap();
    assert_eq!(after.token(), Some(token));
    assert!(after.renewal_due(&at(201_000), false));
    let again = after.ask_renewal(request_id(501), None, at(201_000));
    assert_eq!(again, Some(renewal), "the same request, the same moment");
    let outcome = scene.call(a, Call::Renew(image(MAIN), own(a), token, None));
    assert_eq!(outcome, Ok(Answer::Renewed(600_000)));
    let event = Event::Renewed {
        request: renewal.request,
        ttl_ms: 600_000,
        luck: 0,
    };
    assert_eq!(after.apply(event), Ok(true));
    let outcome = scene.call(a, Call::Commit(record));
    assert_eq!(outcome, Ok(Answer::Committed(record.commit)));
    let event = Event::Committed {
        commit: record.commit,
        parent: record.parent,
    };
    assert_eq!(after.apply(event), Ok(true));
    assert_eq!(after.base(), scene.home.head(image(MAIN)));
    assert!(scene.home.images[&image(MAIN)].lease.is_some());
}

/// A refused call leaves nothing behind, so that a copy of it that overtakes its own answer may be granted when
/// nobody waits for it any more. It stands in its checkout's own way until it lapses, and the refusal has all
/// that it takes to give it back.
#[test]
fn a_copy_of_a_refused_acquire_that_comes_late_can_be_given_back() {
    let mut scene = Scene::new();
    let (a, b) = (scene.a, scene.b);
    let token = scene.granted(a);
    let copied = request_id(1_000);
    let refusal = scene.home.call(b, copied, &acquire(b));
    assert!(matches!(refused(&refusal), Refused::Leased(_)));
    scene
        .call(a, Call::Release(image(MAIN), own(a), token))
        .unwrap();
    scene.home.call(b, copied, &acquire(b)).unwrap();

    let outcome = scene.acquire(b);
    let Refused::Leased(lease) = refused(&outcome) else {
        panic!("{outcome:?}")
    };
    assert_eq!((lease.device, lease.checkout), (b.device, own(b)));
    let unheard = Token {
        incarnation: scene.home.incarnation,
        epoch: lease.epoch,
    };
    scene
        .call(b, Call::Release(image(MAIN), own(b), unheard))
        .unwrap();
    scene.granted(b);
}
