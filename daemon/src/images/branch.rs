//! Branching from any commit of an image, or from work that is staged beside its head; nothing is copied.

use img_proto::{Answer, Call, LeaseTerms, StagedRow};
use img_records::Parent;
use img_types::limits::LEASE_TTL_DEFAULT;
use img_types::{CheckoutId, ImageName, LeaseMode, Seq, Token};
use serde_json::{Value as Json, json};

use super::{CommitSpec, Image, Images, Local, unverified};
use crate::branch::{BranchDraft, NewBranch};
use crate::commits::{OpenCommit, RecordError};
use crate::error::ApiError;
use crate::home::CallError;
use crate::random::random;

impl Images {
    /// Makes an image that starts from a commit of another, or from what is staged beside its head.
    ///
    /// # Errors
    /// There is no such image or commit, the name is taken, or the home is away or refuses.
    pub async fn branch(
        &self,
        name: &ImageName,
        to: &ImageName,
        at: &CommitSpec,
        local: &Local,
    ) -> Result<Json, ApiError> {
        let image = self.find(name).await?;
        let (state, commit) = self.at_home(&image, at, local).await?;
        // Nobody's working copy: the branch is FREE once it is made.
        let checkout = CheckoutId::from_bytes(random());
        let draft = BranchDraft {
            checkout,
            ..BranchDraft::of(&image.descriptor, to, &state, commit)
        };
        let branch = draft.sign(&self.home).map_err(ApiError::failed)?;
        let token = self.send(&branch, to).await?;
        let release = Call::Release {
            image: branch.image(),
            checkout,
            token,
        };
        if let Err(error) = self.mutate(release, to.as_str()).await {
            tracing::warn!(%error, "the lease of a new branch lasts until it lapses");
        }
        Ok(json!({
            "image": branch.image(),
            "name": to.as_str(),
            "commit": branch.first.id,
            "parent": commit.commit,
            "checkpoint": state.id != commit.commit,
        }))
    }

    /// Opens a record that is staged beside a head. Its signer may have been revoked since: it is only ever used
    /// for an image of its own, where nobody takes it for the head's history.
    ///
    /// # Errors
    /// It does not verify, or the home is away.
    pub async fn open_staged(
        &self,
        image: &Image,
        staged: &StagedRow,
    ) -> Result<OpenCommit, ApiError> {
        let open = || self.trusted(|trust| trust.reopen_commit(image.row.image, &staged.record));
        let opened = match open() {
            Ok(opened) => Ok(opened),
            Err(_) => {
                let caught_up = self.home.catch_up().await;
                caught_up.map_err(|error| self.explain(&error, image.name().as_str()))?;
                open()
            }
        };
        match opened {
            Ok(opened) if opened.id == staged.commit => Ok(opened),
            Ok(_) => Err(unverified(&RecordError::Misplaced)),
            Err(error) => Err(unverified(&error)),
        }
    }

    /// Where a branch of a staged record leaves its image: at the commit that the record was to follow.
    ///
    /// # Errors
    /// It was to follow none.
    pub fn leaving(image: &Image, staged: &OpenCommit) -> Result<Parent, ApiError> {
        let parent = staged.record().parent;
        let parent = parent.filter(|parent| parent.image == image.row.image);
        parent.ok_or_else(|| unverified(&RecordError::Misplaced))
    }

    /// The first commit of an image.
    ///
    /// # Errors
    /// It does not verify, or the home is away.
    pub async fn first_commit(&self, image: &Image) -> Result<OpenCommit, ApiError> {
        if let Some(head) = image
            .head
            .as_ref()
            .filter(|head| head.record().seq == Seq(0))
        {
            return Ok(head.clone());
        }
        let name = image.name().as_str();
        let call = Call::Log {
            image: image.row.image,
            before: Some(Seq(1)),
            limit: 1,
        };
        let answer = self.home.ask(call).await;
        let answer = answer.map_err(|error| self.explain(&error, name))?;
        let first = match answer {
            Answer::Log { commits, .. } => commits.into_iter().next(),
            _ => None,
        };
        let Some((commit, receipt)) = first else {
            return Err(self.explain(&CallError::Protocol("no first commit"), name));
        };
        let opened = self.open_with_receipt(image, &commit, &receipt);
        opened.map_err(|error| unverified(&error))
    }

    async fn send(&self, branch: &NewBranch, to: &ImageName) -> Result<Token, ApiError> {
        let call = Call::Branch {
            descriptor: branch.descriptor.to_bytes().into(),
            commit: branch.first.signed.to_bytes().into(),
            terms: LeaseTerms {
                ttl_ms: u64::try_from(LEASE_TTL_DEFAULT.as_millis()).unwrap_or(u64::MAX),
                mode: LeaseMode::Online,
            },
        };
        let branched = self.home.mutate(call).await;
        let branched = branched.map_err(|error| self.explain(&error, to.as_str()))?;
        let settled = self.home.settle(branched.request).await;
        settled.map_err(ApiError::failed)?;
        match branched.answer {
            Answer::Branched { token, .. } => Ok(token),
            _ => Err(self.explain(&CallError::Protocol("no branch"), to.as_str())),
        }
    }
}
