//! The records of enrolment, made and checked without any I/O.
//!
//! `docs/formats.md` describes them; what is checked here is what makes an invite trustworthy: the joiner proves that it
//! holds the invite's secret and its own keys, the inviter proves that the roster entry is the one it signed, and the
//! roster has to lead from the genesis whose hash is the home id to the entry that the invite names.

use img_records::{
    Change, Invite, JoinAnswer, JoinRequest, Member, PublicKeys, RecoveryKeys, Role, Roster,
    RosterEntry, Signed, SigningSecret, Wrap, entry_id,
};
use img_seal::{
    FieldKey, HomeSecret, KeyRing, RecoverySecret, WrapInfo, open_field, seal_field, seal_previous,
    wrap_secret,
};
use img_types::{DeviceId, DeviceName, HomeId, KeyEpoch, LogPosition, WallMillis};

use crate::identity::{BEFORE_GENESIS, Identity};

/// Why an enrolment cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// The other side does not hold the invite's secret, or altered what it sent.
    #[error("the proof does not match the invite")]
    Proof,
    /// A record does not parse, or breaks a rule of the roster.
    #[error("the roster does not verify: {0}")]
    Roster(String),
    /// The home shows another history than the invite names.
    #[error("the home is not the one that the invite names")]
    OtherHome,
    /// A key is not usable.
    #[error("a key of the other device is not usable")]
    Key,
    /// The name does not open or is no name.
    #[error("the device's name cannot be read")]
    Name,
    /// Another device has the name.
    #[error("another device has this name")]
    NameTaken,
}

/// A new home: its genesis, and what its person has to write down.
pub struct Founding {
    /// The signed genesis entry.
    pub genesis: Signed<RosterEntry>,
    /// The recovery secret.
    pub recovery: RecoverySecret,
}

/// Makes a home.
///
/// # Errors
/// One of the fresh keys is not usable.
pub fn found(
    identity: &Identity,
    name: &DeviceName,
    time: WallMillis,
) -> Result<Founding, EnrolError> {
    let secret = HomeSecret::generate();
    let recovery = RecoverySecret::generate();
    let ring = KeyRing::new(KeyEpoch(0), secret.clone());
    let info = WrapInfo {
        home: NO_HOME,
        previous: BEFORE_GENESIS,
        epoch: KeyEpoch(0),
    };
    let receivers = [identity.public().kem, recovery.kem().public()];
    let entry = RosterEntry {
        seq: 0,
        previous: BEFORE_GENESIS,
        signer: identity.device(),
        time,
        change: Change::Genesis {
            member: member(&ring, identity.public(), Role::Admin, name)?,
            recovery: recovery_keys(&recovery),
            secret_commitment: secret.commitment(),
            wraps: wraps(&receivers, info, &secret)?,
        },
    };
    let genesis = Signed::sign(entry, &NO_HOME, identity.signer());
    Ok(Founding { genesis, recovery })
}

/// Asks to join under an invite.
pub fn ask(identity: &Identity, invite: &Invite, name: &DeviceName) -> JoinRequest {
    let keys = identity.public();
    let name = seal_field(
        &FieldKey::of_invite(&invite.secret),
        NAME_PURPOSE,
        &clear(&keys),
        name.as_str().as_bytes(),
    );
    let possession = keys.prove_possession(&invite.home, identity.signer());
    JoinRequest::new(&invite.secret, &invite.home, keys, possession, name)
}

/// Answers a join: checks that it comes from who holds the invite's secret, and adds the device.
///
/// # Errors
/// All of them burn the invite but one: who asked for a name that is taken is told so, and may choose another.
pub fn admit(
    identity: &Identity,
    roster: &Roster,
    ring: &KeyRing,
    secret: &[u8; 16],
    request: &JoinRequest,
    time: WallMillis,
) -> Result<Signed<RosterEntry>, EnrolError> {
    request
        .verify(secret, &roster.home())
        .map_err(|_| EnrolError::Proof)?;
    let name = open_field(
        &FieldKey::of_invite(secret),
        NAME_PURPOSE,
        &clear(&request.keys),
        &request.name_sealed,
    )
    .map_err(|_| EnrolError::Name)?;
    let name = parse_name(&name)?;
    let mut names = roster
        .members()
        .filter(|(_, state)| state.active())
        .filter_map(|(_, state)| open_name(ring, &state.member));
    if names.any(|taken| taken == name.as_str()) {
        return Err(EnrolError::NameTaken);
    }
    let epoch = ring.newest();
    let secret = ring.secret(epoch).ok_or(EnrolError::Key)?;
    let info = WrapInfo {
        home: roster.home(),
        previous: roster.head(),
        epoch,
    };
    let entry = RosterEntry {
        seq: roster.seq() + 1,
        previous: roster.head(),
        signer: identity.device(),
        time,
        change: Change::Add {
            member: member(ring, request.keys, Role::Member, &name)?,
            possession: request.possession,
            key_epoch: epoch,
            secret_commitment: secret.commitment(),
            wrap: wrap(&request.keys.kem, info, secret)?,
        },
    };
    Ok(Signed::sign(entry, &roster.home(), identity.signer()))
}

/// Checks a whole roster as the home told it against what an invite and the inviter's answer promise.
///
/// # Errors
/// [`EnrolError`].
pub fn accept(
    identity: &Identity,
    invite: &Invite,
    answer: &JoinAnswer,
    entries: &[Vec<u8>],
) -> Result<Roster, EnrolError> {
    let roster = replay(entries)?;
    if roster.home() != invite.home || !roster.contains(invite.roster_head) {
        return Err(EnrolError::OtherHome);
    }
    answer
        .verify(&invite.secret)
        .map_err(|_| EnrolError::Proof)?;
    let added = decode(&answer.entry)?;
    let here = roster.contains(entry_id(&added, &invite.home));
    if !here || !is_active(&roster, &identity.device()) {
        return Err(EnrolError::OtherHome);
    }
    Ok(roster)
}

/// A device that comes back with the recovery words.
pub struct Recovery {
    /// The signed entry, to be appended.
    pub entry: Signed<RosterEntry>,
    /// The new recovery secret.
    pub recovery: RecoverySecret,
}

/// Adds a device by the recovery words, and replaces them and the home secret.
///
/// # Errors
/// The words are not this home's, or a key is not usable.
pub fn recover(
    identity: &Identity,
    roster: &Roster,
    words: &RecoverySecret,
    name: &DeviceName,
    time: WallMillis,
) -> Result<Recovery, EnrolError> {
    let old = crate::identity::key_ring(&words.kem(), roster).map_err(|_| EnrolError::Key)?;
    let next = NextSecret::after(&old, roster)?;
    let mut ring = old.clone();
    ring.add(next.info.epoch, next.secret.clone());
    let recovery = RecoverySecret::generate();
    let mut receivers = vec![identity.public().kem, recovery.kem().public()];
    receivers.extend(receivers_of(roster, |_| true));
    let keys = identity.public();
    let signer = SigningSecret::from_bytes(*words.signing_seed());
    let entry = RosterEntry {
        seq: roster.seq() + 1,
        previous: roster.head(),
        signer: identity.device(),
        time,
        change: Change::Recover {
            member: member(&ring, keys, Role::Admin, name)?,
            possession: keys.prove_possession(&roster.home(), identity.signer()),
            recovery: recovery_keys(&recovery),
            key_epoch: next.info.epoch,
            secret_commitment: next.secret.commitment(),
            wraps: wraps(&receivers, next.info, &next.secret)?,
            sealed_previous: next.sealed_previous,
        },
    };
    let entry = Signed::sign(entry, &roster.home(), &signer);
    Ok(Recovery { entry, recovery })
}

/// Takes a device off the roster: its commits count up to log position `at`, and the home secret is replaced for
/// everybody who stays.
///
/// # Errors
/// [`EnrolError::Key`]: this device does not hold the newest home secret, or a key is not usable.
pub fn revoke(
    identity: &Identity,
    roster: &Roster,
    ring: &KeyRing,
    device: DeviceId,
    at: LogPosition,
    time: WallMillis,
) -> Result<Signed<RosterEntry>, EnrolError> {
    let next = NextSecret::after(ring, roster)?;
    let mut receivers = receivers_of(roster, |other| *other != device);
    receivers.push(roster.recovery().kem);
    let entry = RosterEntry {
        seq: roster.seq() + 1,
        previous: roster.head(),
        signer: identity.device(),
        time,
        change: Change::Revoke {
            device,
            at,
            key_epoch: next.info.epoch,
            secret_commitment: next.secret.commitment(),
            wraps: wraps(&receivers, next.info, &next.secret)?,
            sealed_previous: next.sealed_previous,
        },
    };
    Ok(Signed::sign(entry, &roster.home(), identity.signer()))
}

/// The home secret that replaces the newest one.
struct NextSecret {
    secret: HomeSecret,
    sealed_previous: Vec<u8>,
    /// Its epoch, and the place of the entry that brings it.
    info: WrapInfo,
}

impl NextSecret {
    fn after(ring: &KeyRing, roster: &Roster) -> Result<Self, EnrolError> {
        let newest = ring.newest();
        let before = ring.secret(newest).ok_or(EnrolError::Key)?;
        if newest != roster.key_epoch() {
            return Err(EnrolError::Key);
        }
        let epoch = newest.next().ok_or(EnrolError::Key)?;
        let secret = HomeSecret::generate();
        Ok(Self {
            sealed_previous: seal_previous(&secret, epoch, before),
            secret,
            info: WrapInfo {
                home: roster.home(),
                previous: roster.head(),
                epoch,
            },
        })
    }
}

/// The receiving keys of the devices on the roster that stay.
fn receivers_of(roster: &Roster, stays: impl Fn(&DeviceId) -> bool) -> Vec<[u8; 32]> {
    let members = roster.members();
    let staying = members.filter(|(device, state)| state.active() && stays(device));
    staying.map(|(_, state)| state.member.keys.kem).collect()
}

/// Rebuilds a roster from its signed entries, checking every rule.
///
/// # Errors
/// [`EnrolError::Roster`].
pub fn replay(entries: &[Vec<u8>]) -> Result<Roster, EnrolError> {
    let (genesis, rest) = entries
        .split_first()
        .ok_or_else(|| EnrolError::Roster("it is empty".into()))?;
    let broken = |error: img_records::RosterError| EnrolError::Roster(error.to_string());
    let mut roster = Roster::found(&decode(genesis)?).map_err(broken)?;
    for entry in rest {
        roster.append(&decode(entry)?).map_err(broken)?;
    }
    Ok(roster)
}

/// The name of a device for people: as its roster entry says, else the beginning of its id.
pub fn device_name(ring: &KeyRing, roster: &Roster, device: &DeviceId) -> String {
    roster
        .member(device)
        .and_then(|member| open_name(ring, &member.member))
        .unwrap_or_else(|| device.short())
}

/// A role's word in the control API.
pub fn role(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Member => "member",
    }
}

fn open_name(ring: &KeyRing, member: &Member) -> Option<String> {
    (0..=ring.newest().0).rev().find_map(|epoch| {
        let key = ring.roster(KeyEpoch(epoch))?;
        let name = open_field(
            &key,
            NAME_PURPOSE,
            &clear(&member.keys),
            &member.sealed_name,
        )
        .ok()?;
        parse_name(&name).ok().map(|name| name.to_string())
    })
}

fn is_active(roster: &Roster, device: &DeviceId) -> bool {
    roster.member(device).is_some_and(|member| member.active())
}

fn decode(entry: &[u8]) -> Result<Signed<RosterEntry>, EnrolError> {
    Signed::decode(entry).map_err(|error| EnrolError::Roster(error.to_string()))
}

fn member(
    ring: &KeyRing,
    keys: PublicKeys,
    role: Role,
    name: &DeviceName,
) -> Result<Member, EnrolError> {
    let key = ring.roster(ring.newest()).ok_or(EnrolError::Key)?;
    let sealed_name = seal_field(&key, NAME_PURPOSE, &clear(&keys), name.as_str().as_bytes());
    Ok(Member {
        keys,
        role,
        sealed_name,
    })
}

fn recovery_keys(recovery: &RecoverySecret) -> RecoveryKeys {
    RecoveryKeys {
        sign: SigningSecret::from_bytes(*recovery.signing_seed()).public(),
        kem: recovery.kem().public(),
    }
}

fn wraps(
    receivers: &[[u8; 32]],
    info: WrapInfo,
    secret: &HomeSecret,
) -> Result<Vec<Wrap>, EnrolError> {
    receivers
        .iter()
        .map(|receiver| wrap(receiver, info, secret))
        .collect()
}

fn wrap(receiver: &[u8; 32], info: WrapInfo, secret: &HomeSecret) -> Result<Wrap, EnrolError> {
    let bytes = wrap_secret(receiver, info, secret).map_err(|_| EnrolError::Key)?;
    Ok(Wrap {
        receiver: *receiver,
        bytes,
    })
}

fn clear(keys: &PublicKeys) -> Vec<u8> {
    let mut clear = Vec::new();
    keys.encode(&mut clear);
    clear
}

fn parse_name(name: &[u8]) -> Result<DeviceName, EnrolError> {
    let text = std::str::from_utf8(name).map_err(|_| EnrolError::Name)?;
    DeviceName::parse(text).map_err(|_| EnrolError::Name)
}

/// What stands for the home id in the record that makes it.
const NO_HOME: HomeId = HomeId::from_bytes([0; 32]);

/// Purpose of the sealed device name in join requests and roster entries.
const NAME_PURPOSE: &str = "device name";
