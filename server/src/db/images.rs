//! Images as rows: what the lease rules read, and what listings show.
//!
//! What remains to a lease is kept as of the row's last change; reading a row lets the running time
//! since then pass first, with the same function in a call and in a listing. Staged records are kept until
//! a reading of the clock instead, so that a call under the lease need not write them.

use std::collections::BTreeMap;

use bytes::Bytes;
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

use super::batch::{Batch, Shapes, bind_ids};
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

/// An image as its rows have it: what remains to its lease and its tombstone counts from `as_of`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageRows {
    pub(super) image: ImageId,
    tag: NameTag,
    descriptor: Bytes,
    pub(super) head: Option<Head>,
    head_record: Option<Bytes>,
    pub(super) epoch: Epoch,
    trace: Option<ObjectId>,
    stored_bytes: u64,
    pub(super) tombstone_ms: Option<u64>,
    pub(super) as_of: RunningMillis,
    pub(super) lease: Option<Lease>,
    /// In the order of their checkouts.
    pub(super) staged: Vec<StagedRecord>,
}

/// A staged record as its row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StagedRecord {
    proposed: Proposed,
    /// Nothing while its token is current.
    pub(super) until: Option<RunningMillis>,
}

/// An image at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) state: ImageState,
    pub(crate) descriptor: Bytes,
    pub(crate) tag: NameTag,
    pub(crate) trace: Option<ObjectId>,
    /// The head's signed record.
    pub(crate) head_record: Option<Bytes>,
    stored_bytes: u64,
    staged: Vec<Proposed>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT i.image, i.tag, i.descriptor, i.head, i.seq, i.epoch, i.trace, i.stored_bytes, ",
            "i.tombstone_ms, i.as_of_ms, l.device, l.checkout, l.epoch, l.offline, l.ttl_ms, ",
            "l.remaining_ms, l.lapsed, l.base, c.record ",
            "FROM images i LEFT JOIN leases l ON l.image = i.image ",
            "LEFT JOIN commits c ON c.id = i.head ",
            $rest
        )
    };
}

static FIND: Batch = Batch::new(|| Shapes::list(select!("WHERE i.image IN")));
static STAGED: Batch =
    Batch::new(|| Shapes::list("SELECT image, record, until_ms FROM staged WHERE image IN"));

static SET_IMAGES: Batch = Batch::new(|| {
    Shapes::groups(
        "UPDATE images SET head = v.column2, seq = v.column3, epoch = v.column4, \
         tombstone_ms = v.column5, as_of_ms = v.column6 FROM (VALUES",
        6,
        ") AS v WHERE image = v.column1",
    )
});
static SET_LEASES: Batch = Batch::new(|| {
    Shapes::groups(
        "INSERT INTO leases (image, device, checkout, epoch, offline, ttl_ms, remaining_ms, \
         lapsed, base) VALUES",
        9,
        " ON CONFLICT (image) DO UPDATE SET device = excluded.device, checkout = excluded.checkout, \
         epoch = excluded.epoch, offline = excluded.offline, ttl_ms = excluded.ttl_ms, \
         remaining_ms = excluded.remaining_ms, lapsed = excluded.lapsed, base = excluded.base",
    )
});
static END_LEASES: Batch = Batch::new(|| Shapes::list("DELETE FROM leases WHERE image IN"));

/// Reads the rows of images, deleted ones too; those that are not here are left out.
pub(crate) async fn find(
    connection: &mut SqliteConnection,
    home: HomeId,
    images: &[ImageId],
) -> Result<Vec<ImageRows>, Stop> {
    let mut found = Vec::with_capacity(images.len());
    for (sql, part, fill) in FIND.padded(images) {
        let rows = bind_ids(sql, part, fill, ImageId::as_bytes).fetch_all(&mut *connection);
        found.extend(rows.await?);
    }
    with_staged(connection, home, &found).await
}

/// Writes the rows of images anew, but for those of staged records; each image comes once.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    images: &[ImageRows],
) -> sqlx::Result<()> {
    for (sql, part) in SET_IMAGES.exact(images) {
        let mut query = sqlx::query(sql);
        for rows in part {
            query = query
                .bind(&rows.image.as_bytes()[..])
                .bind(rows.head.map(|head| head.commit.as_bytes().to_vec()))
                .bind(rows.head.map(|head| big(head.seq.0)))
                .bind(big(rows.epoch.0))
                .bind(rows.tombstone_ms.map(big))
                .bind(big(rows.as_of.0));
        }
        query.execute(&mut *connection).await?;
    }
    let leases = images
        .iter()
        .filter_map(|rows| Some((rows.image, rows.lease?)));
    let leases: Vec<(ImageId, Lease)> = leases.collect();
    for (sql, part) in SET_LEASES.exact(&leases) {
        let mut query = sqlx::query(sql);
        for (image, lease) in part {
            query = query
                .bind(&image.as_bytes()[..])
                .bind(&lease.device.as_bytes()[..])
                .bind(&lease.checkout.as_bytes()[..])
                .bind(big(lease.epoch.0))
                .bind(i64::from(lease.mode == LeaseMode::Offline))
                .bind(big(lease.ttl_ms))
                .bind(big(lease.remaining_ms))
                .bind(i64::from(lease.lapsed))
                .bind(lease.base.map(|base| base.as_bytes().to_vec()));
        }
        query.execute(&mut *connection).await?;
    }
    let free = images.iter().filter(|rows| rows.lease.is_none());
    let free: Vec<ImageId> = free.map(|rows| rows.image).collect();
    for (sql, part, fill) in END_LEASES.padded(&free) {
        let query = bind_ids(sql, part, fill, ImageId::as_bytes);
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Reads an image, deleted ones too.
pub(crate) async fn load(
    connection: &mut SqliteConnection,
    moment: Moment,
    image: ImageId,
) -> Result<Option<Image>, Stop> {
    let found = find(connection, moment.home, &[image]).await?;
    Ok(found.first().map(|rows| rows.at(moment)))
}

/// Reads the live image that has a name.
pub(crate) async fn load_named(
    connection: &mut SqliteConnection,
    moment: Moment,
    tag: NameTag,
) -> Result<Option<Image>, Stop> {
    let rows = sqlx::query(select!("WHERE i.tag = $1 AND i.tombstone_ms IS NULL"))
        .bind(&tag.as_bytes()[..])
        .fetch_all(&mut *connection)
        .await?;
    let found = with_staged(connection, moment.home, &rows).await?;
    Ok(found.first().map(|rows| rows.at(moment)))
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
    let found = with_staged(connection, moment.home, &rows).await?;
    Ok(found.iter().map(|rows| rows.at(moment)).collect())
}

/// Images whose lease is a device's, or anybody's.
pub(crate) async fn leased(tx: &mut Tx, device: Option<DeviceId>) -> Result<Vec<ImageId>, Stop> {
    let rows =
        sqlx::query("SELECT image FROM leases WHERE $1 IS NULL OR device = $1 ORDER BY image")
            .bind(device.map(|device| device.as_bytes().to_vec()))
            .fetch_all(tx.sql().await?)
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
    .fetch_all(tx.sql().await?)
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

impl ImageRows {
    /// The image at a moment: the time since its rows were written has passed.
    pub(crate) fn at(&self, moment: Moment) -> Image {
        let staged = self.staged.iter().map(|staged| Staged {
            proposal: staged.proposed.proposal,
            remaining_ms: staged
                .until
                .map_or(STAGED_MS, |until| until.since(self.as_of)),
        });
        let state = ImageState {
            image: self.image,
            head: self.head,
            epoch: self.epoch,
            lease: self.lease,
            staged: staged.collect(),
            tombstone_ms: self.tombstone_ms,
        };
        let lease = self.lease.as_ref();
        let grace = lease.map_or(Grace::over(), |lease| moment.grace(lease, self.as_of));
        let elapsed = moment.now.since(self.as_of);
        let state = grantor::tick(&state, moment.incarnation, elapsed, grace);
        let kept = self.staged.iter().map(|staged| &staged.proposed);
        let kept = kept.filter(|kept| state.staged_by(&kept.proposal.checkout).is_some());
        Image {
            descriptor: self.descriptor.clone(),
            tag: self.tag,
            trace: self.trace,
            head_record: self.head_record.clone(),
            stored_bytes: self.stored_bytes,
            staged: kept.cloned().collect(),
            state,
        }
    }

    /// The rows with another state, but for those of staged records.
    pub(super) fn with(self, state: &ImageState, now: RunningMillis) -> Self {
        Self {
            head: state.head,
            epoch: state.epoch,
            tombstone_ms: state.tombstone_ms,
            as_of: now,
            lease: state.lease,
            ..self
        }
    }
}

impl StagedRecord {
    pub(super) fn checkout(&self) -> CheckoutId {
        self.proposed.proposal.checkout
    }
}

impl Image {
    /// The image as a listing shows it.
    pub(crate) fn into_row(self) -> ImageRow {
        let staged = self.staged.into_iter().map(|staged| StagedRow {
            device: staged.proposal.device,
            checkout: staged.proposal.checkout,
            commit: staged.proposal.commit,
            record: staged.bytes.into(),
        });
        ImageRow {
            image: self.state.image,
            descriptor: self.descriptor,
            head: self.head_record,
            seq: self.state.head.map(|head| head.seq),
            epoch: self.state.epoch,
            lease: self.state.lease.as_ref().map(lease_row),
            staged: staged.collect(),
            stored_bytes: self.stored_bytes,
        }
    }
}

/// Takes images out of their rows and reads what is staged beside them.
async fn with_staged(
    connection: &mut SqliteConnection,
    home: HomeId,
    rows: &[SqliteRow],
) -> Result<Vec<ImageRows>, Stop> {
    let images: sqlx::Result<Vec<ImageRows>> = rows.iter().map(image_rows).collect();
    let mut images = images?;
    let ids: Vec<ImageId> = images.iter().map(|image| image.image).collect();
    let mut staged: BTreeMap<ImageId, Vec<StagedRecord>> = BTreeMap::new();
    for (sql, part, fill) in STAGED.padded(&ids) {
        let rows = bind_ids(sql, part, fill, ImageId::as_bytes).fetch_all(&mut *connection);
        for row in rows.await? {
            let image = row.id(0, ImageId::from_bytes)?;
            staged.entry(image).or_default().push(StagedRecord {
                proposed: Proposed::stored(&row.bytes(1)?, home)?,
                until: row.number_opt(2)?.map(RunningMillis),
            });
        }
    }
    for image in &mut images {
        image.staged = staged.remove(&image.image).unwrap_or_default();
        image.staged.sort_by_key(StagedRecord::checkout);
    }
    Ok(images)
}

fn image_rows(row: &SqliteRow) -> sqlx::Result<ImageRows> {
    let head = match (row.id_opt(3, CommitId::from_bytes)?, row.number_opt(4)?) {
        (Some(commit), Some(seq)) => Some(Head {
            commit,
            seq: Seq(seq),
        }),
        _ => None,
    };
    Ok(ImageRows {
        image: row.id(0, ImageId::from_bytes)?,
        tag: row.id(1, NameTag::from_bytes)?,
        descriptor: row.bytes(2)?.into(),
        head,
        head_record: row.bytes_opt(18)?.map(Into::into),
        epoch: Epoch(row.number(5)?),
        trace: row.id_opt(6, ObjectId::from_bytes)?,
        stored_bytes: row.number(7)?,
        tombstone_ms: row.number_opt(8)?,
        as_of: RunningMillis(row.number(9)?),
        lease: lease(row)?,
        staged: Vec::new(),
    })
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
