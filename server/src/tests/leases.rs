//! Tokens: who may move a head, seen from the wire. The rules have their own tests in `img-lease`.

use img_proto::{Answer, Call, Refusal};
use img_types::limits::LEASE_TTL_DEFAULT;
use img_types::{CheckoutId, CommitId, Epoch, ImageId, RequestId, Token};

use super::flow::{TERMS, commit, image};
use super::tree::tree;
use super::{Client, TestHome};

pub(super) async fn acquire(
    client: &Client,
    image: ImageId,
    expect_head: Option<CommitId>,
) -> Result<Token, Refusal> {
    let acquire = Call::Acquire {
        image,
        checkout: client.device.checkout,
        terms: TERMS,
        expect_head,
        take_over: false,
    };
    match client.call(acquire).await? {
        Answer::Granted { token, head, .. } => {
            assert!(head.is_some(), "token and head come in one reply");
            Ok(token)
        }
        other => panic!("{other:?}"),
    }
}

pub(super) async fn release(
    client: &Client,
    image: ImageId,
    token: Token,
) -> Result<Answer, Refusal> {
    let checkout = client.device.checkout;
    let release = Call::Release {
        image,
        checkout,
        token,
    };
    client.call(release).await
}

pub(super) async fn renew(
    client: &Client,
    image: ImageId,
    token: Token,
) -> Result<Answer, Refusal> {
    let renew = Call::Renew {
        image,
        checkout: client.device.checkout,
        token,
        terms: None,
    };
    client.call(renew).await
}

#[tokio::test]
async fn of_two_devices_one_holds_and_the_other_waits_for_the_release() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let refused = acquire(&second, draft.image, None).await;
    let Err(Refusal::Leased(lease)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(lease.device, first.device.id());
    assert!(lease.remaining_ms > 0 && !lease.lapsed);

    assert_eq!(release(&first, draft.image, token).await, Ok(Answer::Done));
    let other = CommitId::from_bytes([3; 32]);
    let refused = acquire(&second, draft.image, Some(other)).await;
    assert_eq!(refused, Err(Refusal::HeadMoved { head: Some(head) }));
    let theirs = acquire(&second, draft.image, Some(head)).await.unwrap();
    assert_eq!(theirs.epoch, Epoch(2));

    // The old token is worth nothing now, whatever is tried with it.
    let stale = Refusal::TokenStale {
        epoch: Epoch(2),
        holder: Some(second.device.id()),
        mode: Some(TERMS.mode),
    };
    assert_eq!(renew(&first, draft.image, token).await, Err(stale.clone()));
    assert_eq!(release(&first, draft.image, token).await, Ok(Answer::Done));
    let next = tree(50, 1, 2);
    let late = draft.after(head, next.root, token);
    assert_eq!(
        commit(&home, &first, &late, &next).await,
        Err(stale.clone())
    );
    // Nor is the other's token, for somebody who knows it.
    let forged = draft.after(head, next.root, theirs);
    assert_eq!(commit(&home, &first, &forged, &next).await, Err(stale));
    // And the holder is not disturbed.
    let theirs = draft.after(head, next.root, theirs);
    commit(&home, &second, &theirs, &next).await.unwrap();
}

#[tokio::test]
async fn many_devices_at_once_get_one_grant() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, _, token) = image(&home, &first, 1).await;
    release(&first, draft.image, token).await.unwrap();
    for _ in 0..10 {
        let (a, b) = tokio::join!(
            acquire(&first, draft.image, None),
            acquire(&second, draft.image, None)
        );
        let (winner, token) = match (&a, &b) {
            (Ok(token), Err(Refusal::Leased(_))) => (&first, *token),
            (Err(Refusal::Leased(_)), Ok(token)) => (&second, *token),
            other => panic!("{other:?}"),
        };
        release(winner, draft.image, token).await.unwrap();
    }
}

#[tokio::test]
async fn a_commit_on_another_base_than_the_head_is_refused() {
    let (home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let next = tree(2, 1, 2);
    let second = draft.after(head, next.root, token);
    let moved = commit(&home, &first, &second, &next).await.unwrap();
    let other = tree(3, 1, 2);
    let rival = draft.after(head, other.root, token);
    let refused = commit(&home, &first, &rival, &other).await;
    assert_eq!(refused, Err(Refusal::HeadMoved { head: Some(moved) }));
}

#[tokio::test]
async fn a_lapse_without_a_rival_is_no_loss() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    home.advance_clock(TERMS.ttl_ms - 1_000);
    let refused = acquire(&second, draft.image, None).await;
    assert!(matches!(refused, Err(Refusal::Leased(_))));
    // Granted after the start: no grace.
    home.advance_clock(1_000);
    let Ok(Answer::Leases { images, .. }) = second
        .call(Call::Leases {
            device: None,
            after: None,
        })
        .await
    else {
        panic!("no leases");
    };
    assert!(images[0].lease.as_ref().unwrap().lapsed);
    // Its holder goes on under the same token, also by committing.
    let next = tree(2, 1, 2);
    let late = draft.after(head, next.root, token);
    commit(&home, &first, &late, &next).await.unwrap();
    let renewed = renew(&first, draft.image, token).await;
    assert_eq!(
        renewed,
        Ok(Answer::Renewed {
            ttl_ms: TERMS.ttl_ms
        })
    );
    let refused = acquire(&second, draft.image, None).await;
    assert!(matches!(refused, Err(Refusal::Leased(_))));
    // Lapsed again, it is the rival's.
    home.advance_clock(TERMS.ttl_ms);
    let rival = acquire(&second, draft.image, None).await.unwrap();
    assert_eq!(rival.epoch, Epoch(2));
    let orphan = renew(&first, draft.image, token).await;
    assert!(matches!(orphan, Err(Refusal::TokenStale { .. })));
}

#[tokio::test]
async fn a_restart_keeps_leases_and_starts_a_grace() {
    let (mut home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    home.advance_clock(TERMS.ttl_ms - 1_000);
    crate::calls::tidy(&home.running().home).await.unwrap();
    home.restart().await;
    let first = home.member(&first.device).await;
    let second = home.second(&first).await;
    let Ok(Answer::Leases { images, .. }) = second
        .call(Call::Leases {
            device: None,
            after: None,
        })
        .await
    else {
        panic!("no leases");
    };
    let lease = images[0].lease.as_ref().unwrap();
    assert!(lease.remaining_ms <= 1_000, "never more than was persisted");
    home.advance_clock(60_000);
    let refused = acquire(&second, draft.image, None).await;
    assert!(matches!(refused, Err(Refusal::Leased(_))));
    let next = tree(2, 1, 2);
    let draft = draft.after(head, next.root, token);
    commit(&home, &first, &draft, &next).await.unwrap();
    // The grace outlives other changes of the image, and ends.
    let refused = acquire(&second, draft.image, None).await;
    assert!(matches!(refused, Err(Refusal::Leased(_))));
    home.advance_clock(u64::try_from(LEASE_TTL_DEFAULT.as_millis()).unwrap());
    acquire(&second, draft.image, None).await.unwrap();
}

#[tokio::test]
async fn a_replayed_grant_that_is_over_says_so() {
    let (home, first) = TestHome::founded().await;
    let (draft, _, token) = image(&home, &first, 1).await;
    release(&first, draft.image, token).await.unwrap();
    let id = RequestId::from_bytes([9; 32]);
    let call = Call::Acquire {
        image: draft.image,
        checkout: first.device.checkout,
        terms: TERMS,
        expect_head: None,
        take_over: false,
    };
    let granted = first.call_as(id, call.clone()).await;
    let Ok(Answer::Granted { token, .. }) = granted else {
        panic!("{granted:?}");
    };
    release(&first, draft.image, token).await.unwrap();
    let after = home.standing();
    let replayed = first.call_as(id, call).await;
    let Ok(Answer::Granted {
        token: same,
        current,
        ..
    }) = replayed
    else {
        panic!("{replayed:?}");
    };
    assert_eq!((same, current), (token, false));
    assert_eq!(home.standing(), after);
}

#[tokio::test]
async fn a_replayed_renewal_gives_no_time_that_has_passed() {
    let (home, first) = TestHome::founded().await;
    let (draft, _, token) = image(&home, &first, 1).await;
    let id = RequestId::from_bytes([9; 32]);
    let call = Call::Renew {
        image: draft.image,
        checkout: first.device.checkout,
        token,
        terms: None,
    };
    let renewed = first.call_as(id, call.clone()).await;
    let ttl_ms = TERMS.ttl_ms;
    assert_eq!(renewed, Ok(Answer::Renewed { ttl_ms }));
    home.advance_clock(100_000);
    let Ok(Answer::Renewed { ttl_ms: left }) = first.call_as(id, call.clone()).await else {
        panic!("the token is current");
    };
    assert!(left <= ttl_ms - 100_000, "{left}");
    release(&first, draft.image, token).await.unwrap();
    let stale = first.call_as(id, call).await;
    assert!(matches!(stale, Err(Refusal::TokenStale { .. })));
}

#[tokio::test]
async fn another_checkout_of_the_same_device_does_not_hold() {
    let (home, mut first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    first.device.checkout = CheckoutId::from_bytes([40; 32]);
    let next = tree(2, 1, 2);
    let other = draft.after(head, next.root, token);
    let refused = commit(&home, &first, &other, &next).await;
    assert!(matches!(refused, Err(Refusal::TokenStale { .. })));
}

#[tokio::test]
async fn watch_tells_of_what_happens_meanwhile() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, _, token) = image(&home, &first, 1).await;
    let after = home.standing().position;
    let watch = second.call(Call::Watch { after });
    let release = release(&first, draft.image, token);
    let (changed, released) = tokio::join!(watch, release);
    released.unwrap();
    let images = vec![draft.image];
    assert_eq!(changed, Ok(Answer::Changed { images }));
}

#[tokio::test]
async fn pins_are_of_known_commits_and_end_at_their_devices_word() {
    let (home, first) = TestHome::founded().await;
    let (_, commit, _) = image(&home, &first, 1).await;
    let checkout = first.device.checkout;
    let unknown = Call::Pin {
        commit: CommitId::from_bytes([1; 32]),
        checkout,
    };
    assert_eq!(first.call(unknown).await, Err(Refusal::UnknownCommit));
    let pin = Call::Pin { commit, checkout };
    assert_eq!(first.call(pin.clone()).await, Ok(Answer::Done));
    assert_eq!(first.call(pin).await, Ok(Answer::Done));
    let unpin = Call::Unpin { commit, checkout };
    assert_eq!(first.call(unpin.clone()).await, Ok(Answer::Done));
    assert_eq!(first.call(unpin).await, Ok(Answer::Done));
}

#[tokio::test]
async fn a_deleted_image_frees_its_name_and_its_id_stays_taken() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, ..) = image(&home, &first, 1).await;
    let delete = |force| Call::DeleteImage {
        image: draft.image,
        force,
    };
    let refused = second.call(delete(false)).await;
    assert!(matches!(refused, Err(Refusal::Leased(_))));
    assert_eq!(second.call(delete(true)).await, Ok(Answer::Done));
    let refused = acquire(&first, draft.image, None).await;
    assert_eq!(refused, Err(Refusal::UnknownImage));
    let descriptor = first.device.descriptor(first.home(), draft.image, 1);
    let again = Call::CreateImage {
        descriptor: descriptor.to_bytes().into(),
        checkout: first.device.checkout,
        terms: TERMS,
    };
    let refused = first.call(again).await;
    assert!(matches!(refused, Err(Refusal::BadRecord(_))));
    super::flow::create(&first, ImageId::from_bytes([2; 32]), 1).await;
}
