//! The rows of the table of events that no other file here shows: what each call leaves in the home.

use img_lease::grantor::LOSER_TTL_MS;
use img_proto::{Answer, Call, Refusal, StealExpectation};
use img_records::{LogEntry, LogKind, Parent};
use img_types::bytes::Reader;
use img_types::limits::{KEPT_AFTER_LOSS, STAGED_PER_IMAGE_MAX};
use img_types::{CheckoutId, CommitId, DaemonNonce, Epoch, ImageId, LogPosition, Seq};

use super::flow::{TERMS, commit, create, image, stage};
use super::leases::renew;
use super::papers::Draft;
use super::tree::tree;
use super::{Client, TestHome};

/// The newest entries of the log, oldest first.
async fn log(home: &TestHome, count: u32) -> Vec<LogEntry> {
    let mut connection = home.running().home.db.reads().acquire().await.unwrap();
    let sql = "SELECT entry FROM log ORDER BY position DESC LIMIT $1";
    let rows: Vec<Vec<u8>> = sqlx::query_scalar(sql)
        .bind(count)
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    let entries = rows.iter().rev();
    let decode = |bytes: &Vec<u8>| LogEntry::decode(&mut Reader::new(bytes)).unwrap();
    entries.map(decode).collect()
}

fn steal(client: &Client, image: ImageId, head: CommitId) -> Call {
    Call::Steal {
        image,
        checkout: client.device.checkout,
        terms: TERMS,
        expect: StealExpectation {
            epoch: Epoch(1),
            head: Some(head),
            staged: None,
        },
        reason: bytes::Bytes::new(),
        branch: None,
    }
}

async fn staged(client: &Client) -> usize {
    match client.call(Call::Images { after: None }).await {
        Ok(Answer::Images { images, .. }) => images[0].staged.len(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_resumed_creation_is_of_the_same_descriptor_or_has_no_effect() {
    let (home, founder) = TestHome::founded().await;
    let image = ImageId::from_bytes([1; 32]);
    create(&founder, image, 1).await;
    let before = home.standing();
    let (home_id, tag) = (founder.home(), 1);
    let mut other = founder.device.descriptor(home_id, image, tag).record;
    other.sealed = vec![2; 60];
    let other = img_records::Signed::sign(other, &home_id, &founder.device.sign);
    let again = Call::CreateImage {
        descriptor: other.to_bytes().into(),
        checkout: CheckoutId::from_bytes([8; 32]),
        terms: TERMS,
    };
    let refused = founder.call(again).await;
    assert!(matches!(refused, Err(Refusal::BadRecord(_))), "{refused:?}");
    assert_eq!(home.standing(), before);
    // With the same one the import goes on, from the same checkout or another.
    create(&founder, image, 1).await;
    assert_eq!(home.standing(), before);
}

#[tokio::test]
async fn a_connected_loser_hears_of_a_steal_at_once_and_the_log_names_both() {
    let (home, loser) = TestHome::founded().await;
    let thief = home.second(&loser).await;
    let (draft, head, _) = image(&home, &loser, 1).await;
    let after = home.standing().position;
    let began = std::time::Instant::now();
    let watch = loser.call(Call::Watch { after });
    let (watched, stolen) = tokio::join!(watch, thief.call(steal(&thief, draft.image, head)));
    assert!(matches!(stolen, Ok(Answer::Granted { .. })));
    let images = vec![draft.image];
    assert_eq!(watched, Ok(Answer::Changed { images }));
    assert!(began.elapsed() < crate::calls::WAIT_MAX / 2);
    let entry = log(&home, 1).await[0];
    assert_eq!((entry.kind, entry.epoch), (LogKind::Steal, Epoch(2)));
    assert_eq!(entry.device, thief.device.id());
    assert_eq!(entry.subject, *loser.device.checkout.as_bytes());
}

#[tokio::test]
async fn nobody_can_be_stolen_from_where_nobody_holds() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let release = Call::Release {
        image: draft.image,
        checkout: first.device.checkout,
        token,
    };
    first.call(release).await.unwrap();
    let refused = second.call(steal(&second, draft.image, head)).await;
    assert_eq!(refused, Err(Refusal::NobodyHolds));
}

#[tokio::test]
async fn a_steal_with_nothing_staged_branches_at_the_losers_base_for_a_week_at_least() {
    let (home, loser) = TestHome::founded().await;
    let thief = home.second(&loser).await;
    let (draft, head, _) = image(&home, &loser, 1).await;
    let branch = |root| Draft {
        image: ImageId::from_bytes([71; 32]),
        seq: Seq(0),
        parent: Some(Parent {
            image: draft.image,
            commit: head,
        }),
        root,
        token: None,
    };
    let call = |name, root| {
        let descriptor = thief
            .device
            .descriptor(thief.home(), ImageId::from_bytes([71; 32]), name);
        let first = thief.device.commit(&home.roster(), &branch(root));
        let mut call = steal(&thief, draft.image, head);
        if let Call::Steal { branch, .. } = &mut call {
            *branch = Some((descriptor.to_bytes().into(), first.to_bytes().into()));
        }
        call
    };
    // What fails of the branch leaves the lease alone too.
    let before = home.standing();
    let refused = thief.call(call(1, draft.root)).await;
    assert_eq!(refused, Err(Refusal::NameTaken));
    let absent = tree(9, 1, 2).root;
    let refused = thief.call(call(2, absent)).await;
    assert!(matches!(refused, Err(Refusal::Incomplete { .. })));
    assert_eq!(home.standing(), before);
    let stolen = thief.call(call(2, draft.root)).await;
    assert!(matches!(stolen, Ok(Answer::Granted { .. })), "{stolen:?}");
    let leases = Call::Leases {
        device: Some(loser.device.id()),
        after: None,
    };
    let Ok(Answer::Leases { images, .. }) = loser.call(leases).await else {
        panic!("no leases");
    };
    let lease = images[0].lease.as_ref().unwrap();
    assert_eq!(images[0].image, ImageId::from_bytes([71; 32]));
    assert!(lease.remaining_ms > LOSER_TTL_MS - 60_000);
    assert_eq!(lease.mode, img_types::LeaseMode::Offline);
}

#[tokio::test]
async fn any_complete_root_can_be_branched_also_by_a_fenced_daemon_and_from_an_unknown_commit() {
    let (home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let work = tree(2, 1, 3);
    let upon = draft.after(head, work.root, token);
    let staged = stage(&home, &first, &upon, &work).await.unwrap();
    let newer = home.connect(&first.device).await;
    let nonce = DaemonNonce::from_bytes([44; 32]);
    newer.hello_as(nonce, None).await.unwrap();
    let unknown = CommitId::from_bytes([99; 32]);
    for (n, parent) in [(72u8, staged), (73, unknown), (74, head)] {
        let start = Draft {
            image: ImageId::from_bytes([n; 32]),
            seq: Seq(0),
            parent: Some(Parent {
                image: draft.image,
                commit: parent,
            }),
            root: work.root,
            token: None,
        };
        let signed = first.device.commit(&home.roster(), &start);
        let descriptor = first.device.descriptor(first.home(), start.image, n);
        let branch = Call::Branch {
            descriptor: descriptor.to_bytes().into(),
            commit: signed.to_bytes().into(),
            terms: TERMS,
        };
        let made = first.call(branch).await;
        assert!(matches!(made, Ok(Answer::Branched { .. })), "{made:?}");
    }
    // Branching what is staged does not unstage it.
    assert_eq!(self::staged(&newer).await, 1);
}

#[tokio::test]
async fn staged_work_goes_with_the_commit_of_its_checkout_and_by_time_only_without_its_token() {
    let (home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let kept_ms = u64::try_from(KEPT_AFTER_LOSS.as_millis()).unwrap();
    let work = tree(2, 1, 3);
    let upon = draft.after(head, work.root, token);
    stage(&home, &first, &upon, &work).await.unwrap();
    // An older or equal one does not replace it; under a lapsed but current token time does not take it.
    stage(&home, &first, &upon, &work).await.unwrap();
    home.advance_clock(2 * kept_ms);
    crate::calls::tidy(&home.running().home).await.unwrap();
    assert_eq!(staged(&first).await, 1);
    let head = commit(&home, &first, &upon, &work).await.unwrap();
    assert_eq!(staged(&first).await, 0);
    // As a commit it is known, and staging it again is nothing.
    stage(&home, &first, &upon, &work).await.unwrap();
    assert_eq!(staged(&first).await, 0);
    let more = tree(3, 1, 3);
    let upon = upon.after(head, more.root, token);
    stage(&home, &first, &upon, &more).await.unwrap();
    let release = Call::Release {
        image: draft.image,
        checkout: first.device.checkout,
        token,
    };
    first.call(release).await.unwrap();
    home.advance_clock(kept_ms - 1_000);
    crate::calls::tidy(&home.running().home).await.unwrap();
    assert_eq!(staged(&first).await, 1);
    home.advance_clock(1_000);
    crate::calls::tidy(&home.running().home).await.unwrap();
    assert_eq!(staged(&first).await, 0);
}

#[tokio::test]
async fn a_call_under_the_lease_does_not_write_what_others_have_staged() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let written = async || {
        let count = home.running().home.db.writer().call(|tx| {
            Box::pin(async move {
                let sql = "SELECT total_changes()";
                let count: i64 = sqlx::query_scalar(sql).fetch_one(tx.sql().await?).await?;
                Ok(count)
            })
        });
        count.await.unwrap()
    };
    let renewal = async || {
        let before = written().await;
        home.advance_clock(1_000);
        renew(&first, draft.image, token).await.unwrap();
        written().await - before
    };
    let alone = renewal().await;
    let work = tree(2, 1, 3);
    let upon = draft.after(head, work.root, token);
    stage(&home, &first, &upon, &work).await.unwrap();
    stage(&home, &second, &upon, &work).await.unwrap();
    assert_eq!(staged(&first).await, 2);
    assert_eq!(renewal().await, alone);
    assert_eq!(renewal().await, alone);
}

#[tokio::test]
async fn so_many_checkouts_may_stage_upon_one_image_and_no_more() {
    let (home, mut first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let work = tree(2, 1, 3);
    let upon = draft.after(head, work.root, token);
    for n in 0..STAGED_PER_IMAGE_MAX {
        first.device.checkout = CheckoutId::from_bytes([u8::try_from(n).unwrap() + 100; 32]);
        stage(&home, &first, &upon, &work).await.unwrap();
    }
    first.device.checkout = CheckoutId::from_bytes([99; 32]);
    let refused = stage(&home, &first, &upon, &work).await;
    assert!(matches!(refused, Err(Refusal::OverLimit(_))));
    assert_eq!(staged(&first).await, STAGED_PER_IMAGE_MAX);
}

#[tokio::test]
async fn a_forced_deletion_stands_in_the_log_as_a_steal_and_keeps_commits_for_a_branch() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, _) = image(&home, &first, 1).await;
    let delete = Call::DeleteImage {
        image: draft.image,
        force: true,
    };
    second.call(delete).await.unwrap();
    let [steal, deleted] = &log(&home, 2).await[..] else {
        panic!("no entries");
    };
    assert_eq!(
        (steal.kind, deleted.kind),
        (LogKind::Steal, LogKind::Delete)
    );
    assert_eq!(steal.subject, *first.device.checkout.as_bytes());
    assert_eq!(steal.device, second.device.id());
    assert_eq!(deleted.subject, *head.as_bytes());
    let start = Draft {
        image: ImageId::from_bytes([75; 32]),
        seq: Seq(0),
        parent: Some(Parent {
            image: draft.image,
            commit: head,
        }),
        root: draft.root,
        token: None,
    };
    let descriptor = first.device.descriptor(first.home(), start.image, 1);
    let branch = Call::Branch {
        descriptor: descriptor.to_bytes().into(),
        commit: first
            .device
            .commit(&home.roster(), &start)
            .to_bytes()
            .into(),
        terms: TERMS,
    };
    assert!(first.call(branch).await.is_ok());
}

#[tokio::test]
async fn pins_are_renewed_on_contact_listed_and_end_thirty_days_after_it() {
    let (home, first) = TestHome::founded().await;
    let (_, head, _) = image(&home, &first, 1).await;
    let pin = Call::Pin {
        commit: head,
        checkout: first.device.checkout,
    };
    first.call(pin).await.unwrap();
    let kept_ms = u64::try_from(KEPT_AFTER_LOSS.as_millis()).unwrap();
    for _ in 0..3 {
        home.advance_clock(kept_ms - 10_000);
        crate::calls::tidy(&home.running().home).await.unwrap();
        first.hello(None).await.unwrap();
    }
    let usage = crate::usage(&home.places()).await.unwrap();
    let [pinned] = &usage.first_pins[..] else {
        panic!("{:?}", usage.first_pins);
    };
    assert_eq!((pinned.commit, pinned.device), (head, first.device.id()));
    assert!(pinned.remaining_ms > kept_ms - 10_000);
    home.advance_clock(kept_ms);
    crate::calls::tidy(&home.running().home).await.unwrap();
    assert_eq!(crate::usage(&home.places()).await.unwrap().pins, 0);
}

#[tokio::test]
async fn a_revocation_ends_leases_names_a_position_and_keeps_what_was_staged() {
    let (home, admin) = TestHome::founded().await;
    let second = home.second(&admin).await;
    let (draft, head, token) = image(&home, &second, 1).await;
    let work = tree(2, 1, 3);
    let upon = draft.after(head, work.root, token);
    stage(&home, &second, &upon, &work).await.unwrap();
    let (id, done) = (second.device.id(), home.standing().position);
    let early = LogPosition(done.0 - 1);
    let entry = admin.device.revoke(&home.roster(), id, early);
    let refused = admin.call(Call::RosterAppend { entry }).await;
    assert_eq!(refused, Err(Refusal::LogMoved { position: done }));
    let entry = admin.device.revoke(&home.roster(), id, done);
    admin.call(Call::RosterAppend { entry }).await.unwrap();
    second.connection.closed().await;
    let Ok(Answer::Images { images, .. }) = admin.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    assert_eq!((&images[0].lease, images[0].staged.len()), (&None, 1));
    assert_eq!(images[0].epoch, token.epoch);
    let back = home.connect(&second.device).await;
    let commit = Call::Commit {
        commit: second
            .device
            .commit(&home.roster(), &upon)
            .to_bytes()
            .into(),
    };
    assert_eq!(back.call(commit).await, Err(Refusal::NotMember));
    let acquire = Call::Acquire {
        image: draft.image,
        checkout: admin.device.checkout,
        terms: TERMS,
        expect_head: Some(head),
        take_over: false,
    };
    let Ok(Answer::Granted { token: next, .. }) = admin.call(acquire).await else {
        panic!("no lease");
    };
    assert_eq!(Some(next.epoch), token.epoch.next());
}
