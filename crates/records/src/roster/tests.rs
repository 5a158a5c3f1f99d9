use super::*;
use crate::device::SigningSecret;
use proptest::prelude::*;

const AT: WallMillis = WallMillis(1_763_700_000_000);

/// A device whose keys all follow from one number.
fn signing(n: u8) -> SigningSecret {
    SigningSecret::from_bytes([n; 32])
}

fn member(n: u8, role: Role) -> Member {
    Member {
        keys: PublicKeys {
            sign: signing(n).public(),
            tls: SigningSecret::from_bytes([n | 0x80; 32]).public(),
            kem: [n; 32],
        },
        role,
        sealed_name: vec![n; 60],
    }
}

fn id(n: u8) -> DeviceId {
    member(n, Role::Member).keys.device_id()
}

fn recovery(n: u8) -> RecoveryKeys {
    RecoveryKeys {
        sign: signing(n).public(),
        kem: [n; 32],
    }
}

fn wraps(receivers: &[u8]) -> Vec<Wrap> {
    receivers.iter().map(|n| wrap([*n; 32])).collect()
}

fn wrap(receiver: [u8; 32]) -> Wrap {
    Wrap {
        receiver,
        bytes: vec![0x77; 80],
    }
}

/// Device 1 founds, with recovery words 100.
fn genesis() -> RosterEntry {
    RosterEntry {
        seq: 0,
        previous: NO_ENTRY,
        signer: id(1),
        time: AT,
        change: Change::Genesis {
            member: member(1, Role::Admin),
            recovery: recovery(100),
            secret_commitment: [0; 32],
            wraps: wraps(&[1, 100]),
        },
    }
}

fn founded() -> Roster {
    Roster::found(&Signed::sign(genesis(), &NO_HOME, &signing(1))).unwrap()
}

fn next(roster: &Roster, signer: u8, change: Change) -> RosterEntry {
    RosterEntry {
        seq: roster.seq() + 1,
        previous: roster.head(),
        signer: id(signer),
        time: AT,
        change,
    }
}

fn add(roster: &Roster, member: Member, secret: &SigningSecret) -> Change {
    Change::Add {
        possession: member.keys.prove_possession(&roster.home(), secret),
        wrap: wrap(member.keys.kem),
        member,
        key_epoch: roster.key_epoch(),
        secret_commitment: roster.secret_commitment(),
    }
}

fn revoke(roster: &Roster, device: u8, receivers: &[u8]) -> Change {
    Change::Revoke {
        device: id(device),
        at: LogPosition(7),
        key_epoch: roster.key_epoch().next().unwrap(),
        secret_commitment: [9; 32],
        sealed_previous: vec![1; 88],
        wraps: wraps(receivers),
    }
}

fn recover(roster: &Roster, device: u8, words: u8, receivers: &[u8]) -> Change {
    let member = member(device, Role::Admin);
    Change::Recover {
        possession: member
            .keys
            .prove_possession(&roster.home(), &signing(device)),
        member,
        recovery: recovery(words),
        key_epoch: roster.key_epoch().next().unwrap(),
        secret_commitment: [8; 32],
        sealed_previous: vec![1; 88],
        wraps: wraps(receivers),
    }
}

/// Signs as `secret` and appends, over the bytes as they would travel.
fn append_as(
    roster: &mut Roster,
    entry: RosterEntry,
    secret: &SigningSecret,
) -> Result<(), RosterError> {
    let bytes = Signed::sign(entry, &roster.home(), secret).to_bytes();
    let before = (roster.head(), roster.seq(), roster.members.clone());
    let result = roster.append(&SignedRosterEntry::decode(&bytes).unwrap());
    if result.is_err() {
        let after = (roster.head(), roster.seq(), roster.members.clone());
        assert_eq!(after, before, "a refused entry changes nothing");
    }
    result
}

fn append(roster: &mut Roster, signer: u8, change: Change) -> Result<(), RosterError> {
    let entry = next(roster, signer, change);
    append_as(roster, entry, &signing(signer))
}

fn join(roster: &mut Roster, n: u8, role: Role) -> Result<(), RosterError> {
    let change = add(roster, member(n, role), &signing(n));
    append(roster, 1, change)
}

#[test]
fn a_roster_grows_shrinks_and_is_recovered() {
    let mut roster = founded();
    assert_eq!(roster.home().as_bytes(), roster.head().as_bytes());
    join(&mut roster, 2, Role::Admin).unwrap();
    join(&mut roster, 3, Role::Member).unwrap();
    assert_eq!(
        roster.by_tls(&member(3, Role::Member).keys.tls),
        Some(id(3))
    );
    assert_eq!(roster.member(&id(3)).unwrap().added, 2);
    assert!(roster.is_admin(&id(2)) && !roster.is_admin(&id(3)));

    let change = revoke(&roster, 1, &[2, 3, 100]);
    append(&mut roster, 2, change).unwrap();
    let gone = roster.member(&id(1)).unwrap();
    assert_eq!(gone.revoked, Some(LogPosition(7)));
    assert!(!gone.active());
    assert_eq!(roster.by_tls(&gone.member.keys.tls), None);
    assert_eq!(roster.key_epoch(), KeyEpoch(1));
    assert_eq!(roster.secret_commitment(), [9; 32]);

    let entry = next(&roster, 4, recover(&roster, 4, 101, &[2, 3, 4, 101]));
    append_as(&mut roster, entry, &signing(100)).unwrap();
    assert_eq!(roster.recovery(), recovery(101));
    assert_eq!(roster.key_epoch(), KeyEpoch(2));
    assert!(roster.is_admin(&id(4)));
    assert_eq!(roster.seq(), 4);

    let mut again = Roster::found(&roster.entries()[0]).unwrap();
    for entry in &roster.entries()[1..] {
        assert!(!again.contains(entry_id(entry, &roster.home())));
        again.append(entry).unwrap();
        assert!(again.contains(entry_id(entry, &roster.home())));
    }
    assert_eq!(again.head(), roster.head());
    assert_eq!(again.members, roster.members);
}

#[test]
fn entries_come_in_order_and_once() {
    let mut roster = founded();
    join(&mut roster, 2, Role::Admin).unwrap();
    join(&mut roster, 3, Role::Admin).unwrap();
    let entries = roster.entries().to_vec();
    let mut again = Roster::found(&entries[0]).unwrap();
    let not_next = |newest| Err(RosterError::NotNext { newest });
    assert_eq!(again.append(&entries[2]), not_next(0), "reordered");
    again.append(&entries[1]).unwrap();
    assert_eq!(again.append(&entries[1]), not_next(1), "repeated");
    let mut fork = Roster::found(&entries[0]).unwrap();
    join(&mut fork, 9, Role::Admin).unwrap();
    assert_eq!(fork.append(&entries[2]), not_next(1), "of another chain");
    assert!(again.append(&entries[0]).is_err(), "a second genesis");
    let mut skipping = next(&again, 1, add(&again, member(4, Role::Admin), &signing(4)));
    skipping.seq += 1;
    assert_eq!(append_as(&mut again, skipping, &signing(1)), not_next(1));
}

#[test]
fn only_admins_of_now_sign() {
    let mut roster = founded();
    join(&mut roster, 2, Role::Admin).unwrap();
    join(&mut roster, 3, Role::Member).unwrap();
    let newcomer = |roster: &Roster| add(roster, member(4, Role::Member), &signing(4));
    let change = newcomer(&roster);
    let refused = append(&mut roster, 3, change);
    assert_eq!(refused, Err(RosterError::NotAdmin), "a member");
    let change = newcomer(&roster);
    let refused = append(&mut roster, 4, change);
    assert_eq!(refused, Err(RosterError::NotAdmin), "a stranger");
    let entry = next(&roster, 1, newcomer(&roster));
    let refused = append_as(&mut roster, entry.clone(), &signing(3));
    assert!(matches!(refused, Err(RosterError::Signature(_))), "forged");
    let elsewhere = Signed::sign(entry, &HomeId::from_bytes([5; 32]), &signing(1));
    assert!(matches!(
        roster.append(&elsewhere),
        Err(RosterError::Signature(_))
    ));
    let change = revoke(&roster, 1, &[2, 3, 100]);
    append(&mut roster, 2, change).unwrap();
    let change = newcomer(&roster);
    let refused = append(&mut roster, 1, change);
    assert_eq!(refused, Err(RosterError::NotAdmin), "revoked");
}

#[test]
fn a_joiner_has_all_its_keys_and_none_of_anothers() {
    let mut roster = founded();
    join(&mut roster, 2, Role::Member).unwrap();
    let change = add(&roster, member(3, Role::Member), &signing(2));
    assert!(matches!(
        append(&mut roster, 1, change),
        Err(RosterError::Signature(_))
    ));
    assert_eq!(
        join(&mut roster, 2, Role::Member),
        Err(RosterError::Duplicate)
    );
    for part in 0..2 {
        let mut thief = member(3, Role::Member);
        match part {
            0 => thief.keys.tls = member(2, Role::Member).keys.tls,
            _ => thief.keys.kem = member(2, Role::Member).keys.kem,
        }
        let change = add(&roster, thief, &signing(3));
        assert_eq!(append(&mut roster, 1, change), Err(RosterError::Duplicate));
    }
    let mut one_key = member(3, Role::Member);
    one_key.keys.tls = one_key.keys.sign;
    let change = add(&roster, one_key, &signing(3));
    assert!(matches!(
        append(&mut roster, 1, change),
        Err(RosterError::Rule(_))
    ));

    let change = revoke(&roster, 2, &[1, 100]);
    append(&mut roster, 1, change).unwrap();
    assert_eq!(
        join(&mut roster, 2, Role::Member),
        Err(RosterError::Duplicate),
        "a revoked device comes back with new keys only"
    );
}

#[test]
fn the_secret_goes_to_exactly_whom_it_must() {
    let mut roster = founded();
    join(&mut roster, 2, Role::Admin).unwrap();
    join(&mut roster, 3, Role::Member).unwrap();
    for receivers in [
        &[1, 3][..],
        &[1, 100],
        &[1, 3, 100, 100],
        &[1, 2, 3, 100],
        &[1, 3, 101],
        &[],
    ] {
        let change = revoke(&roster, 2, receivers);
        let refused = append(&mut roster, 1, change);
        assert!(
            matches!(refused, Err(RosterError::Rule(_))),
            "{receivers:?}"
        );
    }
    let mut change = add(&roster, member(4, Role::Member), &signing(4));
    if let Change::Add { wrap: one, .. } = &mut change {
        *one = wrap([1; 32]);
    }
    assert!(matches!(
        append(&mut roster, 1, change),
        Err(RosterError::Rule(_))
    ));
    for wrong in 0..2 {
        let mut change = add(&roster, member(4, Role::Member), &signing(4));
        if let Change::Add {
            key_epoch,
            secret_commitment,
            ..
        } = &mut change
        {
            match wrong {
                0 => *key_epoch = KeyEpoch(1),
                _ => *secret_commitment = [1; 32],
            }
        }
        assert!(matches!(
            append(&mut roster, 1, change),
            Err(RosterError::Rule(_))
        ));
    }
    let mut change = revoke(&roster, 2, &[1, 3, 100]);
    if let Change::Revoke { key_epoch, .. } = &mut change {
        *key_epoch = KeyEpoch(2);
    }
    assert!(matches!(
        append(&mut roster, 1, change),
        Err(RosterError::Rule(_))
    ));
}

#[test]
fn revoking_leaves_an_admin_and_names_a_device() {
    let mut roster = founded();
    join(&mut roster, 2, Role::Member).unwrap();
    let change = revoke(&roster, 1, &[2, 100]);
    assert_eq!(append(&mut roster, 1, change), Err(RosterError::LastAdmin));
    let change = revoke(&roster, 9, &[1, 2, 100]);
    assert_eq!(
        append(&mut roster, 1, change),
        Err(RosterError::UnknownDevice)
    );
    let change = revoke(&roster, 2, &[1, 100]);
    append(&mut roster, 1, change).unwrap();
    let change = revoke(&roster, 2, &[1, 100]);
    assert_eq!(
        append(&mut roster, 1, change),
        Err(RosterError::UnknownDevice)
    );
}

#[test]
fn recovery_needs_the_words_and_uses_them_up() {
    let mut roster = founded();
    let entry = next(&roster, 4, recover(&roster, 4, 101, &[1, 4, 101]));
    for wrong in [1, 4, 101] {
        let refused = append_as(&mut roster, entry.clone(), &signing(wrong));
        assert!(matches!(refused, Err(RosterError::Signature(_))));
    }
    let same = next(&roster, 4, recover(&roster, 4, 100, &[1, 4, 100]));
    let refused = append_as(&mut roster, same, &signing(100));
    assert!(matches!(refused, Err(RosterError::Rule(_))));
    append_as(&mut roster, entry, &signing(100)).unwrap();
    let entry = next(&roster, 5, recover(&roster, 5, 102, &[1, 4, 5, 102]));
    let refused = append_as(&mut roster, entry.clone(), &signing(100));
    assert!(matches!(refused, Err(RosterError::Signature(_))), "used up");
    let mut other = entry.clone();
    other.signer = id(1);
    let refused = append_as(&mut roster, other, &signing(101));
    assert!(matches!(refused, Err(RosterError::Rule(_))));
    append_as(&mut roster, entry, &signing(101)).unwrap();
}

#[test]
fn a_genesis_entry_is_its_founders_own() {
    let found = |entry: RosterEntry, signer: u8| {
        Roster::found(&Signed::sign(entry, &NO_HOME, &signing(signer))).map(|_| ())
    };
    assert_eq!(found(genesis(), 1), Ok(()));
    assert!(matches!(
        found(genesis(), 2),
        Err(RosterError::Signature(_))
    ));
    let changed = |change: &dyn Fn(&mut RosterEntry)| {
        let mut entry = genesis();
        change(&mut entry);
        let refused = found(entry, 1);
        assert!(matches!(refused, Err(RosterError::Rule(_))), "{refused:?}");
    };
    changed(&|entry| entry.seq = 1);
    changed(&|entry| entry.previous = EntryId::from_bytes([1; 32]));
    changed(&|entry| entry.signer = id(2));
    changed(&|entry| {
        if let Change::Genesis { member, .. } = &mut entry.change {
            member.role = Role::Member;
        }
    });
    changed(&|entry| {
        if let Change::Genesis { wraps, .. } = &mut entry.change {
            wraps.pop();
        }
    });
    let add = founded();
    let first = next(
        &add,
        1,
        super::tests::add(&add, member(2, Role::Admin), &signing(2)),
    );
    assert!(matches!(found(first, 1), Err(RosterError::Rule(_))));
}

#[test]
fn a_full_roster_takes_nobody_and_its_revocation_still_fits() {
    let mut roster = founded();
    let device = |n: usize| {
        let seed = |kind: u8| *blake3::hash(&[n as u8, (n >> 8) as u8, kind]).as_bytes();
        let secret = SigningSecret::from_bytes(seed(0));
        let keys = PublicKeys {
            sign: secret.public(),
            tls: seed(1),
            kem: seed(2),
        };
        (keys, secret)
    };
    let join = |roster: &mut Roster, n: usize| {
        let (keys, secret) = device(n);
        let member = Member {
            keys,
            role: Role::Member,
            sealed_name: vec![0; NAME_SEALED_LEN_MAX],
        };
        let change = add(roster, member, &secret);
        append(roster, 1, change)
    };
    for n in 1..DEVICES_MAX {
        join(&mut roster, n).unwrap();
    }
    assert_eq!(join(&mut roster, DEVICES_MAX), Err(RosterError::Full));
    let (leaver, _) = device(1);
    let receivers = roster.receivers(|other| *other != leaver.device_id());
    let wraps: Vec<_> = receivers.chain([[100; 32]]).map(wrap).collect();
    assert_eq!(wraps.len(), DEVICES_MAX);
    let change = Change::Revoke {
        device: leaver.device_id(),
        at: LogPosition(0),
        key_epoch: KeyEpoch(1),
        secret_commitment: [9; 32],
        sealed_previous: vec![1; 88],
        wraps,
    };
    append(&mut roster, 1, change).unwrap();
    join(&mut roster, DEVICES_MAX).unwrap();
}

#[test]
fn more_wraps_than_devices_do_not_decode() {
    let roster = founded();
    let mut change = revoke(&roster, 1, &[]);
    if let Change::Revoke { wraps, .. } = &mut change {
        *wraps = vec![wrap([0; 32]); WRAPS_MAX + 1];
    }
    let signed = Signed::sign(next(&roster, 1, change), &roster.home(), &signing(1));
    assert!(SignedRosterEntry::decode(&signed.to_bytes()).is_err());
}

proptest! {
    #[test]
    fn damaged_entries_are_refused(kind in 0usize..4, at: prop::sample::Index, bit in 0u8..8) {
        let mut roster = founded();
        let change = [
            genesis().change,
            add(&roster, member(2, Role::Admin), &signing(2)),
            revoke(&roster, 1, &[100]),
            recover(&roster, 4, 101, &[1, 4, 101]),
        ][kind].clone();
        let mut entry = next(&roster, 1, change);
        let mut secret = signing(1);
        if kind == 3 {
            entry.signer = id(4);
            secret = signing(100);
        }
        let mut bytes = Signed::sign(entry, &roster.home(), &secret).to_bytes();
        let at = at.index(bytes.len());
        prop_assert!(SignedRosterEntry::decode(&bytes[..at]).is_err());
        bytes[at] ^= 1 << bit;
        if let Ok(damaged) = SignedRosterEntry::decode(&bytes) {
            prop_assert!(roster.append(&damaged).is_err());
            prop_assert!(Roster::found(&damaged).is_err());
        }
    }

    #[test]
    fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = SignedRosterEntry::decode(&bytes);
    }
}
