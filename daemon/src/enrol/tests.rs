//! Enrolment as records on a table: what each side makes, and what it refuses of the other.

use std::path::Path;

use img_records::{Invite, JoinAnswer, JoinRequest, Roster, Signed, entry_id};
use img_types::{DaemonNonce, DeviceName, LogPosition, WallMillis};

use super::Enrolment;
use super::papers::*;
use super::revoking::{Revocation, find, refuse_last_admin};
use crate::error::Kind;
use crate::events::{Phase, Reporter};
use crate::identity::{Identity, key_ring};
use crate::state::State;

const NOW: WallMillis = WallMillis(1_000);
const SECRET: [u8; 16] = [7; 16];

fn identity(dir: &Path, name: &str) -> Identity {
    let dir = dir.join(name);
    std::fs::create_dir(&dir).unwrap();
    Identity::load_or_create(&dir).unwrap()
}

fn name(text: &str) -> DeviceName {
    DeviceName::parse(text).unwrap()
}

/// A founded home with its first device.
struct Table {
    dir: tempfile::TempDir,
    first: Identity,
    entries: Vec<Vec<u8>>,
    roster: Roster,
    words: String,
}

impl Table {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = identity(dir.path(), "first");
        let made = found(&first, &name("laptop"), NOW).unwrap();
        let entries = vec![made.genesis.to_bytes()];
        Self {
            roster: replay(&entries).unwrap(),
            words: made.recovery.words().to_string(),
            dir,
            first,
            entries,
        }
    }

    fn invite(&self) -> Invite {
        Invite {
            address: "host:4460".into(),
            home_key_hash: [1; 32],
            home: self.roster.home(),
            roster_seq: self.roster.seq(),
            roster_head: self.roster.head(),
            secret: SECRET,
            expires: NOW,
            position: LogPosition(0),
        }
    }

    fn admit(&mut self, request: &JoinRequest) -> Result<JoinAnswer, EnrolError> {
        let ring = key_ring(self.first.kem(), &self.roster).unwrap();
        let entry = admit(&self.first, &self.roster, &ring, &SECRET, request, NOW)?;
        self.roster.append(&entry).unwrap();
        self.entries.push(entry.to_bytes());
        Ok(JoinAnswer::new(&SECRET, entry.to_bytes()))
    }
}

#[test]
fn two_devices_of_one_home_have_two_names() {
    let mut table = Table::new();
    let second = identity(table.dir.path(), "second");
    let invite = table.invite();
    let refused = table.admit(&ask(&second, &invite, &name("laptop")));
    assert_eq!(refused.unwrap_err(), EnrolError::NameTaken);
    table
        .admit(&ask(&second, &invite, &name("laptop-2")))
        .unwrap();
}

#[test]
fn a_second_device_joins_and_both_have_the_same_keys() {
    let mut table = Table::new();
    let second = identity(table.dir.path(), "second");
    let invite = table.invite();
    let request = ask(&second, &invite, &name("tablet"));
    let answer = table.admit(&request).unwrap();
    let roster = accept(&second, &invite, &answer, &table.entries).unwrap();
    let ring = key_ring(second.kem(), &roster).unwrap();
    let first = key_ring(table.first.kem(), &table.roster).unwrap();
    assert_eq!(ring.name_tag("vm"), first.name_tag("vm"));
    assert_eq!(device_name(&ring, &roster, &second.device()), "tablet");
    assert_eq!(device_name(&ring, &roster, &table.first.device()), "laptop");
    assert_eq!(
        role(roster.member(&second.device()).unwrap().member.role),
        "member"
    );
}

#[test]
fn names_are_not_in_the_clear() {
    let mut table = Table::new();
    let second = identity(table.dir.path(), "second");
    let request = ask(&second, &table.invite(), &name("tablet"));
    table.admit(&request).unwrap();
    let sent: Vec<u8> = [request.encode(), table.entries.concat()].concat();
    for secret in [&b"tablet"[..], b"laptop"] {
        assert!(!sent.windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn who_does_not_hold_the_secret_is_turned_down() {
    let mut table = Table::new();
    let second = identity(table.dir.path(), "second");
    let mut stranger = table.invite();
    stranger.secret = [8; 16];
    let request = ask(&second, &stranger, &name("tablet"));
    assert!(matches!(table.admit(&request), Err(EnrolError::Proof)));
    let mut request = ask(&second, &table.invite(), &name("tablet"));
    request.keys.kem = [9; 32];
    assert!(matches!(table.admit(&request), Err(EnrolError::Proof)));
}

#[test]
fn the_joiner_refuses_another_home_and_another_answer() {
    let mut table = Table::new();
    let second = identity(table.dir.path(), "second");
    let invite = table.invite();
    let answer = table
        .admit(&ask(&second, &invite, &name("tablet")))
        .unwrap();

    let forged = JoinAnswer::new(&[8; 16], answer.entry.clone());
    let refused = accept(&second, &invite, &forged, &table.entries);
    assert!(matches!(refused, Err(EnrolError::Proof)));

    // A home that shows a roster of its own making.
    let mut other = Table::new();
    let imposed = other
        .admit(&ask(&second, &other.invite(), &name("tablet")))
        .unwrap();
    let refused = accept(&second, &invite, &imposed, &other.entries);
    assert!(matches!(refused, Err(EnrolError::OtherHome)));

    // A home that leaves the new entry out, or changes a byte of it.
    let refused = accept(&second, &invite, &answer, &table.entries[..1]);
    assert!(matches!(refused, Err(EnrolError::OtherHome)));
    let mut altered = table.entries.clone();
    altered[1][40] ^= 1;
    assert!(accept(&second, &invite, &answer, &altered).is_err());
}

#[test]
fn an_entry_signed_before_a_restart_is_found_on_the_roster() {
    let mut table = Table::new();
    let second = identity(table.dir.path(), "second");
    let answer = table
        .admit(&ask(&second, &table.invite(), &name("tablet")))
        .unwrap();
    let entry = Signed::decode(&answer.entry).unwrap();
    assert!(
        table
            .roster
            .contains(entry_id(&entry, &table.roster.home()))
    );
}

/// Appends the entry by which the first device revokes another.
fn revoke_at(table: &mut Table, device: &Identity, at: u64) {
    let ring = key_ring(table.first.kem(), &table.roster).unwrap();
    let at = LogPosition(at);
    let entry = revoke(&table.first, &table.roster, &ring, device.device(), at, NOW).unwrap();
    table.roster.append(&entry).unwrap();
    table.entries.push(entry.to_bytes());
}

#[test]
fn whoever_stays_gets_the_next_keys_and_the_revoked_device_keeps_the_old_ones() {
    let mut table = Table::new();
    let names = ["lost", "stays", "late"];
    let [lost, stays, late] = names.map(|name| identity(table.dir.path(), name));
    for (device, called) in [(&lost, "tablet"), (&stays, "desktop")] {
        let request = ask(device, &table.invite(), &name(called));
        table.admit(&request).unwrap();
    }
    let tag = key_ring(lost.kem(), &table.roster).unwrap().name_tag("vm");
    revoke_at(&mut table, &lost, 9);
    let request = ask(&late, &table.invite(), &name("tablet"));
    table.admit(&request).unwrap();
    // Twice, so that older keys are reached over more than one step.
    revoke_at(&mut table, &stays, 12);

    let roster = &table.roster;
    let state = roster.member(&lost.device()).unwrap();
    assert_eq!(state.revoked, Some(LogPosition(9)));
    let newest = |device: &Identity| key_ring(device.kem(), roster).unwrap().newest().0;
    assert_eq!([&table.first, &late].map(newest), [2, 2]);
    assert_eq!([&lost, &stays].map(newest), [0, 1]);
    for device in [&table.first, &late, &lost] {
        let ring = key_ring(device.kem(), roster).unwrap();
        assert_eq!(ring.name_tag("vm"), tag, "all older keys are there");
        assert_eq!(device_name(&ring, roster, &lost.device()), "tablet");
    }
    let words = img_seal::RecoverySecret::parse(&table.words).unwrap();
    assert_eq!(key_ring(&words.kem(), roster).unwrap().newest().0, 2);
    let back = identity(table.dir.path(), "back");
    let made = recover(&back, roster, &words, &name("desk"), NOW).unwrap();
    table.roster.append(&made.entry).unwrap();
    let ring = key_ring(back.kem(), &table.roster).unwrap();
    assert_eq!((ring.newest().0, ring.name_tag("vm")), (3, tag));
}

#[test]
fn a_name_means_who_has_it_now_and_the_last_admin_stays() {
    let mut table = Table::new();
    let names = ["lost", "late"];
    let [lost, late] = names.map(|name| identity(table.dir.path(), name));
    let request = ask(&lost, &table.invite(), &name("tablet"));
    table.admit(&request).unwrap();
    revoke_at(&mut table, &lost, 0);
    let meant = |table: &Table, text: &str| {
        let ring = key_ring(table.first.kem(), &table.roster).unwrap();
        find(&ring, &table.roster, text).ok()
    };
    assert_eq!(meant(&table, "tablet"), Some(lost.device()));
    let request = ask(&late, &table.invite(), &name("tablet"));
    table.admit(&request).unwrap();
    assert_eq!(meant(&table, "tablet"), Some(late.device()));
    assert_eq!(meant(&table, "nobody"), None);
    let id = lost.device().to_string();
    assert_eq!(meant(&table, &id[..12]), Some(lost.device()));
    assert_eq!(meant(&table, &id[..4]), None);

    let told = Revocation::of(&table.roster, &lost.device()).unwrap();
    assert_eq!((told.time, told.by), (NOW, table.first.device()));
    assert_eq!(Revocation::of(&table.roster, &late.device()), None);
    let refused = refuse_last_admin(&table.roster, table.first.device(), true);
    assert_eq!(refused.unwrap_err().kind.codes().1, 8);
    assert!(refuse_last_admin(&table.roster, late.device(), false).is_ok());
}

#[test]
fn without_the_newest_keys_nobody_is_revoked() {
    let mut table = Table::new();
    let names = ["lost", "stays"];
    let [lost, stays] = names.map(|name| identity(table.dir.path(), name));
    for (device, called) in [(&lost, "tablet"), (&stays, "desktop")] {
        let request = ask(device, &table.invite(), &name(called));
        table.admit(&request).unwrap();
    }
    let old = key_ring(table.first.kem(), &table.roster).unwrap();
    revoke_at(&mut table, &lost, 0);
    let (first, roster, device) = (&table.first, &table.roster, stays.device());
    let refused = revoke(first, roster, &old, device, LogPosition(0), NOW);
    assert_eq!(refused.map(drop), Err(EnrolError::Key));
}

#[test]
fn the_words_bring_a_device_back_and_work_once() {
    let mut table = Table::new();
    let late = identity(table.dir.path(), "late");
    let words = img_seal::RecoverySecret::parse(&table.words).unwrap();
    let made = recover(&late, &table.roster, &words, &name("desk"), NOW).unwrap();
    table.roster.append(&made.entry).unwrap();
    let ring = key_ring(late.kem(), &table.roster).unwrap();
    let first = key_ring(table.first.kem(), &table.roster).unwrap();
    assert_eq!(ring.newest(), first.newest());
    assert_eq!(ring.name_tag("vm"), first.name_tag("vm"));
    assert_eq!(device_name(&first, &table.roster, &late.device()), "desk");

    let again = identity(table.dir.path(), "again");
    let made = recover(&again, &table.roster, &words, &name("thief"), NOW);
    let refused = made.map(|made| table.roster.append(&made.entry));
    assert!(!matches!(refused, Ok(Ok(()))));
}

#[tokio::test]
async fn an_invite_that_has_expired_is_refused_with_a_way_out_before_anybody_is_asked() {
    let table = Table::new();
    let state = State::open(&table.dir.path().join("state")).unwrap();
    let joiner = identity(table.dir.path(), "second");
    let enrolment = Enrolment {
        state: &state,
        identity: &joiner,
        nonce: DaemonNonce::from_bytes([1; 32]),
        reporter: &Reporter::new(Phase::Wait),
        lines: tokio::sync::mpsc::channel(1).0,
    };
    // Its time was over in 1970, and nobody listens at its address.
    let invite = table.invite().to_string();
    let refused = enrolment.join(&invite, &name("tablet")).await.unwrap_err();
    assert_eq!(refused.kind, Kind::InviteExpired);
    assert_eq!(refused.kind.codes().1, 2);
    assert!(refused.message.contains("has expired"), "{refused}");
    assert!(refused.hint.contains("imgctl device invite"));
    assert_eq!(
        state.now(|db| db.enrolment()).unwrap(),
        None,
        "nothing is left behind"
    );
}
