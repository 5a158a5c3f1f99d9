//! What was refused or taken by force, as rows: a ring of bounded length, in no chain.

use bytes::Bytes;
use img_proto::AuditRow;
use img_types::{DeviceId, ImageId, WallMillis};
use sqlx::{Row as _, SqliteConnection};

use super::{Columns as _, Stop, Tx, big};
use crate::clock;

/// Entries of devices that are kept: years of a quiet household.
const DEVICES_KEPT: u32 = 10_000;
/// Entries of strangers that are kept, apart from the others so that they cannot push them out.
const STRANGERS_KEPT: u32 = 1_000;

/// How far apart the clock may be read for two rows of one transaction.
const SAME_TIME_MS: i64 = 1_000;

/// One entry to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Noted {
    pub(crate) device: Option<DeviceId>,
    pub(crate) image: Option<ImageId>,
    pub(crate) call: &'static str,
    pub(crate) refusal: Option<String>,
    pub(crate) reason: Bytes,
}

/// Appends entries, and forgets the oldest ones over the limits.
pub(crate) async fn insert(tx: &mut Tx, entries: &[Noted]) -> Result<(), Stop> {
    for entry in entries {
        sqlx::query(
            "INSERT INTO audit (number, time_ms, device, image, call, refusal, reason) \
             SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3, $4, $5, $6 FROM audit",
        )
        .bind(clock::wall_millis().0)
        .bind(entry.device.map(|device| device.as_bytes().to_vec()))
        .bind(entry.image.map(|image| image.as_bytes().to_vec()))
        .bind(entry.call)
        .bind(entry.refusal.as_deref())
        .bind(&entry.reason[..])
        .execute(tx.sql().await?)
        .await?;
    }
    for (sql, kept) in [
        (
            "DELETE FROM audit WHERE device IS NOT NULL AND number <= (SELECT number FROM audit \
             WHERE device IS NOT NULL ORDER BY number DESC LIMIT 1 OFFSET $1)",
            DEVICES_KEPT,
        ),
        (
            "DELETE FROM audit WHERE device IS NULL AND number <= (SELECT number FROM audit \
             WHERE device IS NULL ORDER BY number DESC LIMIT 1 OFFSET $1)",
            STRANGERS_KEPT,
        ),
    ] {
        sqlx::query(sql)
            .bind(i64::from(kept))
            .execute(tx.sql().await?)
            .await?;
    }
    Ok(())
}

/// The reason of a device's steal, which was noted in the transaction that logged it.
pub(crate) async fn reason(
    connection: &mut SqliteConnection,
    image: ImageId,
    thief: DeviceId,
    at: WallMillis,
) -> sqlx::Result<Option<Bytes>> {
    let row = sqlx::query(
        "SELECT reason FROM audit WHERE call = 'Steal' AND refusal IS NULL AND image = $1 \
         AND device = $2 AND ABS(time_ms - $3) <= $4 ORDER BY ABS(time_ms - $3) LIMIT 1",
    )
    .bind(&image.as_bytes()[..])
    .bind(&thief.as_bytes()[..])
    .bind(at.0)
    .bind(SAME_TIME_MS)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(row.bytes(0)?.into())).transpose()
}

/// Entries below a number, newest first.
pub(crate) async fn list(
    connection: &mut SqliteConnection,
    before: Option<u64>,
    limit: u32,
) -> sqlx::Result<Vec<AuditRow>> {
    let rows = sqlx::query(
        "SELECT number, time_ms, device, image, call, refusal, reason FROM audit \
         WHERE number < $1 ORDER BY number DESC LIMIT $2",
    )
    .bind(before.map_or(i64::MAX, big))
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let entries = rows.iter().map(|row| {
        Ok(AuditRow {
            number: row.number(0)?,
            time: WallMillis(row.try_get(1)?),
            device: row.id_opt(2, DeviceId::from_bytes)?,
            image: row.id_opt(3, ImageId::from_bytes)?,
            call: row.try_get(4)?,
            refusal: row.try_get(5)?,
            reason: row.bytes(6)?.into(),
        })
    });
    entries.collect()
}
