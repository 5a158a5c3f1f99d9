//! Releases that do not come about: everything is as it was.

use std::fs;

use img_proto::Refusal;

use super::super::Command;
use super::*;
use crate::checkouts::CommitRequest;
use crate::checkouts::scene::Scene;
use crate::home::CallError;
use crate::state::PendingCommit;
use crate::stream::fake::{CHECKOUT, IMAGE};

async fn released(worker: &mut Worker, discard: bool) -> Result<Value, ApiError> {
    let (done, answer) = oneshot::channel();
    worker.release(discard, done);
    // Whoever waits for an end that has begun hears of it later.
    match worker.release_waiters.is_empty() {
        true => answer.await.unwrap(),
        false => Ok(Value::Null),
    }
}

fn stage(scene: &Scene) -> Stage {
    let state = &scene.device.state;
    let row = state.now(|db| db.checkout(CHECKOUT)).unwrap();
    row.unwrap().stage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_cannot_be_written_down_mounts_again() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    worker.mount().unwrap();
    let file = scene.mount().join("file");
    fs::write(&file, "only here").unwrap();
    scene.refuse_stages(true);
    released(&mut worker, false).await.unwrap_err();
    assert_eq!(fs::read_to_string(&file).unwrap(), "only here");
    assert_eq!((worker.stage, stage(&scene)), (Stage::Open, Stage::Open));

    scene.refuse_stages(false);
    released(&mut worker, false).await.unwrap();
    assert!(!file.exists() && stage(&scene) == Stage::Releasing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_that_cannot_be_written_down_drops_nothing() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    worker.mount().unwrap();
    let file = scene.mount().join("file");
    fs::write(&file, "only here").unwrap();
    worker.streaming = Some(tokio::spawn(std::future::pending()));
    scene.refuse_stages(true);
    released(&mut worker, true).await.unwrap_err();
    assert_eq!(fs::read_to_string(&file).unwrap(), "only here");
    assert!(worker.streaming.is_some(), "a commit goes on");
    assert_eq!((worker.stage, stage(&scene)), (Stage::Open, Stage::Open));

    scene.refuse_stages(false);
    released(&mut worker, true).await.unwrap();
    assert!(worker.streaming.is_none() && stage(&scene) == Stage::Discarding);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_discarded_is_not_published_after_a_restart() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    let state = &scene.device.state;
    let pending = PendingCommit {
        checkout: CHECKOUT,
        record: b"signed".to_vec(),
        generation: 1,
    };
    state
        .now(|db| db.set_pending_commit(&pending, &[]))
        .unwrap();
    released(&mut worker, true).await.unwrap();
    assert_eq!(state.now(|db| db.pending_commit(CHECKOUT)).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_whose_changes_are_dropped_takes_no_more() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    released(&mut worker, true).await.unwrap();
    let (done, mounted) = oneshot::channel();
    worker.obey(Command::Mount { done });
    let (done, cut) = oneshot::channel();
    let message = String::new();
    worker.obey(Command::Checkpoint { message, done });
    let ((done, commit), (committed, _outcome)) = (oneshot::channel(), oneshot::channel());
    worker.obey(Command::Commit {
        request: CommitRequest::default(),
        done,
        committed,
    });
    for told in [
        mounted.await.unwrap().map(|()| None),
        cut.await.unwrap().map(Some),
        commit.await.unwrap().map(Some),
    ] {
        let told = told.unwrap_err();
        assert!(told.message.contains("is being closed"), "{told}");
    }
    let wishes = scene.device.state.now(|db| db.wishes(CHECKOUT)).unwrap();
    assert_eq!(wishes, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_given_back_once_the_home_says_so_or_does_not_have_it() {
    let scene = Scene::new().await;
    let token = scene.device.token();
    let give_back = || work::give_back(&scene.shared, IMAGE, CHECKOUT, token);
    let held = || scene.fake.lock().image.lease.is_some();
    for trouble in [
        Refusal::NoRoom("the database's disk is full".into()),
        Refusal::Internal("database".into()),
        Refusal::HelloFirst,
    ] {
        scene.fake.lock().refuse_release = Some(trouble.clone());
        let kept = give_back().await;
        assert!(
            matches!(&kept, Err(CallError::Refused(told)) if *told == trouble),
            "{kept:?}"
        );
        assert!(held());
    }
    give_back().await.unwrap();
    assert!(!held());
    for gone in [Refusal::UnknownImage, Refusal::NotMember] {
        scene.fake.lock().refuse_release = Some(gone);
        give_back().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_nobody_heard_was_refused_is_told_until_something_else_is_asked_for() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    let problem = |worker: &Worker| worker.view.borrow().problem.clone();
    worker.call_off_release(ApiError::failed("not now"));
    // Whatever succeeds meanwhile, and after a restart.
    worker.set_problem(None);
    worker.refusal = None;
    worker.take_refusal();
    let shown = problem(&worker).unwrap();
    assert!(shown.contains("could not be released"), "{shown}");
    released(&mut worker, false).await.unwrap();
    worker.take_refusal();
    assert_eq!(problem(&worker), None);
}
