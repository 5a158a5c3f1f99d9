//! Releases that do not come about: everything is as it was.

use std::fs;

use super::*;
use crate::checkouts::scene::Scene;
use crate::stream::fake::CHECKOUT;

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
