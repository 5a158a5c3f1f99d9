use img_lease::holder::{Kind, Moment, State as Standing};
use img_proto::StealRow;
use img_types::{BootMillis, LeaseMode};

use super::*;
use crate::stream::fake::{CHECKOUT, Device, FakeHome, IMAGE};

async fn until(keeper: &Keeper, wanted: impl Fn(&Holder) -> bool) -> Holder {
    let mut view = keeper.watch();
    let view = view
        .wait_for(|holders| holders.get(&CHECKOUT).is_some_and(&wanted))
        .await
        .unwrap();
    view[&CHECKOUT].clone()
}

fn sent(holder: &Holder) -> Option<i64> {
    holder.tenure().map(|tenure| tenure.until().0)
}

#[tokio::test]
async fn an_offline_lease_is_renewed_at_every_contact_and_the_renewal_is_kept() {
    let fake = FakeHome::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::enrol(dir.path(), &fake, LeaseMode::Offline).await;
    let first = decode(&device.row().holder.unwrap()).unwrap();
    let renewed = until(&device.keeper, |holder| {
        sent(holder) > sent(&first)
            && holder
                .tenure()
                .is_some_and(|tenure| tenure.renewal.is_none())
    })
    .await;
    assert_eq!(decode(&device.row().holder.unwrap()).unwrap(), renewed);
    fake.lock().hang_up();
    until(&device.keeper, |holder| sent(holder) > sent(&renewed)).await;
}

#[tokio::test]
async fn a_lease_that_was_taken_over_shows_at_the_next_renewal() {
    let fake = FakeHome::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::enrol(dir.path(), &fake, LeaseMode::Offline).await;
    let mut events = device.events.subscribe();
    let thief = fake.lock().steal();
    fake.lock().hang_up();
    let holder = until(&device.keeper, |holder| holder.kind() == Kind::Orphan).await;
    assert_eq!(holder.state(), &Standing::Orphan { rival: Some(thief) });
    loop {
        if let events::Event::Checkout { state, dir, .. } = events.recv().await.unwrap() {
            assert_eq!((state, dir.as_str()), ("orphan", "/vm"));
            return;
        }
    }
}

#[tokio::test]
async fn whoever_lost_an_image_hears_why() {
    let fake = FakeHome::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::enrol(dir.path(), &fake, LeaseMode::Offline).await;
    let mut events = device.events.subscribe();
    let thief = fake.lock().steal();
    let sealed = device.home.trusted(|trust| {
        let key = trust.keys.record(trust.keys.newest(), &IMAGE).unwrap();
        let text = "the talk\x1b[2J is today".as_bytes();
        img_seal::seal_field(&key, crate::commits::REASON_PURPOSE, IMAGE.as_bytes(), text)
    });
    fake.lock().steal = Some(StealRow {
        device: thief,
        time: img_types::WallMillis(1),
        reason: sealed.into(),
    });
    fake.lock().hang_up();
    loop {
        if let events::Event::Checkout {
            reason: Some(reason),
            rival,
            ..
        } = events.recv().await.unwrap()
        {
            assert_eq!(reason, "the talk [2J is today");
            assert!(rival.is_some());
            break;
        }
    }
    let mut reasons = device.keeper.reasons.clone();
    let reasons = reasons.wait_for(|reasons| reasons.contains_key(&CHECKOUT));
    drop(reasons.await.unwrap());
    device.keeper.apply(CHECKOUT, Event::Closed).await.unwrap();
    assert_eq!(device.keeper.reason(CHECKOUT), None);
}

#[tokio::test]
async fn a_lapsed_lease_without_a_rival_comes_back_with_the_home() {
    let fake = FakeHome::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::enrol(dir.path(), &fake, LeaseMode::Online).await;
    let now = Clock::new().now();
    let later = Moment {
        boot: BootMillis(now.boot.0 + 3_600_000),
        ..now
    };
    let lapsed = device.keeper.apply(CHECKOUT, Event::Tick(later)).await;
    assert!(lapsed.unwrap());
    let holder = until(&device.keeper, |holder| holder.kind() == Kind::Leased).await;
    assert_eq!(holder.token().unwrap().epoch.0, 1, "the same token");
    assert!(fake.lock().calls.contains(&"renew"));
}

#[tokio::test]
async fn the_commit_of_a_read_only_checkout_is_pinned_at_every_contact() {
    let fake = FakeHome::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::enrol(dir.path(), &fake, LeaseMode::Online).await;
    let label = Label {
        name: "vm".into(),
        dir: "/read".into(),
    };
    let checkout = CheckoutId::from_bytes([0xdd; 32]);
    let base = Some(CommitId::from_bytes([9; 32]));
    let reader = Holder::read_only(crate::stream::fake::IMAGE, checkout, base);
    device.keeper.keep(label, reader).await.unwrap();
    let pinned = async |times: usize| {
        let pins = || {
            fake.lock()
                .calls
                .iter()
                .filter(|call| **call == "pin")
                .count()
        };
        while pins() < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(pins(), times);
    };
    let wait = Duration::from_secs(20);
    tokio::time::timeout(wait, pinned(1)).await.unwrap();
    // Not before the next contact, unless a day has passed.
    let renewed = device.keeper.renew(CHECKOUT, terms()).await;
    renewed.unwrap();
    pinned(1).await;
    fake.lock().hang_up();
    tokio::time::timeout(wait, pinned(2)).await.unwrap();
}

fn terms() -> Terms {
    Terms {
        ttl_ms: 600_000,
        mode: LeaseMode::Online,
    }
}

#[tokio::test]
async fn a_refused_event_changes_nothing_and_an_unknown_checkout_is_named_so() {
    let fake = FakeHome::start().await;
    let dir = tempfile::tempdir().unwrap();
    let device = Device::enrol(dir.path(), &fake, LeaseMode::Online).await;
    assert!(device.keeper.apply(CHECKOUT, Event::Closed).await.unwrap());
    let again = device.keeper.apply(CHECKOUT, Event::Closed).await;
    assert!(matches!(again, Err(KeeperError::Forbidden(_))));
    device.keeper.forget(CHECKOUT).await.unwrap();
    assert_eq!(device.keeper.holder(CHECKOUT), None);
    let gone = device.keeper.apply(CHECKOUT, Event::Closed).await;
    assert!(matches!(gone, Err(KeeperError::Unknown)));
}
