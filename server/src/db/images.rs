//! Images as rows: what the lease rules read, and what listings show.
//!
//! What remains to a lease is kept as of the row's last change; reading a row lets the running time
//! since then pass first, with the same function in a call and in a listing. Staged records are kept until
//! a reading of the clock instead, so that a call under the lease need not write them.

use img_lease::grantor::{self, Grace};
use img_lease::{Head, ImageState, Lease, Staged};
use img_proto::{ImageRow, LeaseRow, StagedRow};
use img_types::limits::KEPT_AFTER_LOSS;
use img_types::{
    CheckoutId, CommitId, DeviceId, Epoch, HomeId, ImageId, Incarnation, LeaseMode, NameTag,
    ObjectId, Seq,
};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use super::{Columns as _, Stop, Tx, big};
use crate::clock::RunningMillis;
use crate::proposal::Proposed;

/// How long a staged record is kept, all in all, once its token is not current.
const STAGED_MS: u64 = KEPT_AFTER_LOSS.as_secs() * 1_000;

/// When and where rows are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: RunningMillis,
    pub(crate) started: RunningMillis,
    pub(crate) incarnation: Incarnation,
    pub(crate) home: HomeId,
}

impl Moment {
    fn grace(&self, lease: &Lease, as_of: RunningMillis) -> Grace {
        let uptime_ms = self.now.since(self.started);
        Grace::of(lease, as_of.since(self.started), uptime_ms)
    }
}

/// An image's rows.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) state: ImageState,
    pub(crate) descriptor: Vec<u8>,
    pub(crate) tag: NameTag,
    pub(crate) trace: Option<ObjectId>,
    stored_bytes: u64,
    staged: Vec<Proposed>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT i.image, i.tag, i.descriptor, i.head, i.seq, i.epoch, i.trace, i.stored_bytes, ",
            "i.tombstone_ms, i.as_of_ms, l.device, l.checkout, l.epoch, l.offline, l.ttl_ms, ",
            "l.remaining_ms, l.lapsed, l.base ",
            "FROM images i LEFT JOIN leases l ON l.image = i.image ",
            $rest
        )
    };
}

/// Reads an image, deleted ones too.
pub(crate) async fn load(
    connection: &mut SqliteConnection,
    moment: Moment,
    image: ImageId,
) -> Result<Option<Image>, Stop> {
    let row = sqlx::query(select!("WHERE i.image = $1"))
        .bind(&image.as_bytes()[..])
        .fetch_optional(&mut *connection)
        .await?;
    one(connection, moment, row).await
}

/// Reads the live image that has a name.
pub(crate) async fn load_named(
    connection: &mut SqliteConnection,
    moment: Moment,
    tag: NameTag,
) -> Result<Option<Image>, Stop> {
    let row = sqlx::query(select!("WHERE i.tag = $1 AND i.tombstone_ms IS NULL"))
        .bind(&tag.as_bytes()[..])
        .fetch_optional(&mut *connection)
        .await?;
    one(connection, moment, row).await
}

/// Reads live images in the order of their ids: at most `limit` behind `after`, or from the first one on.
pub(crate) async fn load_live(
    connection: &mut SqliteConnection,
    moment: Moment,
    after: Option<ImageId>,
    limit: u32,
) -> Result<Vec<Image>, Stop> {
    let after = after.map_or(Vec::new(), |after| after.as_bytes().to_vec());
    let live = select!("WHERE i.tombstone_ms IS NULL AND i.image > $1 ORDER BY i.image LIMIT $2");
    let rows = sqlx::query(live)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
    let mut images = Vec::with_capacity(rows.len());
    for row in rows {
        images.extend(one(connection, moment, Some(row)).await?);
    }
    Ok(images)
}

/// Images whose lease is a device's, or anybody's.
pub(crate) async fn leased(tx: &mut Tx, device: Option<DeviceId>) -> Result<Vec<ImageId>, Stop> {
    let rows =
        sqlx::query("SELECT image FROM leases WHERE $1 IS NULL OR device = $1 ORDER BY image")
            .bind(device.map(|device| device.as_bytes().to_vec()))
            .fetch_all(tx.sql())
            .await?;
    let ids = rows.iter().map(|row| row.id(0, ImageId::from_bytes));
    Ok(ids.collect::<sqlx::Result<_>>()?)
}

/// Images whose lease or staged records ran out since their rows were written.
pub(crate) async fn overdue(tx: &mut Tx) -> Result<Vec<ImageId>, Stop> {
    let now = big(tx.now().0);
    let rows = sqlx::query(
        "SELECT i.image FROM images i JOIN leases l ON l.image = i.image \
         WHERE l.lapsed = 0 AND l.remaining_ms <= $1 - i.as_of_ms \
         UNION SELECT image FROM staged WHERE until_ms <= $1",
    )
    .bind(now)
    .fetch_all(tx.sql())
    .await?;
    let ids = rows.iter().map(|row| row.id(0, ImageId::from_bytes));
    Ok(ids.collect::<sqlx::Result<_>>()?)
}

/// The lease as a reply shows it.
pub(crate) fn lease_row(lease: &Lease) -> LeaseRow {
    LeaseRow {
        device: lease.device,
        checkout: lease.checkout,
        epoch: lease.epoch,
        mode: lease.mode,
        remaining_ms: lease.remaining_ms,
        lapsed: lease.lapsed,
    }
}

impl Image {
    /// The image as a listing shows it; `head` is the head's signed record.
    pub(crate) fn into_row(self, head: Option<Vec<u8>>) -> ImageRow {
        let staged = self.staged.into_iter().map(|staged| StagedRow {
            device: staged.proposal.device,
            checkout: staged.proposal.checkout,
            commit: staged.proposal.commit,
            record: staged.bytes.into(),
        });
        ImageRow {
            image: self.state.image,
            descriptor: self.descriptor.into(),
            head: head.map(Into::into),
            seq: self.state.head.map(|head| head.seq),
            epoch: self.state.epoch,
            lease: self.state.lease.as_ref().map(lease_row),
            staged: staged.collect(),
            stored_bytes: self.stored_bytes,
        }
    }
}

async fn one(
    connection: &mut SqliteConnection,
    moment: Moment,
    row: Option<SqliteRow>,
) -> Result<Option<Image>, Stop> {
    let Some(row) = row else { return Ok(None) };
    let image = row.id(0, ImageId::from_bytes)?;
    let as_of = RunningMillis(row.number(9)?);
    let staged = load_staged(connection, moment, image, as_of).await?;
    let head = match (row.id_opt(3, CommitId::from_bytes)?, row.number_opt(4)?) {
        (Some(commit), Some(seq)) => Some(Head {
            commit,
            seq: Seq(seq),
        }),
        _ => None,
    };
    let state = ImageState {
        image,
        head,
        epoch: Epoch(row.number(5)?),
        lease: lease(&row)?,
        staged: staged.iter().map(|(staged, _)| *staged).collect(),
        tombstone_ms: row.number_opt(8)?,
    };
    let lease = state.lease.as_ref();
    let grace = lease.map_or(Grace::over(), |lease| moment.grace(lease, as_of));
    let elapsed = moment.now.since(as_of);
    let state = grantor::tick(&state, moment.incarnation, elapsed, grace);
    let kept = |checkout: &CheckoutId| state.staged_by(checkout).is_some();
    Ok(Some(Image {
        descriptor: row.bytes(2)?,
        tag: row.id(1, NameTag::from_bytes)?,
        trace: row.id_opt(6, ObjectId::from_bytes)?,
        stored_bytes: row.number(7)?,
        staged: staged
            .into_iter()
            .map(|(_, proposed)| proposed)
            .filter(|proposed| kept(&proposed.proposal.checkout))
            .collect(),
        state,
    }))
}

fn lease(row: &SqliteRow) -> sqlx::Result<Option<Lease>> {
    let Some(device) = row.id_opt(10, DeviceId::from_bytes)? else {
        return Ok(None);
    };
    let offline = row.number(13)? != 0;
    Ok(Some(Lease {
        device,
        checkout: row.id(11, CheckoutId::from_bytes)?,
        epoch: Epoch(row.number(12)?),
        mode: if offline {
            LeaseMode::Offline
        } else {
            LeaseMode::Online
        },
        ttl_ms: row.number(14)?,
        remaining_ms: row.number(15)?,
        lapsed: row.number(16)? != 0,
        base: row.id_opt(17, CommitId::from_bytes)?,
    }))
}

async fn load_staged(
    connection: &mut SqliteConnection,
    moment: Moment,
    image: ImageId,
    as_of: RunningMillis,
) -> Result<Vec<(Staged, Proposed)>, Stop> {
    let rows =
        sqlx::query("SELECT record, until_ms FROM staged WHERE image = $1 ORDER BY checkout")
            .bind(&image.as_bytes()[..])
            .fetch_all(connection)
            .await?;
    let mut staged = Vec::with_capacity(rows.len());
    for row in rows {
        let proposed = Proposed::stored(&row.bytes(0)?, moment.home)?;
        let kept = Staged {
            proposal: proposed.proposal,
            remaining_ms: row
                .number_opt(1)?
                .map_or(STAGED_MS, |until| RunningMillis(until).since(as_of)),
        };
        staged.push((kept, proposed));
    }
    Ok(staged)
}
