//! The commit record: which state an image has, after which, under whose token.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 32 | image |
//! | 8 | number in the image's history |
//! | 1, or 65 | presence, then the parent's image and commit |
//! | 32 | root object |
//! | 1, or 41 | presence, then the token: incarnation, epoch |
//! | 32 + 32 + 8 | checkout, device, instance |
//! | 32 + 4 | newest roster entry known, key epoch of the sealed part |
//! | 8 | the device's clock, milliseconds |
//! | 1, or 73 | presence, then the newest standing seen: incarnation, position, log root |
//! | 4 + n | sealed part: a [`CommitPrivate`] |
//! | 64 | signature of the device |
//!
//! Number 0 has either a token and no parent (a new image) or no token and a parent in another
//! image (a branch); every other number has a token and a parent in its own image.

use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{COMMIT_LEN_MAX, MESSAGE_LEN_MAX, SEALED_FIELD_LEN_MAX};
use img_types::{
    CheckoutId, CommitId, DeviceId, EntryId, Epoch, HomeId, ImageId, Incarnation, Instance,
    KeyEpoch, LogPosition, LogRoot, ObjectId, Seq, Token, WallMillis,
};
use zeroize::{Zeroize, Zeroizing};

use crate::signed::{Record, Signed, optional, text, version};

const VERSION: u8 = 1;
/// Set in the kind of a commit whose shared memory maps are as of their last flush.
const LAST_FLUSH: u8 = 0x80;
/// Longest manifest inside a commit's sealed part.
pub const MANIFEST_LEN_MAX: usize = 16 * 1024;

/// A commit with its signature.
pub type SignedCommit = Signed<Commit>;

/// Names a commit: the id of its record, and the idempotency key of the call that brings it home.
pub fn commit_id(commit: &SignedCommit, home: &HomeId) -> CommitId {
    CommitId::from_bytes(commit.id(home))
}

/// The state that a commit continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its image; another one only for the first commit of a branch.
    pub image: ImageId,
    /// The commit.
    pub commit: CommitId,
}

/// The newest standing of the home that the committing device knew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The home's database.
    pub incarnation: Incarnation,
    /// Number of log entries.
    pub position: LogPosition,
    /// Hash chain over them.
    pub root: LogRoot,
}

/// An immutable state of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Which image.
    pub image: ImageId,
    /// Place in its history, from 0.
    pub seq: Seq,
    /// The commit before.
    pub parent: Option<Parent>,
    /// The index's root.
    pub root: ObjectId,
    /// The lease under which it was made; nothing for the first commit of a branch.
    pub token: Option<Token>,
    /// Whose working copy it was.
    pub checkout: CheckoutId,
    /// Who signs.
    pub device: DeviceId,
    /// The daemon start that signed; information only.
    pub instance: Instance,
    /// The newest roster entry that the device knew.
    pub roster: EntryId,
    /// Which home secret the sealed part is under.
    pub key_epoch: KeyEpoch,
    /// The device's wall clock; information only.
    pub clock: WallMillis,
    /// What the device knew of the home's log.
    pub seen: Option<Seen>,
    /// A [`CommitPrivate`], sealed with [`Self::clear_bytes`] as associated data.
    pub sealed: Vec<u8>,
}

impl Commit {
    /// All bytes before the sealed part: what it is bound to.
    pub fn clear_bytes(&self) -> Vec<u8> {
        let mut clear = Vec::with_capacity(400);
        clear.put_u8(VERSION);
        clear.extend_from_slice(self.image.as_bytes());
        clear.put_u64(self.seq.0);
        clear.put_u8(self.parent.is_some().into());
        if let Some(parent) = &self.parent {
            clear.extend_from_slice(parent.image.as_bytes());
            clear.extend_from_slice(parent.commit.as_bytes());
        }
        clear.extend_from_slice(self.root.as_bytes());
        clear.put_u8(self.token.is_some().into());
        if let Some(token) = &self.token {
            clear.extend_from_slice(token.incarnation.as_bytes());
            clear.put_u64(token.epoch.0);
        }
        clear.extend_from_slice(self.checkout.as_bytes());
        clear.extend_from_slice(self.device.as_bytes());
        clear.put_u64(self.instance.0);
        clear.extend_from_slice(self.roster.as_bytes());
        clear.put_u32(self.key_epoch.0);
        clear.put_i64(self.clock.0);
        clear.put_u8(self.seen.is_some().into());
        if let Some(seen) = &self.seen {
            clear.extend_from_slice(seen.incarnation.as_bytes());
            clear.put_u64(seen.position.0);
            clear.extend_from_slice(seen.root.as_bytes());
        }
        clear
    }

    fn check(self) -> Result<Self, DecodeError> {
        let own_parent = self.parent.map(|parent| parent.image == self.image);
        match (self.seq, own_parent, self.token.is_some()) {
            (Seq(0), None, true) | (Seq(0), Some(false), false) => Ok(self),
            (Seq(1..), Some(true), true) => Ok(self),
            _ => Err(DecodeError("number, parent and token do not fit")),
        }
    }
}

impl Record for Commit {
    const NAME: &'static str = "commit";
    const LEN_MAX: usize = COMMIT_LEN_MAX;

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.clear_bytes());
        bytes.put_bytes(&self.sealed);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        version(reader, VERSION)?;
        Self {
            image: ImageId::from_bytes(reader.array()?),
            seq: Seq(reader.u64()?),
            parent: optional(reader, |reader| {
                Ok(Parent {
                    image: ImageId::from_bytes(reader.array()?),
                    commit: CommitId::from_bytes(reader.array()?),
                })
            })?,
            root: ObjectId::from_bytes(reader.array()?),
            token: optional(reader, |reader| {
                Ok(Token {
                    incarnation: Incarnation::from_bytes(reader.array()?),
                    epoch: Epoch(reader.u64()?),
                })
            })?,
            checkout: CheckoutId::from_bytes(reader.array()?),
            device: DeviceId::from_bytes(reader.array()?),
            instance: Instance(reader.u64()?),
            roster: EntryId::from_bytes(reader.array()?),
            key_epoch: KeyEpoch(reader.u32()?),
            clock: WallMillis(reader.i64()?),
            seen: optional(reader, |reader| {
                Ok(Seen {
                    incarnation: Incarnation::from_bytes(reader.array()?),
                    position: LogPosition(reader.u64()?),
                    root: LogRoot::from_bytes(reader.array()?),
                })
            })?,
            sealed: reader.bytes(SEALED_FIELD_LEN_MAX)?.to_vec(),
        }
        .check()
    }
}

/// Why a commit was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitKind {
    /// A person asked for it.
    Commit,
    /// A checkpoint that has streamed home.
    Checkpoint,
    /// The first of a branch.
    Branch,
    /// The first of an image that was imported.
    Import,
}

impl CommitKind {
    fn code(self) -> u8 {
        match self {
            Self::Commit => 1,
            Self::Checkpoint => 2,
            Self::Branch => 3,
            Self::Import => 4,
        }
    }

    fn decode(code: u8) -> Result<Self, DecodeError> {
        match code {
            1 => Ok(Self::Commit),
            2 => Ok(Self::Checkpoint),
            3 => Ok(Self::Branch),
            4 => Ok(Self::Import),
            _ => Err(DecodeError("unknown kind of commit")),
        }
    }
}

/// What a state holds of memory that applications share through maps of files. Everything else in it is an exact cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maps {
    /// As it was at the cut: nothing was mapped, or what maps it stood still and was flushed.
    Exact,
    /// As it was when it was last flushed.
    LastFlush,
}

impl Maps {
    /// The word for people and scripts.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::LastFlush => "last flush",
        }
    }
}

/// What a commit tells only to devices.
///
/// Bytes: version 1 (1), root key (32), root length (4), kind (1, its highest bit set for [`Maps::LastFlush`]), logical
/// bytes, files, sealed bytes (8 each), message and manifest (4 + n each).
#[derive(Clone, PartialEq, Eq)]
pub struct CommitPrivate {
    /// Opens the root object.
    pub root_key: [u8; 32],
    /// Raw length of the root object.
    pub root_len: u32,
    /// What the person wrote.
    pub message: String,
    /// Why it was made.
    pub kind: CommitKind,
    /// What it holds of shared memory maps.
    pub maps: Maps,
    /// Sum of the file sizes.
    pub logical_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Bytes of the objects that were new with it.
    pub sealed_bytes: u64,
    /// The image's manifest as of this commit; empty if there is none.
    pub manifest: Vec<u8>,
}

impl CommitPrivate {
    /// The bytes to seal.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let len = 70 + self.message.len() + self.manifest.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(len));
        bytes.put_u8(VERSION);
        bytes.extend_from_slice(&self.root_key);
        bytes.put_u32(self.root_len);
        let maps = match self.maps {
            Maps::Exact => 0,
            Maps::LastFlush => LAST_FLUSH,
        };
        bytes.put_u8(self.kind.code() | maps);
        bytes.put_u64(self.logical_bytes);
        bytes.put_u64(self.files);
        bytes.put_u64(self.sealed_bytes);
        bytes.put_bytes(self.message.as_bytes());
        bytes.put_bytes(&self.manifest);
        bytes
    }

    /// Reads what was sealed.
    ///
    /// # Errors
    /// The bytes are malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        version(&mut reader, VERSION)?;
        let root_key = reader.array()?;
        let root_len = reader.u32()?;
        let kind = reader.u8()?;
        let maps = match kind & LAST_FLUSH {
            0 => Maps::Exact,
            _ => Maps::LastFlush,
        };
        let kind = CommitKind::decode(kind & !LAST_FLUSH)?;
        let private = Self {
            root_key,
            root_len,
            kind,
            maps,
            logical_bytes: reader.u64()?,
            files: reader.u64()?,
            sealed_bytes: reader.u64()?,
            message: text(&mut reader, MESSAGE_LEN_MAX)?,
            manifest: reader.bytes(MANIFEST_LEN_MAX)?.to_vec(),
        };
        reader.finish()?;
        Ok(private)
    }
}

impl Drop for CommitPrivate {
    fn drop(&mut self) {
        self.root_key.zeroize();
    }
}

impl std::fmt::Debug for CommitPrivate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitPrivate")
            .field("kind", &self.kind)
            .field("maps", &self.maps)
            .field("logical_bytes", &self.logical_bytes)
            .field("files", &self.files)
            .field("sealed_bytes", &self.sealed_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::device::SigningSecret;
    use proptest::prelude::*;

    const HOME: HomeId = HomeId::from_bytes([1; 32]);

    prop_compose! {
        fn commits()(
            image: [u8; 32], seq in 0u64..3, foreign: [u8; 32], commit: [u8; 32], root: [u8; 32],
            branch: bool, epoch: u64, instance: u64, key_epoch: u32, clock: i64,
            seen in proptest::option::of(any::<([u8; 32], u64, [u8; 32])>()),
            sealed in proptest::collection::vec(any::<u8>(), 0..500),
        ) -> Commit {
            let branch = branch && seq == 0;
            let parent_image = if branch { foreign } else { image };
            Commit {
                image: ImageId::from_bytes(image),
                seq: Seq(seq),
                parent: (seq > 0 || branch).then(|| Parent {
                    image: ImageId::from_bytes(parent_image),
                    commit: CommitId::from_bytes(commit),
                }),
                root: ObjectId::from_bytes(root),
                token: (!branch).then_some(Token {
                    incarnation: Incarnation::from_bytes(foreign),
                    epoch: Epoch(epoch),
                }),
                checkout: CheckoutId::from_bytes(commit),
                device: DeviceId::from_bytes(foreign),
                instance: Instance(instance),
                roster: EntryId::from_bytes(root),
                key_epoch: KeyEpoch(key_epoch),
                clock: WallMillis(clock),
                seen: seen.map(|(incarnation, position, root)| Seen {
                    incarnation: Incarnation::from_bytes(incarnation),
                    position: LogPosition(position),
                    root: LogRoot::from_bytes(root),
                }),
                sealed,
            }
        }
    }

    proptest! {
        #[test]
        fn commits_round_trip(commit in commits()) {
            let secret = SigningSecret::from_bytes([2; 32]);
            let signed = Signed::sign(commit, &HOME, &secret);
            let received = SignedCommit::decode(&signed.to_bytes()).unwrap();
            prop_assert_eq!(&received, &signed);
            prop_assert_eq!(commit_id(&received, &HOME), commit_id(&signed, &HOME));
            let clear = received.record.clear_bytes();
            prop_assert!(received.record_bytes().starts_with(&clear));
        }

        #[test]
        fn damaged_commits_neither_panic_nor_verify(
            commit in commits(), at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index,
        ) {
            let secret = SigningSecret::from_bytes([2; 32]);
            let mut bytes = Signed::sign(commit, &HOME, &secret).to_bytes();
            let at = at.index(bytes.len());
            prop_assert!(SignedCommit::decode(&bytes[..cut.index(bytes.len())]).is_err());
            bytes[at] ^= 1 << bit;
            if let Ok(received) = SignedCommit::decode(&bytes) {
                prop_assert!(received.verify(&HOME, &secret.public()).is_err());
            }
        }

        #[test]
        fn private_parts_round_trip(
            root_key: [u8; 32], root_len: u32, message in "[a-zä ]{0,80}", numbers: [u64; 3],
            kind in 1u8..5, flushed: bool, manifest in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let private = CommitPrivate {
                root_key, root_len, message, manifest,
                kind: CommitKind::decode(kind).unwrap(),
                maps: if flushed { Maps::LastFlush } else { Maps::Exact },
                logical_bytes: numbers[0], files: numbers[1], sealed_bytes: numbers[2],
            };
            let bytes = private.encode();
            prop_assert_eq!(CommitPrivate::decode(&bytes), Ok(private));
            for len in 0..bytes.len() {
                prop_assert!(CommitPrivate::decode(&bytes[..len]).is_err());
            }
        }
    }

    #[test]
    fn number_parent_and_token_must_fit() {
        let secret = SigningSecret::from_bytes([2; 32]);
        let good = crate::golden::next_commit();
        let decodes = |commit: &Commit| {
            let signed = Signed::sign(commit.clone(), &HOME, &secret);
            SignedCommit::decode(&signed.to_bytes()).is_ok()
        };
        assert!(decodes(&good));
        let foreign = good.parent.map(|parent| Parent {
            image: ImageId::from_bytes([99; 32]),
            ..parent
        });
        for (seq, parent, token, fits) in [
            (0, None, good.token, true),
            (0, foreign, None, true),
            (0, None, None, false),
            (0, good.parent, None, false),
            (0, foreign, good.token, false),
            (1, None, good.token, false),
            (1, foreign, good.token, false),
            (1, foreign, None, false),
            (1, good.parent, None, false),
        ] {
            let commit = Commit {
                seq: Seq(seq),
                parent,
                token,
                ..good.clone()
            };
            assert_eq!(decodes(&commit), fits, "{seq} {parent:?} {token:?}");
        }
    }

    #[test]
    fn limits_hold() {
        let mut commit = crate::golden::commit();
        commit.sealed = vec![0; SEALED_FIELD_LEN_MAX + 1];
        let secret = SigningSecret::from_bytes([2; 32]);
        let signed = Signed::sign(commit, &HOME, &secret);
        assert!(SignedCommit::decode(&signed.to_bytes()).is_err());
    }

    #[test]
    fn debug_tells_neither_key_nor_message() {
        let text = format!("{:?}", crate::golden::commit_private());
        assert!(!text.contains("root_key") && !text.contains("message"));
    }
}
