//! What a group of calls has read, and what it has yet to write.

use std::collections::{BTreeMap, BTreeSet};

use img_types::{DeviceId, ImageId, Instance, LogPosition, LogRoot};
use sqlx::SqliteConnection;

use super::batch::{Batch, Shapes};
use super::big;
use super::images::{self, ImageRows};
use super::requests::{self, Outcome, RequestKey};
use crate::clock::RunningMillis;

/// What a call will ask for, as far as its message tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// The call, and who makes it.
    pub(crate) request: RequestKey,
    /// The image that it concerns.
    pub(crate) image: Option<ImageId>,
}

impl Needs {
    /// All devices, calls and images, each once.
    pub(super) fn all(needs: &[Self]) -> (Vec<DeviceId>, Vec<RequestKey>, Vec<ImageId>) {
        fn once<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
            items.collect::<BTreeSet<T>>().into_iter().collect()
        }
        (
            once(needs.iter().map(|needs| needs.request.0)),
            once(needs.iter().map(|needs| needs.request)),
            once(needs.iter().filter_map(|needs| needs.image)),
        )
    }
}

/// What stood in the database when it was read; that there is nothing is known too.
#[derive(Debug, Default)]
pub(super) struct Seen {
    images: BTreeMap<ImageId, Option<ImageRows>>,
    outcomes: BTreeMap<RequestKey, Option<Outcome>>,
    instances: BTreeMap<DeviceId, Option<Instance>>,
}

impl Seen {
    pub(super) fn image(&self, image: &ImageId) -> Option<Option<&ImageRows>> {
        self.images.get(image).map(Option::as_ref)
    }

    pub(super) fn outcome(&self, key: &RequestKey) -> Option<Option<&Outcome>> {
        self.outcomes.get(key).map(Option::as_ref)
    }

    pub(super) fn instance(&self, device: &DeviceId) -> Option<Option<Instance>> {
        self.instances.get(device).copied()
    }

    /// Takes what was found of the images asked for.
    pub(super) fn add_images(&mut self, asked: &[ImageId], found: Vec<ImageRows>) {
        self.images.extend(asked.iter().map(|image| (*image, None)));
        let found = found.into_iter().map(|rows| (rows.image, Some(rows)));
        self.images.extend(found);
    }

    /// Takes what was found of the outcomes asked for.
    pub(super) fn add_outcomes(&mut self, asked: &[RequestKey], found: Vec<(RequestKey, Outcome)>) {
        self.outcomes.extend(asked.iter().map(|key| (*key, None)));
        let found = found.into_iter().map(|(key, outcome)| (key, Some(outcome)));
        self.outcomes.extend(found);
    }

    /// Takes what was found of the devices asked for.
    pub(super) fn add_instances(&mut self, asked: &[DeviceId], found: Vec<(DeviceId, Instance)>) {
        self.instances
            .extend(asked.iter().map(|device| (*device, None)));
        let found = found
            .into_iter()
            .map(|(device, newest)| (device, Some(newest)));
        self.instances.extend(found);
    }
}

/// One entry of the log as its row has it.
#[derive(Debug)]
pub(super) struct LogRow {
    pub(super) position: LogPosition,
    pub(super) entry: Vec<u8>,
    pub(super) root: LogRoot,
    pub(super) image: ImageId,
    pub(super) device: DeviceId,
}

static LOG: Batch = Batch::new(|| {
    Shapes::groups(
        "INSERT INTO log (position, entry, root, image, device) VALUES",
        5,
        "",
    )
});

/// Rows that wait to be written together.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    images: BTreeMap<ImageId, ImageRows>,
    log: Vec<LogRow>,
    outcomes: BTreeMap<RequestKey, Outcome>,
}

impl Unwritten {
    pub(super) fn is_empty(&self) -> bool {
        self.images.is_empty() && self.log.is_empty() && self.outcomes.is_empty()
    }

    pub(super) fn image(&self, image: &ImageId) -> Option<&ImageRows> {
        self.images.get(image)
    }

    pub(super) fn outcome(&self, key: &RequestKey) -> Option<&Outcome> {
        self.outcomes.get(key)
    }

    pub(super) fn set_image(&mut self, rows: ImageRows) {
        self.images.insert(rows.image, rows);
    }

    pub(super) fn set_outcome(&mut self, key: RequestKey, outcome: Outcome) {
        self.outcomes.insert(key, outcome);
    }

    pub(super) fn append_log(&mut self, row: LogRow) {
        self.log.push(row);
    }

    /// Takes what a later call leaves.
    pub(super) fn append(&mut self, later: &mut Self) {
        self.images.append(&mut later.images);
        self.log.append(&mut later.log);
        self.outcomes.append(&mut later.outcomes);
    }

    /// Writes everything, each table at once; images come before what refers to them.
    pub(super) async fn write(
        &mut self,
        connection: &mut SqliteConnection,
        now: RunningMillis,
    ) -> sqlx::Result<()> {
        let Self {
            images,
            log,
            outcomes,
        } = std::mem::take(self);
        let images: Vec<ImageRows> = images.into_values().collect();
        images::write(connection, &images).await?;
        for (sql, part) in LOG.exact(&log) {
            let mut query = sqlx::query(sql);
            for row in part {
                query = query
                    .bind(big(row.position.0))
                    .bind(&row.entry[..])
                    .bind(&row.root.as_bytes()[..])
                    .bind(&row.image.as_bytes()[..])
                    .bind(&row.device.as_bytes()[..]);
            }
            query.execute(&mut *connection).await?;
        }
        let outcomes: Vec<(RequestKey, Outcome)> = outcomes.into_iter().collect();
        requests::insert(connection, now, &outcomes).await
    }
}
