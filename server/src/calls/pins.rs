//! Pins: commits that are kept for read-only checkouts.

use img_lease::grantor;
use img_proto::Answer;
use img_types::{CheckoutId, CommitId};

use super::transaction::{Context, refused};
use crate::db::{Stop, history};

/// Keeps a commit for a checkout, or keeps it for longer.
pub(super) async fn pin(
    context: &mut Context<'_>,
    commit: CommitId,
    checkout: CheckoutId,
) -> Result<Answer, Stop> {
    let known = history::find(context.tx.sql().await?, commit)
        .await?
        .is_some();
    let pin = grantor::pin(&context.caller, commit, checkout, known).map_err(refused)?;
    history::set_pin(context.tx, &pin).await?;
    Ok(Answer::Done)
}

/// Ends a pin; one that is not there has ended.
pub(super) async fn unpin(
    context: &mut Context<'_>,
    commit: CommitId,
    checkout: CheckoutId,
) -> Result<Answer, Stop> {
    let pin = history::find_pin(context.tx, commit, checkout).await?;
    if grantor::unpin(pin.as_ref(), &context.caller).map_err(refused)? {
        history::remove_pin(context.tx, commit, checkout).await?;
    }
    Ok(Answer::Done)
}
