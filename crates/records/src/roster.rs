//! The roster: a home's devices and their rights, as a chain of entries that admins sign.
//!
//! Entry: version 1 (1), number (8), previous entry (32), signer (32), clock in milliseconds (8),
//! kind of change (1), then by kind:
//!
//! | kind | bytes |
//! |---|---|
//! | 1 genesis | member, recovery keys, commitment (32), wraps |
//! | 2 add | member, possession (64), key epoch (4), commitment (32), wrap |
//! | 3 revoke | device (32), log position (8), key epoch (4), commitment (32), sealed previous secret (4 + n), wraps |
//! | 4 recover | member, possession (64), recovery keys, key epoch (4), commitment (32), sealed previous secret (4 + n), wraps |
//!
//! Member: keys (96), role (1: 1 admin, 2 member), sealed name (4 + n). Recovery keys: sign (32),
//! kem (32). Wrap: receiving key (32), bytes (4 + n). Wraps: count (2), then each. Behind the entry
//! stands the signature of the signer (64), in a recover entry that of the recovery key.
//!
//! In the genesis entry the home id, under which it is signed and hashed, and the previous entry
//! are zeros; its id is the home id. Secrets that wraps carry are `img-seal`'s business; here it is
//! only checked that everybody who must have one gets one.

use std::collections::{BTreeMap, BTreeSet};

use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{DEVICES_MAX, ROSTER_ENTRY_LEN_MAX};
use img_types::{DeviceId, EntryId, HomeId, KeyEpoch, LogPosition, WallMillis};

use crate::device::{PublicKeys, SignatureError};
use crate::signed::{Record, Signed, version};

const VERSION: u8 = 1;
/// Longest sealed device name: 100 characters of four bytes and the sealing.
pub const NAME_SEALED_LEN_MAX: usize = 512;
const SECRET_SEALED_LEN_MAX: usize = 256;
const WRAP_LEN_MAX: usize = 256;
/// One for each device and one for the recovery key.
const WRAPS_MAX: usize = DEVICES_MAX + 1;
const NO_HOME: HomeId = HomeId::from_bytes([0; 32]);
const NO_ENTRY: EntryId = EntryId::from_bytes([0; 32]);

/// A roster entry with its signature.
pub type SignedRosterEntry = Signed<RosterEntry>;

/// Names a roster entry within a home; the genesis entry's id is the home's.
pub fn entry_id(entry: &SignedRosterEntry, home: &HomeId) -> EntryId {
    let home = match entry.record.change {
        Change::Genesis { .. } => &NO_HOME,
        _ => home,
    };
    EntryId::from_bytes(entry.id(home))
}

/// What a device may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything, and change the roster.
    Admin,
    /// Everything else.
    Member,
}

/// A device as an entry introduces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its keys.
    pub keys: PublicKeys,
    /// Its role.
    pub role: Role,
    /// Its name, sealed for devices.
    pub sealed_name: Vec<u8>,
}

/// The public halves of the keys that the recovery words give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryKeys {
    /// Ed25519; may sign one entry.
    pub sign: [u8; 32],
    /// X25519; home secrets are wrapped to it.
    pub kem: [u8; 32],
}

/// A home secret, wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrap {
    /// For which receiving key.
    pub receiver: [u8; 32],
    /// The wrapped secret.
    pub bytes: Vec<u8>,
}

/// What an entry changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Founds the home, with key epoch 0.
    Genesis {
        /// The founding device, an admin.
        member: Member,
        /// The recovery keys.
        recovery: RecoveryKeys,
        /// Names the home secret.
        secret_commitment: [u8; 32],
        /// For the founder and the recovery key.
        wraps: Vec<Wrap>,
    },
    /// Adds a device.
    Add {
        /// The device.
        member: Member,
        /// Its signature under its three keys.
        possession: [u8; 64],
        /// The current key epoch.
        key_epoch: KeyEpoch,
        /// Names the current home secret.
        secret_commitment: [u8; 32],
        /// For the device.
        wrap: Wrap,
    },
    /// Takes a device off the roster and changes the home secret.
    Revoke {
        /// The device.
        device: DeviceId,
        /// Its commits count up to this position of the home's log.
        at: LogPosition,
        /// The next key epoch.
        key_epoch: KeyEpoch,
        /// Names the new home secret.
        secret_commitment: [u8; 32],
        /// The home secret before, sealed under the new one.
        sealed_previous: Vec<u8>,
        /// For every device that stays, and the recovery key.
        wraps: Vec<Wrap>,
    },
    /// Adds a device by the recovery words, replaces them, and changes the home secret.
    Recover {
        /// The device, an admin.
        member: Member,
        /// Its signature under its three keys.
        possession: [u8; 64],
        /// The new recovery keys.
        recovery: RecoveryKeys,
        /// The next key epoch.
        key_epoch: KeyEpoch,
        /// Names the new home secret.
        secret_commitment: [u8; 32],
        /// The home secret before, sealed under the new one.
        sealed_previous: Vec<u8>,
        /// For every device, the new one included, and the new recovery key.
        wraps: Vec<Wrap>,
    },
}

/// One link of the roster's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterEntry {
    /// Number in the chain, from 0.
    pub seq: u64,
    /// The entry before; zeros for the genesis entry.
    pub previous: EntryId,
    /// The admin who signs; in a genesis or recover entry the new device.
    pub signer: DeviceId,
    /// The signer's clock; information only.
    pub time: WallMillis,
    /// What changes.
    pub change: Change,
}

mod codec;

/// Says why an entry does not continue a roster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// It continues another entry than the newest one: fetch what is missing, or sign again.
    #[error("the roster entry does not continue the newest one, number {newest}")]
    NotNext {
        /// Number of the newest entry.
        newest: u64,
    },
    /// Its signature, or the joiner's, is wrong.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Its signer is not an admin (any more).
    #[error("the roster entry's signer is not an admin")]
    NotAdmin,
    /// A device with one of these keys is or was on the roster.
    #[error("a device with one of these keys is on the roster already")]
    Duplicate,
    /// The roster holds as many devices as it can.
    #[error("the roster is full: {DEVICES_MAX} devices")]
    Full,
    /// The device to revoke is not on the roster.
    #[error("the device is not on the roster")]
    UnknownDevice,
    /// Without this device nobody could change the roster.
    #[error("the device is the last admin")]
    LastAdmin,
    /// It breaks another rule of the chain.
    #[error("the roster entry breaks a rule: {0}")]
    Rule(&'static str),
}

/// A device and its time on the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberState {
    /// The device as it was added.
    pub member: Member,
    /// Number of the entry that added it.
    pub added: u64,
    /// The log position up to which its commits count, once it has been revoked.
    pub revoked: Option<LogPosition>,
}

impl MemberState {
    /// Whether the device is on the roster now.
    pub fn active(&self) -> bool {
        self.revoked.is_none()
    }

    fn admin(&self) -> bool {
        self.active() && self.member.role == Role::Admin
    }
}

/// A verified chain of entries and what it adds up to.
#[derive(Debug, Clone)]
pub struct Roster {
    home: HomeId,
    head: EntryId,
    entries: Vec<SignedRosterEntry>,
    ids: BTreeSet<EntryId>,
    members: BTreeMap<DeviceId, MemberState>,
    key_epoch: KeyEpoch,
    secret_commitment: [u8; 32],
    recovery: RecoveryKeys,
}

impl Roster {
    /// Starts a roster with its genesis entry.
    ///
    /// # Errors
    /// The entry is not one, or is not signed by the device that it introduces.
    pub fn found(genesis: &SignedRosterEntry) -> Result<Self, RosterError> {
        let entry = &genesis.record;
        let Change::Genesis {
            member,
            recovery,
            secret_commitment,
            wraps,
        } = &entry.change
        else {
            return Err(RosterError::Rule("the first entry is a genesis entry"));
        };
        if entry.seq != 0 || entry.previous != NO_ENTRY {
            return Err(RosterError::Rule("a genesis entry continues nothing"));
        }
        let device = member.keys.device_id();
        if entry.signer != device || member.role != Role::Admin {
            return Err(RosterError::Rule("the founder signs as an admin"));
        }
        genesis.verify(&NO_HOME, &member.keys.sign)?;
        check_keys(member)?;
        check_wraps(wraps, [member.keys.kem, recovery.kem])?;
        let id = genesis.id(&NO_HOME);
        let head = EntryId::from_bytes(id);
        let state = MemberState {
            member: member.clone(),
            added: 0,
            revoked: None,
        };
        Ok(Self {
            home: HomeId::from_bytes(id),
            head,
            entries: vec![genesis.clone()],
            ids: BTreeSet::from([head]),
            members: BTreeMap::from([(device, state)]),
            key_epoch: KeyEpoch(0),
            secret_commitment: *secret_commitment,
            recovery: *recovery,
        })
    }

    /// Appends an entry, or changes nothing.
    ///
    /// # Errors
    /// The entry is not the next one, or breaks a rule of the chain.
    pub fn append(&mut self, signed: &SignedRosterEntry) -> Result<(), RosterError> {
        let entry = &signed.record;
        if self.seq().checked_add(1) != Some(entry.seq) || entry.previous != self.head {
            return Err(RosterError::NotNext { newest: self.seq() });
        }
        match &entry.change {
            Change::Genesis { .. } => {
                return Err(RosterError::Rule("only the first entry is a genesis entry"));
            }
            Change::Recover { member, .. } => {
                if entry.signer != member.keys.device_id() {
                    return Err(RosterError::Rule("the recovered device signs"));
                }
                signed.verify(&self.home, &self.recovery.sign)?;
            }
            Change::Add { .. } | Change::Revoke { .. } => {
                let signer = self.member(&entry.signer).filter(|state| state.admin());
                let signer = signer.ok_or(RosterError::NotAdmin)?;
                signed.verify(&self.home, &signer.member.keys.sign)?;
            }
        }
        self.check(&entry.change)?;
        self.apply(entry);
        self.head = EntryId::from_bytes(signed.id(&self.home));
        self.ids.insert(self.head);
        self.entries.push(signed.clone());
        Ok(())
    }

    /// The home: the genesis entry's id.
    pub fn home(&self) -> HomeId {
        self.home
    }

    /// The newest entry.
    pub fn head(&self) -> EntryId {
        self.head
    }

    /// Number of the newest entry.
    pub fn seq(&self) -> u64 {
        self.entries.len() as u64 - 1
    }

    /// A device that is or was on the roster.
    pub fn member(&self, device: &DeviceId) -> Option<&MemberState> {
        self.members.get(device)
    }

    /// The device that is on the roster now with this identity in TLS.
    pub fn by_tls(&self, tls: &[u8; 32]) -> Option<DeviceId> {
        self.members
            .iter()
            .find(|(_, state)| state.active() && state.member.keys.tls == *tls)
            .map(|(device, _)| *device)
    }

    /// All devices that are or were on the roster, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = (&DeviceId, &MemberState)> {
        self.members.iter()
    }

    /// The entry that took a device off the roster. A device comes back under other keys only, so there is one
    /// at most.
    pub fn revocation(&self, device: &DeviceId) -> Option<&SignedRosterEntry> {
        let revokes =
            |change: &Change| matches!(change, Change::Revoke { device: of, .. } if of == device);
        let mut entries = self.entries.iter();
        entries.find(|entry| revokes(&entry.record.change))
    }

    /// Whether the device is an admin now.
    pub fn is_admin(&self, device: &DeviceId) -> bool {
        self.member(device).is_some_and(MemberState::admin)
    }

    /// The current key epoch.
    pub fn key_epoch(&self) -> KeyEpoch {
        self.key_epoch
    }

    /// Names the current home secret.
    pub fn secret_commitment(&self) -> [u8; 32] {
        self.secret_commitment
    }

    /// The current recovery keys.
    pub fn recovery(&self) -> RecoveryKeys {
        self.recovery
    }

    /// The entries, from the genesis entry on.
    pub fn entries(&self) -> &[SignedRosterEntry] {
        &self.entries
    }

    /// Whether an entry belongs to the chain.
    pub fn contains(&self, entry: EntryId) -> bool {
        self.ids.contains(&entry)
    }

    fn check(&self, change: &Change) -> Result<(), RosterError> {
        match change {
            Change::Genesis { .. } => Ok(()),
            Change::Add {
                member,
                possession,
                key_epoch,
                secret_commitment,
                wrap,
            } => {
                self.check_new(member, possession)?;
                if *key_epoch != self.key_epoch || *secret_commitment != self.secret_commitment {
                    return Err(RosterError::Rule("an added device gets the current secret"));
                }
                check_wraps(std::slice::from_ref(wrap), [member.keys.kem])
            }
            Change::Revoke {
                device,
                key_epoch,
                wraps,
                ..
            } => {
                let known = self.member(device).is_some_and(MemberState::active);
                if !known {
                    return Err(RosterError::UnknownDevice);
                }
                let admin_stays = self
                    .members
                    .iter()
                    .any(|(other, state)| other != device && state.admin());
                if !admin_stays {
                    return Err(RosterError::LastAdmin);
                }
                self.check_rotation(*key_epoch)?;
                let staying = self.receivers(|other| other != device);
                check_wraps(wraps, staying.chain([self.recovery.kem]))
            }
            Change::Recover {
                member,
                possession,
                recovery,
                key_epoch,
                wraps,
                ..
            } => {
                self.check_new(member, possession)?;
                if member.role != Role::Admin {
                    return Err(RosterError::Rule("a recovered device is an admin"));
                }
                if recovery.sign == self.recovery.sign || recovery.kem == self.recovery.kem {
                    return Err(RosterError::Rule("recovery words are used once"));
                }
                self.check_rotation(*key_epoch)?;
                let all = self.receivers(|_| true);
                check_wraps(wraps, all.chain([member.keys.kem, recovery.kem]))
            }
        }
    }

    fn check_new(&self, member: &Member, possession: &[u8; 64]) -> Result<(), RosterError> {
        member.keys.verify_possession(&self.home, possession)?;
        check_keys(member)?;
        let used: BTreeSet<_> = self
            .members
            .values()
            .flat_map(|state| state.member.keys.all())
            .collect();
        if member.keys.all().iter().any(|key| used.contains(key)) {
            return Err(RosterError::Duplicate);
        }
        let active = self.members.values().filter(|state| state.active());
        if active.count() >= DEVICES_MAX {
            return Err(RosterError::Full);
        }
        Ok(())
    }

    fn check_rotation(&self, key_epoch: KeyEpoch) -> Result<(), RosterError> {
        if self.key_epoch.next() == Some(key_epoch) {
            Ok(())
        } else {
            Err(RosterError::Rule("the key epoch grows by one"))
        }
    }

    fn receivers(&self, stays: impl Fn(&DeviceId) -> bool) -> impl Iterator<Item = [u8; 32]> {
        self.members
            .iter()
            .filter(move |(device, state)| state.active() && stays(device))
            .map(|(_, state)| state.member.keys.kem)
    }

    fn apply(&mut self, entry: &RosterEntry) {
        match &entry.change {
            Change::Genesis { .. } => {}
            Change::Add { member, .. } => self.add(member, entry.seq),
            Change::Revoke {
                device,
                at,
                key_epoch,
                secret_commitment,
                ..
            } => {
                if let Some(state) = self.members.get_mut(device) {
                    state.revoked = Some(*at);
                }
                self.key_epoch = *key_epoch;
                self.secret_commitment = *secret_commitment;
            }
            Change::Recover {
                member,
                recovery,
                key_epoch,
                secret_commitment,
                ..
            } => {
                self.add(member, entry.seq);
                self.recovery = *recovery;
                self.key_epoch = *key_epoch;
                self.secret_commitment = *secret_commitment;
            }
        }
    }

    fn add(&mut self, member: &Member, added: u64) {
        let state = MemberState {
            member: member.clone(),
            added,
            revoked: None,
        };
        self.members.insert(member.keys.device_id(), state);
    }
}

/// A device's records and its TLS sessions must not be able to stand in for each other.
fn check_keys(member: &Member) -> Result<(), RosterError> {
    if member.keys.sign == member.keys.tls {
        return Err(RosterError::Rule(
            "a device signs and connects with two keys",
        ));
    }
    Ok(())
}

/// Wraps are for exactly these receivers, once each.
fn check_wraps(
    wraps: &[Wrap],
    receivers: impl IntoIterator<Item = [u8; 32]>,
) -> Result<(), RosterError> {
    let expected: BTreeSet<_> = receivers.into_iter().collect();
    let found: BTreeSet<_> = wraps.iter().map(|wrap| wrap.receiver).collect();
    if expected == found && found.len() == wraps.len() {
        Ok(())
    } else {
        Err(RosterError::Rule(
            "the secret is wrapped once for everybody who must have it",
        ))
    }
}

#[cfg(test)]
mod tests;
