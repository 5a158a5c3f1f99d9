//! Commits and descriptors: signed and sealed here, verified and opened here.
//!
//! Joins `img-records`, which knows no keys, with `img-seal`, which knows no records. `docs/formats.md`
//! describes both kinds of record. No I/O.

use img_index::Boundary;
use img_records::{
    Commit, CommitPrivate, Descriptor, DescriptorPrivate, Roster, Signed, SignedCommit,
    SignedDescriptor, commit_id,
};
use img_seal::{BlockKey, KeyRing, Reference, open_field, seal_field};
use img_types::{CommitId, HomeId, ImageId, ImageName, KeyEpoch, LogPosition};

use crate::identity::Identity;

/// Why a signed record cannot be trusted or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are malformed.
    #[error("a record is malformed")]
    Malformed,
    /// The signer is not on the roster, or its signature does not verify.
    #[error("a record's signature does not verify")]
    Signature,
    /// The record names a roster entry that this device does not know (yet).
    #[error("a record names an unknown roster")]
    RosterUnknown,
    /// It is another image's, or does not follow its predecessor.
    #[error("a record does not belong where it stands")]
    Misplaced,
    /// The sealed part does not open.
    #[error("a record's sealed part does not open")]
    Sealed,
}

/// A commit that has been verified and opened.
#[derive(Debug, Clone)]
pub struct OpenCommit {
    /// The record.
    pub signed: SignedCommit,
    /// Its id.
    pub id: CommitId,
    /// Its sealed part.
    pub private: CommitPrivate,
}

/// An image's descriptor that has been verified and opened.
#[derive(Debug, Clone)]
pub struct OpenDescriptor {
    /// The record.
    pub signed: SignedDescriptor,
    /// The image's name.
    pub name: ImageName,
    /// Where its index nodes end.
    pub boundary: Boundary,
    /// Its sealed part.
    pub private: DescriptorPrivate,
}

/// What it takes to verify and open records.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'a> {
    /// The home that the records are for.
    pub home: HomeId,
    /// Who may sign.
    pub roster: &'a Roster,
    /// What opens them.
    pub keys: &'a KeyRing,
}

impl OpenCommit {
    /// The root of its index.
    pub fn root(&self) -> Reference {
        Reference {
            id: self.signed.record.root,
            key: BlockKey::from_bytes(self.private.root_key),
            len: self.private.root_len,
        }
    }

    /// The record's fields.
    pub fn record(&self) -> &Commit {
        &self.signed.record
    }
}

impl Trust<'_> {
    /// Verifies and opens a commit of an image. `acknowledged` is the log position of its receipt, where there is
    /// one: a revoked device's commits count up to its revocation only.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open_commit(
        &self,
        image: ImageId,
        bytes: &[u8],
        acknowledged: Option<LogPosition>,
    ) -> Result<OpenCommit, RecordError> {
        let signed = SignedCommit::decode(bytes).map_err(|_| RecordError::Malformed)?;
        let record = &signed.record;
        if record.image != image {
            return Err(RecordError::Misplaced);
        }
        if !self.roster.contains(record.roster) {
            return Err(RecordError::RosterUnknown);
        }
        let signer = self
            .roster
            .member(&record.device)
            .ok_or(RecordError::Signature)?;
        let in_time = match (signer.revoked, acknowledged) {
            (None, _) => true,
            (Some(revoked), Some(position)) => position <= revoked,
            (Some(_), None) => false,
        };
        if !in_time {
            return Err(RecordError::Signature);
        }
        self.open_signed(image, signed)
    }

    /// Opens a commit that was verified before and kept on this device; its signer may have been revoked since.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn reopen_commit(&self, image: ImageId, bytes: &[u8]) -> Result<OpenCommit, RecordError> {
        let signed = SignedCommit::decode(bytes).map_err(|_| RecordError::Malformed)?;
        if signed.record.image != image {
            return Err(RecordError::Misplaced);
        }
        self.open_signed(image, signed)
    }

    fn open_signed(&self, image: ImageId, signed: SignedCommit) -> Result<OpenCommit, RecordError> {
        let record = &signed.record;
        let signer = self
            .roster
            .member(&record.device)
            .ok_or(RecordError::Signature)?;
        signed
            .verify(&self.home, &signer.member.keys.sign)
            .map_err(|_| RecordError::Signature)?;
        let private = self.open_sealed(
            image,
            record.key_epoch,
            COMMIT_PURPOSE,
            &record.clear_bytes(),
            &record.sealed,
        )?;
        let private = CommitPrivate::decode(&private).map_err(|_| RecordError::Sealed)?;
        Ok(OpenCommit {
            id: commit_id(&signed, &self.home),
            signed,
            private,
        })
    }

    /// Verifies and opens the descriptor of an image.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open_descriptor(
        &self,
        image: ImageId,
        bytes: &[u8],
    ) -> Result<OpenDescriptor, RecordError> {
        let signed = SignedDescriptor::decode(bytes).map_err(|_| RecordError::Malformed)?;
        let record = &signed.record;
        if record.image != image {
            return Err(RecordError::Misplaced);
        }
        let signer = self
            .roster
            .member(&record.device)
            .ok_or(RecordError::Signature)?;
        signed
            .verify(&self.home, &signer.member.keys.sign)
            .map_err(|_| RecordError::Signature)?;
        let private = self.open_sealed(
            image,
            record.key_epoch,
            DESCRIPTOR_PURPOSE,
            &record.clear_bytes(),
            &record.sealed,
        )?;
        let private = DescriptorPrivate::decode(&private).map_err(|_| RecordError::Sealed)?;
        let name = ImageName::parse(&private.name).map_err(|_| RecordError::Sealed)?;
        if self.keys.name_tag(name.as_str()) != Some(record.tag) {
            return Err(RecordError::Misplaced);
        }
        Ok(OpenDescriptor {
            boundary: Boundary::from_bytes(private.boundary),
            signed,
            name,
            private,
        })
    }

    /// Seals a commit's private part into its record and signs it. The record's `sealed` field is replaced.
    ///
    /// # Errors
    /// The key epoch of the record is not known here.
    pub fn sign_commit(
        &self,
        identity: &Identity,
        mut record: Commit,
        private: &CommitPrivate,
    ) -> Result<OpenCommit, RecordError> {
        let key = self
            .keys
            .record(record.key_epoch, &record.image)
            .ok_or(RecordError::Sealed)?;
        let clear = record.clear_bytes();
        record.sealed = seal_field(&key, COMMIT_PURPOSE, &clear, &private.encode());
        let signed = Signed::sign(record, &self.home, identity.signer());
        Ok(OpenCommit {
            id: commit_id(&signed, &self.home),
            signed,
            private: private.clone(),
        })
    }

    /// Makes an image's descriptor, the first one or the successor of another.
    ///
    /// # Errors
    /// The newest key epoch or the name tag cannot be had.
    pub fn sign_descriptor(
        &self,
        identity: &Identity,
        image: ImageId,
        previous: Option<&SignedDescriptor>,
        private: &DescriptorPrivate,
    ) -> Result<SignedDescriptor, RecordError> {
        let key_epoch = self.keys.newest();
        let key = self
            .keys
            .record(key_epoch, &image)
            .ok_or(RecordError::Sealed)?;
        let mut record = Descriptor {
            image,
            seq: previous.map_or(0, |previous| previous.record.seq + 1),
            previous: previous.map_or([0; 32], |previous| previous.id(&self.home)),
            tag: self
                .keys
                .name_tag(&private.name)
                .ok_or(RecordError::Sealed)?,
            key_epoch,
            device: identity.device(),
            sealed: Vec::new(),
        };
        let clear = record.clear_bytes();
        record.sealed = seal_field(&key, DESCRIPTOR_PURPOSE, &clear, &private.encode());
        Ok(Signed::sign(record, &self.home, identity.signer()))
    }

    fn open_sealed(
        &self,
        image: ImageId,
        epoch: img_types::KeyEpoch,
        purpose: &str,
        clear: &[u8],
        sealed: &[u8],
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, RecordError> {
        let key = self.keys.record(epoch, &image).ok_or(RecordError::Sealed)?;
        open_field(&key, purpose, clear, sealed).map_err(|_| RecordError::Sealed)
    }
}

/// What a thief said; sealed under the newest keys of its time. It is a stranger's text on this terminal: what
/// steers one is taken out. Empty where nothing was said, or it does not open.
pub fn open_reason(trust: &Trust<'_>, image: ImageId, sealed: &[u8]) -> String {
    let epochs = (0..=trust.keys.newest().0).rev();
    let mut keys = epochs.filter_map(|epoch| trust.keys.record(KeyEpoch(epoch), &image));
    let opened =
        keys.find_map(|key| open_field(&key, REASON_PURPOSE, image.as_bytes(), sealed).ok());
    let text = opened.map(|text| String::from_utf8_lossy(&text).into_owned());
    text.unwrap_or_default()
        .replace(|c: char| c.is_control(), " ")
}

/// What a steal's sealed reason is for.
pub const REASON_PURPOSE: &str = "steal reason";
/// Purpose of a commit's sealed part.
const COMMIT_PURPOSE: &str = "commit";
/// Purpose of a descriptor's sealed part.
const DESCRIPTOR_PURPOSE: &str = "descriptor";
