use img_lease::Terms;
use img_types::{LeaseMode, ObjectId, Seq, Token};

use super::*;

const INCARNATION: Incarnation = Incarnation::from_bytes([1; 32]);
const TERMS: Terms = Terms {
    ttl_ms: 600_000,
    mode: LeaseMode::Online,
};

fn device(n: u8) -> DeviceId {
    DeviceId::from_bytes([n; 32])
}

fn checkout(n: u8) -> CheckoutId {
    CheckoutId::from_bytes([n; 32])
}

fn request(n: u8) -> RequestId {
    RequestId::from_bytes([n; 32])
}

const MAIN: Naming = Naming {
    image: ImageId::from_bytes([1; 32]),
    tag: NameTag::from_bytes([1; 32]),
};

fn home(mutant: Option<Mutant>) -> (ModelHome, Connection, Connection) {
    let mut home = ModelHome::new(INCARNATION, [1, 2].map(device)).with_mutant(mutant);
    let [a, b] = [1, 2].map(|n| {
        let nonce = DaemonNonce::from_bytes([n; 32]);
        home.hello(device(n), nonce, None).unwrap();
        home.connection(device(n), nonce).unwrap()
    });
    (home, a, b)
}

fn create(home: &mut ModelHome, by: Connection, n: u8) -> Token {
    let call = Call::CreateImage {
        name: MAIN,
        checkout: checkout(n),
        terms: TERMS,
    };
    match home.call(by, request(n), &call) {
        Ok(Answer::Granted { token, .. }) => token,
        other => panic!("{other:?}"),
    }
}

fn record(n: u8, by: Connection, token: Token, parent: Option<CommitId>) -> Proposal {
    Proposal {
        commit: CommitId::from_bytes([n; 32]),
        image: MAIN.image,
        seq: Seq(u64::from(parent.is_some())),
        parent,
        root: ObjectId::from_bytes([n; 32]),
        token: Some(token),
        device: by.device,
        checkout: checkout(by.device.as_bytes()[0]),
        instance: by.instance,
        clock: WallMillis(0),
    }
}

#[test]
fn a_repeated_call_has_one_effect_and_a_refused_one_none() {
    let (mut home, a, b) = home(None);
    let token = create(&mut home, a, 1);
    let first = record(9, a, token, None);
    let committed = home.call(a, request(10), &Call::Commit(first)).unwrap();
    let before = home.clone();
    assert_eq!(
        home.call(a, request(10), &Call::Commit(first)),
        Ok(committed)
    );
    assert_eq!(
        home.call(a, request(10), &Call::Stage(first)),
        Err(Failure::RequestReused)
    );
    let stolen = record(8, b, token, Some(first.commit));
    home.call(b, request(11), &Call::Commit(stolen))
        .unwrap_err();
    assert_eq!(home, before);
}

#[test]
fn a_fenced_daemon_is_not_told_what_became_of_its_calls() {
    let (mut home, a, _) = home(None);
    create(&mut home, a, 1);
    let call = Call::CreateImage {
        name: MAIN,
        checkout: checkout(a.device.as_bytes()[0]),
        terms: TERMS,
    };
    let newer = DaemonNonce::from_bytes([50; 32]);
    home.hello(a.device, newer, None).unwrap();
    let fenced = home.call(a, request(1), &call);
    assert_eq!(fenced, Err(img_lease::Refused::InstanceFenced.into()));
    let newest = home.connection(a.device, newer).unwrap();
    let told = home.call(newest, request(1), &call);
    assert!(matches!(told, Ok(Answer::Granted { current: true, .. })));
}

#[test]
fn a_restored_home_has_another_log_and_is_noticed() {
    let (mut home, a, _) = home(None);
    let backup = home.clone();
    create(&mut home, a, 1);
    let seen = home.standing();
    let mut restored = backup.restored(Incarnation::from_bytes([2; 32]));
    let nonce = DaemonNonce::from_bytes([1; 32]);
    let noticed = restored.hello(a.device, nonce, Some(seen));
    assert!(matches!(noticed, Err(Failure::WentBack { .. })));
    assert!(restored.hello(a.device, nonce, None).is_ok());
}

#[test]
fn a_standing_of_an_incarnation_that_the_log_does_not_name_proves_once_that_a_home_went_back() {
    let (mut home, a, _) = home(None);
    let copy = home.clone();
    create(&mut home, a, 1);
    let [second, third, fourth] = [2, 3, 4].map(|n| Incarnation::from_bytes([n; 32]));
    let of_first = home.standing();
    let gone = home.restored(second);
    assert_eq!(gone.proved(of_first, third), None, "an earlier one");
    assert_eq!(gone.proved(gone.standing(), third), None, "it has that");
    let anew = copy.proved(gone.standing(), third).unwrap();
    assert_eq!(anew.incarnation(), third);
    assert_eq!(anew.proved(gone.standing(), fourth), None);
    assert_eq!(anew.proved(of_first, fourth), None);
    let beyond = copy.proved(of_first, third).unwrap();
    assert_eq!(beyond.incarnation(), third);
}

#[test]
fn leases_of_before_a_start_have_a_grace() {
    let (mut home, a, _) = home(None);
    create(&mut home, a, 1);
    let lapsed = |home: &ModelHome| home.image(MAIN.image).unwrap().lease.unwrap().lapsed;
    home.restart();
    home.advance(TERMS.ttl_ms);
    assert!(!lapsed(&home));
    home.advance(3 * 3_600_000);
    assert!(lapsed(&home));
    let (mut running, a, _) = self::home(None);
    create(&mut running, a, 1);
    running.advance(TERMS.ttl_ms);
    assert!(lapsed(&running));
}

#[test]
fn a_mutant_lies_to_the_rules_and_not_in_them() {
    for (mutant, commits) in [(None, false), (Some(Mutant::TokenNotBound), true)] {
        let (mut home, a, b) = home(mutant);
        let token = create(&mut home, a, 1);
        let outcome = home.call(b, request(9), &Call::Commit(record(9, b, token, None)));
        assert_eq!(outcome.is_ok(), commits, "{mutant:?}");
    }
}
