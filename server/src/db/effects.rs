//! What follows from a call, as rows: an image's new state, its log entries, its names.

use img_lease::{Effect, ImageState, Lease, Logged, Staged};
use img_records::{LogEntry, LogKind};
use img_types::{CheckoutId, DeviceId, ImageId, LeaseMode, NameTag, ObjectId};

use super::{Columns as _, Stop, Tx, big};
use crate::clock;

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
    .execute(tx.sql())
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
        tx.append_log(&entry).await?;
    }
    Ok(())
}

/// Writes an image's state; records newly staged are written by [`stage`].
pub(crate) async fn write_state(tx: &mut Tx, state: &ImageState) -> Result<(), Stop> {
    let now = big(tx.now().0);
    let image = &state.image.as_bytes()[..];
    sqlx::query(
        "UPDATE images SET head = $2, seq = $3, epoch = $4, tombstone_ms = $5, as_of_ms = $6 \
         WHERE image = $1",
    )
    .bind(image)
    .bind(state.head.map(|head| head.commit.as_bytes().to_vec()))
    .bind(state.head.map(|head| big(head.seq.0)))
    .bind(big(state.epoch.0))
    .bind(state.tombstone_ms.map(big))
    .bind(now)
    .execute(tx.sql())
    .await?;
    match &state.lease {
        Some(lease) => set_lease(tx, state.image, lease).await?,
        None => {
            sqlx::query("DELETE FROM leases WHERE image = $1")
                .bind(image)
                .execute(tx.sql())
                .await?;
        }
    }
    let rows = sqlx::query("SELECT checkout, until_ms FROM staged WHERE image = $1")
        .bind(image)
        .fetch_all(tx.sql())
        .await?;
    for row in rows {
        let checkout = row.id(0, CheckoutId::from_bytes)?;
        let kept = state.staged_by(&checkout);
        let until = kept.and_then(|staged| staged_until(tx, state, staged));
        if kept.is_some() && until == row.number_opt(1)? {
            continue;
        }
        let sql = match kept {
            Some(_) => "UPDATE staged SET until_ms = $3 WHERE image = $1 AND checkout = $2",
            None => "DELETE FROM staged WHERE image = $1 AND checkout = $2 AND $3 IS NULL",
        };
        sqlx::query(sql)
            .bind(image)
            .bind(&checkout.as_bytes()[..])
            .bind(until.map(big))
            .execute(tx.sql())
            .await?;
    }
    Ok(())
}

/// Until when a staged record is kept; nothing while its token is current.
fn staged_until(tx: &Tx, state: &ImageState, staged: &Staged) -> Option<u64> {
    let ticks = !state.holder_staged(staged, tx.standing().incarnation);
    ticks.then(|| tx.now().plus(staged.remaining_ms).0)
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
    .bind(until.map(big))
    .execute(tx.sql())
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
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Sets an image's trace.
pub(crate) async fn set_trace(tx: &mut Tx, image: ImageId, trace: ObjectId) -> Result<(), Stop> {
    sqlx::query("UPDATE images SET trace = $2 WHERE image = $1")
        .bind(&image.as_bytes()[..])
        .bind(&trace.as_bytes()[..])
        .execute(tx.sql())
        .await?;
    Ok(())
}

/// Counts bytes that an image's commit brought.
pub(crate) async fn add_stored(tx: &mut Tx, image: ImageId, bytes: u64) -> Result<(), Stop> {
    sqlx::query("UPDATE images SET stored_bytes = stored_bytes + $2 WHERE image = $1")
        .bind(&image.as_bytes()[..])
        .bind(big(bytes))
        .execute(tx.sql())
        .await?;
    Ok(())
}

async fn set_lease(tx: &mut Tx, image: ImageId, lease: &Lease) -> Result<(), Stop> {
    sqlx::query(
        "INSERT INTO leases (image, device, checkout, epoch, offline, ttl_ms, remaining_ms, \
         lapsed, base) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (image) DO UPDATE SET device = excluded.device, checkout = excluded.checkout, \
         epoch = excluded.epoch, offline = excluded.offline, ttl_ms = excluded.ttl_ms, \
         remaining_ms = excluded.remaining_ms, lapsed = excluded.lapsed, base = excluded.base",
    )
    .bind(&image.as_bytes()[..])
    .bind(&lease.device.as_bytes()[..])
    .bind(&lease.checkout.as_bytes()[..])
    .bind(big(lease.epoch.0))
    .bind(i64::from(lease.mode == LeaseMode::Offline))
    .bind(big(lease.ttl_ms))
    .bind(big(lease.remaining_ms))
    .bind(i64::from(lease.lapsed))
    .bind(lease.base.map(|base| base.as_bytes().to_vec()))
    .execute(tx.sql())
    .await?;
    Ok(())
}
