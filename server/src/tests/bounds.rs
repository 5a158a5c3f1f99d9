//! What stays bounded: memory of replies, and the time that an end takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use img_net::LinkError;
use img_proto::{Call, Refusal};
use img_records::Parent;
use img_types::{ImageId, Seq};

use super::TestHome;
use super::flow::{TERMS, commit, image, stage};
use super::leases::release;
use super::papers::{Device, Draft};
use super::tree::tree;

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

#[tokio::test]
async fn a_home_takes_no_more_than_it_may_store_and_everything_else_goes_on() {
    let (mut home, founder) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &founder, 1).await;
    let fits = tree(2, 2, 3);
    let bytes = |objects: &[bytes::Bytes]| -> u64 {
        let lengths = objects.iter().map(|object| object.len() as u64);
        lengths.sum()
    };
    let held = crate::usage(&home.places()).await.unwrap().object_bytes;
    home.max_stored = Some(held + bytes(&fits.objects) + 100);
    home.restart().await;
    let founder = home.member(&founder.device).await;
    // What is sent again takes no room.
    for _ in 0..3 {
        founder.push(&fits.objects).await.unwrap();
    }
    let more = tree(3, 4, 3);
    for _ in 0..2 {
        let refused = founder.push(&more.objects).await;
        let Err(LinkError::Refused(Refusal::NoRoom(why))) = refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains("--max-stored"), "{why}");
    }
    // Whatever brings no object is taken: a commit, a checkpoint, a branch, a release; and all is read.
    let draft = draft.after(head, fits.root, token);
    let head = commit(&home, &founder, &draft, &fits).await.unwrap();
    let next = draft.after(head, fits.root, token);
    stage(&home, &founder, &next, &fits).await.unwrap();
    let start = Draft {
        image: ImageId::from_bytes([72; 32]),
        seq: Seq(0),
        parent: Some(Parent {
            image: draft.image,
            commit: head,
        }),
        root: fits.root,
        token: None,
    };
    let descriptor = founder.device.descriptor(founder.home(), start.image, 72);
    let first = founder.device.commit(&home.roster(), &start);
    let branch = Call::Branch {
        descriptor: descriptor.to_bytes().into(),
        commit: first.to_bytes().into(),
        terms: TERMS,
    };
    founder.call(branch).await.unwrap();
    release(&founder, draft.image, token).await.unwrap();
    let fetched = founder.fetch(&fits.ids).await;
    assert!(fetched.into_iter().eq(fits.objects.into_iter().map(Some)));
    // With a higher limit the same push goes on.
    home.max_stored = home.max_stored.map(|max| max + bytes(&more.objects));
    home.restart().await;
    let founder = home.member(&founder.device).await;
    founder.push(&more.objects).await.unwrap();
}
