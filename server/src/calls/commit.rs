//! What moves or surrounds a head: Commit, Stage, Unstage, Branch, Readmit.
//!
//! Signatures were checked before the transaction; here the lease rules decide, the root must be
//! complete, and head, log, receipt and outcome are written together.

use bytes::Bytes;
use img_lease::grantor::{self, History};
use img_lease::{Effect, Proposal, Terms};
use img_proto::{Answer, Refusal};
use img_records::{Receipt, Roster, Signed, SignedDescriptor, SignedReceipt, SigningSecret};
use img_types::limits::STAGED_PER_IMAGE_MAX;
use img_types::{CheckoutId, Epoch, ImageId, ObjectId, Token};

use super::transaction::{Context, refused};
use super::{image, restore};
use crate::db::{Stop, effects, history, images, objects, uploads};
use crate::proposal::{Proposed, bad, roster_seq};

/// Absent objects that a refusal names.
const ABSENT_NAMED_MAX: u32 = 256;

/// Moves the head. A known commit gets the same receipt, for ever.
pub(super) async fn commit(context: &mut Context<'_>, proposed: &Proposed) -> Result<Answer, Stop> {
    let proposal = &proposed.proposal;
    if let Some(known) = history::find(context.tx.sql().await?, proposal.commit).await? {
        let receipt = known.receipt.into();
        return Ok(Answer::Committed { receipt });
    }
    let history = history::known(context.tx.sql().await?, proposed).await?;
    let image = context.live_image(proposal.image).await?;
    let effect = grantor::commit(&image.state, &context.caller, proposal, history);
    let effect = effect.map_err(refused)?.ok_or_else(known_elsewhere)?;
    check_roster_order(context, proposed).await?;
    check_complete(context, proposal.root).await?;
    let receipt = acknowledge(context, &effect, proposed).await?;
    Ok(Answer::Committed { receipt })
}

/// Keeps a streamed checkpoint beside the head.
pub(super) async fn stage(context: &mut Context<'_>, proposed: &Proposed) -> Result<Answer, Stop> {
    let proposal = &proposed.proposal;
    let history = history::known(context.tx.sql().await?, proposed).await?;
    let image = context.live_image(proposal.image).await?;
    let effect = grantor::stage(&image.state, &context.caller, proposal, history);
    let Some(effect) = effect.map_err(refused)? else {
        return Ok(Answer::Done);
    };
    if effect.image.staged.len() > STAGED_PER_IMAGE_MAX {
        return Err(Refusal::OverLimit("staged records of one image".to_owned()).into());
    }
    check_complete(context, proposal.root).await?;
    context.apply(&effect).await?;
    if let Some(staged) = effect.image.staged_by(&proposal.checkout) {
        effects::stage(context.tx, &effect.image, staged, &proposed.bytes).await?;
    }
    count_upload(context, proposal).await?;
    Ok(Answer::Done)
}

/// Drops what a checkout has staged.
pub(super) async fn unstage(
    context: &mut Context<'_>,
    image: ImageId,
    checkout: CheckoutId,
) -> Result<Answer, Stop> {
    let Some(image) = context.tx.image(image).await? else {
        return Ok(Answer::Done);
    };
    let effect = grantor::unstage(&image.state, &context.caller, checkout).map_err(refused)?;
    if let Some(effect) = effect {
        context.apply(&effect).await?;
    }
    Ok(Answer::Done)
}

/// Makes a new image that starts from a commit.
pub(super) async fn branch(
    context: &mut Context<'_>,
    descriptor: &SignedDescriptor,
    first: &Proposed,
    terms: Terms,
) -> Result<Answer, Stop> {
    let proposal = &first.proposal;
    if let Some(known) = history::find(context.tx.sql().await?, proposal.commit).await? {
        return branched_before(context, proposal, known.receipt.into()).await;
    }
    let history = History {
        has_commit: false,
        has_parent: true,
    };
    let grant = grantor::branch(&context.caller, proposal, terms, history);
    let grant = grant.map_err(refused)?.ok_or_else(known_elsewhere)?;
    let receipt = new_branch(context, descriptor, first, &grant.effect).await?;
    Ok(Answer::Branched {
        token: grant.token,
        ttl_ms: grant.ttl_ms,
        receipt,
    })
}

/// The answer to a branch that was made before: its first lease, if the checkout still has it or one since.
pub(super) async fn branched_before(
    context: &mut Context<'_>,
    first: &Proposal,
    receipt: Bytes,
) -> Result<Answer, Stop> {
    let image = context.tx.image(first.image).await?;
    let holder = (context.caller.device, first.checkout);
    let lease = image
        .and_then(|image| image.state.lease)
        .filter(|lease| (lease.device, lease.checkout) == holder);
    Ok(Answer::Branched {
        token: Token {
            incarnation: context.caller.incarnation,
            epoch: lease.map_or(Epoch(1), |lease| lease.epoch),
        },
        ttl_ms: lease.map_or(0, |lease| lease.remaining_ms),
        receipt,
    })
}

/// Writes a branch: its name, its first commit and its lease.
pub(super) async fn new_branch(
    context: &mut Context<'_>,
    descriptor: &SignedDescriptor,
    first: &Proposed,
    effect: &Effect,
) -> Result<Bytes, Stop> {
    let record = &descriptor.record;
    if record.image != first.proposal.image {
        return Err(Refusal::BadRecord("name and commit are of two images".to_owned()).into());
    }
    let named = images::load_named(context.tx.sql().await?, context.moment, record.tag).await?;
    if named.is_some() {
        return Err(Refusal::NameTaken.into());
    }
    check_complete(context, first.proposal.root).await?;
    image::insert(context, descriptor).await?;
    acknowledge(context, effect, first).await
}

/// A commit that a device gives back, with the receipt that this home's key once signed for it.
pub(super) struct Returned {
    proposed: Proposed,
    receipt: Receipt,
}

/// Checks that every commit comes with its receipt.
pub(super) fn returned(
    key: &SigningSecret,
    roster: &Roster,
    commits: &[(Bytes, Bytes)],
) -> Result<Vec<Returned>, Refusal> {
    let check = |(commit, receipt): &(Bytes, Bytes)| {
        let proposed = Proposed::received(commit, roster)?;
        let receipt = SignedReceipt::decode(receipt).map_err(bad)?;
        receipt.verify(&roster.home(), &key.public()).map_err(bad)?;
        let (told, proposal) = (&receipt.record, &proposed.proposal);
        let fits = told.commit == proposal.commit
            && told.image == proposal.image
            && told.seq == proposal.seq;
        if fits {
            let receipt = receipt.record;
            Ok(Returned { proposed, receipt })
        } else {
            Err(Refusal::BadRecord(
                "a receipt is another commit's".to_owned(),
            ))
        }
    };
    commits.iter().map(check).collect()
}

/// Moves the head forward to commits that this home had acknowledged before it went back in time. An image that
/// it does not know any more comes back with its name.
pub(super) async fn readmit(
    context: &mut Context<'_>,
    image: ImageId,
    descriptor: Option<&SignedDescriptor>,
    commits: &[Returned],
) -> Result<Answer, Stop> {
    for commit in commits {
        if restore::begin_if_proved(context.tx, &commit.receipt).await? {
            context.moment = context.tx.moment()?;
            context.caller.incarnation = context.moment.incarnation;
        }
    }
    let known = context.tx.image(image).await?;
    if let (None, Some(descriptor), false) = (known, descriptor, commits.is_empty()) {
        bring_back(context, image, descriptor).await?;
    }
    let image = context.live_image(image).await?;
    let mut unknown = Vec::new();
    for commit in commits {
        let id = commit.proposed.proposal.commit;
        if history::find(context.tx.sql().await?, id).await?.is_none() {
            unknown.push(&commit.proposed);
        }
    }
    let proposals: Vec<Proposal> = unknown.iter().map(|proposed| proposed.proposal).collect();
    let effect = grantor::readmit(&image.state, &context.caller, &proposals).map_err(refused)?;
    let Some(effect) = effect else {
        return Ok(Answer::Done);
    };
    for proposal in &proposals {
        check_complete(context, proposal.root).await?;
    }
    context.apply(&effect).await?;
    for proposed in unknown {
        let receipt = sign_receipt(context, &proposed.proposal);
        history::insert(context.tx, proposed, &receipt).await?;
    }
    Ok(Answer::Done)
}

/// Makes the row of an image that this home had before it went back in time; its commits follow.
async fn bring_back(
    context: &mut Context<'_>,
    image: ImageId,
    descriptor: &SignedDescriptor,
) -> Result<(), Stop> {
    let record = &descriptor.record;
    if record.image != image {
        return Err(Refusal::BadRecord("the name is another image's".to_owned()).into());
    }
    let named = images::load_named(context.tx.sql().await?, context.moment, record.tag).await?;
    if named.is_some() {
        return Err(Refusal::NameTaken.into());
    }
    image::add(context, descriptor).await
}

/// Writes an effect with its commit and signs the receipt for it.
async fn acknowledge(
    context: &mut Context<'_>,
    effect: &Effect,
    proposed: &Proposed,
) -> Result<Bytes, Stop> {
    context.apply(effect).await?;
    let receipt = sign_receipt(context, &proposed.proposal);
    history::insert(context.tx, proposed, &receipt).await?;
    count_upload(context, &proposed.proposal).await?;
    Ok(receipt.into())
}

fn sign_receipt(context: &Context<'_>, proposal: &Proposal) -> Vec<u8> {
    let standing = context.tx.standing();
    let receipt = Receipt {
        incarnation: standing.incarnation,
        position: standing.position,
        log_root: standing.root,
        image: proposal.image,
        seq: proposal.seq,
        commit: proposal.commit,
    };
    Signed::sign(receipt, &context.moment.home, &context.key).to_bytes()
}

/// Ends the upload that brought a commit and counts its bytes for the image.
async fn count_upload(context: &mut Context<'_>, proposal: &Proposal) -> Result<(), Stop> {
    let device = context.caller.device;
    let bytes = uploads::finish(context.tx, device, proposal.checkout).await?;
    effects::add_stored(context.tx, proposal.image, bytes).await
}

async fn check_complete(context: &mut Context<'_>, root: ObjectId) -> Result<(), Stop> {
    if !objects::complete(context.tx.sql().await?, &[root])
        .await?
        .is_empty()
    {
        return Ok(());
    }
    let missing = objects::absent_below(context.tx.sql().await?, root, ABSENT_NAMED_MAX).await?;
    Err(Refusal::Incomplete { missing }.into())
}

/// Along a history the roster's number never goes down.
async fn check_roster_order(context: &mut Context<'_>, proposed: &Proposed) -> Result<(), Stop> {
    let Some(parent) = proposed.proposal.parent else {
        return Ok(());
    };
    let Some(parent) = history::find(context.tx.sql().await?, parent).await? else {
        return Ok(());
    };
    let parent = Proposed::stored(&parent.record, context.moment.home)?;
    let roster = context.tx.roster()?;
    if roster_seq(roster, parent.roster) > roster_seq(roster, proposed.roster) {
        let why = "it names an older roster than the commit before".to_owned();
        return Err(Refusal::BadRecord(why).into());
    }
    Ok(())
}

/// The rules call a commit known that has no row: that cannot be.
fn known_elsewhere() -> Stop {
    Stop::Broken("a known commit has no row".to_owned())
}
