//! What follows from a call, as rows: an image's new state, its log entries, its names.

use img_lease::{Effect, ImageState, Logged, Staged};
use img_records::{LogEntry, LogKind};
use img_types::{DeviceId, ImageId, NameTag, ObjectId};

use super::{Stop, Tx, big};
use crate::clock::{self, RunningMillis};

/// Makes the row of a new image; its state follows with [`apply`].
pub(crate) async fn add_image(
    tx: &mut Tx,
    image: ImageId,
    tag: NameTag,
    descriptor: &[u8],
) -> Result<(), Stop> {
    let now = big(tx.now().0);
    sqlx::query(
        "INSERT INTO images (image, tag, descriptor, epoch, stored_bytes, as_of_ms) \
         VALUES ($1, $2, $3, 0, 0, $4)",
    )
    .bind(&image.as_bytes()[..])
    .bind(&tag.as_bytes()[..])
    .bind(descriptor)
    .bind(now)
    .execute(tx.sql().await?)
    .await?;
    Ok(())
}

/// Writes an effect's rows and its log entries, made by `device`.
pub(crate) async fn apply(tx: &mut Tx, effect: &Effect, device: DeviceId) -> Result<(), Stop> {
    write_state(tx, &effect.image).await?;
    for line in &effect.log {
        let (kind, subject) = match line {
            Logged::Commit(commit) => (LogKind::Commit, *commit.as_bytes()),
            Logged::Grant(checkout) => (LogKind::Grant, *checkout.as_bytes()),
            Logged::Steal(checkout) => (LogKind::Steal, *checkout.as_bytes()),
            Logged::Release(checkout) => (LogKind::Release, *checkout.as_bytes()),
            Logged::Readmit(commit) => (LogKind::Readmit, *commit.as_bytes()),
            Logged::Delete => {
                let head = effect.image.head_commit();
                (
                    LogKind::Delete,
                    head.map_or([0; 32], |head| *head.as_bytes()),
                )
            }
        };
        let entry = LogEntry {
            kind,
            image: effect.image.image,
            subject,
            device,
            epoch: effect.image.epoch,
            time: clock::wall_millis(),
        };
        tx.append_log(&entry)?;
    }
    Ok(())
}

/// Writes an image's state; records newly staged are written by [`stage`].
pub(crate) async fn write_state(tx: &mut Tx, state: &ImageState) -> Result<(), Stop> {
    let Some(rows) = tx.image_rows(state.image).await? else {
        return Err(Stop::Broken(
            "an image without a row has a state".to_owned(),
        ));
    };
    let mut changed = Vec::new();
    for row in &rows.staged {
        let kept = state.staged_by(&row.checkout());
        let until = kept.and_then(|staged| staged_until(tx, state, staged));
        if kept.is_none() || until != row.until {
            changed.push((row.checkout(), kept.is_some(), until));
        }
    }
    let same_head = rows.head == state.head;
    let now = tx.now();
    tx.set_image_rows(rows.with(state, now));
    if changed.is_empty() && same_head {
        return Ok(());
    }
    // What is remembered of the image does not have its new head's record, nor these rows as they become.
    tx.sql().await?;
    for (checkout, kept, until) in changed {
        let sql = match kept {
            true => "UPDATE staged SET until_ms = $3 WHERE image = $1 AND checkout = $2",
            false => "DELETE FROM staged WHERE image = $1 AND checkout = $2 AND $3 IS NULL",
        };
        sqlx::query(sql)
            .bind(&state.image.as_bytes()[..])
            .bind(&checkout.as_bytes()[..])
            .bind(until.map(|until| big(until.0)))
            .execute(tx.sql().await?)
            .await?;
    }
    Ok(())
}

/// Until when a staged record is kept; nothing while its token is current.
fn staged_until(tx: &Tx, state: &ImageState, staged: &Staged) -> Option<RunningMillis> {
    let ticks = !state.holder_staged(staged, tx.standing().incarnation);
    ticks.then(|| tx.now().plus(staged.remaining_ms))
}

/// Writes the record of a staged checkpoint in place of its checkout's earlier one.
pub(crate) async fn stage(
    tx: &mut Tx,
    state: &ImageState,
    staged: &Staged,
    record: &[u8],
) -> Result<(), Stop> {
    let until = staged_until(tx, state, staged);
    sqlx::query(
        "INSERT INTO staged (image, checkout, record, until_ms) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (image, checkout) DO UPDATE SET record = excluded.record, \
         until_ms = excluded.until_ms",
    )
    .bind(&staged.proposal.image.as_bytes()[..])
    .bind(&staged.proposal.checkout.as_bytes()[..])
    .bind(record)
    .bind(until.map(|until| big(until.0)))
    .execute(tx.sql().await?)
    .await?;
    Ok(())
}

/// Renames an image.
pub(crate) async fn set_descriptor(
    tx: &mut Tx,
    image: ImageId,
    tag: NameTag,
    descriptor: &[u8],
) -> Result<(), Stop> {
    sqlx::query("UPDATE images SET tag = $2, descriptor = $3 WHERE image = $1")
        .bind(&image.as_bytes()[..])
        .bind(&tag.as_bytes()[..])
        .bind(descriptor)
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Sets an image's trace.
pub(crate) async fn set_trace(tx: &mut Tx, image: ImageId, trace: ObjectId) -> Result<(), Stop> {
    sqlx::query("UPDATE images SET trace = $2 WHERE image = $1")
        .bind(&image.as_bytes()[..])
        .bind(&trace.as_bytes()[..])
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Counts bytes that an image's commit brought.
pub(crate) async fn add_stored(tx: &mut Tx, image: ImageId, bytes: u64) -> Result<(), Stop> {
    sqlx::query("UPDATE images SET stored_bytes = stored_bytes + $2 WHERE image = $1")
        .bind(&image.as_bytes()[..])
        .bind(big(bytes))
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}
