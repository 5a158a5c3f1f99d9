//! Beginning a branch: a new image whose first commit continues a commit of another.
//!
//! No byte is copied: the root reference is opened with the old image's record key and sealed with the new
//! one's. Owns the two records and the choice of a free name; who is granted the branch is its caller's
//! business. No I/O.

use std::collections::BTreeSet;

use img_records::{Commit, CommitKind, CommitPrivate, Maps, Parent, Seen, SignedDescriptor};
use img_seal::Reference;
use img_types::limits::NAME_LEN_MAX;
use img_types::{CheckoutId, ImageId, ImageName, Instance, Seq, WallMillis};

use crate::commits::{OpenCommit, OpenDescriptor, RecordError};
use crate::events;
use crate::home::Home;
use crate::random::random;

/// What a branch starts with.
#[derive(Debug, Clone)]
pub struct BranchDraft<'a> {
    /// The image that it leaves: it has the same boundaries and options.
    pub from: &'a OpenDescriptor,
    /// Its name.
    pub name: &'a ImageName,
    /// The commit that it continues.
    pub parent: Parent,
    /// Its index.
    pub root: Reference,
    /// The checkout that it is made in, or for.
    pub checkout: CheckoutId,
    /// What a person said about it.
    pub message: String,
    /// Bytes of all files.
    pub logical_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Bytes that were sealed for it.
    pub sealed_bytes: u64,
    /// What the state holds of shared memory maps.
    pub maps: Maps,
    /// The manifest of the state.
    pub manifest: Vec<u8>,
}

/// A branch that is signed; it exists once the home has both records.
#[derive(Debug, Clone)]
pub struct NewBranch {
    /// Its descriptor.
    pub descriptor: SignedDescriptor,
    /// Its first commit.
    pub first: OpenCommit,
}

impl<'a> BranchDraft<'a> {
    /// The state of a commit, or of a record that may become one.
    pub fn of(
        from: &'a OpenDescriptor,
        name: &'a ImageName,
        state: &OpenCommit,
        parent: Parent,
    ) -> Self {
        Self {
            from,
            name,
            parent,
            root: state.root(),
            checkout: state.record().checkout,
            message: state.private.message.clone(),
            logical_bytes: state.private.logical_bytes,
            files: state.private.files,
            sealed_bytes: 0,
            maps: state.private.maps,
            manifest: state.private.manifest.clone(),
        }
    }

    /// Signs both records with this device's key, sealed under the newest keys that it knows.
    ///
    /// # Errors
    /// The newest key epoch is not known here.
    pub fn sign(self, home: &Home) -> Result<NewBranch, RecordError> {
        let image = ImageId::from_bytes(random());
        let mut descriptor = self.from.private.clone();
        descriptor.name = self.name.to_string();
        let private = CommitPrivate {
            root_key: *self.root.key.as_bytes(),
            root_len: self.root.len,
            message: self.message,
            kind: CommitKind::Branch,
            maps: self.maps,
            logical_bytes: self.logical_bytes,
            files: self.files,
            sealed_bytes: self.sealed_bytes,
            manifest: self.manifest,
        };
        home.trusted(|trust| {
            let descriptor = trust.sign_descriptor(home.identity(), image, None, &descriptor)?;
            let record = Commit {
                image,
                seq: Seq(0),
                parent: Some(self.parent),
                root: self.root.id,
                token: None,
                checkout: self.checkout,
                device: home.device(),
                instance: home.instance().unwrap_or(Instance(0)),
                roster: trust.roster.head(),
                key_epoch: trust.keys.newest(),
                clock: WallMillis(events::now().0),
                seen: home.seen().map(|seen| Seen {
                    incarnation: seen.incarnation,
                    position: seen.position,
                    root: seen.root,
                }),
                sealed: Vec::new(),
            };
            let first = trust.sign_commit(home.identity(), record, &private)?;
            Ok(NewBranch { descriptor, first })
        })
    }
}

impl NewBranch {
    /// The new image.
    pub fn image(&self) -> ImageId {
        self.descriptor.record.image
    }
}

/// The first of `<stem>`, `<stem>-2`, `<stem>-3` … that no image has, shortened to what a name may be.
///
/// `stem` is made of names, so that only its length can be wrong.
pub fn free_name(stem: &str, taken: &BTreeSet<&str>) -> Option<ImageName> {
    (1u64..).find_map(|count| {
        let suffix = match count {
            1 => String::new(),
            count => format!("-{count}"),
        };
        let room = NAME_LEN_MAX - suffix.len();
        let name: String = stem.chars().take(room).chain(suffix.chars()).collect();
        let free = !taken.contains(name.as_str());
        free.then(|| ImageName::parse(&name).ok())
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_name_has_the_next_number() {
        let name = |taken: &[&str]| {
            let taken = taken.iter().copied().collect();
            free_name("vm-laptop", &taken).unwrap().to_string()
        };
        assert_eq!(name(&[]), "vm-laptop");
        assert_eq!(name(&["vm-laptop"]), "vm-laptop-2");
        assert_eq!(name(&["vm-laptop", "vm-laptop-2"]), "vm-laptop-3");
        assert_eq!(name(&["vm-laptop-2"]), "vm-laptop");
    }

    #[test]
    fn a_long_name_is_shortened_so_that_its_number_fits() {
        let long = "ä".repeat(100);
        let first = free_name(&format!("{long}-laptop"), &BTreeSet::new()).unwrap();
        let taken = BTreeSet::from([first.as_str()]);
        let second = free_name(&format!("{long}-laptop"), &taken).unwrap();
        assert_ne!(first, second);
        assert!(second.as_str().ends_with("-2"), "{second}");
    }
}
