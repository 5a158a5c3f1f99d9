//! What the state folder keeps over a restart.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use img_proto::{Call, LeaseTerms, Standing};
use img_records::Maps;
use img_types::{
    CheckoutId, CommitId, HomeId, ImageId, Incarnation, LeaseMode, LogPosition, LogRoot, RequestId,
    WallMillis,
};

use super::*;

fn open(dir: &Path) -> State {
    State::open(dir).unwrap()
}

fn row() -> CheckoutRow {
    CheckoutRow {
        checkout: CheckoutId::from_bytes([1; 32]),
        image: ImageId::from_bytes([2; 32]),
        name: "vm".into(),
        descriptor: b"descriptor".to_vec(),
        dir: "/mnt/vm".into(),
        stage: Stage::Opening,
        read_only: false,
        owner_map: true,
        terms: LeaseTerms {
            ttl_ms: 10_000,
            mode: LeaseMode::Offline,
        },
        opened: WallMillis(5),
        base: None,
        holder: None,
        sealed_bytes: 0,
        sent_bytes: 0,
    }
}

fn checkpoint(number: u8) -> CheckpointRow {
    CheckpointRow {
        checkpoint: [number; 32],
        checkout: row().checkout,
        generation: u64::from(number),
        time: WallMillis(1),
        freeze_us: 2,
        stopped_us: Some(4),
        dirty_bytes: 3,
        maps: Maps::LastFlush,
        message: "cut".into(),
        automatic: number.is_multiple_of(2),
    }
}

#[test]
fn one_daemon_at_a_time_and_nobody_else_reads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let state = open(&path);
    assert!(matches!(State::open(&path), Err(StateError::Locked)));
    for (name, mode) in [
        ("", 0o700),
        ("identity", 0o700),
        ("device.db", 0o600),
        ("lock", 0o600),
    ] {
        let found = std::fs::metadata(path.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
    drop(state);
    open(&path);
}

#[test]
fn a_newer_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    state
        .now(|db| Ok(db.sql.pragma_update(None, "user_version", 99)?))
        .unwrap();
    drop(state);
    assert!(matches!(
        State::open(dir.path()),
        Err(StateError::Version(99))
    ));
}

#[test]
fn requests_are_repeated_in_order_until_settled() {
    let dir = tempfile::tempdir().unwrap();
    let request = |number: u8| JournaledRequest {
        id: RequestId::from_bytes([number; 32]),
        call: Call::Acquire {
            image: row().image,
            checkout: row().checkout,
            terms: row().terms,
            expect_head: Some(CommitId::from_bytes([number; 32])),
            take_over: false,
        },
    };
    let state = open(dir.path());
    // Ids in descending order: the order of the journal is that of the calls.
    for number in [9, 5, 1] {
        state
            .now(|db| db.journal_request(&request(number)))
            .unwrap();
    }
    assert!(state.now(|db| db.journal_request(&request(5))).is_err());
    drop(state);
    let state = open(dir.path());
    let found = state.now(|db| db.journaled_requests()).unwrap();
    assert_eq!(found, [request(9), request(5), request(1)]);
    state.now(|db| db.settle_request(request(5).id)).unwrap();
    assert_eq!(
        state.now(|db| db.journaled_requests()).unwrap(),
        [request(9), request(1)]
    );
}

#[test]
fn the_farthest_receipt_of_each_of_the_homes_databases_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    assert!(state.now(|db| db.farthest_receipts()).unwrap().is_empty());
    // The second one began before the first one's end.
    let commits = [(1, 5), (2, 4), (1, 9), (2, 8), (1, 7)].map(|(incarnation, position)| {
        let number = position as u8;
        Acknowledged {
            commit: CommitId::from_bytes([number; 32]),
            image: row().image,
            seq: img_types::Seq(position),
            record: Vec::new(),
            receipt: vec![number],
            incarnation: Incarnation::from_bytes([incarnation; 32]),
            position: LogPosition(position),
        }
    });
    state.now(|db| db.keep_acknowledged(&commits)).unwrap();
    let farthest = state.now(|db| db.farthest_receipts()).unwrap();
    assert_eq!(farthest, [[9], [8]]);
}

#[test]
fn a_grant_takes_effect_together_with_its_request() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let id = RequestId::from_bytes([7; 32]);
    let call = Call::Images { after: None };
    state.now(|db| db.add_checkout(&row())).unwrap();
    state
        .now(|db| db.journal_request(&JournaledRequest { id, call }))
        .unwrap();
    assert_eq!(state.now(|db| db.checkouts()).unwrap(), [row()]);
    state
        .now(|db| db.checkout_granted(row().checkout, Some(b"base"), Some(b"lease"), Some(id)))
        .unwrap();
    drop(state);
    let state = open(dir.path());
    let granted = CheckoutRow {
        stage: Stage::Open,
        base: Some(b"base".to_vec()),
        holder: Some(b"lease".to_vec()),
        ..row()
    };
    assert_eq!(
        state.now(|db| db.checkout(row().checkout)).unwrap(),
        Some(granted)
    );
    assert!(state.now(|db| db.journaled_requests()).unwrap().is_empty());
}

#[test]
fn a_commit_ends_the_checkpoints_it_contains() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let checkout = row().checkout;
    state.now(|db| db.add_checkout(&row())).unwrap();
    for number in 1..=3 {
        state
            .now(|db| db.add_checkpoint(&checkpoint(number)))
            .unwrap();
    }
    let pending = PendingCommit {
        checkout,
        record: b"commit".to_vec(),
        generation: 2,
    };
    state
        .now(|db| db.set_pending_commit(&pending, &[]))
        .unwrap();
    assert_eq!(
        state.now(|db| db.pending_commit(checkout)).unwrap(),
        Some(pending)
    );
    state
        .now(|db| db.committed(checkout, b"commit", 2, 10, 20))
        .unwrap();
    assert_eq!(
        state.now(|db| db.checkpoints(checkout)).unwrap(),
        [checkpoint(3)]
    );
    assert_eq!(state.now(|db| db.pending_commit(checkout)).unwrap(), None);
    let found = state.now(|db| db.checkout(checkout)).unwrap().unwrap();
    assert_eq!(found.base.as_deref(), Some(&b"commit"[..]));
    assert_eq!((found.sealed_bytes, found.sent_bytes), (10, 20));
    state.now(|db| db.remove_checkout(checkout)).unwrap();
    assert!(state.now(|db| db.checkpoints(checkout)).unwrap().is_empty());
}

fn wish(message: &str) -> CommitRequest {
    CommitRequest {
        message: message.into(),
        ..CommitRequest::default()
    }
}

fn messages(state: &State) -> Vec<String> {
    let rows = state.now(|db| db.wishes(row().checkout)).unwrap();
    rows.into_iter().map(|row| row.request.message).collect()
}

#[test]
fn wanted_commits_are_wanted_after_a_restart_until_they_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let checkout = row().checkout;
    let add = |state: &State, generation, text: &str| {
        state.now(|db| db.add_wish(checkout, generation, &wish(text), None))
    };
    assert!(add(&state, 0, "of no checkout").is_err());
    state.now(|db| db.add_checkout(&row())).unwrap();
    // Of a checkout that has no checkpoint.
    let first = add(&state, 0, "first").unwrap();
    let second = add(&state, 4, "second").unwrap();
    assert!(first < second);
    let root = img_seal::Reference {
        id: img_types::ObjectId::from_bytes([7; 32]),
        key: img_seal::BlockKey::from_bytes([8; 32]),
        len: 9,
    };
    state.now(|db| db.set_wish_root(second, root, 10)).unwrap();
    drop(state);
    let state = open(dir.path());
    let rows = state.now(|db| db.wishes(checkout)).unwrap();
    let expected = |number, generation, text, root| WishRow {
        number,
        generation,
        request: wish(text),
        under_way: false,
        root,
    };
    assert_eq!(
        rows,
        [
            expected(first, 0, "first", None),
            expected(second, 4, "second", Some((root, 10))),
        ]
    );
    let moved = |generation| {
        state
            .now(|db| db.move_wishes(&[second], generation))
            .unwrap();
        let rows = state.now(|db| db.wishes(checkout)).unwrap();
        (rows[1].generation, rows[1].root)
    };
    assert_eq!(moved(4), (4, Some((root, 10))), "it is sealed already");
    assert_eq!(moved(5), (5, None));
    let refuse = |db: &mut Database| db.refuse_wishes(checkout, &[second], Some("no"));
    state.now(refuse).unwrap();
    drop(state);
    let state = open(dir.path());
    let refusal = || state.now(|db| db.refusal(checkout)).unwrap();
    assert_eq!(refusal().as_deref(), Some("no"));
    state.now(|db| db.set_refusal(checkout, None)).unwrap();
    assert_eq!((messages(&state), refusal()), (vec!["first".into()], None));
    // A number is never given again.
    assert!(add(&state, 5, "third").unwrap() > second);
    state.now(|db| db.remove_checkout(checkout)).unwrap();
    assert!(messages(&state).is_empty());
}

#[test]
fn a_commit_ends_the_wishes_that_it_was_begun_for() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let checkout = row().checkout;
    state.now(|db| db.add_checkout(&row())).unwrap();
    let numbers = ["first", "second", "later"].map(|text| {
        let added = state.now(|db| db.add_wish(checkout, 1, &wish(text), None));
        added.unwrap()
    });
    let pending = PendingCommit {
        checkout,
        record: b"commit".to_vec(),
        generation: 1,
    };
    for signed_for in [&numbers[..], &numbers[..2]] {
        let sign = |db: &mut Database| db.set_pending_commit(&pending, signed_for);
        state.now(sign).unwrap();
    }
    drop(state);
    let state = open(dir.path());
    let rows = state.now(|db| db.wishes(checkout)).unwrap();
    let under_way: Vec<_> = rows.iter().map(|row| row.under_way).collect();
    assert_eq!(under_way, [true, true, false]);
    let signed = state.now(|db| db.signed_wishes(checkout)).unwrap();
    assert_eq!(signed, numbers[..2]);
    state
        .now(|db| db.committed(checkout, b"commit", 1, 10, 20))
        .unwrap();
    assert_eq!(messages(&state), ["later"]);
    let branch = BranchedRow {
        image: row().image,
        name: "new".into(),
        descriptor: Vec::new(),
        base: Vec::new(),
        holder: Vec::new(),
        generation_max: 1,
        wishes: vec![numbers[2]],
        taken: None,
    };
    state.now(|db| db.branched(checkout, &branch)).unwrap();
    assert!(messages(&state).is_empty());
}

#[test]
fn a_wanted_commit_that_cannot_be_read_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let checkout = row().checkout;
    let wish = CommitRequest {
        onto: Some((ImageId::from_bytes([7; 32]), CommitId::from_bytes([8; 32]))),
        ..wish("first")
    };
    state.now(|db| db.add_checkout(&row())).unwrap();
    state
        .now(|db| db.add_wish(checkout, 1, &wish, None))
        .unwrap();
    let read = |column: &str, bytes: &[u8]| {
        let sql = format!("UPDATE wishes SET {column} = ?1");
        let write = |db: &mut Database| Ok(db.sql.execute(&sql, [bytes])?);
        state.now(write).unwrap();
        let mut rows = state.now(|db| db.wishes(checkout)).unwrap();
        rows.pop().map(|row| row.request)
    };
    // As an earlier version wrote them: a message, then flags.
    assert_eq!(read("request", b"\x05first\x00\x00\x01\x00"), None);
    assert_eq!(read("request", b""), None);
    assert_eq!(read("request", br#"{"message":"first","later":1}"#), None);
    let older = read("request", br#"{"message":"first","keep":true}"#).unwrap();
    assert_eq!((older.message.as_str(), older.keep), ("first", true));
    let encoded = serde_json::to_vec(&wish).unwrap();
    assert_eq!(read("request", &encoded), Some(wish));
    assert_eq!(read("root", b"short"), None);
}

#[test]
fn the_newest_ended_checkouts_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let closed = |number: u8| ClosedCheckout {
        name: format!("vm{number}"),
        dir: format!("/mnt/{number}").into(),
        head: Some(CommitId::from_bytes([number; 32])),
    };
    for number in 0..=100 {
        state.now(|db| db.add_checkout(&row())).unwrap();
        state
            .now(|db| db.close_checkout(row().checkout, &closed(number)))
            .unwrap();
    }
    assert_eq!(state.now(|db| db.checkouts()).unwrap(), []);
    let find = |name: Option<&str>, dir: Option<&str>| {
        state
            .now(|db| db.closed_checkout(name, dir.map(Path::new)))
            .unwrap()
    };
    assert_eq!(find(Some("vm0"), None), None);
    assert_eq!(find(Some("vm7"), None), Some(closed(7)));
    assert_eq!(find(None, Some("/mnt/100")), Some(closed(100)));
}

#[test]
fn a_folder_of_the_version_before_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    state.now(|db| db.add_checkout(&row())).unwrap();
    let back = "DROP TABLE taken; DROP TABLE hydrations; ALTER TABLE checkouts DROP COLUMN refusal; DROP TABLE applications; ALTER TABLE checkpoints DROP COLUMN last_flush; ALTER TABLE checkpoints DROP COLUMN stopped_us;
        DROP TABLE checkpoint_roots; DROP TABLE wishes; DROP TABLE acknowledged; DROP TABLE closed;
        ALTER TABLE checkpoints DROP COLUMN past; ALTER TABLE checkpoints DROP COLUMN automatic; PRAGMA user_version = 2;";
    state.now(|db| Ok(db.sql.execute_batch(back)?)).unwrap();
    drop(state);
    let state = open(dir.path());
    state.now(|db| db.add_checkpoint(&checkpoint(1))).unwrap();
    assert_eq!(
        state.now(|db| db.checkpoints(row().checkout)).unwrap(),
        [checkpoint(1)]
    );
    // Version 4 kept a wish beside its checkpoint.
    let back = r#"DROP TABLE taken; DROP TABLE hydrations; ALTER TABLE checkouts DROP COLUMN refusal; DROP TABLE applications; ALTER TABLE checkpoints DROP COLUMN last_flush; ALTER TABLE checkpoints DROP COLUMN stopped_us;
        DROP TABLE checkpoint_roots; DROP TABLE wishes; ALTER TABLE checkpoints DROP COLUMN past; ALTER TABLE checkpoints DROP COLUMN automatic;
        ALTER TABLE checkpoints ADD COLUMN wish BLOB;
        UPDATE checkpoints SET wish = CAST('{"message":"kept"}' AS BLOB); PRAGMA user_version = 4;"#;
    state.now(|db| Ok(db.sql.execute_batch(back)?)).unwrap();
    drop(state);
    let state = open(dir.path());
    assert_eq!(messages(&state), ["kept"]);
    let rows = state.now(|db| db.wishes(row().checkout)).unwrap();
    assert_eq!(rows[0].generation, 1);
}

#[test]
fn enrolment_ends_with_the_pin_and_the_standing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    state.now(|db| db.set_enrolment(b"under way")).unwrap();
    let mut pin = HomePin {
        address: "host:4460".into(),
        home_key_hash: [1; 32],
        home_key: None,
        home: HomeId::from_bytes([2; 32]),
        seen: None,
    };
    let roster = vec![b"genesis".to_vec(), b"add".to_vec()];
    state.now(|db| db.enrolled(&pin, &roster)).unwrap();
    assert_eq!(state.now(|db| db.enrolment()).unwrap(), None);
    assert_eq!(state.now(|db| db.roster()).unwrap(), roster);
    assert_eq!(state.now(|db| db.home()).unwrap(), Some(pin.clone()));
    let seen = Standing {
        incarnation: Incarnation::from_bytes([3; 32]),
        position: LogPosition(4),
        root: LogRoot::from_bytes([5; 32]),
    };
    state.now(|db| db.set_seen(seen)).unwrap();
    pin.seen = Some(seen);
    assert_eq!(state.now(|db| db.home()).unwrap(), Some(pin));
    assert!(state.now(|db| db.append_roster(1, b"again")).is_err());
}

/// Generations of checkpoints that are kept, with the first byte of the id of what they were sealed into.
fn kept(state: &State) -> Vec<(u64, u8)> {
    let roots = state.now(|db| db.checkpoint_roots(row().checkout)).unwrap();
    let roots = roots.iter();
    roots
        .map(|kept| (kept.generation, kept.root.id.as_bytes()[0]))
        .collect()
}

fn root(number: u8) -> img_seal::Reference {
    img_seal::Reference {
        id: img_types::ObjectId::from_bytes([number; 32]),
        key: img_seal::BlockKey::from_bytes([8; 32]),
        len: 9,
    }
}

#[test]
fn checkpoints_are_the_past_once_a_later_state_is_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let checkout = row().checkout;
    state.now(|db| db.add_checkout(&row())).unwrap();
    for number in 1..=5 {
        let cut = checkpoint(number);
        state.now(|db| db.add_checkpoint(&cut)).unwrap();
        if number == 2 {
            continue;
        }
        let generation = u64::from(number);
        let keep =
            |db: &mut Database| db.set_checkpoint_root(checkout, generation, &root(number), 7);
        state.now(keep).unwrap();
    }
    // Of a generation that no checkpoint ends with there is nothing to keep.
    let other = |db: &mut Database| db.set_checkpoint_root(checkout, 9, &root(9), 0);
    state.now(other).unwrap();
    assert_eq!(kept(&state), [(1, 1), (3, 3), (4, 4), (5, 5)]);

    // The second cannot be gone back to, and the fourth is the commit.
    state
        .now(|db| db.committed(checkout, b"commit", 4, 0, 0))
        .unwrap();
    drop(state);
    let state = open(dir.path());
    let generations =
        |rows: Vec<CheckpointRow>| -> Vec<u64> { rows.iter().map(|row| row.generation).collect() };
    let now = state.now(|db| db.checkpoints(checkout)).unwrap();
    let past = state.now(|db| db.past_checkpoints(checkout)).unwrap();
    assert_eq!((generations(now), generations(past)), (vec![5], vec![1, 3]));
    assert_eq!(kept(&state), [(1, 1), (3, 3), (5, 5)]);

    let restored = CheckpointRow {
        message: "restored".into(),
        ..checkpoint(6)
    };
    let add = |db: &mut Database| db.add_sealed_checkpoint(&restored, &root(1));
    state.now(add).unwrap();
    assert!(state.now(add).is_err(), "one of an id");
    let drop_some = |db: &mut Database| db.drop_checkpoints(&[[1; 32], [5; 32]]);
    state.now(drop_some).unwrap();
    assert_eq!(kept(&state), [(3, 3), (6, 1)]);
    assert_eq!(
        state.now(|db| db.checkpoints(checkout)).unwrap(),
        [restored]
    );
}

#[test]
fn an_applications_cgroup_is_found_again_until_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let cgroup = Path::new("/sys/fs/cgroup/imgctl/one");
    let checkout = row().checkout;
    assert!(
        state
            .now(|db| db.set_application(checkout, cgroup))
            .is_err(),
        "of no checkout"
    );
    state.now(|db| db.add_checkout(&row())).unwrap();
    for path in [Path::new("/sys/fs/cgroup/imgctl/before"), cgroup] {
        state.now(|db| db.set_application(checkout, path)).unwrap();
    }
    drop(state);
    let state = open(dir.path());
    let listed = || state.now(|db| db.applications()).unwrap();
    assert_eq!(listed(), [(checkout, cgroup.to_owned())]);
    state.now(|db| db.drop_application(checkout)).unwrap();
    assert!(listed().is_empty());
    state
        .now(|db| db.set_application(checkout, cgroup))
        .unwrap();
    state.now(|db| db.remove_checkout(checkout)).unwrap();
    assert!(listed().is_empty(), "it goes with its checkout");
}

#[test]
fn a_hydration_is_wanted_until_it_is_complete_or_its_checkout_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let checkout = row().checkout;
    let stuck = HydrationRow {
        problem: Some(("It does not fit.".into(), "Make room.".into())),
    };
    {
        let state = open(dir.path());
        state.now(|db| db.add_checkout(&row())).unwrap();
        let wanted = HydrationRow::default();
        state.now(|db| db.set_hydration(checkout, &wanted)).unwrap();
    }
    {
        let state = open(dir.path());
        let kept = state.now(|db| db.hydration(checkout)).unwrap();
        assert_eq!(kept, Some(HydrationRow::default()));
        state.now(|db| db.set_hydration(checkout, &stuck)).unwrap();
    }
    let state = open(dir.path());
    let hydration = || state.now(|db| db.hydration(checkout)).unwrap();
    assert_eq!(hydration(), Some(stuck.clone()));
    state.now(|db| db.hydrated(checkout)).unwrap();
    assert_eq!(hydration(), None);
    state.now(|db| db.set_hydration(checkout, &stuck)).unwrap();
    state.now(|db| db.remove_checkout(checkout)).unwrap();
    assert_eq!(hydration(), None);
}
