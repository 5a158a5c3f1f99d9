//! Who waits for a seal.

use std::pin::pin;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::*;
use crate::checkouts::lock;
use crate::checkouts::scene::Scene;
use crate::checkouts::status::View;
use crate::stream::fake::CHECKOUT;

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_failed_is_tried_once_more_and_one_that_never_comes_is_not_waited_for() {
    let scene = Scene::new().await;
    let mut worker = scene.worker();
    worker.mount().unwrap();
    std::fs::write(scene.mount().join("file"), "1").unwrap();
    let tree = worker.tree.clone().unwrap();
    tree.freeze().unwrap();
    let _inbox = scene.list();
    let listed = lock(&scene.shared.open).remove(&CHECKOUT).unwrap();
    let mut checkout = Arc::into_inner(listed).unwrap();
    let (view, shown) = watch::channel(View::default());
    (checkout.tree, checkout.view) = (Some(tree), shown);

    let fails = |times| {
        view.send_modify(|view| {
            view.unsealed = Some(ending());
            view.seal_failures = times;
        });
    };
    fails(1);
    let mut sealed = pin!(checkout.sealed());
    assert!((&mut sealed).now_or_never().is_none(), "that was before");
    fails(2);
    sealed.await.unwrap_err();

    view.send_modify(|view| view.discarding = true);
    let told = checkout.sealed().now_or_never();
    assert!(told.is_some_and(|told| told.is_err()));
    drop(worker);
}
