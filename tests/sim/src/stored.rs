//! What a device keeps on its disk.

use std::collections::{BTreeMap, BTreeSet};

use img_lease::holder::{Holder, Moment};
use img_lease::{Proposal, Terms};
use img_testkit::home::{Call, Receipt, Standing};
use img_types::{CheckoutId, CommitId, ImageId, ObjectId, RequestId};

use crate::content::Content;

/// A device's database, outbox and arenas.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The checkouts.
    pub checkouts: BTreeMap<CheckoutId, Row>,
    /// Calls that are not answered, oldest first.
    pub journal: BTreeMap<RequestId, Journaled>,
    /// The newest standing of the home that was seen.
    pub seen: Option<Standing>,
    /// Commits with their receipts, to give back to a home that lost them.
    pub known: BTreeMap<CommitId, (Proposal, Receipt)>,
    /// Objects of commits that this device made or fetched.
    pub cached: BTreeSet<ObjectId>,
}

/// A mutating call as it was before it was first sent.
#[derive(Debug, Clone)]
pub struct Journaled {
    /// Its full content.
    pub call: Call,
    /// When it was written down.
    pub sent: Moment,
}

/// How far a checkout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waits for its grant.
    Opening,
    /// In use.
    Open,
    /// To be closed once everything is committed.
    Releasing,
    /// To be closed as it is.
    Discarding,
}

/// A signed commit whose outcome is not known.
#[derive(Debug, Clone, Copy)]
pub struct Pending {
    /// The record.
    pub proposal: Proposal,
    /// The newest checkpoint that it contains.
    pub generation: u64,
}

/// One checkout.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its image.
    pub image: ImageId,
    /// How far it is.
    pub stage: Stage,
    /// Whether it was opened without a lease.
    pub read_only: bool,
    /// Whether a read-only one keeps a lease that it took for a commit.
    pub keeps_lease: bool,
    /// What it asks leases for.
    pub terms: Terms,
    /// Its lease; nothing while it waits for the grant.
    pub holder: Option<Holder>,
    /// The commit that it stands on.
    pub base: Option<Proposal>,
    /// What is there, as far as it is synced.
    pub content: Content,
    /// Cuts that no commit of it contains, by generation.
    pub checkpoints: BTreeMap<u64, Content>,
    /// The newest generation.
    pub generation: u64,
    /// The newest generation whose objects are in the outbox.
    pub sealed: u64,
    /// Objects that no commit of this checkout contains.
    pub outbox: BTreeSet<ObjectId>,
    /// The signed commit that is being sent.
    pub pending: Option<Pending>,
    /// What was staged last.
    pub staged: Option<Proposal>,
}

impl Row {
    /// A checkout that waits for its grant.
    pub fn opening(image: ImageId, terms: Terms) -> Self {
        Self {
            image,
            stage: Stage::Opening,
            read_only: false,
            keeps_lease: false,
            terms,
            holder: None,
            base: None,
            content: Content::default(),
            checkpoints: BTreeMap::new(),
            generation: 0,
            sealed: 0,
            outbox: BTreeSet::new(),
            pending: None,
            staged: None,
        }
    }

    /// Takes into the outbox what the cuts that are left need beyond a new base. One that equals the old
    /// base was never in it.
    pub fn keep_whole(&mut self, base: &Content) {
        let sealed = self.checkpoints.range(..=self.sealed);
        for (_, cut) in sealed {
            self.outbox.extend(cut.beyond(base));
        }
    }

    /// The root of the base; the empty one's where there is none.
    pub fn base_root(&self) -> ObjectId {
        self.base
            .map_or_else(|| Content::default().root(), |base| base.root)
    }

    /// The base's commit.
    pub fn base_commit(&self) -> Option<CommitId> {
        self.base.map(|base| base.commit)
    }

    /// The newest cut, if no commit of it contains it.
    pub fn newest_cut(&self) -> Option<(u64, &Content)> {
        let (generation, content) = self.checkpoints.last_key_value()?;
        Some((*generation, content))
    }
}
