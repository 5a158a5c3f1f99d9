//! The short explorations, and every mutant; the full ones are run by `cargo xtask model`.

use model::configs::{MUTANTS, SHORT};
use model::{Breach, Config};

use img_testkit::home::Mutant;

/// Explores one of the short configurations and finds that everything holds.
fn holds(position: usize) {
    let explored = SHORT[position].explore(1);
    if let Some((breach, way)) = explored.breach {
        panic!("{} does not hold:\n  {}", breach.name(), way.join("\n  "));
    }
    assert_eq!(explored.unreached, [""; 0], "of {} states", explored.states);
}

/// A home with a fault is found out, by the promise that the fault breaks.
fn caught(mutant: Mutant, promise: Breach) {
    let (_, config) = MUTANTS
        .iter()
        .find(|(other, _)| *other == mutant)
        .expect("every mutant has an exploration");
    let config = Config {
        mutant: Some(mutant),
        ..*config
    };
    let breach = config.explore(1).breach.map(|(breach, _)| breach);
    assert_eq!(breach, Some(promise));
}

#[test]
fn leases_commits_and_a_steal() {
    holds(0);
}

#[test]
fn late_commits() {
    holds(1);
}

#[test]
fn work_that_a_thief_keeps_for_its_loser() {
    holds(2);
}

#[test]
fn a_clone_of_a_device() {
    holds(3);
}

#[test]
fn a_backup_is_restored() {
    holds(4);
}

#[test]
fn deadlines_here_and_there() {
    holds(5);
}

#[test]
fn bad_members_deletion_revocation() {
    holds(6);
}

#[test]
fn every_mutant_has_an_exploration_of_its_own() {
    for mutant in Mutant::ALL {
        let of_mutant = MUTANTS.iter().filter(|(other, _)| *other == mutant);
        assert_eq!(of_mutant.count(), 1, "{mutant:?}");
    }
}

#[test]
fn mutant_no_token_check() {
    caught(Mutant::NoTokenCheck, Breach::UnderAnothersToken);
}

#[test]
fn mutant_late_commit_ignores_an_outstanding_lease() {
    caught(Mutant::LateCommitIgnoresLease, Breach::TwoLeases);
}

#[test]
fn mutant_no_head_check() {
    caught(Mutant::NoHeadCheck, Breach::NotLinear);
}

#[test]
fn mutant_head_compared_by_contents() {
    caught(Mutant::HeadComparedByRoot, Breach::NotLinear);
}

#[test]
fn mutant_no_idempotency() {
    caught(Mutant::NoIdempotency, Breach::ReplayDiffers);
}

#[test]
fn mutant_epoch_dropped_on_release() {
    caught(Mutant::EpochDroppedOnRelease, Breach::EpochWentDown);
}

#[test]
fn mutant_restore_keeps_the_incarnation() {
    caught(Mutant::RestoreKeepsIncarnation, Breach::TokenGrantedTwice);
}

#[test]
fn mutant_token_not_bound_to_its_device_and_checkout() {
    caught(Mutant::TokenNotBound, Breach::UnderAnothersToken);
}

#[test]
fn mutant_instance_not_checked() {
    caught(Mutant::InstanceNotChecked, Breach::OldDaemonActed);
}

#[test]
fn mutant_released_token_counts() {
    caught(Mutant::ReleasedTokenCounts, Breach::UnderAnothersToken);
}

#[test]
fn mutant_staged_record_taken_for_a_commit() {
    caught(Mutant::StagedTakenForCommit, Breach::AcknowledgedLost);
}

#[test]
fn mutant_readmit_keeps_a_live_lease() {
    caught(Mutant::ReadmitKeepsLease, Breach::UnderAnothersToken);
}

#[test]
fn mutant_take_over_checked_after_the_grant() {
    caught(Mutant::TakeOverCheckedLate, Breach::RefusedChanged);
}
