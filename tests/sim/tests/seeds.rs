//! Seeds of the simulation: one seed is one run, and everything holds in each.

use img_testkit::home::Mutant;
use sim::device::Fault;
use sim::trace::Keep;
use sim::{Options, run};

/// Seeds of one test of the suite.
const SEEDS: u64 = 50;

fn all_hold(from: u64) {
    for seed in from..from + SEEDS {
        let report = run(Options::seed(seed));
        if let Some(failure) = report.failure {
            let keep = Keep::Last(60);
            let again = run(Options {
                keep,
                ..Options::seed(seed)
            });
            panic!("{}seed {seed}: {failure}", again.trace);
        }
    }
}

/// The first seed below `bound` with which a fault of the home shows.
fn found(mutant: Mutant, bound: u64) {
    let options = |seed| Options {
        mutant: Some(mutant),
        ..Options::seed(seed)
    };
    let seen = (0..bound).any(|seed| run(options(seed)).failure.is_some());
    assert!(seen, "{mutant:?} is not found within {bound} seeds");
}

/// The same for a fault of the devices.
fn found_at_devices(fault: Fault, bound: u64) {
    let options = |seed| Options {
        fault: Some(fault),
        ..Options::seed(seed)
    };
    let seen = (0..bound).any(|seed| run(options(seed)).failure.is_some());
    assert!(seen, "{fault:?} is not found within {bound} seeds");
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 7, 45] {
        let keep = Keep::All;
        let options = Options {
            keep,
            ..Options::seed(seed)
        };
        let (first, second) = (run(options), run(options));
        assert!(first.trace.len() > 1_000);
        assert_eq!(first.trace, second.trace);
        assert_eq!(first.steps, second.steps);
    }
}

#[test]
fn everything_holds_from_0() {
    all_hold(0);
}

#[test]
fn everything_holds_from_50() {
    all_hold(50);
}

#[test]
fn everything_holds_from_100() {
    all_hold(100);
}

#[test]
fn everything_holds_from_150() {
    all_hold(150);
}

/// One test for each fault: its name, the fault, and the seeds within which it is found.
macro_rules! finds {
    ($($name:ident: $found:ident($fault:expr, $bound:expr);)+) => {
        $(
            #[test]
            fn $name() {
                $found($fault, $bound);
            }
        )+
    };
}

finds! {
    finds_no_token_check: found(Mutant::NoTokenCheck, 100);
    finds_a_late_commit_that_ignores_a_lease: found(Mutant::LateCommitIgnoresLease, 100);
    finds_no_head_check: found(Mutant::NoHeadCheck, 100);
    finds_a_head_compared_by_root: found(Mutant::HeadComparedByRoot, 1_000);
    finds_no_idempotency: found(Mutant::NoIdempotency, 100);
    finds_an_epoch_dropped_on_release: found(Mutant::EpochDroppedOnRelease, 20);
    finds_a_restore_that_keeps_the_incarnation: found(Mutant::RestoreKeepsIncarnation, 200);
    finds_a_token_that_is_not_bound: found(Mutant::TokenNotBound, 100);
    finds_an_instance_that_is_not_checked: found(Mutant::InstanceNotChecked, 100);
    finds_a_released_token_that_counts: found(Mutant::ReleasedTokenCounts, 200);
    finds_a_staged_record_taken_for_a_commit: found(Mutant::StagedTakenForCommit, 100);
    finds_a_readmission_that_keeps_a_lease: found(Mutant::ReadmitKeepsLease, 1_000);
    finds_a_take_over_checked_late: found(Mutant::TakeOverCheckedLate, 500);
    finds_a_request_that_is_not_journaled: found_at_devices(Fault::RequestNotJournaled, 1_000);
    finds_a_commit_that_is_signed_again: found_at_devices(Fault::CommitSignedAgain, 250);
    finds_an_outbox_trimmed_early: found_at_devices(Fault::OutboxTrimmedEarly, 20);
    finds_a_deadline_from_the_reply: found_at_devices(Fault::DeadlineFromReply, 2_000);
}
