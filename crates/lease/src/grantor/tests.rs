use img_types::{
    CommitId, Epoch, ImageId, Incarnation, Instance, LeaseMode, ObjectId, Seq, WallMillis,
};

use super::*;
use crate::{Grant, Head, Logged, Proposal, Terms};

const INCARNATION: Incarnation = Incarnation::from_bytes([1; 32]);
const MINUTE_MS: u64 = 60_000;
const MONTH_MS: u64 = 30 * 24 * 3_600_000;
const NEW: History = History {
    has_commit: false,
    has_parent: true,
};

fn caller(n: u8) -> Caller {
    Caller {
        device: DeviceId::from_bytes([n; 32]),
        member: true,
        instance: Instance(1),
        newest_instance: Instance(1),
        incarnation: INCARNATION,
    }
}

fn checkout(n: u8) -> CheckoutId {
    CheckoutId::from_bytes([n; 32])
}

fn image(n: u8) -> ImageId {
    ImageId::from_bytes([n; 32])
}

fn terms() -> Terms {
    Terms {
        ttl_ms: 10 * MINUTE_MS,
        mode: LeaseMode::Online,
    }
}

fn free() -> ImageState {
    ImageState {
        image: image(1),
        head: Some(Head {
            commit: CommitId::from_bytes([100; 32]),
            seq: Seq(0),
        }),
        epoch: Epoch(4),
        lease: None,
        staged: Vec::new(),
        tombstone_ms: None,
    }
}

fn want(n: u8) -> Acquire {
    Acquire {
        checkout: checkout(n),
        terms: terms(),
        expect_head: None,
        take_over: false,
    }
}

fn held_by(n: u8) -> ImageState {
    acquire(&free(), &caller(n), &want(n)).unwrap().effect.image
}

fn after(image: &ImageState, elapsed_ms: u64) -> ImageState {
    tick(image, INCARNATION, elapsed_ms, Grace::over())
}

/// A record by device and checkout `n` upon the head.
fn record(id: u8, n: u8, image: &ImageState) -> Proposal {
    Proposal {
        commit: CommitId::from_bytes([id; 32]),
        image: image.image,
        seq: Seq(image.head.map_or(0, |head| head.seq.0 + 1)),
        parent: image.head_commit(),
        root: ObjectId::from_bytes([id; 32]),
        token: Some(Token {
            incarnation: INCARNATION,
            epoch: image.epoch,
        }),
        device: caller(n).device,
        checkout: checkout(n),
        instance: Instance(1),
        clock: WallMillis(i64::from(id)),
    }
}

fn staged(image: &ImageState, record: &Proposal, n: u8) -> ImageState {
    let effect = stage(image, &caller(n), record, NEW).unwrap();
    effect.map_or_else(|| image.clone(), |effect| effect.image)
}

fn seen(image: &ImageState) -> Expectation {
    Expectation {
        epoch: image.epoch,
        head: image.head_commit(),
        staged: image
            .lease
            .and_then(|lease| image.staged_by(&lease.checkout))
            .map(|staged| staged.proposal.commit),
    }
}

fn fresh(creation: Creation) -> (Grant, Option<ImageState>) {
    assert!(creation.new);
    (creation.grant, creation.replaces)
}

#[test]
fn a_new_image_is_granted_to_its_importer_under_epoch_one() {
    let creation = create(None, &caller(1), image(1), checkout(1), terms()).unwrap();
    let (grant, replaces) = fresh(creation);
    assert_eq!(replaces, None);
    assert_eq!(grant.token.epoch, Epoch(1));
    assert_eq!(grant.effect.image.head, None);
    let first = Proposal {
        seq: Seq(0),
        ..record(1, 1, &grant.effect.image)
    };
    let effect = commit(&grant.effect.image, &caller(1), &first, NEW)
        .unwrap()
        .unwrap();
    assert_eq!(effect.image.head_commit(), Some(first.commit));
}

#[test]
fn an_unfinished_import_is_resumed_by_its_device_and_replaced_once_it_lapsed() {
    let begun = create(None, &caller(1), image(1), checkout(1), terms()).unwrap();
    let begun = fresh(begun).0.effect.image;
    let same = create(Some(&begun), &caller(1), image(1), checkout(1), terms()).unwrap();
    assert_eq!((same.new, same.grant.token.epoch), (false, Epoch(1)));
    let moved = create(Some(&begun), &caller(1), image(1), checkout(2), terms()).unwrap();
    assert_eq!((moved.new, moved.grant.token.epoch), (false, Epoch(2)));
    let anew = create(Some(&begun), &caller(1), image(2), checkout(2), terms()).unwrap();
    let (grant, replaces) = fresh(anew);
    assert_eq!(grant.effect.image.image, image(2));
    assert_eq!(replaces.unwrap().tombstone_ms, Some(MONTH_MS));

    let rival =
        |named: &ImageState| create(Some(named), &caller(2), image(3), checkout(3), terms());
    assert_eq!(rival(&begun), Err(Refused::NameTaken));
    let lapsed = after(&begun, 10 * MINUTE_MS);
    let (_, replaces) = fresh(rival(&lapsed).unwrap());
    assert_eq!(replaces.unwrap().image, image(1));
    let finished = ImageState {
        head: free().head,
        ..lapsed
    };
    assert_eq!(rival(&finished), Err(Refused::NameTaken));
}

#[test]
fn acquire_looks_at_the_head_that_is_expected() {
    let expecting = |commit| Acquire {
        expect_head: Some(CommitId::from_bytes([commit; 32])),
        ..want(1)
    };
    assert!(acquire(&free(), &caller(1), &expecting(100)).is_ok());
    assert_eq!(
        acquire(&free(), &caller(1), &expecting(5)),
        Err(Refused::HeadMoved {
            head: free().head_commit()
        })
    );
}

#[test]
fn acquire_passes_over_staged_work_only_when_told_to() {
    let held = held_by(1);
    let work = record(1, 1, &held);
    let lapsed = after(&staged(&held, &work, 1), 10 * MINUTE_MS);
    let refused = acquire(&lapsed, &caller(2), &want(2)).unwrap_err();
    assert!(matches!(refused, Refused::StagedWork { staged, .. } if staged == work.commit));
    let told = Acquire {
        take_over: true,
        ..want(2)
    };
    let grant = acquire(&lapsed, &caller(2), &told).unwrap();
    assert_eq!(grant.effect.loser, lapsed.lease);
    assert_eq!(
        grant.effect.image.staged, lapsed.staged,
        "kept for a branch"
    );
    // Its own work is not in a checkout's way, nor is work that the head has passed.
    assert!(acquire(&lapsed, &caller(1), &want(1)).is_ok());
    let outdated = Proposal {
        parent: Some(CommitId::from_bytes([99; 32])),
        ..work
    };
    let lapsed = after(&staged(&held, &outdated, 1), 10 * MINUTE_MS);
    assert!(acquire(&lapsed, &caller(2), &want(2)).is_ok());
}

#[test]
fn a_renewal_keeps_the_token_and_may_change_the_terms() {
    let held = held_by(1);
    let token = Token {
        incarnation: INCARNATION,
        epoch: held.epoch,
    };
    let lapsed = after(&held, 10 * MINUTE_MS);
    let same = renew(&lapsed, &caller(1), checkout(1), token, None).unwrap();
    assert_eq!(same.token, token);
    assert_eq!(same.effect.image, held);
    assert!(same.effect.log.is_empty(), "renewals are not in the log");
    let offline = Terms {
        ttl_ms: u64::MAX,
        mode: LeaseMode::Offline,
    };
    let longer = renew(&held, &caller(1), checkout(1), token, Some(offline)).unwrap();
    assert_eq!(longer.ttl_ms, 180 * 24 * 3_600_000, "the longest there is");
    let lease = longer.effect.image.lease.unwrap();
    assert_eq!(
        (lease.mode, lease.remaining_ms),
        (LeaseMode::Offline, longer.ttl_ms)
    );
    for (by, of) in [(2, 1), (1, 2)] {
        let outcome = renew(&held, &caller(by), checkout(of), token, None);
        assert!(matches!(outcome, Err(Refused::TokenStale { .. })));
    }
}

#[test]
fn a_release_frees_the_image_and_a_second_one_is_no_failure() {
    let held = held_by(1);
    let token = Token {
        incarnation: INCARNATION,
        epoch: held.epoch,
    };
    let effect = release(&held, &caller(1), checkout(1), token)
        .unwrap()
        .unwrap();
    assert_eq!((effect.image.lease, effect.image.epoch), (None, held.epoch));
    let again = release(&effect.image, &caller(1), checkout(1), token);
    assert_eq!(again, Ok(None));
    let next = acquire(&effect.image, &caller(2), &want(2)).unwrap();
    let late = release(&next.effect.image, &caller(1), checkout(1), token);
    assert_eq!(late, Ok(None), "the next holder keeps its lease");
}

#[test]
fn a_steal_is_refused_if_anything_differs_from_what_the_thief_saw() {
    let held = held_by(1);
    let expect = seen(&held);
    let take = |image: &ImageState, expect: &Expectation| {
        steal(image, &caller(2), checkout(2), terms(), expect)
    };
    assert_eq!(take(&free(), &expect), Err(Refused::NobodyHolds));
    let work = record(1, 1, &held);
    let busy = staged(&held, &work, 1);
    assert_eq!(
        take(&busy, &expect),
        Err(Refused::Changed {
            epoch: held.epoch,
            head: held.head_commit(),
            staged: Some(work.commit)
        })
    );
    let grant = take(&held, &expect).unwrap();
    assert_eq!(grant.token.epoch.0, held.epoch.0 + 1);
    assert_eq!(grant.effect.loser, held.lease);
    assert_eq!(grant.effect.log, [Logged::Steal(checkout(1))]);
    assert!(
        take(&after(&held, 10 * MINUTE_MS), &expect).is_ok(),
        "LAPSED too"
    );
    assert!(matches!(
        take(&grant.effect.image, &expect),
        Err(Refused::Changed { .. })
    ));
}

#[test]
fn a_steal_can_keep_the_losers_work_as_a_branch_that_is_the_losers() {
    let held = held_by(1);
    let work = record(1, 1, &held);
    let busy = staged(&held, &work, 1);
    let first = Proposal {
        image: image(2),
        seq: Seq(0),
        token: None,
        root: work.root,
        ..record(2, 2, &held)
    };
    let take = |image: &ImageState, first: &Proposal, member| {
        let expect = seen(image);
        steal_to_branch(
            image,
            &caller(2),
            checkout(2),
            terms(),
            &expect,
            first,
            member,
        )
    };
    let stolen = take(&busy, &first, true).unwrap();
    assert_eq!(
        stolen.grant.effect.image.lease.unwrap().checkout,
        checkout(2)
    );
    let lease = stolen.branch.image.lease.unwrap();
    assert_eq!(
        (lease.device, lease.checkout),
        (caller(1).device, checkout(1))
    );
    assert_eq!(
        (lease.mode, lease.ttl_ms),
        (LeaseMode::Offline, LOSER_TTL_MS)
    );
    assert_eq!(lease.epoch, Epoch(1));
    assert_eq!(stolen.branch.image.head_commit(), Some(first.commit));
    assert_eq!(
        stolen.branch.log,
        [Logged::Commit(first.commit), Logged::Grant(checkout(1))]
    );
    let revoked = take(&busy, &first, false).unwrap();
    assert_eq!(revoked.branch.image.lease, None);
    assert_eq!(revoked.branch.image.epoch, Epoch(1));

    let other_root = Proposal {
        root: ObjectId::from_bytes([9; 32]),
        ..first
    };
    assert!(matches!(
        take(&busy, &other_root, true),
        Err(Refused::BadRecord(_))
    ));
    assert!(take(&held, &other_root, true).is_ok(), "the loser's base");
    let elsewhere = Proposal {
        parent: None,
        ..first
    };
    assert!(matches!(
        take(&held, &elsewhere, true),
        Err(Refused::BadRecord(_))
    ));
    let signed_by_other = Proposal {
        device: caller(3).device,
        ..first
    };
    assert!(matches!(
        take(&busy, &signed_by_other, true),
        Err(Refused::BadRecord(_))
    ));
}

#[test]
fn one_staged_record_for_each_checkout_the_newest() {
    let held = held_by(1);
    let [old, new] = [1, 2].map(|id| record(id, 1, &held));
    let both = staged(&staged(&held, &new, 1), &old, 1);
    assert_eq!(both.staged.len(), 1);
    assert_eq!(both.staged[0].proposal, new, "an older one changes nothing");
    // A daemon that was restarted is newer than a wrong clock says.
    let restarted = Proposal {
        instance: Instance(2),
        clock: WallMillis(i64::MIN),
        ..record(3, 1, &held)
    };
    let image = staged(&both, &restarted, 1);
    assert_eq!(image.staged[0].proposal, restarted);
    // Whatever the token: also another device's orphan stages.
    let orphan = Proposal {
        token: None,
        ..record(4, 2, &held)
    };
    let image = staged(&image, &orphan, 2);
    assert_eq!(image.staged.len(), 2);

    let effect = commit(&image, &caller(1), &record(5, 1, &image), NEW)
        .unwrap()
        .unwrap();
    assert_eq!(effect.image.staged.len(), 1, "committing ends its own");
    let left = unstage(&effect.image, &caller(1), checkout(2));
    assert_eq!(left, Ok(None), "not the caller's");
    let left = unstage(&effect.image, &caller(2), checkout(2)).unwrap();
    assert!(left.unwrap().image.staged.is_empty());
}

#[test]
fn staging_needs_a_parent_in_the_images_history_and_the_signers_connection() {
    let held = held_by(1);
    let work = record(1, 1, &held);
    let no_parent = History {
        has_parent: false,
        ..NEW
    };
    let known = History {
        has_commit: true,
        ..NEW
    };
    assert_eq!(
        stage(&held, &caller(1), &work, no_parent),
        Err(Refused::UnknownCommit)
    );
    assert_eq!(stage(&held, &caller(1), &work, known), Ok(None));
    assert!(matches!(
        stage(&held, &caller(2), &work, NEW),
        Err(Refused::BadRecord(_))
    ));
}

#[test]
fn time_lapses_a_lease_but_not_within_the_grace() {
    let held = held_by(1);
    let almost = after(&held, 10 * MINUTE_MS - 1);
    assert!(!almost.lease.unwrap().lapsed);
    let grace = Grace::begin(MINUTE_MS);
    let restarted = tick(
        &almost,
        INCARNATION,
        MINUTE_MS - 1,
        grace.after(MINUTE_MS - 1),
    );
    assert_eq!(restarted.lease.unwrap().remaining_ms, 0);
    assert!(!restarted.lease.unwrap().lapsed);
    let lapsed = tick(&restarted, INCARNATION, 1, grace.after(MINUTE_MS));
    assert!(lapsed.lease.unwrap().lapsed);
    assert_eq!((lapsed.head, lapsed.epoch), (held.head, held.epoch));
}

#[test]
fn only_a_lease_of_before_the_start_has_a_grace() {
    let hours = |n: u64| n * 60 * MINUTE_MS;
    let lease = held_by(1).lease.unwrap();
    assert!(Grace::of(&lease, 0, MINUTE_MS).holds());
    assert!(
        !Grace::of(&lease, 0, hours(3)).holds(),
        "the grace has ended"
    );
    assert!(
        !Grace::of(&lease, MINUTE_MS, MINUTE_MS).holds(),
        "granted or renewed since"
    );
    let begun = Lease {
        remaining_ms: lease.ttl_ms - 1,
        ..lease
    };
    assert!(Grace::of(&begun, 1, MINUTE_MS).holds(), "one that ran on");
    let waiting = Lease {
        remaining_ms: 0,
        ..lease
    };
    assert!(Grace::of(&waiting, hours(2), hours(2)).holds());
}

#[test]
fn deleting_needs_no_lease_but_ones_own_or_force() {
    let held = held_by(1);
    for image in [&held, &after(&held, 10 * MINUTE_MS)] {
        let refused = delete(image, &caller(2), false);
        assert!(matches!(refused, Err(Refused::Leased(_))));
        let forced = delete(image, &caller(2), true).unwrap().unwrap();
        assert_eq!(forced.log, [Logged::Steal(checkout(1)), Logged::Delete]);
        assert_eq!(forced.loser, image.lease);
    }
    let own = delete(&held, &caller(1), false).unwrap().unwrap();
    assert_eq!(own.log, [Logged::Delete]);
    assert_eq!((own.image.epoch, own.image.head), (held.epoch, held.head));
    let gone = own.image;
    assert_eq!(delete(&gone, &caller(1), false), Ok(None));
    assert_eq!(
        acquire(&gone, &caller(1), &want(1)),
        Err(Refused::UnknownImage)
    );
    let work = record(1, 1, &held);
    assert_eq!(
        commit(&gone, &caller(1), &work, NEW),
        Err(Refused::UnknownImage)
    );
    assert_eq!(
        after(&gone, MONTH_MS - 1).tombstone_ms,
        Some(1),
        "kept for a branch"
    );
}

#[test]
fn revoking_ends_only_the_devices_own_leases() {
    let held = held_by(1);
    assert_eq!(revoke(&held, caller(2).device), None);
    let effect = revoke(&held, caller(1).device).unwrap();
    assert_eq!((effect.image.lease, effect.loser), (None, held.lease));
    let revoked = Caller {
        member: false,
        ..caller(1)
    };
    let work = record(1, 1, &held);
    assert_eq!(commit(&held, &revoked, &work, NEW), Err(Refused::NotMember));
    assert_eq!(stage(&held, &revoked, &work, NEW), Err(Refused::NotMember));
}

#[test]
fn terms_are_brought_within_the_limits() {
    let bounded = |ttl_ms, mode| Terms { ttl_ms, mode }.bounded().ttl_ms;
    assert_eq!(bounded(0, LeaseMode::Online), 10_000);
    assert_eq!(bounded(u64::MAX, LeaseMode::Online), 24 * 3_600_000);
    assert_eq!(bounded(u64::MAX, LeaseMode::Offline), 180 * 24 * 3_600_000);
    assert_eq!(Terms::usual().bounded(), Terms::usual());
}
