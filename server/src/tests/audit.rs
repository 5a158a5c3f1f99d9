//! What an admin can see of refused calls and of force.

use bytes::Bytes;
use img_proto::call::AdminCommand;
use img_proto::{Answer, AuditRow, Call, Refusal, StealExpectation};
use img_types::{DaemonNonce, DeviceId, Epoch};

use super::flow::{TERMS, commit, image};
use super::papers::Device;
use super::tree::tree;
use super::{Client, TestHome};
use crate::db::audit::{self, Noted};

async fn audit(admin: &Client, before: Option<u64>, limit: u32) -> (Vec<AuditRow>, bool) {
    let command = AdminCommand::Audit { before, limit };
    match admin.call(Call::Admin { command }).await {
        Ok(Answer::Audit { entries, more }) => (entries, more),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn refusals_and_steals_are_written_down_for_admins() {
    let (mut home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let acquire = Call::Acquire {
        image: draft.image,
        checkout: second.device.checkout,
        terms: TERMS,
        expect_head: None,
        take_over: false,
    };
    for _ in 0..3 {
        let refused = second.call(acquire.clone()).await;
        assert!(matches!(refused, Err(Refusal::Leased(_))));
    }
    let steal = Call::Steal {
        image: draft.image,
        checkout: second.device.checkout,
        terms: TERMS,
        expect: StealExpectation {
            epoch: Epoch(1),
            head: Some(head),
            staged: None,
        },
        reason: Bytes::from_static(b"sealed"),
        branch: None,
    };
    second.call(steal.clone()).await.unwrap();
    let late = tree(2, 1, 2);
    let after = draft.after(head, late.root, token);
    let refused = commit(&home, &first, &after, &late).await;
    assert!(matches!(refused, Err(Refusal::TokenStale { .. })));
    let refused = second.call(steal).await;
    assert_eq!(refused, Err(Refusal::Changed));
    let stranger = home.connect(&Device::new(9)).await;
    let images = Call::Images { after: None };
    assert_eq!(stranger.call(images).await, Err(Refusal::NotMember));
    let fetch = Call::Fetch {
        ids: Vec::new(),
        class: img_proto::Class::Demand,
    };
    assert_eq!(stranger.call(fetch).await, Err(Refusal::NotMember));
    let newer = home.connect(&second.device).await;
    let nonce = DaemonNonce::from_bytes([44; 32]);
    newer.hello_as(nonce, None).await.unwrap();
    let fenced = second.call(acquire).await;
    assert_eq!(fenced, Err(Refusal::InstanceFenced));
    let command = AdminCommand::Audit {
        before: None,
        limit: 9,
    };
    let refused = newer.call(Call::Admin { command }).await;
    assert_eq!(refused, Err(Refusal::NotAdmin));

    // An orderly end keeps what was not written yet.
    home.restart().await;
    let first = home.member(&first.device).await;
    let (entries, more) = audit(&first, None, 100).await;
    assert!(!more);
    let told = |device: Option<DeviceId>, call: &str, refusal: Option<Refusal>| {
        let refusal = refusal.map(|refusal| refusal.to_string());
        let same = entries.iter().filter(|entry| {
            (entry.device, entry.call.as_str(), &entry.refusal) == (device, call, &refusal)
        });
        same.count()
    };
    let thief = Some(second.device.id());
    let stolen = entries.iter().find(|entry| entry.refusal.is_none());
    let stolen = stolen.unwrap();
    assert_eq!((stolen.device, stolen.image), (thief, Some(draft.image)));
    assert_eq!(
        (&stolen.call[..], &stolen.reason[..]),
        ("Steal", &b"sealed"[..])
    );
    // The loser asks for its own; whoever lost nothing hears of nobody.
    let lost = |checkout| Call::StolenBy {
        image: draft.image,
        checkout,
    };
    let Ok(Answer::StolenBy { steal: Some(steal) }) = first.call(lost(first.device.checkout)).await
    else {
        panic!("no steal");
    };
    assert_eq!(
        (Some(steal.device), &steal.reason[..]),
        (thief, &b"sealed"[..])
    );
    let nothing = first.call(lost(second.device.checkout)).await;
    assert_eq!(nothing, Ok(Answer::StolenBy { steal: None }));
    assert_eq!(told(thief, "Steal", Some(Refusal::Changed)), 1);
    assert_eq!(told(thief, "Acquire", Some(Refusal::InstanceFenced)), 1);
    assert_eq!(told(thief, "Admin", Some(Refusal::NotAdmin)), 1);
    assert_eq!(told(None, "read", Some(Refusal::NotMember)), 1);
    assert_eq!(told(None, "objects", Some(Refusal::NotMember)), 1);
    // Equal ones are one.
    let acquires = entries.iter().filter(|entry| entry.call == "Acquire");
    assert_eq!(acquires.count(), 2);
    let commit = entries.iter().find(|entry| entry.call == "Commit").unwrap();
    assert_eq!(commit.device, Some(first.device.id()));
    assert_eq!(commit.image, Some(draft.image));
    let (page, more) = audit(&first, Some(entries[1].number), 2).await;
    assert_eq!((&page[..], more), (&entries[2..4], true));
}

#[tokio::test]
async fn an_earlier_steal_is_not_told_of_a_checkout_that_has_had_the_image_since() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, _) = image(&home, &first, 1).await;
    let steal = Call::Steal {
        image: draft.image,
        checkout: second.device.checkout,
        terms: TERMS,
        expect: StealExpectation {
            epoch: Epoch(1),
            head: Some(head),
            staged: None,
        },
        reason: Bytes::from_static(b"sealed"),
        branch: None,
    };
    let Ok(Answer::Granted { token, .. }) = second.call(steal).await else {
        panic!("not stolen");
    };
    let lost = Call::StolenBy {
        image: draft.image,
        checkout: first.device.checkout,
    };
    let told = first.call(lost.clone()).await;
    assert!(matches!(told, Ok(Answer::StolenBy { steal: Some(_) })));
    let release = Call::Release {
        image: draft.image,
        checkout: second.device.checkout,
        token,
    };
    second.call(release).await.unwrap();
    let acquire = Call::Acquire {
        image: draft.image,
        checkout: first.device.checkout,
        terms: TERMS,
        expect_head: None,
        take_over: false,
    };
    first.call(acquire).await.unwrap();
    let told = first.call(lost).await;
    assert_eq!(told, Ok(Answer::StolenBy { steal: None }));
}

#[tokio::test]
async fn the_oldest_entries_go_and_strangers_push_out_only_strangers() {
    let (home, admin) = TestHome::founded().await;
    let noted = |device, count: u32| {
        let refusal = |n| Noted {
            device,
            image: None,
            call: "Acquire",
            refusal: Some(n),
            reason: Bytes::new(),
        };
        let entries: Vec<_> = (0..count).map(|n| refusal(n.to_string())).collect();
        let writer = home.running().home.db.writer();
        writer.call(move |tx| Box::pin(async move { audit::insert(tx, &entries).await }))
    };
    let device = Some(admin.device.id());
    noted(device, 10_001).await.unwrap();
    noted(None, 1_001).await.unwrap();
    noted(None, 1_001).await.unwrap();
    let (mut devices, mut strangers, mut before) = (0, 0, None);
    loop {
        let (entries, more) = self::audit(&admin, before, 1_000_000).await;
        before = entries.last().map(|entry| entry.number);
        devices += entries
            .iter()
            .filter(|entry| entry.device == device)
            .count();
        strangers += entries
            .iter()
            .filter(|entry| entry.device.is_none())
            .count();
        if !more {
            break;
        }
    }
    assert_eq!((devices, strangers), (10_000, 1_000));
}

#[tokio::test]
async fn admins_see_who_had_an_image() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, _, token) = image(&home, &first, 1).await;
    let release = Call::Release {
        image: draft.image,
        checkout: first.device.checkout,
        token,
    };
    first.call(release).await.unwrap();
    let history = |before, limit| Call::Admin {
        command: AdminCommand::History {
            image: draft.image,
            before,
            limit,
        },
    };
    let Ok(Answer::History { entries, more }) = first.call(history(None, 2)).await else {
        panic!("no history");
    };
    assert!(more);
    let kind = |bytes: &Bytes| {
        let mut reader = img_types::bytes::Reader::new(bytes);
        let entry = img_records::LogEntry::decode(&mut reader).unwrap();
        assert_eq!(
            (entry.image, entry.device),
            (draft.image, first.device.id())
        );
        entry.kind
    };
    use img_records::LogKind;
    let kinds: Vec<_> = entries.iter().map(|(_, entry)| kind(entry)).collect();
    assert_eq!(kinds, [LogKind::Release, LogKind::Commit]);
    let older = first.call(history(Some(entries[1].0), 100)).await;
    let Ok(Answer::History { entries, more }) = older else {
        panic!("no history");
    };
    let kinds: Vec<_> = entries.iter().map(|(_, entry)| kind(entry)).collect();
    assert!(kinds.contains(&LogKind::Grant) && !more);
    let refused = second.call(history(None, 2)).await;
    assert_eq!(refused, Err(Refusal::NotAdmin));
}
