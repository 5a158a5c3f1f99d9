//! Steal: taking a lease over, and keeping what the loser had as a branch.

use bytes::Bytes;
use img_lease::Terms;
use img_lease::grantor::{self, Expectation};
use img_proto::{Answer, Refusal, StealExpectation};
use img_records::SignedDescriptor;
use img_types::limits::MESSAGE_LEN_MAX;
use img_types::{CheckoutId, ImageId};

use super::commit;
use super::lease::granted;
use super::transaction::{Context, refused};
use crate::db::Stop;
use crate::db::audit::{self, Noted};
use crate::proposal::Proposed;

/// Longest sealed reason: a message with its seal.
const REASON_LEN_MAX: usize = MESSAGE_LEN_MAX + 256;

/// Keeps the reason, for the admins and the loser.
pub(super) async fn note(
    context: &mut Context<'_>,
    image: ImageId,
    reason: Bytes,
) -> Result<(), Stop> {
    if reason.len() > REASON_LEN_MAX {
        return Err(Refusal::OverLimit("reason of a steal".to_owned()).into());
    }
    let noted = Noted {
        device: Some(context.caller.device),
        image: Some(image),
        call: "Steal",
        refusal: None,
        reason,
    };
    audit::insert(context.tx, &[noted]).await
}

/// Takes the lease by force; with a branch, all of it is one transaction.
pub(super) async fn steal(
    context: &mut Context<'_>,
    image: ImageId,
    checkout: CheckoutId,
    terms: Terms,
    expect: &StealExpectation,
    branch: Option<(SignedDescriptor, Proposed)>,
) -> Result<Answer, Stop> {
    let expect = Expectation {
        epoch: expect.epoch,
        head: expect.head,
        staged: expect.staged,
    };
    let image = context.live_image(image).await?;
    let Some((descriptor, first)) = branch else {
        let grant = grantor::steal(&image.state, &context.caller, checkout, terms, &expect);
        let grant = grant.map_err(refused)?;
        return granted(context, &grant, Some(&image)).await;
    };
    let loser = image.state.lease.map(|lease| lease.device);
    let roster = context.tx.roster()?;
    let loser_member = loser
        .and_then(|loser| roster.member(&loser))
        .is_some_and(|member| member.active());
    let stolen = grantor::steal_to_branch(
        &image.state,
        &context.caller,
        checkout,
        terms,
        &expect,
        &first.proposal,
        loser_member,
    );
    let stolen = stolen.map_err(refused)?;
    let answer = granted(context, &stolen.grant, Some(&image)).await?;
    commit::new_branch(context, &descriptor, &first, &stolen.branch).await?;
    Ok(answer)
}
