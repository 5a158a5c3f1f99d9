//! What is wanted of checkpoints that nobody asked for, and which are kept.

use img_records::Maps;

use super::*;
use crate::checkouts::scene::Scene;
use crate::stream::fake::CHECKOUT;

fn row(generation: u64, automatic: bool) -> CheckpointRow {
    let mut checkpoint = [0; 32];
    checkpoint[..8].copy_from_slice(&generation.to_le_bytes());
    CheckpointRow {
        maps: Maps::Exact,
        stopped_us: None,
        checkpoint,
        checkout: CHECKOUT,
        generation,
        time: WallMillis(1),
        freeze_us: 1,
        dirty_bytes: 1,
        message: String::new(),
        automatic,
    }
}

fn add(scene: &Scene, worker: &mut Worker, row: CheckpointRow) {
    let state = &scene.device.state;
    state.now(|db| db.add_checkpoint(&row)).unwrap();
    worker.checkpoints.push(row);
}

fn wished(scene: &Scene) -> Vec<(u64, bool)> {
    let rows = scene.device.state.now(|db| db.wishes(CHECKOUT)).unwrap();
    let rows = rows.iter();
    rows.map(|row| (row.generation, row.request.automatic))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_not_wanted_again_before_something_changes() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    let now = Instant::now();
    add(&scene, &mut worker, row(1, false));
    worker.commit_what_is_due(now);
    assert_eq!(wished(&scene), [], "a person's is committed by a person");
    add(&scene, &mut worker, row(2, true));
    worker.commit_what_is_due(now);
    assert_eq!(wished(&scene), [(2, true)]);
    add(&scene, &mut worker, row(3, true));
    worker.commit_what_is_due(now);
    assert_eq!(wished(&scene), [(3, true)], "one for both");
    // Refused for good.
    let refused = worker.wishes.take_all();
    let numbers: Vec<_> = refused.iter().filter_map(|wish| wish.number).collect();
    let state = &scene.device.state;
    state
        .now(|db| db.refuse_wishes(CHECKOUT, &numbers, None))
        .unwrap();
    worker.commit_what_is_due(now);
    assert_eq!(wished(&scene), []);
    add(&scene, &mut worker, row(4, true));
    worker.commit_what_is_due(now);
    assert_eq!(wished(&scene), [(4, true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_checkpoints_go_unless_something_is_to_be_made_of_them() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    for generation in 1..=20 {
        add(&scene, &mut worker, row(generation, true));
    }
    worker.stage_upto = Some(2);
    let wish = worker.wish(3, CommitRequest::default(), oneshot::channel().0);
    wish.unwrap();
    worker.thin();
    let state = &scene.device.state;
    let kept = state.now(|db| db.checkpoints(CHECKOUT)).unwrap();
    assert_eq!(kept, worker.checkpoints);
    let generations: Vec<_> = kept.iter().map(|row| row.generation).collect();
    let expected: Vec<_> = [2, 3].into_iter().chain(5..=20).collect();
    assert_eq!(generations, expected);
}
