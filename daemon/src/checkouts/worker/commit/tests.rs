//! What becomes of wishes, whatever becomes of a commit.

use std::fs;

use img_lease::holder::Event as LeaseEvent;
use img_proto::Refusal;
use tokio::sync::mpsc;
use tokio::time::interval;

use super::super::Command;
use super::*;
use crate::checkouts::scene::Scene;
use crate::home::CallError;
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
    let rows = kept(&scene);
    assert_eq!(branches(&rows), [Some("new")]);
    let base = worker.base.as_ref().map(OpenCommit::root);
    let root = rows[0].root.map(|(root, _)| root);
    assert_eq!(root, base, "what is written later is not asked for");
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
    assert!(worker.view.borrow().problem.is_some() && worker.view.borrow().refused);
    assert_eq!(branches(&kept(&scene)), [None]);
    // All that a restart leaves.
    worker.refusal = None;
    worker.take_refusal();
    assert!(worker.view.borrow().problem.is_some());
    asks(&mut worker, None).await;
    worker.take_refusal();
    assert_eq!(worker.view.borrow().problem, None);
}

fn is_sealed(worker: &Worker) -> bool {
    let tree = worker.tree.as_ref().unwrap();
    worker.sealed_upto == tree.closed_upto() && worker.sealing.is_none()
}

/// Its first commit is in history, and another one is wanted whose generation is not the newest that is sealed.
async fn wants_an_earlier_state(scene: &Scene) -> Worker {
    let mut worker = scene.worker();
    asks(&mut worker, None).await;
    drive(&mut worker, |worker| worker.base.is_some()).await;
    worker.mount().unwrap();
    fs::write(scene.mount().join("first"), "1").unwrap();
    asks(&mut worker, None).await;
    worker.pause();
    drive(&mut worker, is_sealed).await;
    fs::write(scene.mount().join("second"), "2").unwrap();
    worker.cut("").unwrap();
    drive(&mut worker, is_sealed).await;
    worker
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_commit_whose_root_was_not_written_down_is_made_after_a_restart() {
    let scene = Scene::new().await;
    let mut worker = wants_an_earlier_state(&scene).await;
    let mut rows = kept(&scene);
    let (root, _) = rows[0].root.take().unwrap();
    worker.roots.clear();
    worker.wish_again(rows);
    assert_eq!(
        kept(&scene)[0].root,
        Some((root, 0)),
        "written down at last"
    );
    worker.paused = None;
    drive(&mut worker, |worker| worker.wishes.is_empty()).await;
    assert_eq!(worker.base.as_ref().map(OpenCommit::root), Some(root));
    assert_eq!(worker.checkpoints.len(), 1, "the later one waits");

    // One that a commit contains is not made of what was written since.
    let contained = WishRow {
        number: 77,
        generation: worker.checkpoints[0].generation - 1,
        request: request(Some("new")),
        under_way: false,
        root: None,
    };
    worker.roots.clear();
    worker.wish_again(vec![contained.clone()]);
    assert_eq!(worker.roots[&contained.generation], (root, 0));
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_files_that_cannot_be_cut_out_yet_are_waited_for() {
    let scene = Scene::new().await;
    let mut worker = wants_an_earlier_state(&scene).await;
    worker.paused = None;
    let sealed = kept(&scene)[0].root;
    let generation = worker.wishes.begin(u64::MAX).unwrap().generation;
    // As many cuts as may wait for a seal, and one more change.
    for number in 0.. {
        fs::write(scene.mount().join("third"), number.to_string()).unwrap();
        if let Err(FreezeError::Unsealed) = worker.cut("") {
            break;
        }
    }
    worker.left_out(generation, Vec::new());
    assert!(worker.paused.is_some(), "not begun again at once");
    assert_eq!(kept(&scene)[0].root, sealed);
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_broke_off_is_not_begun_again_at_once() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    worker.not_committed(&UploadError::Interrupted.into());
    assert!(worker.paused.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_of_the_state_that_it_was_asked_for_also_after_a_restart() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    worker.mount().unwrap();
    fs::write(scene.mount().join("first"), "1").unwrap();
    asks(&mut worker, None).await;
    worker.pause();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_commit_that_is_accepted_at_last_fulfils_only_what_it_was_signed_for() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    asks(&mut worker, None).await;
    drive(&mut worker, |worker| worker.base.is_some()).await;
    let before = worker.base.as_ref().map(OpenCommit::root);
    worker.mount().unwrap();
    fs::write(scene.mount().join("file"), "1").unwrap();
    scene.fake.lock().fence_after = Some(0);
    let refused = asks(&mut worker, None).await;
    drive(&mut worker, |worker| worker.wishes.is_empty()).await;
    refused.await.unwrap().unwrap_err();
    assert!(worker.signed_in_vain && worker.is_written_down());

    scene.fake.lock().fence_after = None;
    asks(&mut worker, Some("new")).await;
    worker.wishes.begin(u64::MAX);
    // It did not come about, and the record is sent first.
    worker.resume_commit();
    let (_commands, mut inbox) = mpsc::channel(1);
    let mut tick = interval(Duration::from_secs(3_600));
    while worker.base.as_ref().map(OpenCommit::root) == before {
        let happened = worker.next(&mut inbox, &mut tick).await;
        worker.apply(happened).await;
    }
    assert_eq!(worker.wishes.iter().count(), 1);
    assert_eq!(branches(&kept(&scene)), [Some("new")]);
    worker.stop();
}

/// Asks with more than a branch, and works until it is done.
async fn done(worker: &mut Worker, request: CommitRequest) -> Value {
    let ((done, cut), (committed, outcome)) = (oneshot::channel(), oneshot::channel());
    worker.obey(Command::Commit {
        request,
        done,
        committed,
    });
    cut.await.unwrap().unwrap();
    drive(worker, |worker| worker.wishes.is_empty()).await;
    outcome.await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_with_nothing_to_commit_takes_its_lease_again() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    done(&mut worker, request(None)).await;
    let rival = Some(scene.fake.lock().steal());
    let token = scene.device.token();
    let stale = LeaseEvent::TokenStale {
        image: worker.image,
        token,
        rival,
    };
    scene.device.keeper.apply(CHECKOUT, stale).await.unwrap();
    // The thief has given it back.
    scene.fake.lock().image.lease = None;
    let adopts = CommitRequest {
        adopt_orphan: true,
        ..request(None)
    };
    let adopted = done(&mut worker, adopts).await;
    assert_eq!(
        (&adopted["adopted"], &adopted["unchanged"]),
        (&json!(true), &json!(true))
    );
    let holder = scene.device.keeper.holder(CHECKOUT).unwrap();
    assert_eq!(holder.kind(), LeaseKind::Leased);
    assert!(scene.fake.lock().image.lease.is_some());
}
