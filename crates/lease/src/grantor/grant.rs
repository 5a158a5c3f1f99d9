//! Grants and their ends: create, acquire, renew, release, steal.

use std::time::Duration;

use img_types::{CheckoutId, CommitId, Epoch, ImageId, LeaseMode, Seq, Token};

use super::history::first_commit;
use super::life::tombstone;
use super::{Claim, current};
use crate::rows::millis;
use crate::{Caller, Effect, Grant, Head, ImageState, Lease, Logged, Proposal, Refused, Terms};

/// What a checkout asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Acquire {
    /// For which checkout.
    pub checkout: CheckoutId,
    /// Wanted terms.
    pub terms: Terms,
    /// Grant only while the head is this commit.
    pub expect_head: Option<CommitId>,
    /// Grant also over a lapsed lease with staged work upon the head.
    pub take_over: bool,
}

/// What a thief saw before it stole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Expectation {
    /// The image's epoch.
    pub epoch: Epoch,
    /// The image's head.
    pub head: Option<CommitId>,
    /// What the lease's checkout has staged.
    pub staged: Option<CommitId>,
}

/// How an image came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Creation {
    /// The image and the importer's lease.
    pub grant: Grant,
    /// Whether the image is new; if not, the same device goes on with what it had begun.
    pub new: bool,
    /// The unfinished image that had the name, as a tombstone from now on.
    pub replaces: Option<ImageState>,
}

/// A steal that keeps the loser's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stolen {
    /// The stolen image.
    pub grant: Grant,
    /// The branch with the loser's work: leased to the loser's checkout, or FREE if it was revoked.
    pub branch: Effect,
}

/// Makes an image without a commit and grants its first lease to the importer.
///
/// `named` is the live image that has the name, if there is one. An unfinished image of the same
/// device is resumed if the caller names its id, and replaced otherwise; one of another device is
/// replaced once nobody holds it.
///
/// # Errors
/// [`Refused::NameTaken`] while the name belongs to an image with a commit or to another importer.
pub fn create(
    named: Option<&ImageState>,
    caller: &Caller,
    image: ImageId,
    checkout: CheckoutId,
    terms: Terms,
) -> Result<Creation, Refused> {
    caller.acts()?;
    let Some(named) = named else {
        return Ok(Creation {
            grant: first_grant(image, None, caller, checkout, terms)?,
            new: true,
            replaces: None,
        });
    };
    let own = named
        .lease
        .is_some_and(|lease| lease.device == caller.device);
    let held = named.lease.is_some_and(|lease| lease.outstanding());
    if named.head.is_some() || (held && !own) {
        return Err(Refused::NameTaken);
    }
    if named.image != image {
        return Ok(Creation {
            grant: first_grant(image, None, caller, checkout, terms)?,
            new: true,
            replaces: Some(tombstone(named)),
        });
    }
    let grant = match named.lease {
        Some(lease) if own && lease.checkout == checkout => {
            extend(named, caller, lease, terms.bounded())
        }
        _ => grant(named, caller, checkout, terms, Logged::Grant(checkout))?,
    };
    Ok(Creation {
        grant,
        new: false,
        replaces: None,
    })
}

/// Grants the lease of a FREE or LAPSED image. The reply carries the token and the head of the
/// same transaction.
///
/// # Errors
/// [`Refused::Leased`] while a lease is outstanding, [`Refused::HeadMoved`] if the head is not the
/// expected one, [`Refused::StagedWork`] if a lapsed holder's staged work would be passed over.
pub fn acquire(image: &ImageState, caller: &Caller, want: &Acquire) -> Result<Grant, Refused> {
    caller.acts()?;
    image.live()?;
    if let Some(lease) = image.lease.filter(Lease::outstanding) {
        return Err(Refused::Leased(Box::new(lease)));
    }
    if want.expect_head.is_some() && want.expect_head != image.head_commit() {
        return Err(Refused::HeadMoved {
            head: image.head_commit(),
        });
    }
    if let Some(lease) = image.lease
        && lease.checkout != want.checkout
        && !want.take_over
        && let Some(staged) = image.staged_by(&lease.checkout)
        && staged.proposal.parent == image.head_commit()
    {
        return Err(Refused::StagedWork {
            lease: Box::new(lease),
            staged: staged.proposal.commit,
        });
    }
    grant(
        image,
        caller,
        want.checkout,
        want.terms,
        Logged::Grant(want.checkout),
    )
}

/// Gives a lease a new deadline under the same token; HELD again if it had lapsed.
///
/// # Errors
/// The token is not current.
pub fn renew(
    image: &ImageState,
    caller: &Caller,
    checkout: CheckoutId,
    token: Token,
    terms: Option<Terms>,
) -> Result<Grant, Refused> {
    caller.acts()?;
    image.live()?;
    let lease = *current(image, caller, &claim(caller, checkout, token))?;
    let terms = terms.map_or(
        Terms {
            ttl_ms: lease.ttl_ms,
            mode: lease.mode,
        },
        Terms::bounded,
    );
    Ok(extend(image, caller, lease, terms))
}

/// Gives a lease back; the epoch stays. Nothing if the token is not current, which is no failure.
///
/// # Errors
/// The caller is no member or was fenced.
pub fn release(
    image: &ImageState,
    caller: &Caller,
    checkout: CheckoutId,
    token: Token,
) -> Result<Option<Effect>, Refused> {
    caller.acts()?;
    if current(image, caller, &claim(caller, checkout, token)).is_err() {
        return Ok(None);
    }
    Ok(Some(Effect {
        image: ImageState {
            lease: None,
            ..image.clone()
        },
        log: vec![Logged::Release(checkout)],
        loser: None,
    }))
}

/// Says whether an earlier grant still stands, for the answer to a repeated call.
pub fn grant_stands(
    image: &ImageState,
    caller: &Caller,
    checkout: CheckoutId,
    token: Token,
) -> bool {
    current(image, caller, &claim(caller, checkout, token)).is_ok()
}

/// Takes a lease over by force: HELD by the caller under the next epoch.
///
/// # Errors
/// [`Refused::NobodyHolds`] on a FREE image, [`Refused::Changed`] if anything differs from what the
/// thief saw.
pub fn steal(
    image: &ImageState,
    caller: &Caller,
    checkout: CheckoutId,
    terms: Terms,
    expect: &Expectation,
) -> Result<Grant, Refused> {
    caller.acts()?;
    image.live()?;
    let loser = image.lease.ok_or(Refused::NobodyHolds)?;
    let seen = Expectation {
        epoch: image.epoch,
        head: image.head_commit(),
        staged: image
            .staged_by(&loser.checkout)
            .map(|staged| staged.proposal.commit),
    };
    if seen != *expect {
        return Err(Refused::Changed {
            epoch: seen.epoch,
            head: seen.head,
            staged: seen.staged,
        });
    }
    grant(
        image,
        caller,
        checkout,
        terms,
        Logged::Steal(loser.checkout),
    )
}

/// Steals, and keeps what the loser had as a branch that is leased to the loser's checkout, offline
/// and for at least [`LOSER_TTL_MS`]; FREE if the loser is no member any more.
///
/// `first` is the branch's first commit, signed by the thief: its root is the loser's staged root,
/// or, with nothing staged, its parent is the commit that the loser stands on.
///
/// # Errors
/// As [`steal`], or [`Refused::BadRecord`] if the branch does not keep the loser's work.
pub fn steal_to_branch(
    image: &ImageState,
    caller: &Caller,
    checkout: CheckoutId,
    terms: Terms,
    expect: &Expectation,
    first: &Proposal,
    loser_member: bool,
) -> Result<Stolen, Refused> {
    let stolen = steal(image, caller, checkout, terms, expect)?;
    let loser = image.lease.ok_or(Refused::NobodyHolds)?;
    first_commit(caller, first)?;
    let keeps = match image.staged_by(&loser.checkout) {
        Some(staged) => first.root == staged.proposal.root,
        None => first.parent == loser.base,
    };
    if !keeps {
        return Err(Refused::BadRecord(
            "the branch does not keep the loser's work",
        ));
    }
    let mut log = vec![Logged::Commit(first.commit)];
    let lease = loser_member.then(|| {
        log.push(Logged::Grant(loser.checkout));
        let terms = Terms {
            ttl_ms: loser.ttl_ms.max(LOSER_TTL_MS),
            mode: LeaseMode::Offline,
        };
        Lease {
            epoch: FIRST_EPOCH,
            base: Some(first.commit),
            ..loser.extended(terms.bounded())
        }
    });
    Ok(Stolen {
        grant: stolen,
        branch: Effect {
            image: ImageState {
                image: first.image,
                head: Some(Head {
                    commit: first.commit,
                    seq: first.seq,
                }),
                epoch: FIRST_EPOCH,
                lease,
                staged: Vec::new(),
                tombstone_ms: None,
            },
            log,
            loser: None,
        },
    })
}

/// Makes the rows of a new image whose first lease is the caller's.
pub(super) fn first_grant(
    image: ImageId,
    first: Option<CommitId>,
    caller: &Caller,
    checkout: CheckoutId,
    terms: Terms,
) -> Result<Grant, Refused> {
    let empty = ImageState {
        image,
        head: first.map(|commit| Head {
            commit,
            seq: Seq(0),
        }),
        epoch: Epoch(0),
        lease: None,
        staged: Vec::new(),
        tombstone_ms: None,
    };
    grant(&empty, caller, checkout, terms, Logged::Grant(checkout))
}

/// Raises the epoch and makes the caller's checkout the holder.
fn grant(
    image: &ImageState,
    caller: &Caller,
    checkout: CheckoutId,
    terms: Terms,
    log: Logged,
) -> Result<Grant, Refused> {
    let terms = terms.bounded();
    let epoch = image.epoch.next().ok_or(Refused::Exhausted)?;
    let lease = Lease {
        device: caller.device,
        checkout,
        epoch,
        mode: terms.mode,
        ttl_ms: terms.ttl_ms,
        remaining_ms: terms.ttl_ms,
        lapsed: false,
        base: image.head_commit(),
    };
    Ok(Grant {
        effect: Effect {
            image: ImageState {
                epoch,
                lease: Some(lease),
                ..image.clone()
            },
            log: vec![log],
            loser: image
                .lease
                .filter(|loser| (loser.device, loser.checkout) != (caller.device, checkout)),
        },
        token: Token {
            incarnation: caller.incarnation,
            epoch,
        },
        ttl_ms: terms.ttl_ms,
    })
}

/// Gives the caller's lease a new deadline under its token.
fn extend(image: &ImageState, caller: &Caller, lease: Lease, terms: Terms) -> Grant {
    let lease = lease.extended(terms);
    Grant {
        effect: Effect {
            image: ImageState {
                lease: Some(lease),
                ..image.clone()
            },
            log: Vec::new(),
            loser: None,
        },
        token: Token {
            incarnation: caller.incarnation,
            epoch: lease.epoch,
        },
        ttl_ms: lease.ttl_ms,
    }
}

fn claim(caller: &Caller, checkout: CheckoutId, token: Token) -> Claim {
    Claim {
        token,
        device: caller.device,
        checkout,
    }
}

/// The epoch of an image's first grant.
const FIRST_EPOCH: Epoch = Epoch(1);

/// Shortest lease of a branch that keeps a loser's work, in milliseconds: it may be away for days,
/// that is why it lost.
pub const LOSER_TTL_MS: u64 = millis(Duration::from_secs(7 * 24 * 3600));
