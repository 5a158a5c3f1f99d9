//! Compares the bytes and ids of every record with `tests/fixtures/records.json`.
//!
//! Those bytes are the format: a change here is a new version beside the old one, and the old
//! vectors stay. `GOLDEN=write` writes the file for a version that is being added.

use data_encoding::HEXLOWER;
use img_types::bytes::Reader;
use img_types::{
    CheckoutId, CommitId, DeviceId, EntryId, Epoch, HomeId, ImageId, Incarnation, Instance,
    KeyEpoch, LogPosition, LogRoot, NameTag, ObjectId, Seq, Token, WallMillis,
};
use serde_json::{Value, json};

use crate::*;

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/records.json"
);
const HOME: HomeId = HomeId::from_bytes([0xf0; 32]);
const NO_HOME: HomeId = HomeId::from_bytes([0; 32]);
const TIME: WallMillis = WallMillis(1_763_700_000_000);

fn secret() -> SigningSecret {
    SigningSecret::from_bytes([0x51; 32])
}

fn keys() -> PublicKeys {
    PublicKeys {
        sign: secret().public(),
        tls: [0x52; 32],
        kem: [0x53; 32],
    }
}

pub(crate) fn commit() -> Commit {
    Commit {
        image: ImageId::from_bytes([1; 32]),
        seq: Seq(0),
        parent: None,
        root: ObjectId::from_bytes([2; 32]),
        token: Some(Token {
            incarnation: Incarnation::from_bytes([3; 32]),
            epoch: Epoch(1),
        }),
        checkout: CheckoutId::from_bytes([4; 32]),
        device: keys().device_id(),
        instance: Instance(5),
        roster: EntryId::from_bytes([6; 32]),
        key_epoch: KeyEpoch(7),
        clock: TIME,
        seen: Some(Seen {
            incarnation: Incarnation::from_bytes([3; 32]),
            position: LogPosition(8),
            root: LogRoot::from_bytes([9; 32]),
        }),
        sealed: b"sealed".to_vec(),
    }
}

pub(crate) fn next_commit() -> Commit {
    Commit {
        seq: Seq(1),
        parent: Some(Parent {
            image: ImageId::from_bytes([1; 32]),
            commit: CommitId::from_bytes([10; 32]),
        }),
        seen: None,
        ..commit()
    }
}

fn branch_commit() -> Commit {
    Commit {
        parent: Some(Parent {
            image: ImageId::from_bytes([11; 32]),
            commit: CommitId::from_bytes([10; 32]),
        }),
        token: None,
        ..commit()
    }
}

pub(crate) fn commit_private() -> CommitPrivate {
    CommitPrivate {
        root_key: [12; 32],
        root_len: 13,
        message: "scene with the blue sphere".to_owned(),
        kind: CommitKind::Checkpoint,
        maps: Maps::Exact,
        logical_bytes: 14,
        files: 15,
        sealed_bytes: 16,
        manifest: b"manifest".to_vec(),
    }
}

fn flushed_private() -> CommitPrivate {
    let mut private = commit_private();
    private.maps = Maps::LastFlush;
    private
}

pub(crate) fn descriptor() -> Descriptor {
    Descriptor {
        image: ImageId::from_bytes([1; 32]),
        seq: 1,
        previous: [17; 32],
        tag: NameTag::from_bytes([18; 32]),
        key_epoch: KeyEpoch(7),
        device: keys().device_id(),
        sealed: b"sealed".to_vec(),
    }
}

fn descriptor_private() -> DescriptorPrivate {
    DescriptorPrivate {
        name: "größe-1".to_owned(),
        boundary: [19; 32],
        options: b"options".to_vec(),
    }
}

fn receipt() -> Receipt {
    Receipt {
        incarnation: Incarnation::from_bytes([3; 32]),
        position: LogPosition(20),
        log_root: LogRoot::from_bytes([21; 32]),
        image: ImageId::from_bytes([1; 32]),
        seq: Seq(22),
        commit: CommitId::from_bytes([10; 32]),
    }
}

fn log_entry() -> LogEntry {
    LogEntry {
        kind: LogKind::Steal,
        image: ImageId::from_bytes([1; 32]),
        subject: [23; 32],
        device: keys().device_id(),
        epoch: Epoch(24),
        time: TIME,
    }
}

fn member() -> Member {
    Member {
        keys: keys(),
        role: Role::Admin,
        sealed_name: b"sealed name".to_vec(),
    }
}

fn changes() -> Vec<(&'static str, Change)> {
    let recovery = RecoveryKeys {
        sign: [25; 32],
        kem: [26; 32],
    };
    let wrap = |receiver| Wrap {
        receiver,
        bytes: b"wrapped".to_vec(),
    };
    let wraps = vec![wrap([0x53; 32]), wrap([26; 32])];
    let possession = keys().prove_possession(&HOME, &secret());
    vec![
        (
            "genesis",
            Change::Genesis {
                member: member(),
                recovery,
                secret_commitment: [27; 32],
                wraps: wraps.clone(),
            },
        ),
        (
            "add",
            Change::Add {
                member: Member {
                    role: Role::Member,
                    ..member()
                },
                possession,
                key_epoch: KeyEpoch(7),
                secret_commitment: [27; 32],
                wrap: wrap([0x53; 32]),
            },
        ),
        (
            "revoke",
            Change::Revoke {
                device: DeviceId::from_bytes([28; 32]),
                at: LogPosition(29),
                key_epoch: KeyEpoch(8),
                secret_commitment: [30; 32],
                sealed_previous: b"sealed secret".to_vec(),
                wraps: wraps.clone(),
            },
        ),
        (
            "recover",
            Change::Recover {
                member: member(),
                possession,
                recovery,
                key_epoch: KeyEpoch(8),
                secret_commitment: [30; 32],
                sealed_previous: b"sealed secret".to_vec(),
                wraps,
            },
        ),
    ]
}

fn invite() -> Invite {
    Invite {
        address: "home.example:4460".to_owned(),
        home_key_hash: [31; 32],
        home: HOME,
        roster_seq: 32,
        roster_head: EntryId::from_bytes([33; 32]),
        secret: [34; 16],
        expires: TIME,
        position: LogPosition(35),
    }
}

fn founding_invite() -> FoundingInvite {
    FoundingInvite {
        address: "[2001:db8::1]:4460".to_owned(),
        home_key_hash: [31; 32],
        secret: [34; 16],
    }
}

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// A record's signed bytes and id; also checks that the bytes decode to the record and verify.
fn signed<R: Record + Clone + PartialEq + std::fmt::Debug>(record: R, home: &HomeId) -> Value {
    let signed = Signed::sign(record, home, &secret());
    let bytes = signed.to_bytes();
    let received = Signed::<R>::decode(&bytes).unwrap();
    assert_eq!(received, signed);
    received.verify(home, &secret().public()).unwrap();
    json!({"bytes": hex(&bytes), "id": hex(&signed.id(home))})
}

fn vectors() -> Value {
    let mut log = Vec::new();
    log_entry().encode(&mut log);
    let mut roster = serde_json::Map::new();
    for (seq, (name, change)) in (0u64..).zip(changes()) {
        let genesis = seq == 0;
        let entry = RosterEntry {
            seq,
            previous: EntryId::from_bytes(if genesis { [0; 32] } else { [33; 32] }),
            signer: keys().device_id(),
            time: TIME,
            change,
        };
        let home = if genesis { &NO_HOME } else { &HOME };
        roster.insert(name.to_owned(), signed(entry, home));
    }
    let possession = keys().prove_possession(&HOME, &secret());
    let request = JoinRequest::new(
        &[34; 16],
        &HOME,
        keys(),
        possession,
        b"sealed name".to_vec(),
    );
    json!({
        "device_id": keys().device_id().to_string(),
        "possession": hex(&possession),
        "commit": signed(commit(), &HOME),
        "commit_next": signed(next_commit(), &HOME),
        "commit_of_a_branch": signed(branch_commit(), &HOME),
        "commit_private": hex(&commit_private().encode()),
        "commit_private_of_the_last_flush": hex(&flushed_private().encode()),
        "descriptor": signed(descriptor(), &HOME),
        "descriptor_private": hex(&descriptor_private().encode()),
        "receipt": signed(receipt(), &HOME),
        "log_entry": hex(&log),
        "log_root": LogEntry::chain(LogEntry::EMPTY_ROOT, &log_entry()).to_string(),
        "roster": roster,
        "invite": invite().to_string(),
        "invite_id": invite().id().to_string(),
        "founding_invite": founding_invite().to_string(),
        "join_request": hex(&request.encode()),
        "join_answer": hex(&JoinAnswer::new(&[34; 16], b"entry".to_vec()).encode()),
    })
}

fn fixture() -> Value {
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let text = serde_json::to_string_pretty(&vectors()).unwrap() + "\n";
        std::fs::write(FIXTURE, text).unwrap();
    }
    serde_json::from_str(&std::fs::read_to_string(FIXTURE).unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

#[test]
fn records_have_the_bytes_of_the_format() {
    let (fixture, vectors) = (fixture(), vectors());
    for (name, value) in vectors.as_object().unwrap() {
        assert_eq!(&fixture[name], value, "{name}");
    }
    assert_eq!(fixture, vectors);
}

#[test]
fn the_bytes_of_the_format_are_read() {
    let fixture = fixture();
    for (name, expected) in [
        ("commit", commit()),
        ("commit_next", next_commit()),
        ("commit_of_a_branch", branch_commit()),
    ] {
        let commit = SignedCommit::decode(&bytes(&fixture[name]["bytes"])).unwrap();
        assert_eq!(commit.record, expected);
        let id = fixture[name]["id"].as_str().unwrap();
        assert_eq!(commit_id(&commit, &HOME).to_string(), id);
    }
    let private = bytes(&fixture["commit_private"]);
    assert_eq!(CommitPrivate::decode(&private), Ok(commit_private()));
    let private = bytes(&fixture["commit_private_of_the_last_flush"]);
    assert_eq!(CommitPrivate::decode(&private), Ok(flushed_private()));
    let private = bytes(&fixture["descriptor_private"]);
    assert_eq!(
        DescriptorPrivate::decode(&private),
        Ok(descriptor_private())
    );
    let entry = bytes(&fixture["log_entry"]);
    assert_eq!(LogEntry::decode(&mut Reader::new(&entry)), Ok(log_entry()));
    for (name, change) in changes() {
        let entry = SignedRosterEntry::decode(&bytes(&fixture["roster"][name]["bytes"])).unwrap();
        assert_eq!(entry.record.change, change);
        let id = fixture["roster"][name]["id"].as_str().unwrap();
        assert_eq!(entry_id(&entry, &HOME).to_string(), id);
    }
    let line = |name: &str| fixture[name].as_str().unwrap().parse::<AnyInvite>();
    assert_eq!(line("invite"), Ok(AnyInvite::Member(invite())));
    let founding = AnyInvite::Founding(founding_invite());
    assert_eq!(line("founding_invite"), Ok(founding));
    let request = JoinRequest::decode(&bytes(&fixture["join_request"])).unwrap();
    assert_eq!(request.verify(&[34; 16], &HOME), Ok(()));
    let answer = JoinAnswer::decode(&bytes(&fixture["join_answer"])).unwrap();
    assert_eq!(answer.verify(&[34; 16]), Ok(()));
}
