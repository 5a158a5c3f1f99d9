//! Who gets in: founding, joining, recovery, revocation.

use img_proto::{Answer, Call, Refusal};
use img_records::{JoinAnswer, JoinRequest};
use img_types::limits::{
    CONNECTIONS_PER_DEVICE_MAX, JOIN_CONNECTIONS_PER_ADDRESS_MAX, JOIN_FRAME_LEN_MAX, JOIN_LIFE_MAX,
};
use img_types::{InviteId, LogPosition};

use super::TestHome;
use super::papers::{self, Device};

#[tokio::test]
async fn the_first_founds_and_the_second_comes_too_late() {
    let home = TestHome::start().await;
    let mut founder = home.connect(&Device::new(1)).await;
    let secret = home.invite.secret;
    assert_eq!(founder.found([0; 16]).await, Err(Refusal::WrongFounding));
    assert_eq!(founder.found(secret).await, Ok(Answer::Founded));
    let mut late = home.connect(&Device::new(2)).await;
    assert_eq!(late.found(secret).await, Err(Refusal::AlreadyFounded));
    // Identical bytes get the same answer: the first may have been lost.
    assert_eq!(founder.found(secret).await, Ok(Answer::Founded));
    let again = crate::invite(&home.path, None, None).await;
    assert!(matches!(again, Err(crate::InitError::Founded)));
}

#[tokio::test]
async fn a_genesis_of_somebody_elses_key_founds_nothing() {
    let home = TestHome::start().await;
    let mut thief = home.connect(&Device::new(1)).await;
    thief.device = Device::new(2);
    let refused = thief.found(home.invite.secret).await;
    assert!(matches!(refused, Err(Refusal::BadRecord(_))));
    let mut founder = home.connect(&Device::new(3)).await;
    founder.found(home.invite.secret).await.unwrap();
}

#[tokio::test]
async fn a_stranger_reaches_nothing_but_the_join_calls() {
    let (home, founder) = TestHome::founded().await;
    let stranger = home.connect(&Device::new(9)).await;
    let device = Device::new(9);
    for call in [
        Call::Images { after: None },
        Call::Roster { from: 0 },
        Call::OpenUpload {
            checkout: device.checkout,
        },
        Call::Hello {
            nonce: device.nonce,
            seen: None,
        },
        Call::Watch {
            after: LogPosition(0),
        },
    ] {
        assert_eq!(stranger.call(call).await, Err(Refusal::NotMember));
    }
    let poll = Call::JoinPoll {
        invite: InviteId::from_bytes([1; 32]),
    };
    assert_eq!(stranger.call(poll).await, Err(Refusal::InviteUnknown));
    let fetched = stranger
        .call(Call::Fetch {
            ids: Vec::new(),
            class: img_proto::Class::Demand,
        })
        .await;
    assert_eq!(fetched, Err(Refusal::NotMember));
    // A stranger is not told where the home stands.
    let request = img_proto::Request {
        id: None,
        call: Call::Images { after: None },
    };
    assert_eq!(stranger.reply(request.clone()).await.unwrap().at, None);
    let at = founder.reply(request).await.unwrap().at;
    assert_eq!(at, Some(home.standing()));
}

#[tokio::test]
async fn a_member_says_hello_before_anything_else() {
    let (home, founder) = TestHome::founded().await;
    let again = home.connect(&founder.device).await;
    assert_eq!(
        again.call(Call::Images { after: None }).await,
        Err(Refusal::HelloFirst)
    );
    again.hello(None).await.unwrap();
    let images = again.call(Call::Images { after: None }).await;
    assert_eq!(
        images,
        Ok(Answer::Images {
            images: Vec::new(),
            more: false
        })
    );
}

#[tokio::test]
async fn an_invited_device_joins_through_the_inviter() {
    let (home, admin) = TestHome::founded().await;
    let invite = InviteId::from_bytes([4; 32]);
    let ttl_ms = 60_000;
    let register = Call::RegisterInvite { invite, ttl_ms };
    admin.call(register).await.unwrap();

    let device = Device::new(2);
    let mut joiner = home.connect(&device).await;
    let possession = device.keys.prove_possession(&admin.home(), &device.sign);
    let request = JoinRequest::new(
        &[1; 16],
        &admin.home(),
        device.keys,
        possession,
        vec![1; 50],
    );
    let request = bytes::Bytes::from(request.encode());
    let asked = joiner.call(Call::JoinRequest {
        invite,
        request: request.clone(),
    });
    let answered = async {
        // Waits until the request is there.
        let pending = admin.call(Call::PendingJoins).await;
        let Ok(Answer::PendingJoins { joins }) = pending else {
            panic!("{pending:?}");
        };
        assert_eq!(joins.len(), 1);
        assert_eq!((joins[0].invite, &joins[0].request), (invite, &request));
        let entry = admin.device.add(&home.roster(), &device);
        admin.call(Call::RosterAppend { entry }).await.unwrap();
        let answer = Some(bytes::Bytes::from_static(b"welcome"));
        let answer = Call::AnswerJoin { invite, answer };
        admin.call(answer).await.unwrap();
    };
    let (asked, ()) = tokio::join!(asked, answered);
    let welcome = Answer::Join {
        answer: Some(bytes::Bytes::from_static(b"welcome")),
    };
    assert_eq!(asked, Ok(welcome.clone()));
    assert_eq!(joiner.call(Call::JoinPoll { invite }).await, Ok(welcome));
    // The same connection is a member's now.
    joiner.home = admin.home;
    joiner.hello(None).await.unwrap();

    // Somebody else under the same invite is dropped.
    let other = Device::new(3);
    let possession = other.keys.prove_possession(&admin.home(), &other.sign);
    let request = JoinRequest::new(&[1; 16], &admin.home(), other.keys, possession, vec![1; 50]);
    let request = request.encode().into();
    let late = home.connect(&other).await;
    let late = late.call(Call::JoinRequest { invite, request }).await;
    assert_eq!(late, Err(Refusal::InviteUnknown));
}

#[tokio::test]
async fn whoever_chose_a_taken_name_asks_again_under_the_same_invite() {
    let (home, admin) = TestHome::founded().await;
    let (invite, secret, ttl_ms) = (InviteId::from_bytes([4; 32]), [1; 16], 60_000);
    let register = Call::RegisterInvite { invite, ttl_ms };
    admin.call(register).await.unwrap();
    let device = Device::new(2);
    let possession = device.keys.prove_possession(&admin.home(), &device.sign);
    let request = |name: u8| {
        let request = JoinRequest::new(
            &secret,
            &admin.home(),
            device.keys,
            possession,
            vec![name; 50],
        );
        bytes::Bytes::from(request.encode())
    };
    let answer = |entry: Vec<u8>| {
        let answer = Some(JoinAnswer::new(&secret, entry).encode().into());
        admin.call(Call::AnswerJoin { invite, answer })
    };
    let joiner = home.connect(&device).await;
    let ask = |name| {
        let request = request(name);
        joiner.call(Call::JoinRequest { invite, request })
    };
    let (turned_down, answered) = tokio::join!(ask(1), answer(Vec::new()));
    answered.unwrap();
    assert!(matches!(turned_down, Ok(Answer::Join { answer: Some(_) })));
    let (joined, answered) = tokio::join!(ask(2), async {
        // The second request waits for the inviter like the first.
        loop {
            let pending = admin.call(Call::PendingJoins).await;
            if let Ok(Answer::PendingJoins { joins }) = pending
                && let Some(join) = joins.first()
            {
                assert_eq!(join.request, request(2));
                return answer(vec![7]).await;
            }
        }
    });
    answered.unwrap();
    assert!(matches!(joined, Ok(Answer::Join { answer: Some(_) })));
    assert_eq!(ask(3).await, Err(Refusal::InviteUnknown), "it is used up");
}

#[tokio::test]
async fn a_burnt_or_expired_invite_is_unknown() {
    let (home, admin) = TestHome::founded().await;
    let device = Device::new(2);
    let possession = device.keys.prove_possession(&admin.home(), &device.sign);
    let request = JoinRequest::new(
        &[1; 16],
        &admin.home(),
        device.keys,
        possession,
        vec![1; 50],
    );
    let request = bytes::Bytes::from(request.encode());
    let joiner = home.connect(&device).await;
    for burnt in [true, false] {
        let invite = InviteId::from_bytes([u8::from(burnt); 32]);
        let ttl_ms = 60_000;
        let register = Call::RegisterInvite { invite, ttl_ms };
        admin.call(register).await.unwrap();
        if burnt {
            let answer = None;
            admin
                .call(Call::AnswerJoin { invite, answer })
                .await
                .unwrap();
        } else {
            home.advance_clock(ttl_ms);
        }
        let request = request.clone();
        let asked = joiner.call(Call::JoinRequest { invite, request }).await;
        assert_eq!(asked, Err(Refusal::InviteUnknown));
    }
}

#[tokio::test]
async fn only_the_next_entry_by_an_admin_extends_the_roster() {
    let (home, admin) = TestHome::founded().await;
    let stale = home.roster();
    let second = home.second(&admin).await;
    let entry = admin.device.add(&stale, &Device::new(3));
    let refused = admin.call(Call::RosterAppend { entry }).await;
    assert_eq!(refused, Err(Refusal::RosterMoved { seq: 1 }));
    let entry = second.device.add(&home.roster(), &Device::new(3));
    let refused = second.call(Call::RosterAppend { entry }).await;
    assert_eq!(refused, Err(Refusal::NotAdmin));
    let entry = admin.device.add(&home.roster(), &Device::new(3));
    // The admin's signature counts, not who brings it: a restored home gets its roster back from any member.
    second.call(Call::RosterAppend { entry }).await.unwrap();
    let roster = admin.call(Call::Roster { from: 1 }).await.unwrap();
    let Answer::Roster { entries, more } = roster else {
        panic!("{roster:?}");
    };
    assert_eq!((entries.len(), more), (2, false));
}

#[tokio::test]
async fn a_revoked_device_is_shown_the_door() {
    let (home, admin) = TestHome::founded().await;
    let second = home.second(&admin).await;
    let (id, roster) = (second.device.id(), home.roster());
    let entry = admin.device.revoke(&roster, id, home.standing().position);
    admin.call(Call::RosterAppend { entry }).await.unwrap();
    // Its connection ends, and a new one is a stranger's.
    second.connection.closed().await;
    let back = home.connect(&second.device).await;
    assert_eq!(
        back.call(Call::Images { after: None }).await,
        Err(Refusal::NotMember)
    );
}

#[tokio::test]
async fn a_revoked_device_is_shown_by_whom_and_nothing_that_came_later() {
    let (home, admin) = TestHome::founded().await;
    let second = home.second(&admin).await;
    let (id, known) = (second.device.id(), home.roster());
    let entry = admin.device.revoke(&known, id, home.standing().position);
    let append = Call::RosterAppend {
        entry: entry.clone(),
    };
    admin.call(append).await.unwrap();
    let later = admin.device.add(&home.roster(), &Device::new(3));
    admin
        .call(Call::RosterAppend { entry: later })
        .await
        .unwrap();
    let back = home.connect(&second.device).await;
    assert_eq!(back.hello(None).await, Err(Refusal::NotMember));
    let shown = |from| back.call(Call::Roster { from });
    let roster = |entries| {
        Ok(Answer::Roster {
            entries,
            more: false,
        })
    };
    assert_eq!(shown(known.seq() + 1).await, roster(vec![entry]));
    assert_eq!(shown(known.seq() + 2).await, roster(vec![]));
    let stranger = home.connect(&Device::new(9)).await;
    let refused = stranger.call(Call::Roster { from: 0 }).await;
    assert_eq!(refused, Err(Refusal::NotMember));
}

#[tokio::test]
async fn the_recovery_words_bring_a_device_in_once() {
    let (home, _founder) = TestHome::founded().await;
    let device = Device::new(5);
    let client = home.connect(&device).await;
    let proof = |connection: &img_net::Connection| {
        let signature = papers::recovery().sign(&connection.exporter());
        bytes::Bytes::copy_from_slice(&signature)
    };
    let wrong = bytes::Bytes::from(vec![0; 64]);
    let refused = client.call(Call::RecoverRoster { proof: wrong }).await;
    assert!(matches!(refused, Err(Refusal::BadRecord(_))));
    // A signature for one connection is worth nothing on another.
    let other = home.connect(&Device::new(6)).await;
    let stolen = proof(&client.connection);
    let refused = other.call(Call::RecoverRoster { proof: stolen }).await;
    assert!(matches!(refused, Err(Refusal::BadRecord(_))));

    let proof = proof(&client.connection);
    let shown = client.call(Call::RecoverRoster {
        proof: proof.clone(),
    });
    let Ok(Answer::Roster { entries, .. }) = shown.await else {
        panic!("no roster");
    };
    assert_eq!(entries.len(), 1);
    let entry = device.recover(&home.roster());
    let append = Call::RecoverAppend { proof, entry };
    assert_eq!(client.call(append.clone()).await, Ok(Answer::Done));
    assert_eq!(client.call(append).await, Ok(Answer::Done));
    client.hello(None).await.unwrap();
}

#[tokio::test]
async fn connections_have_a_limit_for_each_device_and_for_the_strangers_of_an_address() {
    let (home, founder) = TestHome::founded().await;
    let mut connections = vec![founder];
    for _ in 0..CONNECTIONS_PER_DEVICE_MAX {
        connections.push(home.member(&Device::new(1)).await);
    }
    // The oldest made room, the others go on.
    connections[0].connection.closed().await;
    for client in &connections[1..] {
        assert!(client.call(Call::Images { after: None }).await.is_ok());
    }
    let mut strangers = Vec::new();
    for _ in 0..JOIN_CONNECTIONS_PER_ADDRESS_MAX {
        strangers.push(home.connect(&Device::new(9)).await);
    }
    // A stranger's place is taken once its first call is answered.
    for stranger in &strangers {
        let refused = stranger.call(Call::Images { after: None }).await;
        assert_eq!(refused, Err(Refusal::NotMember));
    }
    let crowd = home.connect(&Device::new(10)).await;
    crowd.connection.closed().await;
    // Members are not kept out by them.
    assert!(
        connections[1]
            .call(Call::Images { after: None })
            .await
            .is_ok()
    );
    home.member(&Device::new(1)).await;
}

#[tokio::test]
async fn a_stranger_has_one_short_life_however_busy_and_the_invited_may_wait() {
    let (home, admin) = TestHome::founded().await;
    let invite = InviteId::from_bytes([4; 32]);
    let ttl_ms = 600_000;
    let register = Call::RegisterInvite { invite, ttl_ms };
    admin.call(register).await.unwrap();
    let invited = home.connect(&Device::new(2)).await;
    let waits = invited.call(Call::JoinPoll { invite });
    let busy = home.connect(&Device::new(3)).await;
    let called = async {
        let images = Call::Images { after: None };
        let request = img_proto::Request {
            id: None,
            call: images,
        };
        let mut answered = 0;
        let began = std::time::Instant::now();
        // It talks without a pause, until it has said all that a stranger may, and then waits.
        while busy.reply(request.clone()).await.is_ok() {
            answered += 1;
        }
        busy.connection.closed().await;
        (answered, began.elapsed())
    };
    let ended = async {
        let (answered, lived) = called.await;
        assert!((100..JOIN_FRAME_LEN_MAX).contains(&answered), "{answered}");
        assert!(
            lived >= JOIN_LIFE_MAX && lived < 2 * JOIN_LIFE_MAX,
            "{lived:?}"
        );
        let answer = Some(bytes::Bytes::from_static(b"welcome"));
        admin.call(Call::AnswerJoin { invite, answer }).await
    };
    let (waited, ended) = tokio::join!(waits, ended);
    assert_eq!(ended, Ok(Answer::Done));
    assert!(matches!(waited, Ok(Answer::Join { answer: Some(_) })));
}
