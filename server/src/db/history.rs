//! Commits, pins and the log as rows.

use bytes::Bytes;
use img_lease::Pin;
use img_lease::grantor::History;
use img_proto::Standing;
use img_records::{LogEntry, LogKind};
use img_types::bytes::Reader;
use img_types::limits::KEPT_AFTER_LOSS;
use img_types::{CheckoutId, CommitId, DeviceId, ImageId, Incarnation, LogPosition, LogRoot, Seq};
use sqlx::SqliteConnection;

use super::{Columns as _, NO_DEVICE, Stop, Tx, big};
use crate::clock::RunningMillis;
use crate::proposal::Proposed;

/// Entries of the log that are read at a time while one is looked for.
const ENTRIES_PER_READ: u32 = 256;
/// How often that is done at most: as many entries as an image gets in weeks, in a few milliseconds.
const READS_MAX: u32 = 64;

/// A commit as it was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommitRow {
    pub(crate) image: ImageId,
    pub(crate) seq: Seq,
    pub(crate) record: Vec<u8>,
    pub(crate) receipt: Vec<u8>,
}

/// Finds a commit.
pub(crate) async fn find(
    connection: &mut SqliteConnection,
    commit: CommitId,
) -> sqlx::Result<Option<CommitRow>> {
    let row = sqlx::query("SELECT image, seq, record, receipt FROM commits WHERE id = $1")
        .bind(&commit.as_bytes()[..])
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(commit_row).transpose()
}

/// What the histories here say about a proposed commit.
pub(crate) async fn known(
    connection: &mut SqliteConnection,
    proposed: &Proposed,
) -> sqlx::Result<History> {
    let has_commit = find(&mut *connection, proposed.proposal.commit)
        .await?
        .is_some();
    let has_parent = match proposed.proposal.parent {
        None => true,
        Some(parent) => find(connection, parent)
            .await?
            .is_some_and(|parent| parent.image == proposed.proposal.image),
    };
    Ok(History {
        has_commit,
        has_parent,
    })
}

/// Keeps a commit with its receipt.
pub(crate) async fn insert(tx: &mut Tx, proposed: &Proposed, receipt: &[u8]) -> Result<(), Stop> {
    sqlx::query(
        "INSERT INTO commits (id, image, seq, record, receipt) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&proposed.proposal.commit.as_bytes()[..])
    .bind(&proposed.proposal.image.as_bytes()[..])
    .bind(big(proposed.proposal.seq.0))
    .bind(&proposed.bytes)
    .bind(receipt)
    .execute(tx.sql().await?)
    .await?;
    Ok(())
}

/// An image's commits below `before`, newest first.
pub(crate) async fn list(
    connection: &mut SqliteConnection,
    image: ImageId,
    before: Option<Seq>,
    limit: u32,
) -> sqlx::Result<Vec<CommitRow>> {
    let before = before.map_or(i64::MAX, |seq| big(seq.0));
    let rows = sqlx::query(
        "SELECT image, seq, record, receipt FROM commits WHERE image = $1 AND seq < $2 \
         ORDER BY seq DESC LIMIT $3",
    )
    .bind(&image.as_bytes()[..])
    .bind(before)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(commit_row).collect()
}

/// The home's standing at a position of its log, if it gets that far.
pub(crate) async fn standing_at(
    connection: &mut SqliteConnection,
    newest: Standing,
    position: LogPosition,
) -> sqlx::Result<Option<Standing>> {
    if position == LogPosition(0) {
        return Ok(Some(Standing {
            position,
            root: LogEntry::EMPTY_ROOT,
            ..newest
        }));
    }
    let row = sqlx::query("SELECT root FROM log WHERE position = $1")
        .bind(big(position.0))
        .fetch_optional(connection)
        .await?;
    let read = |row: sqlx::sqlite::SqliteRow| {
        Ok(Standing {
            position,
            root: row.id(0, LogRoot::from_bytes)?,
            ..newest
        })
    };
    row.map(read).transpose()
}

/// Whether the log names an incarnation. The first one it names only once there is a second.
pub(crate) async fn names(
    connection: &mut SqliteConnection,
    incarnation: Incarnation,
) -> Result<bool, Stop> {
    let rows = sqlx::query("SELECT entry FROM log WHERE device = $1")
        .bind(&NO_DEVICE.as_bytes()[..])
        .fetch_all(connection)
        .await?;
    for row in rows {
        let entry = LogEntry::decode(&mut Reader::new(&row.bytes(0)?))
            .map_err(|error| Stop::Broken(format!("a line of the log does not decode: {error}")))?;
        if entry.kind == LogKind::Incarnation && entry.subject == *incarnation.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Images that entries after a position concern, each once; the zero id stands for none.
pub(crate) async fn images_after(
    connection: &mut SqliteConnection,
    after: LogPosition,
) -> sqlx::Result<Vec<ImageId>> {
    let rows = sqlx::query("SELECT DISTINCT image FROM log WHERE position > $1 ORDER BY image")
        .bind(big(after.0))
        .fetch_all(connection)
        .await?;
    let ids = rows.iter().map(|row| row.id(0, ImageId::from_bytes));
    ids.collect()
}

/// An image's entries below a position, newest first.
pub(crate) async fn entries_of(
    connection: &mut SqliteConnection,
    image: ImageId,
    before: Option<LogPosition>,
    limit: u32,
) -> sqlx::Result<Vec<(LogPosition, Bytes)>> {
    let rows = sqlx::query(
        "SELECT position, entry FROM log WHERE image = $1 AND position < $2 \
         ORDER BY position DESC LIMIT $3",
    )
    .bind(&image.as_bytes()[..])
    .bind(before.map_or(i64::MAX, |before| big(before.0)))
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let entries = rows
        .iter()
        .map(|row| Ok((LogPosition(row.number(0)?), row.bytes(1)?.into())));
    entries.collect()
}

/// The entry of the steal that ended the newest lease that a checkout had of an image, if it is not long ago.
pub(crate) async fn steal_from(
    connection: &mut SqliteConnection,
    image: ImageId,
    checkout: CheckoutId,
) -> Result<Option<LogEntry>, Stop> {
    let mut before = None;
    // Anybody may ask, and name any checkout.
    for _ in 0..READS_MAX {
        let page = entries_of(connection, image, before, ENTRIES_PER_READ).await?;
        let Some((oldest, _)) = page.last() else {
            return Ok(None);
        };
        before = Some(*oldest);
        for (_, bytes) in &page {
            let entry = LogEntry::decode(&mut Reader::new(bytes)).map_err(|error| {
                Stop::Broken(format!("a stored log entry does not decode: {error}"))
            })?;
            let own = entry.subject == *checkout.as_bytes();
            match entry.kind {
                LogKind::Steal if own => return Ok(Some(entry)),
                // Whatever ended an earlier lease, it has had one since.
                LogKind::Grant | LogKind::Release if own => return Ok(None),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Finds a pin.
pub(crate) async fn find_pin(
    tx: &mut Tx,
    commit: CommitId,
    checkout: CheckoutId,
) -> Result<Option<Pin>, Stop> {
    let now = tx.now();
    let row = sqlx::query("SELECT device, until_ms FROM pins WHERE id = $1 AND checkout = $2")
        .bind(&commit.as_bytes()[..])
        .bind(&checkout.as_bytes()[..])
        .fetch_optional(tx.sql().await?)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Pin {
        commit,
        checkout,
        device: row.id(0, DeviceId::from_bytes)?,
        remaining_ms: RunningMillis(row.number(1)?).since(now),
    }))
}

/// Writes a pin anew.
pub(crate) async fn set_pin(tx: &mut Tx, pin: &Pin) -> Result<(), Stop> {
    let until = tx.now().plus(pin.remaining_ms);
    sqlx::query(
        "INSERT INTO pins (id, checkout, device, until_ms) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (id, checkout) DO UPDATE SET until_ms = excluded.until_ms",
    )
    .bind(&pin.commit.as_bytes()[..])
    .bind(&pin.checkout.as_bytes()[..])
    .bind(&pin.device.as_bytes()[..])
    .bind(big(until.0))
    .execute(tx.sql().await?)
    .await?;
    Ok(())
}

/// Lets the pins of a device that was heard of count anew.
pub(crate) async fn renew_pins(tx: &mut Tx, device: DeviceId) -> Result<(), Stop> {
    let kept_ms = u64::try_from(KEPT_AFTER_LOSS.as_millis()).unwrap_or(u64::MAX);
    let until = tx.now().plus(kept_ms);
    sqlx::query("UPDATE pins SET until_ms = $2 WHERE device = $1")
        .bind(&device.as_bytes()[..])
        .bind(big(until.0))
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Pins in the order of their ends, each with the milliseconds that it still holds at `now`.
pub(crate) async fn pins(
    connection: &mut SqliteConnection,
    now: RunningMillis,
    limit: u32,
) -> sqlx::Result<Vec<Pin>> {
    let rows = sqlx::query(
        "SELECT id, checkout, device, until_ms FROM pins ORDER BY until_ms, id LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let pins = rows.iter().map(|row| {
        Ok(Pin {
            commit: row.id(0, CommitId::from_bytes)?,
            checkout: row.id(1, CheckoutId::from_bytes)?,
            device: row.id(2, DeviceId::from_bytes)?,
            remaining_ms: RunningMillis(row.number(3)?).since(now),
        })
    });
    pins.collect()
}

/// Ends a pin.
pub(crate) async fn remove_pin(
    tx: &mut Tx,
    commit: CommitId,
    checkout: CheckoutId,
) -> Result<(), Stop> {
    sqlx::query("DELETE FROM pins WHERE id = $1 AND checkout = $2")
        .bind(&commit.as_bytes()[..])
        .bind(&checkout.as_bytes()[..])
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// Ends the pins that have run out.
pub(crate) async fn expire_pins(tx: &mut Tx) -> Result<(), Stop> {
    let now = big(tx.now().0);
    sqlx::query("DELETE FROM pins WHERE until_ms <= $1")
        .bind(now)
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

fn commit_row(row: &sqlx::sqlite::SqliteRow) -> sqlx::Result<CommitRow> {
    Ok(CommitRow {
        image: row.id(0, ImageId::from_bytes)?,
        seq: Seq(row.number(1)?),
        record: row.bytes(2)?,
        receipt: row.bytes(3)?,
    })
}
