//! Which of the images that are leased to a checkout it goes on as, and which it gives back.

use img_types::DeviceId;
use tokio::sync::mpsc;

use super::super::scene::{Scene, THIEF};
use super::*;
use crate::stream::fake::CHECKOUT;

/// What becomes of a checkout when the home shows these images: the one that it is to go on as.
async fn goes_on_as(
    scene: &Scene,
    inbox: &mut mpsc::Receiver<Command>,
    images: &[Image],
) -> Option<ImageId> {
    let asked = scene.shared.clock.now();
    scene.shared.notice_rivals(images, asked).await;
    match inbox.try_recv().ok()? {
        Command::Onward(onward) => Some(onward.image()),
        other => panic!("{other:?}"),
    }
}

fn calls(scene: &Scene, name: &str) -> usize {
    let inner = scene.fake.lock();
    inner.calls.iter().filter(|call| **call == name).count()
}

fn own(scene: &Scene) -> DeviceId {
    scene.device.home.device()
}

#[tokio::test]
async fn a_branch_of_what_a_checkout_is_of_is_gone_on_as() {
    let scene = Scene::new().await;
    let mut inbox = scene.list();
    let vm = scene.stolen();
    for by in [own(&scene), THIEF] {
        let branch = scene.branch(&vm, "branch", by);
        let images = [vm.clone(), branch.clone()];
        let onto = goes_on_as(&scene, &mut inbox, &images).await;
        assert_eq!(onto, Some(branch.row.image));
    }
    assert_eq!(calls(&scene, "release"), 0);
}

#[tokio::test]
async fn a_thiefs_branch_of_what_was_left_is_given_back() {
    let scene = Scene::new().await;
    let mut inbox = scene.list();
    let vm = scene.stolen();
    let kept = scene.branch(&vm, "kept", THIEF);
    let mine = scene.branch(&vm, "mine", own(&scene));
    scene.goes_on(&mine).await;
    let images = [vm, mine.clone(), kept];
    assert_eq!(goes_on_as(&scene, &mut inbox, &images).await, None);
    assert_eq!(calls(&scene, "release"), 1);
    // The one that it is of is only left for one that was made of it.
    let further = scene.branch(&mine, "further", THIEF);
    let images = [mine, further.clone()];
    let onto = goes_on_as(&scene, &mut inbox, &images).await;
    assert_eq!(onto, Some(further.row.image));
}

#[tokio::test]
async fn a_branch_that_was_left_is_not_taken_up_again() {
    let scene = Scene::new().await;
    let mut inbox = scene.list();
    let vm = scene.stolen();
    let kept = scene.branch(&vm, "kept", THIEF);
    scene.goes_on(&kept).await;
    let mine = scene.branch(&kept, "mine", own(&scene));
    scene.goes_on(&mine).await;
    let images = [vm, kept, mine];
    assert_eq!(goes_on_as(&scene, &mut inbox, &images).await, None);
    assert_eq!(calls(&scene, "release"), 1);
}

#[tokio::test]
async fn a_branch_of_a_stolen_branch_is_gone_on_as_if_each_link_is_proven() {
    let scene = Scene::new().await;
    let mut inbox = scene.list();
    let vm = scene.stolen();
    let mut kept = scene.branch(&vm, "kept", THIEF);
    let again = scene.branch(&kept, "again", THIEF);
    kept.row.lease = None;
    let images = [vm.clone(), kept.clone(), again.clone()];
    let onto = goes_on_as(&scene, &mut inbox, &images).await;
    assert_eq!(onto, Some(again.row.image));
    // Nobody knows what the link between them was, or it was somebody else's.
    let images = [vm.clone(), again.clone()];
    assert_eq!(goes_on_as(&scene, &mut inbox, &images).await, None);
    let first = kept.head.as_mut().unwrap();
    first.signed.record.checkout = CheckoutId::from_bytes([0x12; 32]);
    let images = [vm, kept, again];
    assert_eq!(goes_on_as(&scene, &mut inbox, &images).await, None);
    assert_eq!(calls(&scene, "release"), 2);
}

#[tokio::test]
async fn what_cannot_be_judged_is_kept_and_looked_at_again() {
    let scene = Scene::new().await;
    let mut inbox = scene.list();
    let vm = scene.stolen();
    let lost = scene.branch(&vm, "lost", own(&scene));
    let rest = scene.branch(&lost, "rest", own(&scene));
    let first = lost.row.head.clone().unwrap();
    let lost = scene.taken(&lost);
    let images = [vm, lost.clone(), rest.clone()];
    assert_eq!(goes_on_as(&scene, &mut inbox, &images).await, None);
    assert_eq!((calls(&scene, "log"), calls(&scene, "release")), (1, 0));
    {
        let mut inner = scene.fake.lock();
        inner.listed = images.iter().map(|image| image.row.clone()).collect();
        inner.firsts.insert(lost.row.image, first);
    }
    // The pause has begun, and is over at once; the home answers in its own time.
    tokio::task::yield_now().await;
    tokio::time::pause();
    tokio::time::advance(LOOK_PAUSE).await;
    tokio::time::resume();
    let again = tokio::time::timeout(10 * LOOK_PAUSE, inbox.recv()).await;
    let Ok(Some(Command::Onward(onward))) = again else {
        panic!("nobody looked again: {:?}", scene.fake.lock().calls);
    };
    assert_eq!(onward.image(), rest.row.image);
    assert_eq!(calls(&scene, "release"), 0);
}

#[tokio::test]
async fn an_orphans_work_is_saved_under_another_name_where_the_first_was_taken_meanwhile() {
    let scene = Scene::new().await;
    let mut inbox = scene.list();
    let vm = scene.stolen();
    let mut kept = scene.branch(&vm, "kept", THIEF);
    (kept.row.epoch, kept.row.lease) = (Epoch(2), None);
    let stale = LeaseEvent::TokenStale {
        image: vm.row.image,
        token: scene.device.token(),
        rival: Some(THIEF),
    };
    scene.device.keeper.apply(CHECKOUT, stale).await.unwrap();
    let images = [vm, kept.clone()];
    let look = || async {
        let asked = scene.shared.clock.now();
        scene.shared.notice_rivals(&images, asked).await;
    };
    look().await;
    let Some(Command::Commit { request, done, .. }) = inbox.recv().await else {
        panic!("nothing is saved");
    };
    // Accepted, and then the home is away.
    let state = &scene.device.state;
    let number = state
        .now(|db| db.add_wish(CHECKOUT, 1, &request, None))
        .unwrap();
    let _ = done.send(Err(ApiError::away("It goes on by itself.")));
    let searched = (CHECKOUT, kept.row.image);
    while lock(&scene.shared.searched).contains(&searched) {
        tokio::task::yield_now().await;
    }
    look().await;
    assert!(!lock(&scene.shared.searched).contains(&searched));
    // Its name was taken: it is wanted no more.
    let refused = state.now(|db| db.refuse_wishes(CHECKOUT, &[number], None));
    refused.unwrap();
    look().await;
    let again = inbox.recv().await;
    assert!(matches!(again, Some(Command::Commit { .. })), "{again:?}");
}
