//! Calls that only look.

use std::sync::Arc;

use bytes::Bytes;
use img_proto::frame::REPLY_LEN_MAX;
use img_proto::{Answer, ImageRow, Refusal, StealRow};
use img_types::limits::{IDS_PER_REQUEST_MAX, RECORDS_PER_REPLY_MAX};
use img_types::{CheckoutId, CommitId, DeviceId, ImageId, LogPosition, ObjectId, Seq, UploadId};

use crate::db::images::Image;
use crate::db::{Columns as _, Stop, audit, history, images, objects, uploads};
use crate::home::Home;
use crate::objects::prove as prove_path;
use crate::proposal::Proposed;

/// Room in a reply for everything but its records.
const REPLY_OVERHEAD: usize = 64 * 1024;

/// Images read from the database at a time, with their staged records.
const IMAGES_PER_READ: u32 = 64;

/// The images that have a commit, from the one behind `after` on.
pub(super) async fn images(home: &Arc<Home>, after: Option<ImageId>) -> Result<Answer, Stop> {
    let wanted = |image: &Image| image.state.head.is_some();
    let (images, more) = list(home, after, wanted).await?;
    Ok(Answer::Images { images, more })
}

/// The images that have a lease, of one device or of all, from the one behind `after` on.
pub(super) async fn leases(
    home: &Arc<Home>,
    device: Option<DeviceId>,
    after: Option<ImageId>,
) -> Result<Answer, Stop> {
    let wanted = |image: &Image| {
        let holder = image.state.lease.map(|lease| lease.device);
        holder.is_some() && (device.is_none() || device == holder)
    };
    let (images, more) = list(home, after, wanted).await?;
    Ok(Answer::Leases { images, more })
}

/// As many of the wanted images as fit a reply, and whether others follow.
async fn list(
    home: &Home,
    mut after: Option<ImageId>,
    wanted: impl Fn(&Image) -> bool,
) -> Result<(Vec<ImageRow>, bool), Stop> {
    let moment = home.moment()?;
    let mut connection = home.db.reads().begin().await?;
    let mut rows: Vec<ImageRow> = Vec::new();
    let mut room = REPLY_LEN_MAX - REPLY_OVERHEAD;
    loop {
        let read = images::load_live(&mut connection, moment, after, IMAGES_PER_READ).await?;
        if read.is_empty() {
            return Ok((rows, false));
        }
        for image in read {
            after = Some(image.state.image);
            if !wanted(&image) {
                continue;
            }
            let row = image.into_row();
            match room.checked_sub(row_len(&row)) {
                Some(left) if rows.len() < RECORDS_PER_REPLY_MAX => room = left,
                _ => return Ok((rows, true)),
            }
            rows.push(row);
        }
    }
}

fn row_len(row: &ImageRow) -> usize {
    let staged: usize = row
        .staged
        .iter()
        .map(|staged| staged.record.len() + 128)
        .sum();
    256 + row.descriptor.len() + row.head.as_ref().map_or(0, Bytes::len) + staged
}

/// An image's commits with their receipts, newest first.
pub(super) async fn log(
    home: &Arc<Home>,
    image: ImageId,
    before: Option<Seq>,
    limit: u32,
) -> Result<Answer, Stop> {
    let moment = home.moment()?;
    let wanted = (limit as usize).min(RECORDS_PER_REPLY_MAX);
    let mut connection = home.db.reads().begin().await?;
    if images::load(&mut connection, moment, image)
        .await?
        .is_none()
    {
        return Err(Refusal::UnknownImage.into());
    }
    let limit = u32::try_from(wanted + 1).unwrap_or(u32::MAX);
    let rows = history::list(&mut connection, image, before, limit).await?;
    let found = rows.len();
    let mut room = REPLY_LEN_MAX - REPLY_OVERHEAD;
    let mut commits = Vec::new();
    for row in rows.into_iter().take(wanted) {
        let len = row.record.len() + row.receipt.len() + 16;
        let Some(left) = room.checked_sub(len) else {
            break;
        };
        room = left;
        commits.push((row.record.into(), row.receipt.into()));
    }
    let more = found > commits.len();
    Ok(Answer::Log { commits, more })
}

/// Which objects a device has to send.
pub(super) async fn missing(
    home: &Arc<Home>,
    device: DeviceId,
    upload: UploadId,
    ids: &[ObjectId],
) -> Result<Answer, Stop> {
    if ids.len() > IDS_PER_REQUEST_MAX {
        return Err(Refusal::OverLimit("ids in one question".to_owned()).into());
    }
    let now = home.db.writer().now();
    let mut connection = home.db.reads().acquire().await?;
    if !uploads::is_open(&mut connection, now, upload, device).await? {
        return Err(Refusal::SessionClosed.into());
    }
    let complete = objects::complete(&mut connection, ids).await?;
    let positions = (0u32..)
        .zip(ids)
        .filter(|(_, id)| !complete.contains(id))
        .map(|(position, _)| position);
    Ok(Answer::Missing {
        positions: positions.collect(),
    })
}

/// Proves that the home holds what a commit's root names.
pub(super) async fn prove(
    home: &Arc<Home>,
    commit: CommitId,
    seed: &[u8; 32],
) -> Result<Answer, Stop> {
    let moment = home.moment()?;
    let mut connection = home.db.reads().acquire().await?;
    let row = history::find(&mut connection, commit).await?;
    drop(connection);
    let row = row.ok_or(Refusal::UnknownCommit)?;
    let root = Proposed::stored(&row.record, moment.home)?.proposal.root;
    let (steps, object) = prove_path(&home.objects, root, seed).await?;
    Ok(Answer::Proof { steps, object })
}

/// Figures of the object store and the database.
pub(super) async fn usage(home: &Arc<Home>) -> Result<Answer, Stop> {
    let mut connection = home.db.reads().acquire().await?;
    let figures = figures(&mut connection).await?;
    Ok(Answer::Usage {
        images: figures.images,
        objects: figures.objects,
        object_bytes: figures.object_bytes,
        packs: figures.packs,
        pins: figures.pins,
    })
}

/// What was refused or taken by force, newest first, up to this moment.
pub(super) async fn audit(
    home: &Arc<Home>,
    before: Option<u64>,
    limit: u32,
) -> Result<Answer, Stop> {
    home.audit.flush(home.db.writer()).await?;
    let wanted = (limit as usize).min(RECORDS_PER_REPLY_MAX);
    let limit = u32::try_from(wanted + 1).unwrap_or(u32::MAX);
    let mut connection = home.db.reads().acquire().await?;
    let mut entries = audit::list(&mut connection, before, limit).await?;
    let more = entries.len() > wanted;
    entries.truncate(wanted);
    Ok(Answer::Audit { entries, more })
}

/// An image's entries of the log, newest first.
pub(super) async fn history(
    home: &Arc<Home>,
    image: ImageId,
    before: Option<LogPosition>,
    limit: u32,
) -> Result<Answer, Stop> {
    let wanted = (limit as usize).min(RECORDS_PER_REPLY_MAX);
    let limit = u32::try_from(wanted + 1).unwrap_or(u32::MAX);
    let mut connection = home.db.reads().acquire().await?;
    let mut entries = history::entries_of(&mut connection, image, before, limit).await?;
    let more = entries.len() > wanted;
    entries.truncate(wanted);
    Ok(Answer::History { entries, more })
}

/// Who took an image from a checkout by force, with the reason that the audit keeps.
pub(super) async fn stolen_by(
    home: &Arc<Home>,
    image: ImageId,
    checkout: CheckoutId,
) -> Result<Answer, Stop> {
    let mut connection = home.db.reads().acquire().await?;
    let entry = history::steal_from(&mut connection, image, checkout).await?;
    let Some(entry) = entry else {
        return Ok(Answer::StolenBy { steal: None });
    };
    let reason = audit::reason(&mut connection, image, entry.device, entry.time).await?;
    Ok(Answer::StolenBy {
        steal: Some(StealRow {
            device: entry.device,
            time: entry.time,
            reason: reason.unwrap_or_default(),
        }),
    })
}

/// What a home holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) images: u64,
    pub(crate) objects: u64,
    pub(crate) object_bytes: u64,
    pub(crate) packs: u64,
    pub(crate) pins: u64,
}

/// Counts what a home holds.
pub(crate) async fn figures(connection: &mut sqlx::SqliteConnection) -> sqlx::Result<Figures> {
    let row = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM images WHERE tombstone_ms IS NULL AND head IS NOT NULL), \
         (SELECT COUNT(*) FROM objects), \
         (SELECT CAST(COALESCE(SUM(len), 0) AS BIGINT) FROM objects), \
         (SELECT COUNT(*) FROM stores WHERE pack IS NOT NULL), \
         (SELECT COUNT(*) FROM pins)",
    )
    .fetch_one(connection)
    .await?;
    Ok(Figures {
        images: row.number(0)?,
        objects: row.number(1)?,
        object_bytes: row.number(2)?,
        packs: row.number(3)?,
        pins: row.number(4)?,
    })
}
