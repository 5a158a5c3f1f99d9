//! What stays bounded: memory of replies, and the time that an end takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};

use super::TestHome;
use super::papers::Device;

const STOP_MAX: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_fetch_goes_on_with_little_room_and_waits_while_there_is_none() {
    let (home, founder) = TestHome::founded().await;
    let blocks = (0..12).map(|seed| img_testkit::object(seed, 500_000));
    let (ids, objects): (Vec<_>, Vec<_>) = blocks.unzip();
    founder.push(&objects).await.unwrap();
    let room = Arc::clone(home.running().home.room.objects());
    let all = u32::try_from(room.available_permits()).unwrap();
    // Less than two reads of neighbours need: one is made after the other.
    let little = Arc::clone(&room).acquire_many_owned(all - 1_100).await;
    let fetched = founder.fetch(&ids).await;
    assert!(fetched.into_iter().eq(objects.iter().cloned().map(Some)));
    drop(little);
    assert_eq!(room.available_permits(), all as usize);
    let none = Arc::clone(&room).acquire_many_owned(all).await.unwrap();
    let mut fetch = std::pin::pin!(founder.fetch(&ids));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut fetch).await;
    assert!(early.is_err(), "nothing is read without room");
    drop(none);
    assert_eq!(fetch.await.len(), ids.len());
}

#[tokio::test]
async fn a_home_stops_soon_with_an_idle_device_and_one_in_the_middle_of_a_push() {
    let (mut home, idle) = TestHome::founded().await;
    let pushing = home.member(&Device::new(1)).await;
    let upload = pushing.open_upload().await;
    let (acks, mut acked) = tokio::sync::watch::channel(0);
    let object = |seed| img_testkit::object(seed, 200_000).1;
    // It never ends by itself.
    let endless = stream::iter(0..).then(|seed| async move {
        tokio::task::yield_now().await;
        object(seed)
    });
    let push = pushing.connection.push(upload, endless.boxed(), |pushed| {
        acks.send_replace(pushed.objects);
    });
    let stop = async {
        acked.wait_for(|objects| *objects > 0).await.unwrap();
        let began = Instant::now();
        home.stop().await;
        began.elapsed()
    };
    let (pushed, took) = tokio::join!(push, stop);
    assert!(pushed.is_err());
    assert!(took < STOP_MAX, "{took:?}");
    idle.connection.closed().await;
}

#[test]
fn a_home_does_not_wait_for_a_device_that_sleeps() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    let homes = runtime();
    let mut home = homes.block_on(TestHome::start());
    // A runtime that nobody drives answers nothing any more, as a laptop whose lid is shut.
    let asleep = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = asleep.block_on(async {
        let mut client = home.connect(&Device::new(1)).await;
        client.found(home.invite.secret).await.unwrap();
        client.hello(None).await.unwrap();
        client
    });
    let began = Instant::now();
    homes.block_on(home.stop());
    let took = began.elapsed();
    assert!(took < STOP_MAX, "{took:?}");
    drop(client);
}
