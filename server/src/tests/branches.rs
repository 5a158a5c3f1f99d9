//! Staged work, branches, steals, and commits that are given back.

use bytes::Bytes;
use img_proto::{Answer, Call, Refusal, StealExpectation};
use img_records::Parent;
use img_types::{Epoch, ImageId, RequestId, Seq};

use super::TestHome;
use super::flow::{TERMS, commit, image};
use super::papers::{Draft, id_of};
use super::tree::tree;

#[tokio::test]
async fn staged_work_is_listed_and_stands_in_the_way_of_a_take_over() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let work = tree(2, 1, 3);
    let staged = draft.after(head, work.root, token);
    let signed = first.device.commit(&home.roster(), &staged);
    let stage = Call::Stage {
        commit: signed.to_bytes().into(),
    };
    let refused = first.call(stage.clone()).await;
    assert!(matches!(refused, Err(Refusal::Incomplete { .. })));
    first.push(&work.objects).await.unwrap();
    assert_eq!(first.call(stage).await, Ok(Answer::Done));
    let Ok(Answer::Images { images, .. }) = second.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    let commit = id_of(&signed, first.home());
    assert_eq!(images[0].staged[0].commit, commit);
    assert_eq!(images[0].staged[0].record, signed.to_bytes());

    home.advance_clock(4 * 3600 * 1000);
    let acquire = |take_over| Call::Acquire {
        image: draft.image,
        checkout: second.device.checkout,
        terms: TERMS,
        expect_head: None,
        take_over,
    };
    let refused = second.call(acquire(false)).await;
    let Err(Refusal::StagedWork { staged, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(staged, commit);
    assert!(second.call(acquire(true)).await.is_ok());
    // It stays, and ends at its checkout's word.
    let unstage = Call::Unstage {
        image: draft.image,
        checkout: first.device.checkout,
    };
    assert_eq!(first.call(unstage).await, Ok(Answer::Done));
    let Ok(Answer::Images { images, .. }) = second.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    assert!(images[0].staged.is_empty());
}

#[tokio::test]
async fn a_branch_leaves_the_head_alone() {
    let (home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let work = tree(2, 1, 3);
    second.push(&work.objects).await.unwrap();
    let start = Draft {
        image: ImageId::from_bytes([70; 32]),
        seq: Seq(0),
        parent: Some(Parent {
            image: draft.image,
            commit: head,
        }),
        root: work.root,
        token: None,
    };
    let signed = second.device.commit(&home.roster(), &start);
    let branch = |name| Call::Branch {
        descriptor: named(&second, start.image, name),
        commit: signed.to_bytes().into(),
        terms: TERMS,
    };
    assert_eq!(second.call(branch(1)).await, Err(Refusal::NameTaken));
    let id = RequestId::from_bytes([9; 32]);
    let made = second.call_as(id, branch(2)).await;
    let Ok(Answer::Branched { token: theirs, .. }) = made.clone() else {
        panic!("{made:?}");
    };
    assert_eq!(theirs.epoch, Epoch(1));
    // Sent again, under this request id or another, nothing happens twice and no time is given back.
    home.advance_clock(100_000);
    for again in [id, RequestId::from_bytes([10; 32])] {
        let again = second.call_as(again, branch(2)).await;
        let Ok(Answer::Branched { token, ttl_ms, .. }) = again else {
            panic!("{again:?}");
        };
        assert_eq!(token, theirs);
        assert!(ttl_ms <= TERMS.ttl_ms - 100_000, "{ttl_ms}");
    }

    let next = tree(3, 1, 2);
    let branched = id_of(&signed, first.home());
    let onwards = start.after(branched, next.root, theirs);
    commit(&home, &second, &onwards, &next).await.unwrap();
    let ours = draft.after(head, next.root, token);
    commit(&home, &first, &ours, &next).await.unwrap();
}

#[tokio::test]
async fn a_steal_with_a_branch_keeps_what_the_loser_had_staged() {
    let (home, loser) = TestHome::founded().await;
    let thief = home.second(&loser).await;
    let (draft, head, token) = image(&home, &loser, 1).await;
    let work = tree(2, 1, 3);
    loser.push(&work.objects).await.unwrap();
    let staged = draft.after(head, work.root, token);
    let staged = loser.device.commit(&home.roster(), &staged);
    let stage = Call::Stage {
        commit: staged.to_bytes().into(),
    };
    loser.call(stage).await.unwrap();

    let start = Draft {
        image: ImageId::from_bytes([71; 32]),
        seq: Seq(0),
        parent: Some(Parent {
            image: draft.image,
            commit: head,
        }),
        root: work.root,
        token: None,
    };
    let first = thief.device.commit(&home.roster(), &start);
    let steal = |epoch| Call::Steal {
        image: draft.image,
        checkout: thief.device.checkout,
        terms: TERMS,
        expect: StealExpectation {
            epoch,
            head: Some(head),
            staged: Some(id_of(&staged, loser.home())),
        },
        reason: Bytes::from_static(b"sealed"),
        branch: Some((named(&thief, start.image, 2), first.to_bytes().into())),
    };
    let before = home.standing();
    assert_eq!(thief.call(steal(Epoch(0))).await, Err(Refusal::Changed));
    assert_eq!(home.standing(), before);
    let stolen = thief.call(steal(Epoch(1))).await;
    let Ok(Answer::Granted { token: theirs, .. }) = stolen else {
        panic!("{stolen:?}");
    };
    assert_eq!(theirs.epoch, Epoch(2));
    // The branch is leased to the loser's checkout, for when it is back.
    let device = Some(loser.device.id());
    let Ok(Answer::Leases { images, .. }) = loser
        .call(Call::Leases {
            device,
            after: None,
        })
        .await
    else {
        panic!("no leases");
    };
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].image, start.image);
    let lease = images[0].lease.as_ref().unwrap();
    assert_eq!(lease.checkout, loser.device.checkout);
    let next = tree(3, 1, 2);
    let token = img_types::Token {
        incarnation: theirs.incarnation,
        epoch: lease.epoch,
    };
    let onwards = start.after(id_of(&first, loser.home()), next.root, token);
    commit(&home, &loser, &onwards, &next).await.unwrap();
}

#[tokio::test]
async fn a_home_takes_back_commits_that_it_once_acknowledged() {
    let (mut home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    home.stop().await;
    let backup = home.path.join("before.sqlite");
    let database = home.path.join("home.sqlite");
    std::fs::copy(&database, &backup).unwrap();
    home.resume().await;
    let first = home.member(&first.device).await;
    let next = tree(2, 1, 2);
    let draft = draft.after(head, next.root, token);
    let lost = commit(&home, &first, &draft, &next).await.unwrap();
    let log = Call::Log {
        image: draft.image,
        before: None,
        limit: 1,
    };
    let Ok(Answer::Log { commits, .. }) = first.call(log).await else {
        panic!("no log");
    };
    let seen = home.standing();
    // The home goes back in time, with its objects still in the spool.
    home.stop().await;
    std::fs::copy(&backup, &database).unwrap();
    home.resume().await;
    let first = home.connect(&first.device).await;
    let went_back = first.hello(Some(seen)).await;
    assert_eq!(went_back, Err(Refusal::WentBack { at_seen: None }));
    let mut first = first;
    first.home = Some(home.roster().home());
    first.hello(None).await.unwrap();

    let readmit = |commits| Call::Readmit {
        descriptor: None,
        image: draft.image,
        commits,
    };
    let swapped = vec![(commits[0].0.clone(), commits[0].0.clone())];
    let refused = first.call(readmit(swapped)).await;
    assert!(matches!(refused, Err(Refusal::BadRecord(_))));
    assert_eq!(first.call(readmit(commits)).await, Ok(Answer::Done));
    let Ok(Answer::Images { images, .. }) = first.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    assert_eq!(images[0].seq, Some(Seq(1)));
    assert_eq!((images[0].epoch, &images[0].lease), (Epoch(2), &None));
    let pin = Call::Pin {
        commit: lost,
        checkout: first.device.checkout,
    };
    assert_eq!(first.call(pin).await, Ok(Answer::Done));
}

fn named(client: &super::Client, image: ImageId, name: u8) -> Bytes {
    let descriptor = client.device.descriptor(client.home(), image, name);
    descriptor.to_bytes().into()
}
