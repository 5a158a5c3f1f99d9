//! What moves or surrounds a head: commit, stage, branch, readmit.

use img_types::limits::KEPT_AFTER_LOSS;
use img_types::{CheckoutId, Epoch, Seq};

use super::grant::first_grant;
use super::{Claim, current};
use crate::rows::millis;
use crate::{
    Caller, Effect, Grant, Head, ImageState, Lease, Logged, Proposal, Refused, Staged, Terms,
};

/// What the home's histories say about a record. Only commits count: a staged record is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// The record is a commit of some image here.
    pub has_commit: bool,
    /// Its parent is a commit of the same image here, or it has none.
    pub has_parent: bool,
}

/// The commit rule: the token is current, and the base is the head's commit id. Nothing else
/// decides: no time, and not whether the lease has lapsed.
///
/// # Errors
/// [`Refused::TokenStale`], [`Refused::InstanceFenced`] or [`Refused::HeadMoved`].
pub fn commit_guard<'a>(
    image: &'a ImageState,
    caller: &Caller,
    proposal: &Proposal,
) -> Result<&'a Lease, Refused> {
    let token = proposal.token.ok_or(Refused::TokenStale {
        epoch: image.epoch,
        holder: image.lease.map(|lease| lease.device),
        mode: image.lease.map(|lease| lease.mode),
    })?;
    let claim = Claim {
        token,
        device: proposal.device,
        checkout: proposal.checkout,
    };
    let lease = current(image, caller, &claim)?;
    if proposal.parent == image.head_commit() {
        Ok(lease)
    } else {
        Err(Refused::HeadMoved {
            head: image.head_commit(),
        })
    }
}

/// Moves the head. Nothing if the commit is known: its answer is the same for ever.
///
/// The server has checked the signature, that the root is complete, and the quota.
///
/// # Errors
/// As [`commit_guard`], or [`Refused::BadRecord`] if the number does not follow the head's.
pub fn commit(
    image: &ImageState,
    caller: &Caller,
    proposal: &Proposal,
    history: History,
) -> Result<Option<Effect>, Refused> {
    caller.belongs()?;
    if history.has_commit {
        return Ok(None);
    }
    image.live()?;
    let lease = *commit_guard(image, caller, proposal)?;
    if proposal.image != image.image || Some(proposal.seq) != seq_after(image.head) {
        return Err(Refused::BadRecord("image or number"));
    }
    let staged = without(image, proposal);
    Ok(Some(Effect {
        image: ImageState {
            head: Some(Head {
                commit: proposal.commit,
                seq: proposal.seq,
            }),
            lease: Some(Lease {
                base: Some(proposal.commit),
                ..lease
            }),
            staged,
            ..image.clone()
        },
        log: vec![Logged::Commit(proposal.commit)],
        loser: None,
    }))
}

/// Keeps a streamed checkpoint beside the head, whatever the token, in place of the checkout's
/// earlier one. Nothing if it is known as a commit, or not newer than what is staged.
///
/// # Errors
/// [`Refused::UnknownCommit`] if the parent is not in this image's history,
/// [`Refused::BadRecord`] if another device signed it.
pub fn stage(
    image: &ImageState,
    caller: &Caller,
    proposal: &Proposal,
    history: History,
) -> Result<Option<Effect>, Refused> {
    caller.acts()?;
    if history.has_commit {
        return Ok(None);
    }
    image.live()?;
    if proposal.image != image.image || proposal.device != caller.device {
        return Err(Refused::BadRecord("image or signer"));
    }
    if !history.has_parent {
        return Err(Refused::UnknownCommit);
    }
    let earlier = image.staged_by(&proposal.checkout);
    if earlier.is_some_and(|staged| age(&staged.proposal) >= age(proposal)) {
        return Ok(None);
    }
    let mut staged = without(image, proposal);
    staged.push(Staged {
        proposal: *proposal,
        remaining_ms: millis(KEPT_AFTER_LOSS),
    });
    staged.sort_by_key(|staged| staged.proposal.checkout);
    Ok(Some(Effect {
        image: ImageState {
            staged,
            ..image.clone()
        },
        log: Vec::new(),
        loser: None,
    }))
}

/// Drops what a checkout of the caller has staged. Nothing if there is nothing.
///
/// # Errors
/// The caller is no member or was fenced.
pub fn unstage(
    image: &ImageState,
    caller: &Caller,
    checkout: CheckoutId,
) -> Result<Option<Effect>, Refused> {
    caller.acts()?;
    let own = image
        .staged_by(&checkout)
        .is_some_and(|staged| staged.proposal.device == caller.device);
    if !own {
        return Ok(None);
    }
    let mut image = image.clone();
    image
        .staged
        .retain(|staged| staged.proposal.checkout != checkout);
    Ok(Some(Effect {
        image,
        log: Vec::new(),
        loser: None,
    }))
}

/// Makes a new image that starts from any commit, and grants it to the caller. Nothing if the first
/// commit is known. The image that it comes from is not touched.
///
/// The server has checked the signature, that the root is complete and that the name is free. A
/// fenced daemon may branch: that is its way on.
///
/// # Errors
/// [`Refused::NotMember`], or [`Refused::BadRecord`] if the record is no first commit of a branch.
pub fn branch(
    caller: &Caller,
    first: &Proposal,
    terms: Terms,
    history: History,
) -> Result<Option<Grant>, Refused> {
    caller.belongs()?;
    if history.has_commit {
        return Ok(None);
    }
    first_commit(caller, first)?;
    let mut grant = first_grant(
        first.image,
        Some(first.commit),
        caller,
        first.checkout,
        terms,
    )?;
    grant.effect.log.insert(0, Logged::Commit(first.commit));
    Ok(Some(grant))
}

/// Gives back commits that this home had acknowledged before it went back in time; whatever the
/// token. The head moves forward, the epoch is raised and no lease is left: a holder becomes an
/// orphan and is told. Nothing if `commits`, those that the home does not know, is empty.
///
/// The server has checked signatures and receipts, and that the newest root is complete.
///
/// # Errors
/// [`Refused::HeadMoved`] if the commits do not chain from the head.
pub fn readmit(
    image: &ImageState,
    caller: &Caller,
    commits: &[Proposal],
) -> Result<Option<Effect>, Refused> {
    caller.acts()?;
    image.live()?;
    let mut head = image.head;
    for commit in commits {
        // An image's first commit has no parent, or one in the image that it branched from.
        let follows = head.is_none_or(|head| commit.parent == Some(head.commit));
        if !follows || Some(commit.seq) != seq_after(head) {
            return Err(Refused::HeadMoved {
                head: image.head_commit(),
            });
        }
        if commit.image != image.image {
            return Err(Refused::BadRecord("image"));
        }
        head = Some(Head {
            commit: commit.commit,
            seq: commit.seq,
        });
    }
    if commits.is_empty() {
        return Ok(None);
    }
    let mut staged = image.staged.clone();
    staged.retain(|staged| {
        !commits
            .iter()
            .any(|commit| commit.commit == staged.proposal.commit)
    });
    Ok(Some(Effect {
        image: ImageState {
            head,
            epoch: image.epoch.next().ok_or(Refused::Exhausted)?,
            lease: None,
            staged,
            ..image.clone()
        },
        log: commits
            .iter()
            .map(|commit| Logged::Readmit(commit.commit))
            .collect(),
        loser: image.lease,
    }))
}

/// Checks that a record is the first commit of a branch: no lease moved anything for it.
pub(super) fn first_commit(caller: &Caller, first: &Proposal) -> Result<(), Refused> {
    if first.device != caller.device || first.token.is_some() || first.seq != Seq(0) {
        return Err(Refused::BadRecord("no first commit of a branch"));
    }
    Ok(())
}

/// The number of the commit after a head.
fn seq_after(head: Option<Head>) -> Option<Seq> {
    head.map_or(Some(Seq(0)), |head| head.seq.next())
}

/// The staged records without those of a proposal's checkout.
fn without(image: &ImageState, proposal: &Proposal) -> Vec<Staged> {
    let mut staged = image.staged.clone();
    staged.retain(|staged| staged.proposal.checkout != proposal.checkout);
    staged
}

/// Orders the records of one checkout. A wrong clock can at most keep an older record staged.
fn age(proposal: &Proposal) -> impl Ord {
    (
        proposal.token.map_or(Epoch(0), |token| token.epoch),
        proposal.seq,
        proposal.instance,
        proposal.clock,
    )
}
