//! A checkout that several branches continue goes on as one of them.

use img_types::RequestId;

use super::*;
use crate::checkouts::scene::{Scene, THIEF};
use crate::events::Event;
use crate::stream::Sent;
use crate::stream::fake::{CHECKOUT, IMAGE};

#[tokio::test(flavor = "multi_thread")]
async fn who_went_on_as_its_own_branch_is_not_pulled_onto_a_thiefs() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    let vm = scene.stolen();
    let kept = scene.onward(IMAGE, &scene.branch(&vm, "kept", THIEF));
    let mine = scene.branch(&vm, "mine", scene.device.home.device());
    // The thief's is heard of while the own one is being made.
    worker.wish_onward(kept.clone());
    let branched = Branched {
        onward: scene.onward(IMAGE, &mine),
        sent: Sent::default(),
        request: RequestId::from_bytes([1; 32]),
    };
    worker.branched(0, branched).await;
    worker.start_onward().await;
    assert_eq!(worker.image, mine.row.image);
    // And once more, when it was judged before and arrives late.
    worker.wish_onward(kept);
    worker.start_onward().await;
    assert_eq!(worker.image, mine.row.image);
    let holder = scene.device.keeper.holder(CHECKOUT).unwrap();
    assert_eq!(holder.image(), mine.row.image);

    let _inbox = scene.list();
    let mut events = scene.shared.events.subscribe();
    let further = scene.branch(&mine, "further", THIEF);
    worker.wish_onward(scene.onward(mine.row.image, &further));
    worker.start_onward().await;
    assert_eq!(worker.image, further.row.image);

    // Whoever works here is told by whom and why, until they go on.
    let taken = worker.view.borrow().taken.clone().unwrap();
    assert_eq!(
        (taken.name.as_str(), taken.branch.as_str()),
        ("mine", "further")
    );
    assert_eq!(taken.reason.as_deref(), Some("the talk is today"));
    let told = std::iter::from_fn(|| events.try_recv().ok()).find_map(|event| match event {
        Event::Checkout {
            left, name, reason, ..
        } => Some((left?, name, reason?)),
        _ => None,
    });
    let (left, name, reason) = told.unwrap();
    assert_eq!((left.as_str(), name.as_str()), ("mine", "further"));
    assert_eq!(reason, "the talk is today");
    let kept = || scene.device.state.now(|db| db.taken(CHECKOUT)).unwrap();
    assert_eq!(kept(), Some(taken));
    worker.forget_taken();
    assert_eq!((kept(), worker.view.borrow().taken.clone()), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_branch_contains_is_known_after_a_restart_and_what_blocked_is_forgotten() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    let vm = scene.stolen();
    let kept = scene.onward(IMAGE, &scene.branch(&vm, "kept", THIEF));
    let root = kept.first.root();
    worker.kept.extend([(3, root), (4, root)]);
    assert_eq!(worker.generation_of(root), 4);
    worker.signed_in_vain = true;
    worker.wish_onward(kept);
    worker.start_onward().await;
    assert!(worker.base.is_some() && !worker.signed_in_vain);
}
