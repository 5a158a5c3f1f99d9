//! A commit record as the lease rules see it, and the checks that come before them.

use img_lease::Proposal;
use img_proto::Refusal;
use img_records::{Roster, SignedCommit, SignedDescriptor, commit_id, entry_id};
use img_types::{DeviceId, EntryId, HomeId};

use crate::db::Stop;

/// A commit record that may become a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proposed {
    /// What the lease rules decide on.
    pub(crate) proposal: Proposal,
    /// The roster entry that the signer knew.
    pub(crate) roster: EntryId,
    /// The record as it was signed.
    pub(crate) bytes: Vec<u8>,
}

impl Proposed {
    /// Takes a record that this home has checked before.
    ///
    /// # Errors
    /// The stored bytes do not decode.
    pub(crate) fn stored(bytes: &[u8], home: HomeId) -> Result<Self, Stop> {
        let commit = SignedCommit::decode(bytes)
            .map_err(|error| Stop::Broken(format!("a stored commit does not decode: {error}")))?;
        Ok(Self::new(&commit, home))
    }

    /// Takes a record from the wire: its form, its signature by a device of the roster, the roster
    /// that it names and its key epoch.
    ///
    /// # Errors
    /// [`Refusal::BadRecord`], or [`Refusal::NotMember`] for a signer that was never on the roster.
    pub(crate) fn received(bytes: &[u8], roster: &Roster) -> Result<Self, Refusal> {
        let commit = SignedCommit::decode(bytes).map_err(bad)?;
        let home = roster.home();
        let signer = roster
            .member(&commit.record.device)
            .ok_or(Refusal::NotMember)?;
        commit
            .verify(&home, &signer.member.keys.sign)
            .map_err(bad)?;
        if !roster.contains(commit.record.roster) {
            return Err(Refusal::BadRecord(
                "it names a roster that this home does not have".to_owned(),
            ));
        }
        if commit.record.key_epoch > roster.key_epoch() {
            return Err(Refusal::BadRecord("its key epoch is unknown".to_owned()));
        }
        Ok(Self::new(&commit, home))
    }

    fn new(commit: &SignedCommit, home: HomeId) -> Self {
        let record = &commit.record;
        Self {
            proposal: Proposal {
                commit: commit_id(commit, &home),
                image: record.image,
                seq: record.seq,
                parent: record.parent.map(|parent| parent.commit),
                root: record.root,
                token: record.token,
                device: record.device,
                checkout: record.checkout,
                instance: record.instance,
                clock: record.clock,
            },
            roster: record.roster,
            bytes: commit.to_bytes(),
        }
    }
}

/// Takes a descriptor from the wire: its form and its signature by the calling device.
///
/// # Errors
/// [`Refusal::BadRecord`].
pub(crate) fn received_descriptor(
    bytes: &[u8],
    roster: &Roster,
    device: DeviceId,
) -> Result<SignedDescriptor, Refusal> {
    let descriptor = returned_descriptor(bytes, roster)?;
    if descriptor.record.device != device {
        return Err(Refusal::BadRecord("another device signed it".to_owned()));
    }
    Ok(descriptor)
}

/// Takes a descriptor that a device gives back, whoever of the roster signed it.
///
/// # Errors
/// [`Refusal::BadRecord`], or [`Refusal::NotMember`] for a signer that was never on the roster.
pub(crate) fn returned_descriptor(
    bytes: &[u8],
    roster: &Roster,
) -> Result<SignedDescriptor, Refusal> {
    let descriptor = SignedDescriptor::decode(bytes).map_err(bad)?;
    let signer = roster
        .member(&descriptor.record.device)
        .ok_or(Refusal::NotMember)?;
    descriptor
        .verify(&roster.home(), &signer.member.keys.sign)
        .map_err(bad)?;
    if descriptor.record.key_epoch > roster.key_epoch() {
        return Err(Refusal::BadRecord("its key epoch is unknown".to_owned()));
    }
    Ok(descriptor)
}

/// Says why a record is refused.
pub(crate) fn bad(error: impl std::fmt::Display) -> Refusal {
    Refusal::BadRecord(error.to_string())
}

/// The number of a roster entry.
pub(crate) fn roster_seq(roster: &Roster, entry: EntryId) -> Option<u64> {
    let home = roster.home();
    let mut newest_first = roster.entries().iter().rev();
    newest_first
        .find(|signed| entry_id(signed, &home) == entry)
        .map(|signed| signed.record.seq)
}
