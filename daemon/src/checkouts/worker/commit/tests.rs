//! What becomes of wishes, whatever becomes of a commit.

use std::fs;

use img_proto::Refusal;
use tokio::sync::mpsc;
use tokio::time::interval;

use super::super::Command;
use super::*;
use crate::checkouts::scene::Scene;
use crate::stream::fake::CHECKOUT;

type Committed = oneshot::Receiver<Result<Value, ApiError>>;

fn request(branch: Option<&str>) -> CommitRequest {
    CommitRequest {
        branch: branch.map(str::to_owned),
        ..CommitRequest::default()
    }
}

/// Asks, until the promise that it finishes by itself.
async fn asks(worker: &mut Worker, branch: Option<&str>) -> Committed {
    let ((done, cut), (committed, outcome)) = (oneshot::channel(), oneshot::channel());
    worker.obey(Command::Commit {
        request: request(branch),
        done,
        committed,
    });
    cut.await.unwrap().unwrap();
    outcome
}

/// What is wanted after a restart.
fn kept(scene: &Scene) -> Vec<WishRow> {
    scene.device.state.now(|db| db.wishes(CHECKOUT)).unwrap()
}

fn branches(rows: &[WishRow]) -> Vec<Option<&str>> {
    let branches = rows.iter().map(|row| row.request.branch.as_deref());
    branches.collect()
}

fn refused(refusal: Refusal) -> CommitError {
    CallError::Refused(refusal).into()
}

async fn drive(worker: &mut Worker, is_done: impl Fn(&Worker) -> bool) {
    let (_commands, mut inbox) = mpsc::channel(1);
    let mut tick = interval(Duration::from_secs(3_600));
    loop {
        worker.advance().await;
        if is_done(worker) {
            return;
        }
        let happened = worker.next(&mut inbox, &mut tick).await;
        worker.apply(happened).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_checkouts_branch_is_wanted_durably() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    asks(&mut worker, None).await;
    drive(&mut worker, |worker| worker.base.is_some()).await;
    asks(&mut worker, Some("new")).await;
    assert!(worker.checkpoints.is_empty());
    assert_eq!(branches(&kept(&scene)), [Some("new")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_told_and_tried_again() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    for refusal in [
        Refusal::Busy,
        Refusal::Internal("database".into()),
        Refusal::NoRoom("the home's disk is full".into()),
    ] {
        let outcome = asks(&mut worker, None).await;
        assert!(worker.paused.is_none(), "who asks is tried at once");
        worker.wishes.begin(u64::MAX);
        worker.not_committed(&refused(refusal));
        let told = outcome.await.unwrap().unwrap_err();
        assert!(told.message.contains("tried again by itself"), "{told}");
        assert!(worker.paused.is_some() && worker.view.borrow().problem.is_some());
    }
    assert_eq!(branches(&kept(&scene)), [None; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_takes_nothing_else_along() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    let first = asks(&mut worker, None).await;
    worker.wishes.begin(u64::MAX);
    let mut second = asks(&mut worker, Some("new")).await;
    asks(&mut worker, None).await;
    worker.not_committed(&refused(Refusal::HeadMoved { head: None }));
    assert_eq!(first.await.unwrap().unwrap_err().kind, Kind::Orphan);
    assert_eq!(branches(&kept(&scene)), [Some("new"), None]);
    assert!(second.try_recv().is_err() && worker.paused.is_none());

    // Who asked for the branch has gone: it is shown, whatever else succeeds.
    drop(second);
    worker.wishes.begin(u64::MAX);
    worker.not_committed(&refused(Refusal::NameTaken));
    worker.set_problem(None);
    assert!(worker.view.borrow().problem.is_some());
    assert_eq!(branches(&kept(&scene)), [None]);
    asks(&mut worker, None).await;
    worker.set_problem(None);
    assert_eq!(worker.view.borrow().problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_of_the_state_that_it_was_asked_for_also_after_a_restart() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    worker.mount().unwrap();
    fs::write(scene.mount().join("first"), "1").unwrap();
    asks(&mut worker, None).await;
    worker.pause();
    let is_sealed = |worker: &Worker| {
        let tree = worker.tree.as_ref().unwrap();
        worker.sealed_upto == tree.closed_upto() && worker.sealing.is_none()
    };
    drive(&mut worker, is_sealed).await;
    fs::write(scene.mount().join("second"), "2").unwrap();
    asks(&mut worker, Some("new")).await;
    worker.pause();
    drive(&mut worker, is_sealed).await;

    let rows = kept(&scene);
    assert_eq!(branches(&rows), [None, Some("new")]);
    let roots: Vec<_> = rows.iter().map(|row| row.root.unwrap().0).collect();
    assert_ne!(roots[0], roots[1]);
    // All that a restart leaves.
    worker.roots.clear();
    worker.wish_again(rows);
    worker.paused = None;
    drive(&mut worker, |worker| worker.base.is_some()).await;
    assert_eq!(worker.base.as_ref().map(OpenCommit::root), Some(roots[0]));
    assert_eq!(branches(&kept(&scene)), [Some("new")]);
    worker.stop();
}
