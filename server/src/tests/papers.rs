//! Devices and the records that they sign. Sealed parts are noise: the home cannot tell.

use bytes::Bytes;
use img_net::TlsIdentity;
use img_records::{
    Change, Commit, Descriptor, Member, Parent, PublicKeys, RecoveryKeys, Role, Roster,
    RosterEntry, Signed, SignedCommit, SignedDescriptor, SignedRosterEntry, SigningSecret, Wrap,
    commit_id,
};
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, EntryId, HomeId, ImageId, Instance, KeyEpoch,
    LogPosition, NameTag, ObjectId, Seq, Token, WallMillis,
};

const NO_HOME: HomeId = HomeId::from_bytes([0; 32]);

/// The secret half of every test home's recovery keys.
pub(super) fn recovery() -> SigningSecret {
    SigningSecret::from_bytes([99; 32])
}

/// A device with keys that follow from its number.
#[derive(Clone)]
pub(super) struct Device {
    pub(super) sign: SigningSecret,
    pub(super) tls: [u8; 32],
    pub(super) keys: PublicKeys,
    pub(super) checkout: CheckoutId,
    pub(super) nonce: DaemonNonce,
}

impl Device {
    pub(super) fn new(number: u8) -> Self {
        let sign = SigningSecret::from_bytes([number; 32]);
        let tls = [number + 100; 32];
        let keys = PublicKeys {
            sign: sign.public(),
            tls: TlsIdentity::from_seed(&tls).public_key(),
            kem: [number + 50; 32],
        };
        Self {
            sign,
            tls,
            keys,
            checkout: CheckoutId::from_bytes([number; 32]),
            nonce: DaemonNonce::from_bytes([number; 32]),
        }
    }

    pub(super) fn id(&self) -> DeviceId {
        self.keys.device_id()
    }

    pub(super) fn member(&self, role: Role) -> Member {
        Member {
            keys: self.keys,
            role,
            sealed_name: vec![7; 40],
        }
    }

    pub(super) fn genesis(&self) -> SignedRosterEntry {
        let recovery = RecoveryKeys {
            sign: recovery().public(),
            kem: [98; 32],
        };
        let entry = RosterEntry {
            seq: 0,
            previous: EntryId::from_bytes([0; 32]),
            signer: self.id(),
            time: WallMillis(0),
            change: Change::Genesis {
                member: self.member(Role::Admin),
                recovery,
                secret_commitment: [5; 32],
                wraps: vec![wrap(self.keys.kem), wrap(recovery.kem)],
            },
        };
        Signed::sign(entry, &NO_HOME, &self.sign)
    }

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

    /// The first descriptor of an image whose name is a number.
    pub(super) fn descriptor(&self, home: HomeId, image: ImageId, name: u8) -> SignedDescriptor {
        self.descriptor_after(home, image, name, None)
    }

    /// A descriptor that follows another one.
    pub(super) fn descriptor_after(
        &self,
        home: HomeId,
        image: ImageId,
        name: u8,
        before: Option<&SignedDescriptor>,
    ) -> SignedDescriptor {
        let record = Descriptor {
            image,
            seq: before.map_or(0, |before| before.record.seq + 1),
            previous: before.map_or([0; 32], |before| before.id(&home)),
            tag: NameTag::from_bytes([name; 32]),
            key_epoch: KeyEpoch(0),
            device: self.id(),
            sealed: vec![name; 60],
        };
        Signed::sign(record, &home, &self.sign)
    }

    /// A commit of this device's checkout.
    pub(super) fn commit(&self, roster: &Roster, commit: &Draft) -> SignedCommit {
        let record = Commit {
            image: commit.image,
            seq: commit.seq,
            parent: commit.parent,
            root: commit.root,
            token: commit.token,
            checkout: self.checkout,
            device: self.id(),
            instance: Instance(1),
            roster: roster.head(),
            key_epoch: roster.key_epoch(),
            clock: WallMillis(1),
            seen: None,
            sealed: vec![9; 120],
        };
        Signed::sign(record, &roster.home(), &self.sign)
    }
}

/// What a test decides of a commit.
#[derive(Clone, Copy)]
pub(super) struct Draft {
    pub(super) image: ImageId,
    pub(super) seq: Seq,
    pub(super) parent: Option<Parent>,
    pub(super) root: ObjectId,
    pub(super) token: Option<Token>,
}

impl Draft {
    /// The first commit of an image.
    pub(super) fn first(image: ImageId, root: ObjectId, token: Token) -> Self {
        Self {
            image,
            seq: Seq(0),
            parent: None,
            root,
            token: Some(token),
        }
    }

    /// The commit after another one of the same image.
    pub(super) fn after(self, commit: CommitId, root: ObjectId, token: Token) -> Self {
        Self {
            seq: self.seq.next().unwrap(),
            parent: Some(Parent {
                image: self.image,
                commit,
            }),
            root,
            token: Some(token),
            ..self
        }
    }
}

pub(super) fn id_of(commit: &SignedCommit, home: HomeId) -> CommitId {
    commit_id(commit, &home)
}

fn wrap(receiver: [u8; 32]) -> Wrap {
    Wrap {
        receiver,
        bytes: vec![3; 80],
    }
}
