//! Upload sessions: one for each checkout, kept over reconnects and restarts.

use img_types::limits::UPLOAD_IDLE_MAX;
use img_types::{CheckoutId, DeviceId, UploadId};
use sqlx::SqliteConnection;

use super::{Columns as _, Stop, Tx, big};
use crate::clock::RunningMillis;

fn idle_max_ms() -> u64 {
    u64::try_from(UPLOAD_IDLE_MAX.as_millis()).unwrap_or(u64::MAX)
}

/// Opens the session of a checkout, or finds the one that is open.
pub(crate) async fn open(
    tx: &mut Tx,
    device: DeviceId,
    checkout: CheckoutId,
    fresh: UploadId,
) -> Result<UploadId, Stop> {
    expire(tx).await?;
    let now = big(tx.now().0);
    sqlx::query(
        "INSERT INTO uploads (upload, device, checkout, active_ms, new_bytes) \
         VALUES ($1, $2, $3, $4, 0) ON CONFLICT (device, checkout) DO NOTHING",
    )
    .bind(&fresh.as_bytes()[..])
    .bind(&device.as_bytes()[..])
    .bind(&checkout.as_bytes()[..])
    .bind(now)
    .execute(tx.sql().await?)
    .await?;
    let row = sqlx::query("SELECT upload FROM uploads WHERE device = $1 AND checkout = $2")
        .bind(&device.as_bytes()[..])
        .bind(&checkout.as_bytes()[..])
        .fetch_one(tx.sql().await?)
        .await?;
    Ok(row.id(0, UploadId::from_bytes)?)
}

/// Whether the session is open and the device's.
pub(crate) async fn is_open(
    connection: &mut SqliteConnection,
    now: RunningMillis,
    upload: UploadId,
    device: DeviceId,
) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT active_ms FROM uploads WHERE upload = $1 AND device = $2")
        .bind(&upload.as_bytes()[..])
        .bind(&device.as_bytes()[..])
        .fetch_optional(connection)
        .await?;
    match row {
        Some(row) => Ok(now.since(RunningMillis(row.number(0)?)) < idle_max_ms()),
        None => Ok(false),
    }
}

/// Notes that objects of a session became durable. A session that ended meanwhile stays ended.
pub(crate) async fn progress(tx: &mut Tx, upload: UploadId, new_bytes: u64) -> Result<(), Stop> {
    let now = big(tx.now().0);
    sqlx::query("UPDATE uploads SET active_ms = $2, new_bytes = new_bytes + $3 WHERE upload = $1")
        .bind(&upload.as_bytes()[..])
        .bind(now)
        .bind(big(new_bytes))
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Ends the session of a checkout and returns how many bytes it brought.
pub(crate) async fn finish(
    tx: &mut Tx,
    device: DeviceId,
    checkout: CheckoutId,
) -> Result<u64, Stop> {
    let row =
        sqlx::query("DELETE FROM uploads WHERE device = $1 AND checkout = $2 RETURNING new_bytes")
            .bind(&device.as_bytes()[..])
            .bind(&checkout.as_bytes()[..])
            .fetch_optional(tx.sql().await?)
            .await?;
    row.map_or(Ok(0), |row| Ok(row.number(0)?))
}

/// Ends a session at its device's word.
pub(crate) async fn close(tx: &mut Tx, upload: UploadId, device: DeviceId) -> Result<(), Stop> {
    sqlx::query("DELETE FROM uploads WHERE upload = $1 AND device = $2")
        .bind(&upload.as_bytes()[..])
        .bind(&device.as_bytes()[..])
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Ends all sessions: what their devices were told is here may not be here any more.
pub(crate) async fn forget(tx: &mut Tx) -> Result<(), Stop> {
    sqlx::query("DELETE FROM uploads")
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Ends the sessions that have been idle for too long.
pub(crate) async fn expire(tx: &mut Tx) -> Result<(), Stop> {
    let Some(before) = tx.now().0.checked_sub(idle_max_ms()) else {
        return Ok(());
    };
    sqlx::query("DELETE FROM uploads WHERE active_ms <= $1")
        .bind(big(before))
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}
