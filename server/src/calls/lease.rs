//! Acquire, Renew, Release, and what a repeated grant is told.

use img_lease::grantor::{self, Acquire, Claim};
use img_lease::{Grant, Terms};
use img_proto::{Answer, Call};
use img_types::{CheckoutId, ImageId, Token};

use super::commit::branched_before;
use super::transaction::{Context, refused};
use crate::db::Stop;
use crate::db::images::Image;
use crate::proposal::Proposed;

/// Grants the lease of a free or lapsed image.
pub(super) async fn acquire(
    context: &mut Context<'_>,
    image: ImageId,
    want: &Acquire,
) -> Result<Answer, Stop> {
    let image = context.live_image(image).await?;
    let grant = grantor::acquire(&image.state, &context.caller, want).map_err(refused)?;
    granted(context, &grant, Some(&image)).await
}

/// Gives a lease a new deadline.
pub(super) async fn renew(
    context: &mut Context<'_>,
    image: ImageId,
    checkout: CheckoutId,
    token: Token,
    terms: Option<Terms>,
) -> Result<Answer, Stop> {
    let image = context.live_image(image).await?;
    let grant = grantor::renew(&image.state, &context.caller, checkout, token, terms);
    let grant = grant.map_err(refused)?;
    context.apply(&grant.effect).await?;
    Ok(Answer::Renewed {
        ttl_ms: grant.ttl_ms,
    })
}

/// Takes a lease back; a token that is not current has nothing to give back, which is fine.
pub(super) async fn release(
    context: &mut Context<'_>,
    image: ImageId,
    checkout: CheckoutId,
    token: Token,
) -> Result<Answer, Stop> {
    let Some(image) = context.tx.image(image).await? else {
        return Ok(Answer::Done);
    };
    let effect = grantor::release(&image.state, &context.caller, checkout, token);
    if let Some(effect) = effect.map_err(refused)? {
        context.apply(&effect).await?;
    }
    Ok(Answer::Done)
}

/// Writes a grant of an image that was there before, or of a new one, and answers with it and the head of the
/// same transaction.
pub(super) async fn granted(
    context: &mut Context<'_>,
    grant: &Grant,
    before: Option<&Image>,
) -> Result<Answer, Stop> {
    context.apply(&grant.effect).await?;
    Ok(Answer::Granted {
        token: grant.token,
        ttl_ms: grant.ttl_ms,
        head: before.and_then(|image| image.head_record.clone()),
        current: true,
        trace: before.and_then(|image| image.trace),
    })
}

/// The answer to a repeated call: as before, but a lease is told as it stands now. A device counts its
/// deadline from when it sent the call, so that the time of the first answer would be too long.
pub(super) async fn standing_of(
    context: &mut Context<'_>,
    call: &Call,
    earlier: Answer,
) -> Result<Answer, Stop> {
    let (token, ttl_ms, head, trace) = match (earlier, call) {
        (
            Answer::Granted {
                token,
                ttl_ms,
                head,
                trace,
                ..
            },
            _,
        ) => (token, ttl_ms, head, trace),
        (
            Answer::Renewed { .. },
            Call::Renew {
                image,
                checkout,
                token,
                ..
            },
        ) => return renewed_before(context, *image, *checkout, *token).await,
        (Answer::Branched { receipt, .. }, Call::Branch { commit, .. }) => {
            let first = Proposed::stored(commit, context.moment.home)?;
            return branched_before(context, &first.proposal, receipt).await;
        }
        (earlier, _) => return Ok(earlier),
    };
    let Some((image, checkout)) = granted_to(context, call)? else {
        return Ok(Answer::Granted {
            token,
            ttl_ms,
            head,
            current: false,
            trace,
        });
    };
    let image = context.tx.image(image).await?;
    let stands =
        image.filter(|image| grantor::grant_stands(&image.state, &context.caller, checkout, token));
    let Some(image) = stands else {
        return Ok(Answer::Granted {
            token,
            ttl_ms: 0,
            head,
            current: false,
            trace,
        });
    };
    Ok(Answer::Granted {
        token,
        ttl_ms: image.state.lease.map_or(0, |lease| lease.remaining_ms),
        head: image.head_record,
        current: true,
        trace: image.trace,
    })
}

/// The answer to a renewal that was made before.
async fn renewed_before(
    context: &mut Context<'_>,
    image: ImageId,
    checkout: CheckoutId,
    token: Token,
) -> Result<Answer, Stop> {
    let image = context.live_image(image).await?;
    let claim = Claim {
        token,
        device: context.caller.device,
        checkout,
    };
    let lease = grantor::current(&image.state, &context.caller, &claim).map_err(refused)?;
    Ok(Answer::Renewed {
        ttl_ms: lease.remaining_ms,
    })
}

/// Which image a granting call concerned, and which checkout.
fn granted_to(context: &Context<'_>, call: &Call) -> Result<Option<(ImageId, CheckoutId)>, Stop> {
    match call {
        Call::Acquire {
            image, checkout, ..
        }
        | Call::Steal {
            image, checkout, ..
        } => Ok(Some((*image, *checkout))),
        Call::CreateImage {
            descriptor,
            checkout,
            ..
        } => {
            let roster = context.tx.roster()?;
            let device = context.caller.device;
            let record = crate::proposal::received_descriptor(descriptor, roster, device)?.record;
            Ok(Some((record.image, *checkout)))
        }
        _ => Ok(None),
    }
}
