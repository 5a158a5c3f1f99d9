//! Devices and the records that they sign. All keys follow from a number, and sealed parts are noise: the
//! home cannot tell.

use std::iter;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use img_net::TlsIdentity;
use img_records::{
    Change, Commit, Descriptor, Member, Parent, PublicKeys, RecoveryKeys, Role, Roster,
    RosterEntry, Signed, SignedCommit, SignedDescriptor, SignedRosterEntry, SigningSecret, Wrap,
};
use img_types::object::{Header, ObjectKind, TAG_LEN};
use img_types::padding::padded_len;
use img_types::{
    CheckoutId, CommitId, DeviceId, EntryId, HomeId, ImageId, Instance, KeyEpoch, NameTag,
    ObjectId, Seq, Token, WallMillis,
};

/// The device that founds the home and makes the images.
pub const FOUNDER: u32 = 0;

const NO_HOME: HomeId = HomeId::from_bytes([0; 32]);

/// A device with keys that follow from its number.
#[derive(Debug, Clone)]
pub struct Device {
    number: u32,
    sign: SigningSecret,
    keys: PublicKeys,
}

/// 32 bytes that follow from a purpose and a number.
fn derived(purpose: &str, number: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose.as_bytes());
    hasher.update(&number.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// The image of a number.
pub fn image(number: u32) -> ImageId {
    ImageId::from_bytes(derived("image", u64::from(number)))
}

impl Device {
    /// The device of a number.
    pub fn of(number: u32) -> Self {
        let sign = SigningSecret::from_bytes(derived("sign", u64::from(number)));
        let keys = PublicKeys {
            sign: sign.public(),
            tls: TlsIdentity::from_seed(&derived("tls", u64::from(number))).public_key(),
            kem: derived("kem", u64::from(number)),
        };
        Self { number, sign, keys }
    }

    /// Its id.
    pub fn id(&self) -> DeviceId {
        self.keys.device_id()
    }

    /// Its key on the wire.
    pub fn identity(&self) -> TlsIdentity {
        TlsIdentity::from_seed(&derived("tls", u64::from(self.number)))
    }

    /// The key that verifies its records.
    pub fn public(&self) -> [u8; 32] {
        self.sign.public()
    }

    /// Its checkout of an image; it has one of each.
    pub fn checkout(&self, image: ImageId) -> CheckoutId {
        let both = [&image.as_bytes()[..], &self.number.to_le_bytes()].concat();
        CheckoutId::from_bytes(*blake3::hash(&both).as_bytes())
    }

    fn member(&self, role: Role) -> Member {
        Member {
            keys: self.keys,
            role,
            sealed_name: vec![7; 40],
        }
    }

    fn genesis(&self) -> SignedRosterEntry {
        let recovery = RecoveryKeys {
            sign: SigningSecret::from_bytes(derived("recovery", 0)).public(),
            kem: derived("recovery", 1),
        };
        let change = Change::Genesis {
            member: self.member(Role::Admin),
            recovery,
            secret_commitment: [5; 32],
            wraps: vec![wrap(self.keys.kem), wrap(recovery.kem)],
        };
        let entry = RosterEntry {
            seq: 0,
            previous: EntryId::from_bytes([0; 32]),
            signer: self.id(),
            time: WallMillis(0),
            change,
        };
        Signed::sign(entry, &NO_HOME, &self.sign)
    }

    fn add(&self, roster: &Roster, joiner: &Self) -> SignedRosterEntry {
        let change = Change::Add {
            member: joiner.member(Role::Member),
            possession: joiner.keys.prove_possession(&roster.home(), &joiner.sign),
            key_epoch: roster.key_epoch(),
            secret_commitment: roster.secret_commitment(),
            wrap: wrap(joiner.keys.kem),
        };
        let entry = RosterEntry {
            seq: roster.seq() + 1,
            previous: roster.head(),
            signer: self.id(),
            time: WallMillis(0),
            change,
        };
        Signed::sign(entry, &roster.home(), &self.sign)
    }

    /// The descriptor of the image of a number.
    pub fn descriptor(&self, home: HomeId, number: u32) -> SignedDescriptor {
        let record = Descriptor {
            image: image(number),
            seq: 0,
            previous: [0; 32],
            tag: NameTag::from_bytes(derived("name", u64::from(number))),
            key_epoch: KeyEpoch(0),
            device: self.id(),
            sealed: vec![8; 60],
        };
        Signed::sign(record, &home, &self.sign)
    }

    /// A commit of this device's checkout of an image.
    pub fn commit(&self, roster: &Roster, draft: &Draft) -> SignedCommit {
        let record = Commit {
            image: draft.image,
            seq: draft.seq,
            parent: draft.parent.map(|commit| Parent {
                image: draft.image,
                commit,
            }),
            root: draft.root,
            token: Some(draft.token),
            checkout: self.checkout(draft.image),
            device: self.id(),
            instance: Instance(1),
            roster: roster.head(),
            key_epoch: roster.key_epoch(),
            clock: draft.clock,
            seen: None,
            sealed: vec![9; 120],
        };
        Signed::sign(record, &roster.home(), &self.sign)
    }
}

/// What a client decides of a commit.
#[derive(Debug, Clone, Copy)]
pub struct Draft {
    /// Which image.
    pub image: ImageId,
    /// Its number.
    pub seq: Seq,
    /// The commit before.
    pub parent: Option<CommitId>,
    /// Its root.
    pub root: ObjectId,
    /// Under which token.
    pub token: Token,
    /// Makes it another one than the client's last.
    pub clock: WallMillis,
}

/// The roster of a founder and so many clients, and its entries as they are sent.
///
/// # Errors
/// An entry does not continue the roster.
pub fn roster(clients: u32) -> Result<(Roster, Vec<Bytes>)> {
    let founder = Device::of(FOUNDER);
    let genesis = founder.genesis();
    let mut roster = Roster::found(&genesis).context("a genesis founds a roster")?;
    let mut entries: Vec<Bytes> = iter::once(genesis.to_bytes().into()).collect();
    for number in 1..=clients {
        let entry = founder.add(&roster, &Device::of(number));
        roster.append(&entry)?;
        entries.push(entry.to_bytes().into());
    }
    Ok((roster, entries))
}

/// A root without anything below it: a block of the least size, told apart by `luck`.
pub fn root(luck: u64) -> (ObjectId, Bytes) {
    let header = Header::leaf(ObjectKind::Block, KeyEpoch(0));
    let mut ciphertext = vec![0; padded_len(1) + TAG_LEN];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&luck.to_le_bytes());
    hasher.finalize_xof().fill(&mut ciphertext);
    let id = header.object_id(&ciphertext);
    (id, [header.encode(), ciphertext].concat().into())
}

fn wrap(receiver: [u8; 32]) -> Wrap {
    Wrap {
        receiver,
        bytes: vec![3; 80],
    }
}
