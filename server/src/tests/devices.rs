//! Daemon starts, cloned disks, and a home that is not what a device saw.

use img_proto::{Answer, Call, Refusal, Standing};
use img_types::{DaemonNonce, Instance, LogPosition, LogRoot, RequestId};

use super::TestHome;
use super::flow::{TERMS, commit, image};
use super::leases::renew;
use super::tree::tree;

fn instance(answer: Result<Answer, Refusal>) -> Instance {
    match answer {
        Ok(Answer::Hello { instance, .. }) => instance,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_newest_daemon_of_a_device_wins() {
    let (home, old) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &old, 1).await;
    assert_eq!(instance(old.hello(None).await), Instance(1));
    let new = home.connect(&old.device).await;
    let nonce = DaemonNonce::from_bytes([44; 32]);
    assert_eq!(instance(new.hello_as(nonce, None).await), Instance(2));
    assert_eq!(instance(new.hello_as(nonce, None).await), Instance(2));
    // The lease moved along; the older daemon may not use it any more, and not come back.
    let next = tree(2, 1, 2);
    let draft = draft.after(head, next.root, token);
    let fenced = commit(&home, &old, &draft, &next).await;
    assert_eq!(fenced, Err(Refusal::InstanceFenced));
    assert_eq!(old.hello(None).await, Err(Refusal::InstanceFenced));
    let signed = old.device.commit(&home.roster(), &draft).to_bytes();
    let commit = Call::Commit {
        commit: signed.into(),
    };
    new.call(commit).await.unwrap();
    // What the older one may still do, on this connection and on another.
    let back = home.connect(&old.device).await;
    assert_eq!(back.hello(None).await, Err(Refusal::InstanceFenced));
    for older in [old, back] {
        for reads in [
            Call::Images { after: None },
            Call::Roster { from: 0 },
            Call::Log {
                image: draft.image,
                before: None,
                limit: 1,
            },
        ] {
            assert!(older.call(reads).await.is_ok());
        }
        let pushed = older.push(&next.objects).await;
        assert_eq!(pushed, Ok(next.objects.len() as u64));
        let unpin = Call::Unpin {
            commit: head,
            checkout: older.device.checkout,
        };
        assert_eq!(older.call(unpin).await, Err(Refusal::InstanceFenced));
    }
}

#[tokio::test]
async fn a_hello_that_comes_late_fences_nobody() {
    let (home, founder) = TestHome::founded().await;
    let (draft, _, token) = image(&home, &founder, 1).await;
    // The connection of a daemon that died before its Hello arrived, and that of the next one.
    let dead = home.connect(&founder.device).await;
    let mut lives = home.connect(&founder.device).await;
    lives.home = founder.home;
    let nonce = DaemonNonce::from_bytes([44; 32]);
    assert_eq!(instance(lives.hello_as(nonce, None).await), Instance(2));
    let late = DaemonNonce::from_bytes([43; 32]);
    let refused = dead.hello_as(late, None).await;
    assert_eq!(refused, Err(Refusal::InstanceFenced));
    renew(&lives, draft.image, token).await.unwrap();
    // If it is a clone and lives after all, it stays the older one, which may save its work.
    assert!(dead.call(Call::Images { after: None }).await.is_ok());
    let fenced = renew(&dead, draft.image, token).await;
    assert_eq!(fenced, Err(Refusal::InstanceFenced));
    let again = home.connect(&founder.device).await;
    let refused = again.hello_as(late, None).await;
    assert_eq!(refused, Err(Refusal::InstanceFenced));
    let second = DaemonNonce::from_bytes([42; 32]);
    let refused = dead.hello_as(second, None).await;
    assert_eq!(refused, Err(Refusal::InstanceFenced));
    // A start after that is the newest, as ever.
    let next = DaemonNonce::from_bytes([45; 32]);
    assert_eq!(instance(again.hello_as(next, None).await), Instance(3));
}

#[tokio::test]
async fn an_older_daemon_is_not_told_what_became_of_its_calls_and_the_newer_one_is() {
    let (home, old) = TestHome::founded().await;
    let (draft, _, token) = image(&home, &old, 1).await;
    let checkout = old.device.checkout;
    let release = Call::Release {
        image: draft.image,
        checkout,
        token,
    };
    old.call(release).await.unwrap();
    let id = RequestId::from_bytes([9; 32]);
    let acquire = Call::Acquire {
        image: draft.image,
        checkout,
        terms: TERMS,
        expect_head: None,
        take_over: false,
    };
    let granted = old.call_as(id, acquire.clone()).await;
    let Ok(Answer::Granted { token, .. }) = granted else {
        panic!("{granted:?}");
    };
    let new = home.connect(&old.device).await;
    let nonce = DaemonNonce::from_bytes([44; 32]);
    new.hello_as(nonce, None).await.unwrap();
    let fenced = old.call_as(id, acquire.clone()).await;
    assert_eq!(fenced, Err(Refusal::InstanceFenced));
    // The grant stands, and who repeats the call as the newest daemon has it.
    let repeated = new.call_as(id, acquire).await;
    let Ok(Answer::Granted {
        token: same,
        current,
        ..
    }) = repeated
    else {
        panic!("{repeated:?}");
    };
    assert_eq!((same, current), (token, true));
}

#[tokio::test]
async fn a_log_that_a_device_saw_otherwise_is_noticed() {
    let (home, founder) = TestHome::founded().await;
    let early = home.standing();
    image(&home, &founder, 1).await;
    let now = home.standing();
    for seen in [early, now] {
        let hello = founder.hello(Some(seen)).await;
        let Ok(Answer::Hello { at_seen, .. }) = hello else {
            panic!("{hello:?}");
        };
        assert_eq!(at_seen, Some(seen));
    }
    let beyond = Standing {
        position: LogPosition(now.position.0 + 1),
        ..now
    };
    let refused = founder.hello(Some(beyond)).await;
    assert_eq!(refused, Err(Refusal::WentBack { at_seen: None }));
    let forked = Standing {
        root: LogRoot::from_bytes([1; 32]),
        ..early
    };
    let refused = founder.hello(Some(forked)).await;
    let at_seen = Some(early);
    assert_eq!(refused, Err(Refusal::WentBack { at_seen }));
}

#[tokio::test]
async fn every_reply_to_a_member_says_where_the_home_stands() {
    let (home, founder) = TestHome::founded().await;
    let before = home.standing();
    let (draft, _, token) = image(&home, &founder, 1).await;
    assert!(home.standing().position > before.position);
    let release = img_proto::Request {
        id: Some(img_types::RequestId::from_bytes([1; 32])),
        call: Call::Release {
            image: draft.image,
            checkout: founder.device.checkout,
            token,
        },
    };
    let reply = founder.reply(release).await.unwrap();
    assert_eq!(reply.at, Some(home.standing()));
}

#[tokio::test]
async fn only_an_admin_sees_the_figures() {
    let (home, founder) = TestHome::founded().await;
    let second = home.second(&founder).await;
    image(&home, &founder, 1).await;
    let usage = Call::Admin {
        command: img_proto::call::AdminCommand::Usage,
    };
    assert_eq!(second.call(usage.clone()).await, Err(Refusal::NotAdmin));
    let Ok(Answer::Usage {
        images, objects, ..
    }) = founder.call(usage).await
    else {
        panic!("no figures");
    };
    assert_eq!((images, objects), (1, 2 * (3 + 1) + 1));
    let beside = crate::usage(&home.places()).await.unwrap();
    assert_eq!((beside.images, beside.objects), (images, objects));
}
