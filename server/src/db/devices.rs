//! The roster, daemon starts and invites as rows.

use img_lease::Daemon;
use img_records::roster::{Roster, RosterEntry};
use img_records::signed::Signed;
use img_types::{DaemonNonce, DeviceId, Instance, InviteId, LogPosition};
use sqlx::SqliteConnection;

use super::batch::{Batch, Shapes, bind_ids};
use super::{Columns as _, OpenError, Stop, Tx, big};
use crate::clock::RunningMillis;

/// A device has a row for each of its starts: the newest is looked for by itself.
static NEWEST: Batch = Batch::new(|| {
    Shapes::groups(
        "SELECT v.column1, (SELECT d.instance FROM daemons d WHERE d.device = v.column1 \
         ORDER BY d.instance DESC LIMIT 1) FROM (VALUES",
        1,
        ") AS v",
    )
});

/// Reads the roster and verifies it entry by entry; nothing before the home is founded.
pub(crate) async fn load_roster(
    connection: &mut SqliteConnection,
) -> Result<Option<Roster>, OpenError> {
    let rows = sqlx::query("SELECT entry FROM roster ORDER BY seq")
        .fetch_all(connection)
        .await?;
    let mut roster: Option<Roster> = None;
    for row in rows {
        let bytes = row.bytes(0)?;
        let entry = Signed::<RosterEntry>::decode(&bytes)
            .map_err(|error| OpenError::Roster(error.to_string()))?;
        let outcome = match &mut roster {
            Some(roster) => roster.append(&entry),
            None => Roster::found(&entry).map(|founded| roster = Some(founded)),
        };
        outcome.map_err(|error| OpenError::Roster(error.to_string()))?;
    }
    Ok(roster)
}

/// Keeps a roster entry.
pub(crate) async fn append_roster(tx: &mut Tx, seq: u64, entry: &[u8]) -> Result<(), Stop> {
    sqlx::query("INSERT INTO roster (seq, entry) VALUES ($1, $2)")
        .bind(big(seq))
        .bind(entry)
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Roster entries from `from` on, as they were signed.
pub(crate) async fn roster_from(
    connection: &mut SqliteConnection,
    from: u64,
    limit: u32,
) -> sqlx::Result<Vec<Vec<u8>>> {
    let rows = sqlx::query("SELECT entry FROM roster WHERE seq >= $1 ORDER BY seq LIMIT $2")
        .bind(big(from))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| row.bytes(0)).collect()
}

/// The newest daemon start of a device.
pub(crate) async fn newest_daemon(
    connection: &mut SqliteConnection,
    device: DeviceId,
) -> sqlx::Result<Option<Daemon>> {
    let row = sqlx::query(
        "SELECT nonce, instance FROM daemons WHERE device = $1 ORDER BY instance DESC LIMIT 1",
    )
    .bind(&device.as_bytes()[..])
    .fetch_optional(connection)
    .await?;
    let read = |row: sqlx::sqlite::SqliteRow| {
        Ok(Daemon {
            nonce: row.id(0, DaemonNonce::from_bytes)?,
            instance: Instance(row.number(1)?),
        })
    };
    row.map(read).transpose()
}

/// The highest instance of each of these devices; those that never said Hello are left out.
pub(super) async fn newest_instances(
    connection: &mut SqliteConnection,
    devices: &[DeviceId],
) -> sqlx::Result<Vec<(DeviceId, Instance)>> {
    let mut found = Vec::new();
    for (sql, part, fill) in NEWEST.padded(devices) {
        let query = bind_ids(sql, part, fill, DeviceId::as_bytes);
        for row in query.fetch_all(&mut *connection).await? {
            let newest = row.number_opt(1)?.map(Instance);
            found.extend(newest.map(|newest| Ok((row.id(0, DeviceId::from_bytes)?, newest))));
        }
    }
    found.into_iter().collect()
}

/// The number of a daemon start, if it has been here.
pub(crate) async fn instance_of(
    connection: &mut SqliteConnection,
    device: DeviceId,
    nonce: DaemonNonce,
) -> sqlx::Result<Option<Instance>> {
    let row = sqlx::query("SELECT instance FROM daemons WHERE device = $1 AND nonce = $2")
        .bind(&device.as_bytes()[..])
        .bind(&nonce.as_bytes()[..])
        .fetch_optional(connection)
        .await?;
    row.map(|row| row.number(0).map(Instance)).transpose()
}

/// Keeps a daemon start.
pub(crate) async fn add_daemon(tx: &mut Tx, device: DeviceId, daemon: Daemon) -> Result<(), Stop> {
    sqlx::query("INSERT INTO daemons (device, nonce, instance) VALUES ($1, $2, $3)")
        .bind(&device.as_bytes()[..])
        .bind(&daemon.nonce.as_bytes()[..])
        .bind(big(daemon.instance.0))
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Position of the newest log entry that a device made.
pub(crate) async fn newest_position(
    tx: &mut Tx,
    device: DeviceId,
) -> Result<Option<LogPosition>, Stop> {
    let row = sqlx::query("SELECT MAX(position) FROM log WHERE device = $1")
        .bind(&device.as_bytes()[..])
        .fetch_one(tx.sql().await?)
        .await?;
    Ok(row.number_opt(0)?.map(LogPosition))
}

/// An invite under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InviteRow {
    pub(crate) device: DeviceId,
    pub(crate) until: RunningMillis,
    pub(crate) request: Option<Vec<u8>>,
    pub(crate) answer: Option<Vec<u8>>,
}

/// Announces an invite; one that has been announced stays as it is.
pub(crate) async fn add_invite(
    tx: &mut Tx,
    invite: InviteId,
    device: DeviceId,
    until: RunningMillis,
) -> Result<(), Stop> {
    sqlx::query(
        "INSERT INTO invites (invite, device, until_ms) VALUES ($1, $2, $3) \
         ON CONFLICT (invite) DO NOTHING",
    )
    .bind(&invite.as_bytes()[..])
    .bind(&device.as_bytes()[..])
    .bind(big(until.0))
    .execute(tx.sql().await?)
    .await?;
    Ok(())
}

/// How many invites a device has under way.
pub(crate) async fn count_invites(
    connection: &mut SqliteConnection,
    device: DeviceId,
) -> sqlx::Result<u64> {
    sqlx::query("SELECT COUNT(*) FROM invites WHERE device = $1")
        .bind(&device.as_bytes()[..])
        .fetch_one(connection)
        .await?
        .number(0)
}

/// How many invites of a device are not answered.
pub(crate) async fn count_open_invites(
    connection: &mut SqliteConnection,
    device: DeviceId,
) -> sqlx::Result<u64> {
    sqlx::query("SELECT COUNT(*) FROM invites WHERE device = $1 AND answer IS NULL")
        .bind(&device.as_bytes()[..])
        .fetch_one(connection)
        .await?
        .number(0)
}

/// Finds an invite.
pub(crate) async fn find_invite(
    connection: &mut SqliteConnection,
    invite: InviteId,
) -> sqlx::Result<Option<InviteRow>> {
    let row =
        sqlx::query("SELECT device, until_ms, request, answer FROM invites WHERE invite = $1")
            .bind(&invite.as_bytes()[..])
            .fetch_optional(connection)
            .await?;
    let read = |row: sqlx::sqlite::SqliteRow| {
        Ok(InviteRow {
            device: row.id(0, DeviceId::from_bytes)?,
            until: RunningMillis(row.number(1)?),
            request: row.bytes_opt(2)?,
            answer: row.bytes_opt(3)?,
        })
    };
    row.map(read).transpose()
}

/// Keeps another join request in place of one whose name was turned down, until the inviter has answered it too.
pub(crate) async fn ask_again(tx: &mut Tx, invite: InviteId, request: &[u8]) -> Result<(), Stop> {
    sqlx::query("UPDATE invites SET request = $2, answer = NULL WHERE invite = $1")
        .bind(&invite.as_bytes()[..])
        .bind(request)
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Keeps a join request; the first one under an invite stays.
pub(crate) async fn set_join(tx: &mut Tx, invite: InviteId, request: &[u8]) -> Result<(), Stop> {
    sqlx::query("UPDATE invites SET request = $2 WHERE invite = $1 AND request IS NULL")
        .bind(&invite.as_bytes()[..])
        .bind(request)
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Joins that wait for a device's answer.
pub(crate) async fn pending_joins(
    connection: &mut SqliteConnection,
    device: DeviceId,
    limit: u32,
) -> sqlx::Result<Vec<(InviteId, Vec<u8>)>> {
    let rows = sqlx::query(
        "SELECT invite, request FROM invites \
         WHERE device = $1 AND request IS NOT NULL AND answer IS NULL ORDER BY invite LIMIT $2",
    )
    .bind(&device.as_bytes()[..])
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let joins = rows
        .iter()
        .map(|row| Ok((row.id(0, InviteId::from_bytes)?, row.bytes(1)?)));
    joins.collect()
}

/// Keeps the answer to a join, or burns the invite.
pub(crate) async fn answer_join(
    tx: &mut Tx,
    invite: InviteId,
    answer: Option<&[u8]>,
) -> Result<(), Stop> {
    let sql = match answer {
        Some(_) => "UPDATE invites SET answer = $2 WHERE invite = $1",
        None => "DELETE FROM invites WHERE invite = $1 AND $2 IS NULL",
    };
    sqlx::query(sql)
        .bind(&invite.as_bytes()[..])
        .bind(answer)
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Forgets invites under which nobody asked in time, and answers that were kept long enough.
pub(crate) async fn expire_invites(tx: &mut Tx, kept_ms: u64) -> Result<(), Stop> {
    let now = tx.now().0;
    sqlx::query("DELETE FROM invites WHERE (request IS NULL AND until_ms <= $1) OR until_ms <= $2")
        .bind(big(now))
        .bind(i64::try_from(now).unwrap_or(i64::MAX) - big(kept_ms))
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}
