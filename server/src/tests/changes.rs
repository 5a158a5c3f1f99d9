//! Records by which devices change what is there: the roster, and an image's name.

use bytes::Bytes;
use img_records::{
    Change, RecoveryKeys, Role, Roster, RosterEntry, Signed, SignedDescriptor, SigningSecret,
};
use img_types::{DeviceId, HomeId, LogPosition, WallMillis};

use super::papers::{Device, recovery, wrap};

impl Device {
    /// The entry by which this device adds another.
    pub(super) fn add(&self, roster: &Roster, joiner: &Device) -> Bytes {
        let change = Change::Add {
            member: joiner.member(Role::Member),
            possession: joiner.keys.prove_possession(&roster.home(), &joiner.sign),
            key_epoch: roster.key_epoch(),
            secret_commitment: roster.secret_commitment(),
            wrap: wrap(joiner.keys.kem),
        };
        self.entry(roster, change)
    }

    /// The entry by which this device revokes another.
    pub(super) fn revoke(&self, roster: &Roster, other: DeviceId, at: LogPosition) -> Bytes {
        let staying = roster
            .members()
            .filter(|(id, state)| state.active() && **id != other)
            .map(|(_, state)| wrap(state.member.keys.kem));
        let change = Change::Revoke {
            device: other,
            at,
            key_epoch: roster.key_epoch().next().unwrap(),
            secret_commitment: [6; 32],
            sealed_previous: vec![1; 48],
            wraps: staying.chain([wrap(roster.recovery().kem)]).collect(),
        };
        self.entry(roster, change)
    }

    /// The entry by which this device comes back with the recovery words.
    pub(super) fn recover(&self, roster: &Roster) -> Bytes {
        let fresh = RecoveryKeys {
            sign: SigningSecret::from_bytes([97; 32]).public(),
            kem: [96; 32],
        };
        let receivers = roster
            .members()
            .filter(|(_, state)| state.active())
            .map(|(_, state)| state.member.keys.kem);
        let wraps = receivers.chain([self.keys.kem, fresh.kem]).map(wrap);
        let entry = RosterEntry {
            seq: roster.seq() + 1,
            previous: roster.head(),
            signer: self.id(),
            time: WallMillis(0),
            change: Change::Recover {
                member: self.member(Role::Admin),
                possession: self.keys.prove_possession(&roster.home(), &self.sign),
                recovery: fresh,
                key_epoch: roster.key_epoch().next().unwrap(),
                secret_commitment: [8; 32],
                sealed_previous: vec![1; 48],
                wraps: wraps.collect(),
            },
        };
        Signed::sign(entry, &roster.home(), &recovery())
            .to_bytes()
            .into()
    }

    fn entry(&self, roster: &Roster, change: Change) -> Bytes {
        let entry = RosterEntry {
            seq: roster.seq() + 1,
            previous: roster.head(),
            signer: self.id(),
            time: WallMillis(0),
            change,
        };
        Signed::sign(entry, &roster.home(), &self.sign)
            .to_bytes()
            .into()
    }

    /// A descriptor that follows another one.
    pub(super) fn rename(
        &self,
        home: HomeId,
        before: &SignedDescriptor,
        name: u8,
    ) -> SignedDescriptor {
        let (image, seq) = (before.record.image, before.record.seq + 1);
        self.sign_descriptor(home, image, name, seq, before.id(&home))
    }
}
