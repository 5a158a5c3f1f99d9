//! Saving a checkout's state as a new image, on which the checkout goes on.
//!
//! It needs no lease of the image that it leaves, so it is the way on for an orphan and for a read-only checkout.
//! The state goes home first; then one call makes the branch and grants it to this checkout. A daemon that dies
//! before it has heard the answer finds the branch in the home's list, leased to the checkout, and goes on there
//! ([`super::rivals`]).

use img_lease::Terms;
use img_lease::holder::{Granted, Kind as LeaseKind};
use img_proto::{Answer, Call, Refusal};
use img_records::Parent;
use img_types::{CommitId, DeviceId, ImageId, ImageName, RequestId, Token};

use super::Shared;
use super::work::{self, CommitError, CommitJob, totals};
use crate::branch::{BranchDraft, NewBranch};
use crate::commits::{OpenCommit, OpenDescriptor, RecordError};
use crate::error::ApiError;
use crate::events::{Phase, Reporter};
use crate::home::CallError;
use crate::keeper::luck;
use crate::stream::{Sent, UploadError};

/// An image that a checkout goes on as.
#[derive(Debug, Clone)]
pub(super) struct Onward {
    /// The image that it continues; a checkout that is of another by now does not go on as it.
    pub(super) from: ImageId,
    pub(super) descriptor: OpenDescriptor,
    pub(super) first: OpenCommit,
    pub(super) granted: Granted,
    /// Who made it while taking the image over, and why, as far as that is known.
    pub(super) by: Option<(DeviceId, Option<String>)>,
}

/// A branch that a checkout has made of its state.
#[derive(Debug)]
pub(super) struct Branched {
    pub(super) onward: Onward,
    pub(super) sent: Sent,
    pub(super) request: RequestId,
}

/// What a checkout has at home for the image that it leaves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Left {
    Lease(ImageId, Token),
    Pin(CommitId),
    Nothing,
}

impl CommitJob {
    /// Brings the root home and makes it the first commit of a new image.
    pub(super) async fn branch(
        self,
        from: OpenDescriptor,
        name: ImageName,
    ) -> Result<Branched, CommitError> {
        let shared = &self.shared;
        let (files, logical_bytes) = totals(&shared.home, self.root).await?;
        let Some(base) = &self.base else {
            return Err(CommitError::Forbidden(Box::new(no_commit_yet(&self.name))));
        };
        let (image, commit) = self.request.onto.unwrap_or((self.image, base.id));
        let parent = Parent { image, commit };
        self.reporter.phase(Phase::Push, Some(self.sealed_bytes));
        let mut sent = self.stream().await?;
        let draft = BranchDraft {
            root: self.root,
            checkout: self.checkout,
            message: self.request.message.clone(),
            logical_bytes,
            files,
            sealed_bytes: self.sealed_bytes,
            maps: self.maps,
            ..BranchDraft::of(&from, &name, base, parent)
        };
        let branch = draft.sign(&shared.home).map_err(UploadError::from)?;
        self.reporter.phase(Phase::Commit, None);
        for _ in 0..ROUNDS_MAX {
            match self.ask(&branch).await {
                Ok((granted, request)) => {
                    let onward = Onward::of_own(shared, self.image, branch, granted);
                    let onward = onward.map_err(UploadError::from)?;
                    return Ok(Branched {
                        onward,
                        sent,
                        request,
                    });
                }
                Err(CallError::Refused(
                    refusal @ (Refusal::Incomplete { .. } | Refusal::SessionClosed),
                )) => {
                    let more = match refusal {
                        // What the checkout stands on may be lost at home.
                        Refusal::Incomplete { .. } => {
                            let uploader = shared.uploader(self.checkout);
                            uploader.mend(self.root.id, &self.reporter).await?
                        }
                        _ => self.stream().await?,
                    };
                    sent.objects += more.objects;
                    sent.bytes += more.bytes;
                }
                Err(CallError::Refused(Refusal::NameTaken)) => {
                    let taken = shared
                        .home
                        .explain(&CallError::Refused(Refusal::NameTaken), name.as_str());
                    return Err(CommitError::Forbidden(Box::new(taken)));
                }
                // The first commit names the branch: sent again, it is made once.
                Err(CallError::Away | CallError::WentBack) => {
                    wait_for_home(shared, &self.reporter).await
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(CallError::Protocol("a branch that stays incomplete").into())
    }

    async fn stream(&self) -> Result<Sent, UploadError> {
        let uploader = self.shared.uploader(self.checkout);
        uploader.stream(self.root.id, &self.reporter).await
    }

    async fn ask(&self, branch: &NewBranch) -> Result<(Granted, RequestId), CallError> {
        let sent = self.shared.clock.now();
        let call = Call::Branch {
            descriptor: branch.descriptor.to_bytes().into(),
            commit: branch.first.signed.to_bytes().into(),
            terms: self.terms,
        };
        let branched = self.shared.home.mutate(call).await?;
        let Answer::Branched { token, ttl_ms, .. } = branched.answer else {
            return Err(CallError::Protocol("no branch"));
        };
        let granted = Granted {
            token,
            terms: Terms {
                ttl_ms,
                mode: self.terms.mode,
            },
            head: Some(branch.first.id),
            sent,
            luck: luck(),
        };
        Ok((granted, branched.request))
    }
}

impl Onward {
    fn of_own(
        shared: &Shared,
        from: ImageId,
        branch: NewBranch,
        granted: Granted,
    ) -> Result<Self, RecordError> {
        let descriptor = branch.descriptor.to_bytes();
        let image = branch.image();
        let opened = shared
            .home
            .trusted(|trust| trust.open_descriptor(image, &descriptor));
        Ok(Self {
            from,
            descriptor: opened?,
            first: branch.first,
            granted,
            by: None,
        })
    }

    /// The image.
    pub(super) fn image(&self) -> ImageId {
        self.first.record().image
    }
}

impl Left {
    /// What a checkout leaves behind that goes on elsewhere.
    pub(super) fn by(shared: &Shared, checkout: img_types::CheckoutId) -> Self {
        let Some(holder) = shared.keeper.holder(checkout) else {
            return Self::Nothing;
        };
        match (holder.token(), holder.kind(), holder.base()) {
            (Some(token), _, _) => Self::Lease(holder.image(), token),
            (None, LeaseKind::ReadOnly, Some(base)) => Self::Pin(base),
            _ => Self::Nothing,
        }
    }

    /// Gives it back; what cannot be given back now is noticed later, or ends by itself.
    pub(super) async fn give_back(self, shared: &Shared, checkout: img_types::CheckoutId) {
        let gave_back = match self {
            Self::Lease(image, token) => work::give_back(shared, image, checkout, token).await,
            Self::Pin(commit) => {
                let unpinned = shared.home.mutate(Call::Unpin { commit, checkout }).await;
                match unpinned {
                    Ok(unpinned) => shared
                        .home
                        .settle(unpinned.request)
                        .await
                        .map_err(Into::into),
                    Err(error) => Err(error),
                }
            }
            Self::Nothing => Ok(()),
        };
        if let Err(error) = gave_back {
            tracing::warn!(%error, "what a branched checkout left at home ends by itself");
        }
    }
}

/// There is nothing that a branch could leave from.
pub(super) fn no_commit_yet(name: &str) -> ApiError {
    ApiError::usage(format!(
        "{name} has no commit yet that a branch could leave from."
    ))
}

async fn wait_for_home(shared: &Shared, reporter: &Reporter) {
    reporter.waits_for(Some("the home"));
    tokio::time::sleep(PAUSE).await;
    shared.home.reachable().await;
    reporter.waits_for(None);
}

/// How often a branch is asked for again after what was missing has been pushed, or the home was away.
const ROUNDS_MAX: usize = 1_000;
/// Pause before a branch without an answer is asked for again.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(250);
