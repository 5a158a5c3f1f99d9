//! Devices and the records that they sign. Sealed parts are noise: the home cannot tell.

use img_net::TlsIdentity;
use img_records::{
    Change, Commit, Descriptor, Member, Parent, PublicKeys, RecoveryKeys, Role, Roster,
    RosterEntry, Signed, SignedCommit, SignedDescriptor, SignedRosterEntry, SigningSecret, Wrap,
    commit_id,
};
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, EntryId, HomeId, ImageId, Instance, KeyEpoch,
    NameTag, ObjectId, Seq, Token, WallMillis,
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

    /// The first descriptor of an image whose name is a number.
    pub(super) fn descriptor(&self, home: HomeId, image: ImageId, name: u8) -> SignedDescriptor {
        self.sign_descriptor(home, image, name, 0, [0; 32])
    }

    pub(super) fn sign_descriptor(
        &self,
        home: HomeId,
        image: ImageId,
        name: u8,
        seq: u64,
        previous: [u8; 32],
    ) -> SignedDescriptor {
        let record = Descriptor {
            image,
            seq,
            previous,
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

pub(super) fn wrap(receiver: [u8; 32]) -> Wrap {
    Wrap {
        receiver,
        bytes: vec![3; 80],
    }
}
