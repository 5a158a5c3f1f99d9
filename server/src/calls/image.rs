//! Images as such: making, renaming, deleting, and the trace.

use img_lease::grantor;
use img_proto::{Answer, LeaseTerms, Refusal};
use img_records::{LogEntry, LogKind, SignedDescriptor};
use img_types::{CheckoutId, Epoch, ImageId, ObjectId};

use super::lease::granted;
use super::transaction::{Context, refused, terms_of};
use crate::clock;
use crate::db::{Stop, effects, images, objects};

/// Makes an image without a commit and grants it to the importer, or resumes one.
pub(super) async fn create(
    context: &mut Context<'_>,
    descriptor: &SignedDescriptor,
    checkout: CheckoutId,
    terms: LeaseTerms,
) -> Result<Answer, Stop> {
    let record = &descriptor.record;
    let named = images::load_named(context.tx.sql().await?, context.moment, record.tag).await?;
    let bytes = descriptor.to_bytes();
    let begun = named
        .as_ref()
        .filter(|named| named.state.image == record.image && named.state.head.is_none());
    if begun.is_some_and(|begun| begun.descriptor != bytes) {
        let why = "this image was begun with another descriptor".to_owned();
        return Err(Refusal::BadRecord(why).into());
    }
    let named = named.map(|named| named.state);
    let terms = terms_of(terms);
    let creation = grantor::create(
        named.as_ref(),
        &context.caller,
        record.image,
        checkout,
        terms,
    );
    let creation = creation.map_err(refused)?;
    if let Some(replaced) = &creation.replaces {
        effects::write_state(context.tx, replaced).await?;
        let (image, epoch) = (replaced.image, replaced.epoch);
        log_line(context, LogKind::Delete, image, [0; 32], epoch).await?;
    }
    if creation.new {
        insert(context, descriptor).await?;
    }
    granted(context, &creation.grant, None).await
}

/// Makes the row of a new image from its first descriptor.
pub(super) async fn insert(
    context: &mut Context<'_>,
    descriptor: &SignedDescriptor,
) -> Result<(), Stop> {
    let record = &descriptor.record;
    if record.seq != 0 {
        return Err(Refusal::BadRecord("it is no first descriptor".to_owned()).into());
    }
    let used = context.tx.image(record.image).await?;
    if used.is_some() {
        return Err(Refusal::BadRecord("an image has this id".to_owned()).into());
    }
    add(context, descriptor).await
}

/// Adds an image's row, which has neither commits nor a lease.
pub(super) async fn add(
    context: &mut Context<'_>,
    descriptor: &SignedDescriptor,
) -> Result<(), Stop> {
    let record = &descriptor.record;
    let bytes = descriptor.to_bytes();
    effects::add_image(context.tx, record.image, record.tag, &bytes).await?;
    log_descriptor(context, descriptor, Epoch(0)).await
}

/// Renames an image, if nobody did since.
pub(super) async fn set_descriptor(
    context: &mut Context<'_>,
    descriptor: &SignedDescriptor,
) -> Result<Answer, Stop> {
    context.caller.acts().map_err(refused)?;
    let record = &descriptor.record;
    let image = context.live_image(record.image).await?;
    let current = SignedDescriptor::decode(&image.descriptor)
        .map_err(|error| Stop::Broken(format!("a stored descriptor does not decode: {error}")))?;
    let follows = Some(record.seq) == current.record.seq.checked_add(1)
        && record.previous == current.id(&context.moment.home);
    if !follows {
        return Err(Refusal::DescriptorMoved.into());
    }
    if record.tag != image.tag {
        let taken = images::load_named(context.tx.sql().await?, context.moment, record.tag).await?;
        if taken.is_some() {
            return Err(Refusal::NameTaken.into());
        }
    }
    let bytes = descriptor.to_bytes();
    effects::set_descriptor(context.tx, record.image, record.tag, &bytes).await?;
    log_descriptor(context, descriptor, image.state.epoch).await?;
    Ok(Answer::Done)
}

/// Leaves a tombstone of an image.
pub(super) async fn delete(
    context: &mut Context<'_>,
    image: ImageId,
    force: bool,
) -> Result<Answer, Stop> {
    let image = context
        .tx
        .image(image)
        .await?
        .ok_or(Refusal::UnknownImage)?;
    let effect = grantor::delete(&image.state, &context.caller, force).map_err(refused)?;
    if let Some(effect) = effect {
        context.apply(&effect).await?;
    }
    Ok(Answer::Done)
}

/// Sets the order in which the next checkout fetches.
pub(super) async fn set_trace(
    context: &mut Context<'_>,
    image: ImageId,
    trace: ObjectId,
) -> Result<Answer, Stop> {
    context.caller.acts().map_err(refused)?;
    context.live_image(image).await?;
    if objects::complete(context.tx.sql().await?, &[trace])
        .await?
        .is_empty()
    {
        let missing = vec![trace];
        return Err(Refusal::Incomplete { missing }.into());
    }
    effects::set_trace(context.tx, image, trace).await?;
    Ok(Answer::Done)
}

async fn log_descriptor(
    context: &mut Context<'_>,
    descriptor: &SignedDescriptor,
    epoch: Epoch,
) -> Result<(), Stop> {
    let subject = descriptor.id(&context.moment.home);
    let image = descriptor.record.image;
    log_line(context, LogKind::Descriptor, image, subject, epoch).await
}

async fn log_line(
    context: &mut Context<'_>,
    kind: LogKind,
    image: ImageId,
    subject: [u8; 32],
    epoch: Epoch,
) -> Result<(), Stop> {
    let line = LogEntry {
        kind,
        image,
        subject,
        device: context.caller.device,
        epoch,
        time: clock::wall_millis(),
    };
    context.tx.append_log(&line)?;
    Ok(())
}
