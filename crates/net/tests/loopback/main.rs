//! Devices and homes over real UDP sockets on the loopback interface.

mod home;
mod slow;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use home::{Home, Seen, Shelf};
use img_net::{
    ConnectError, Connection, Link, LinkConfig, LinkError, LinkState, Pushed, StreamError,
    TlsIdentity, connect, key_hash,
};
use img_proto::frame::FrameError;
use img_proto::{Answer, Call, Class, Refusal, Request};
use img_testkit::object;
use img_types::{DaemonNonce, ObjectId, UploadId};
use tokio::sync::watch;

const BLOCK: usize = 60_000;

fn device() -> TlsIdentity {
    TlsIdentity::from_seed(&[7; 32])
}

fn shelf() -> Shelf {
    let shelf = Shelf::default();
    shelf.members.lock().unwrap().insert(device().public_key());
    shelf
}

fn shelf_with(objects: &BTreeMap<ObjectId, Bytes>) -> Shelf {
    let shelf = shelf();
    shelf.objects.lock().unwrap().clone_from(objects);
    shelf
}

fn objects(count: u64, len: usize) -> BTreeMap<ObjectId, Bytes> {
    (0..count).map(|seed| object(seed, len)).collect()
}

fn hello() -> Request {
    Request {
        id: None,
        call: Call::Hello {
            nonce: DaemonNonce::from_bytes([1; 32]),
            seen: None,
        },
    }
}

fn images() -> Request {
    Request {
        id: None,
        call: Call::Images { after: None },
    }
}

async fn say_hello(connection: Connection) -> Result<(), LinkError> {
    connection.call(&hello(), Class::Control).await?.result?;
    Ok(())
}

fn link_to(address: SocketAddr, key_hash: [u8; 32]) -> Link {
    let config = LinkConfig {
        address: address.to_string(),
        home_key_hash: key_hash,
        identity: device(),
    };
    Link::new(config, say_hello)
}

fn link(home: &Home) -> Link {
    link_to(home.address, home.key_hash)
}

async fn away(link: &Link) -> LinkError {
    let mut state = link.state();
    let state = state
        .wait_for(|state| matches!(state, LinkState::Away(_)))
        .await
        .unwrap();
    match &*state {
        LinkState::Away(reason) => reason.clone(),
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn both_ends_know_the_other_and_share_an_exporter() {
    let home = Home::start(Arc::new(shelf()));
    let connection = connect(&home.address.to_string(), home.key_hash, &device())
        .await
        .unwrap();
    say_hello(connection.clone()).await.unwrap();
    assert_eq!(key_hash(connection.home_key().as_bytes()), home.key_hash);
    let expected = Seen::Peer {
        key: device().public_key(),
        exporter: connection.exporter(),
    };
    assert_eq!(*home.shelf.seen.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn two_connections_have_two_exporters() {
    let home = Home::start(Arc::new(shelf()));
    let address = home.address.to_string();
    let first = connect(&address, home.key_hash, &device()).await.unwrap();
    let second = connect(&address, home.key_hash, &device()).await.unwrap();
    assert_ne!(first.exporter(), second.exporter());
}

#[tokio::test]
async fn another_home_at_the_address_is_refused() {
    let home = Home::start(Arc::new(shelf()));
    let outcome = connect(&home.address.to_string(), [9; 32], &device()).await;
    assert_eq!(outcome.err(), Some(ConnectError::WrongHome));
    let link = link_to(home.address, [9; 32]);
    assert_eq!(away(&link).await, LinkError::WrongHome);
    let outcome = link.call(&images(), Class::Control).await;
    assert_eq!(outcome, Err(LinkError::WrongHome));
    assert!(home.shelf.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_stranger_is_known_by_its_key_and_learns_it_from_the_answer_to_hello() {
    let home = Home::start(Arc::new(Shelf::default()));
    let link = link(&home);
    assert_eq!(away(&link).await, LinkError::Refused(Refusal::NotMember));
    let outcome = link.call(&images(), Class::Control).await;
    assert_eq!(outcome, Err(LinkError::Refused(Refusal::NotMember)));
    let seen = home.shelf.seen.lock().unwrap();
    assert!(matches!(seen[0], Seen::Peer { key, .. } if key == device().public_key()));
}

#[tokio::test]
async fn a_stranger_may_only_send_small_frames() {
    let home = Home::start(Arc::new(Shelf::default()));
    let connection = connect(&home.address.to_string(), home.key_hash, &device())
        .await
        .unwrap();
    let request = Request {
        id: None,
        call: Call::Found {
            secret: [0; 16],
            genesis: vec![0; 5_000].into(),
        },
    };
    let outcome = connection.call(&request, Class::Control).await;
    assert_eq!(outcome, Err(LinkError::Away));
    let mut seen = home.shelf.seen.lock().unwrap().clone();
    while seen.len() < 2 {
        tokio::task::yield_now().await;
        seen = home.shelf.seen.lock().unwrap().clone();
    }
    let too_long = |seen: &Seen| {
        matches!(
            seen,
            Seen::Bad(StreamError::Malformed(FrameError::TooLong { .. }))
        )
    };
    assert!(seen.iter().any(too_long));
}

#[tokio::test(start_paused = true)]
async fn nobody_at_the_address_is_an_error_in_bounded_time() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let outcome = connect(&address.to_string(), [9; 32], &device()).await;
    assert_eq!(outcome.err(), Some(ConnectError::Unreachable));
    let link = link_to(address, [9; 32]);
    let began = tokio::time::Instant::now();
    let outcome = link.call(&images(), Class::Control).await;
    assert_eq!(outcome, Err(LinkError::Away));
    assert!(began.elapsed() <= Duration::from_secs(30));
    assert_eq!(away(&link).await, LinkError::Away);
    let began = tokio::time::Instant::now();
    let outcome = link.call(&images(), Class::Control).await;
    assert_eq!(outcome, Err(LinkError::Away));
    assert!(
        began.elapsed() <= Duration::from_secs(3),
        "known to be away"
    );
}

#[tokio::test]
async fn an_address_that_is_none_is_told_from_a_silent_one() {
    for address in ["", "home", "127.0.0.1", "no such host:1"] {
        let outcome = connect(address, [9; 32], &device()).await;
        assert_eq!(outcome.err(), Some(ConnectError::Address(address.into())));
    }
}

#[tokio::test]
async fn objects_come_in_order_and_verified_and_absent_ones_as_nothing() {
    let kept = objects(300, 500);
    let home = Home::start(Arc::new(shelf_with(&kept)));
    let (absent, _) = object(1_000, 500);
    let (damaged, bytes) = object(1_001, 500);
    let mut bytes = bytes.to_vec();
    bytes[100] ^= 1;
    home.shelf
        .objects
        .lock()
        .unwrap()
        .insert(damaged, bytes.into());

    let mut ids: Vec<_> = kept.keys().rev().copied().collect();
    ids.insert(10, absent);
    ids.insert(100, damaged);
    let link = link(&home);
    for class in [Class::Demand, Class::Hydrate] {
        let fetched: Vec<_> = link.fetch(ids.clone(), class).collect().await;
        assert_eq!(fetched.len(), ids.len());
        for (id, item) in ids.iter().zip(fetched) {
            if *id == damaged {
                assert_eq!(item, Err(LinkError::Corrupt(damaged)));
            } else {
                assert_eq!(item, Ok((*id, kept.get(id).cloned())));
            }
        }
    }
    assert_eq!(home.shelf.hellos.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn sixty_four_readers_fetch_at_once() {
    let kept = objects(1_024, BLOCK);
    let home = Home::start(Arc::new(shelf_with(&kept)));
    let link = link(&home);
    let fetches = kept.iter().map(|(id, object)| {
        let mut fetched = link.fetch(vec![*id], Class::Demand);
        async move {
            assert_eq!(fetched.next().await, Some(Ok((*id, Some(object.clone())))));
            assert_eq!(fetched.next().await, None);
        }
    });
    let fetched = stream::iter(fetches).buffer_unordered(64).count().await;
    assert_eq!(fetched, 1_024);
}

#[tokio::test]
async fn a_call_gets_through_while_all_fetches_wait() {
    let (serve, serving) = watch::channel(false);
    let kept = objects(300, 500);
    let mut shelf = shelf_with(&kept);
    shelf.serving = Some(serving);
    let home = Home::start(Arc::new(shelf));
    let link = link(&home);
    let fetched: Vec<_> = [Class::Demand, Class::Trace]
        .into_iter()
        .flat_map(|class| kept.keys().map(move |id| (*id, class)))
        .map(|(id, class)| tokio::spawn(link.fetch(vec![id], class).collect::<Vec<_>>()))
        .collect();
    for _ in 0..5 {
        let reply = link.call(&images(), Class::Control).await.unwrap();
        assert_eq!(
            reply.result,
            Ok(Answer::Images {
                images: vec![],
                more: false
            })
        );
    }
    serve.send_replace(true);
    for fetch in fetched {
        let items = fetch.await.unwrap();
        assert!(matches!(&items[..], [Ok((id, Some(object)))] if kept[id] == *object));
    }
}

#[tokio::test]
async fn a_demand_fetch_overtakes_what_fills_the_link() {
    let kept = objects(256, BLOCK);
    let home = Home::start(Arc::new(shelf_with(&kept)));
    let address = slow::slow_link(home.address, 4_000_000).await;
    let link = link_to(address, home.key_hash);
    let arrived = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&arrived);
    let mut hydrating = link.fetch(kept.keys().copied().collect(), Class::Hydrate);
    let (started, mut running) = watch::channel(0);
    let hydrate = tokio::spawn(async move {
        while let Some(item) = hydrating.next().await {
            item.unwrap();
            started.send_replace(counter.fetch_add(1, Ordering::SeqCst) + 1);
        }
    });
    // By now the home has filled the windows of two streams: 8 MiB, two seconds of this link.
    running.wait_for(|count| *count >= 24).await.unwrap();
    let before = arrived.load(Ordering::SeqCst);
    let wanted: Vec<_> = kept.keys().rev().take(60).copied().collect();
    let fetched: Vec<_> = link.fetch(wanted.clone(), Class::Demand).collect().await;
    let expected = |id| Ok((id, kept.get(&id).cloned()));
    assert!(fetched.into_iter().eq(wanted.into_iter().map(expected)));
    // In turns with the two streams there would be 120.
    let overtaken_by = arrived.load(Ordering::SeqCst) - before;
    assert!(overtaken_by < 40, "{overtaken_by} bulk objects came first");
    hydrate.abort();
}

#[tokio::test]
async fn a_call_is_answered_by_a_home_that_was_killed_and_started_again() {
    let home = Home::start(Arc::new(shelf()));
    let (link, key_hash) = (link(&home), home.key_hash);
    link.call(&images(), Class::Control)
        .await
        .unwrap()
        .result
        .unwrap();
    let (address, shelf) = home.kill();
    let home = Home::start_at(address, shelf);
    assert_eq!(home.key_hash, key_hash);
    link.call(&images(), Class::Control)
        .await
        .unwrap()
        .result
        .unwrap();
    assert_eq!(home.shelf.hellos.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_fetch_goes_on_with_a_home_that_was_killed_and_started_again() {
    let kept = objects(256, BLOCK);
    let home = Home::start(Arc::new(shelf_with(&kept)));
    let link = link(&home);
    let mut fetching = link.fetch(kept.keys().copied().collect(), Class::Trace);
    let mut fetched: BTreeMap<_, _> = BTreeMap::new();
    for _ in 0..10 {
        let (id, object) = fetching.next().await.unwrap().unwrap();
        fetched.insert(id, object.unwrap());
    }
    let (address, shelf) = home.kill();
    let _home = Home::start_at(address, shelf);
    while let Some(item) = fetching.next().await {
        let (id, object) = item.unwrap();
        assert_eq!(fetched.insert(id, object.unwrap()), None);
    }
    assert_eq!(fetched, kept);
}

#[tokio::test]
async fn a_home_that_vanished_without_a_word_is_found_out_while_a_person_waits() {
    let kept = objects(1, BLOCK);
    let home = Home::start(Arc::new(shelf_with(&kept)));
    let link = link(&home);
    for _ in 0..2 {
        let answer = link.call(&images(), Class::Control).await.unwrap();
        answer.result.unwrap();
    }
    let _killed = home.kill();
    let began = std::time::Instant::now();
    let outcome = link.call(&images(), Class::Control).await;
    assert_eq!(outcome, Err(LinkError::Away));
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "long before the connection's idle time is over"
    );
}

#[tokio::test]
async fn a_home_that_only_takes_its_time_is_waited_for() {
    let (serve, serving) = watch::channel(false);
    let kept = objects(1, 500);
    let mut shelf = shelf_with(&kept);
    shelf.serving = Some(serving);
    let home = Home::start(Arc::new(shelf));
    let link = link(&home);
    let ids = kept.keys().copied().collect();
    let mut fetched = link.fetch(ids, Class::Demand);
    // Longer than a home may be silent.
    let slow = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        serve.send_replace(true);
    };
    let (object, ()) = tokio::join!(fetched.next(), slow);
    assert!(object.unwrap().unwrap().1.is_some());
    assert_eq!(
        home.shelf.hellos.load(Ordering::SeqCst),
        1,
        "one connection"
    );
}

#[tokio::test]
async fn a_link_notices_that_the_home_stops_and_comes_back() {
    let home = Home::start(Arc::new(shelf()));
    let link = link(&home);
    let mut state = link.state();
    let is_connected = |state: &LinkState| matches!(state, LinkState::Connected(_));
    state.wait_for(is_connected).await.unwrap();
    home.close().await;
    state.wait_for(|state| !is_connected(state)).await.unwrap();
    let (address, shelf) = home.kill();
    let home = Home::start_at(address, shelf);
    state.wait_for(is_connected).await.unwrap();
    assert_eq!(home.shelf.hellos.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_link_that_is_dropped_closes_its_connection() {
    let home = Home::start(Arc::new(shelf()));
    let link = link(&home);
    link.call(&images(), Class::Control)
        .await
        .unwrap()
        .result
        .unwrap();
    drop(link);
    while home.shelf.seen.lock().unwrap().last() != Some(&Seen::Ended) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_push_reports_what_is_durable_as_it_goes() {
    let sent = objects(500, BLOCK);
    let home = Home::start(Arc::new(shelf()));
    let acknowledged = Mutex::new(Vec::new());
    let pushed = link(&home)
        .push(
            UploadId::from_bytes([3; 32]),
            stream::iter(sent.values().cloned()),
            |pushed| acknowledged.lock().unwrap().push(pushed),
        )
        .await
        .unwrap();
    let expected = Pushed {
        objects: 500,
        bytes: sent.values().map(|object| object.len() as u64).sum(),
    };
    assert_eq!(pushed, expected);
    let acknowledged = acknowledged.into_inner().unwrap();
    assert_eq!(acknowledged.last(), Some(&expected));
    assert!(acknowledged.len() > 50);
    assert!(acknowledged.is_sorted_by_key(|pushed| pushed.objects));
    assert_eq!(*home.shelf.objects.lock().unwrap(), sent);
}

#[tokio::test]
async fn a_push_that_is_cut_is_resumed_after_what_was_acknowledged() {
    let sent = objects(400, BLOCK);
    let shelf = shelf();
    shelf.cuts.lock().unwrap().extend([20, 150, 1]);
    let home = Home::start(Arc::new(shelf));
    let link = link(&home);
    let mut rest: Vec<_> = sent.values().cloned().collect();
    let mut cuts = 0;
    loop {
        let mut durable = 0;
        let upload = UploadId::from_bytes([3; 32]);
        let outcome = link
            .push(upload, stream::iter(rest.clone()), |pushed| {
                durable = pushed.objects
            })
            .await;
        let durable = usize::try_from(durable).unwrap();
        for object in rest.drain(..durable) {
            assert!(
                home.shelf
                    .objects
                    .lock()
                    .unwrap()
                    .values()
                    .any(|kept| *kept == object)
            );
        }
        match outcome {
            Ok(_) => break,
            Err(error) => assert_eq!(error, LinkError::Away),
        }
        cuts += 1;
    }
    assert_eq!(cuts, 3);
    assert!(rest.is_empty());
    assert_eq!(*home.shelf.objects.lock().unwrap(), sent);
}

#[tokio::test]
async fn a_push_that_is_refused_half_way_says_why() {
    let mut shelf = shelf();
    shelf.refuse_push_after = Some(3);
    let home = Home::start(Arc::new(shelf));
    let endless = stream::iter((0..).map(|seed| object(seed % 16, BLOCK).1));
    let outcome = link(&home)
        .push(UploadId::from_bytes([3; 32]), endless, |_| {})
        .await;
    assert_eq!(outcome, Err(LinkError::Refused(Refusal::SessionClosed)));
}
