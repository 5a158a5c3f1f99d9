//! One transaction of the writer, as the work inside it sees it.
//!
//! A statement is a turn of the database's thread, which costs more than what it does. So what the calls of a
//! group ask for is read at once when the group begins, what they write waits in memory, and both are forgotten
//! with the group. Whoever needs SQL of its own is given the connection with everything written that waits
//! ([`Tx::sql`]), and nothing that was read before it is believed after it.

use std::sync::Arc;

use img_proto::{Refusal, Standing};
use img_records::{LogEntry, Roster};
use img_types::{DeviceId, ImageId, Incarnation, Instance, LogPosition, LogRoot};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, SqliteConnection};

use super::images::{Image, ImageRows, Moment};
use super::memory::{LogRow, Needs, Seen, Unwritten};
use super::requests::{Outcome, RequestKey};
use super::{Columns as _, Published, SharedRoster, big, devices, images, requests};
use crate::clock::{RunningClock, RunningMillis};

/// Why a piece of work ended without an effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database says no.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// What the home keeps does not read back.
    #[error("{0}")]
    Broken(String),
    /// The home is shutting down.
    #[error("the home is shutting down")]
    Closing,
}

/// The state of one transaction; what is in memory is rolled back with its savepoint.
pub(crate) struct Tx {
    connection: SqliteConnection,
    published: Published,
    roster: SharedRoster,
    clock: RunningClock,
    now: RunningMillis,
    next_object: u64,
    seen: Seen,
    /// What earlier calls of the group leave, and this one.
    kept: Unwritten,
    own: Unwritten,
    /// Whether this call has used the connection.
    used: bool,
    /// Why what earlier calls left is not all written: then the group is lost.
    torn: Option<sqlx::Error>,
}

/// What a savepoint does not roll back: the state in memory.
pub(super) struct Saved {
    published: Published,
    roster: SharedRoster,
}

impl Tx {
    /// Reads where the database stands.
    pub(super) async fn open(
        mut connection: SqliteConnection,
        roster: Option<Roster>,
    ) -> sqlx::Result<Self> {
        let standing = load_standing(&mut connection).await?;
        let running = sqlx::query("SELECT running_ms FROM home")
            .fetch_one(&mut connection)
            .await?
            .number(0)?;
        let next_object = sqlx::query("SELECT COALESCE(MAX(number), 0) + 1 FROM objects")
            .fetch_one(&mut connection)
            .await?
            .number(0)?;
        let clock = RunningClock::resume(RunningMillis(running));
        Ok(Self {
            connection,
            published: Published { standing, group: 0 },
            roster: roster.map(Arc::new),
            now: clock.now(),
            clock,
            next_object,
            seen: Seen::default(),
            kept: Unwritten::default(),
            own: Unwritten::default(),
            used: false,
            torn: None,
        })
    }

    pub(super) fn clock(&self) -> &RunningClock {
        &self.clock
    }

    pub(super) fn published(&self) -> Published {
        self.published
    }

    pub(super) fn shared_roster(&self) -> &SharedRoster {
        &self.roster
    }

    /// Begins a group and its first piece of work, and reads what its calls will ask for.
    pub(super) async fn begin(&mut self, needs: &[Needs]) -> sqlx::Result<()> {
        self.now = self.clock.now();
        self.forget();
        self.execute("BEGIN IMMEDIATE; SAVEPOINT work").await?;
        if self.look_up(needs).await.is_err() {
            // Each call looks for itself then, so that only the one that meets the fault is told of it.
            self.seen = Seen::default();
            self.execute("ROLLBACK TO SAVEPOINT work").await?;
        }
        Ok(())
    }

    async fn look_up(&mut self, needs: &[Needs]) -> Result<(), Stop> {
        let Some(roster) = &self.roster else {
            return Ok(());
        };
        let home = roster.home();
        let (devices, keys, images) = Needs::all(needs);
        let instances = devices::newest_instances(&mut self.connection, &devices).await?;
        self.seen.add_instances(&devices, instances);
        let outcomes = requests::find(&mut self.connection, &keys).await?;
        self.seen.add_outcomes(&keys, outcomes);
        let rows = images::find(&mut self.connection, home, &images).await?;
        self.seen.add_images(&images, rows);
        Ok(())
    }

    /// The state in memory.
    pub(super) fn memory(&self) -> Saved {
        Saved {
            published: self.published,
            roster: self.roster.clone(),
        }
    }

    /// Takes the whole group back.
    pub(super) async fn abandon(&mut self, saved: Saved) {
        // SQLite may have rolled back by itself; if it can go on, the next group begins.
        let _ = self.execute("ROLLBACK").await;
        self.forget();
        self.restore(saved);
    }

    fn restore(&mut self, saved: Saved) {
        self.published = saved.published;
        self.roster = saved.roster;
    }

    fn forget(&mut self) {
        self.seen = Seen::default();
        self.kept = Unwritten::default();
        self.own = Unwritten::default();
        self.used = false;
    }

    /// Ends a piece of work and begins the next.
    pub(super) async fn keep(&mut self) -> sqlx::Result<()> {
        if std::mem::take(&mut self.used) {
            self.execute("RELEASE SAVEPOINT work; SAVEPOINT work")
                .await?;
        }
        self.kept.append(&mut self.own);
        Ok(())
    }

    /// Takes a piece of work back and begins the next; the savepoint stays. One that has not used the
    /// connection has left nothing in the database.
    pub(super) async fn take_back(&mut self, saved: Saved) -> sqlx::Result<()> {
        self.own = Unwritten::default();
        if std::mem::take(&mut self.used) {
            self.seen = Seen::default();
            // Fails if SQLite has ended the transaction by itself: what others wrote would be lost silently.
            self.execute("ROLLBACK TO SAVEPOINT work").await?;
        }
        self.restore(saved);
        Ok(())
    }

    /// Why the group cannot become durable, if it cannot.
    pub(super) fn torn(&mut self) -> Option<sqlx::Error> {
        self.torn.take()
    }

    /// Writes what the group left, and the running clock. No work is taken back any more: without a savepoint
    /// SQLite need not keep each page as it was.
    pub(super) async fn write(&mut self) -> sqlx::Result<()> {
        sqlx::query("RELEASE SAVEPOINT work; UPDATE home SET running_ms = $1")
            .bind(big(self.now.0))
            .execute(&mut self.connection)
            .await?;
        self.kept.write(&mut self.connection, self.now).await
    }

    /// Makes the group durable.
    pub(super) async fn commit(&mut self) -> sqlx::Result<()> {
        self.execute("COMMIT").await?;
        self.published.group += 1;
        Ok(())
    }

    /// Closes the connection.
    pub(super) async fn close(self) -> sqlx::Result<()> {
        self.connection.close().await
    }

    async fn execute(&mut self, sql: &'static str) -> sqlx::Result<()> {
        sqlx::query(sql).execute(&mut self.connection).await?;
        Ok(())
    }

    /// The connection, inside the transaction, with everything written that the group and this call left so
    /// far. Nothing read before is believed after it.
    pub(crate) async fn sql(&mut self) -> sqlx::Result<&mut SqliteConnection> {
        if !self.kept.is_empty() {
            // Not part of what this call's savepoint takes back.
            let written = self.kept.write(&mut self.connection, self.now).await;
            let written = match written {
                Ok(()) => self.execute("RELEASE SAVEPOINT work; SAVEPOINT work").await,
                failed => failed,
            };
            if let Err(error) = written {
                self.torn = Some(error);
                return Err(sqlx::Error::WorkerCrashed);
            }
        }
        self.used = true;
        self.seen = Seen::default();
        self.own.write(&mut self.connection, self.now).await?;
        Ok(&mut self.connection)
    }

    /// An image at the moment of this transaction, deleted ones too.
    pub(crate) async fn image(&mut self, image: ImageId) -> Result<Option<Image>, Stop> {
        let moment = self.moment()?;
        let rows = self.image_rows(image).await?;
        Ok(rows.map(|rows| rows.at(moment)))
    }

    /// An image's rows inside this transaction.
    pub(super) async fn image_rows(&mut self, image: ImageId) -> Result<Option<ImageRows>, Stop> {
        let left = [&self.own, &self.kept].map(|left| left.image(&image));
        if let Some(rows) = left.into_iter().flatten().next() {
            return Ok(Some(rows.clone()));
        }
        if let Some(known) = self.seen.image(&image) {
            return Ok(known.cloned());
        }
        self.used = true;
        let home = self.roster()?.home();
        let found = images::find(&mut self.connection, home, &[image]).await?;
        self.seen.add_images(&[image], found.clone());
        Ok(found.into_iter().next())
    }

    /// Leaves an image's rows to be written.
    pub(super) fn set_image_rows(&mut self, rows: ImageRows) {
        self.own.set_image(rows);
    }

    /// The outcome of an earlier call.
    pub(super) async fn outcome(&mut self, key: RequestKey) -> sqlx::Result<Option<Outcome>> {
        if let Some(left) = self.kept.outcome(&key) {
            return Ok(Some(left.clone()));
        }
        if let Some(known) = self.seen.outcome(&key) {
            return Ok(known.cloned());
        }
        self.used = true;
        let found = requests::find(&mut self.connection, &[key]).await?;
        Ok(found.into_iter().next().map(|(_, outcome)| outcome))
    }

    /// Leaves the outcome of this call to be written.
    pub(super) fn set_outcome(&mut self, key: RequestKey, outcome: Outcome) {
        self.own.set_outcome(key, outcome);
    }

    /// The instance of the newest daemon of a device, if it ever said Hello.
    pub(crate) async fn newest_instance(
        &mut self,
        device: DeviceId,
    ) -> sqlx::Result<Option<Instance>> {
        if let Some(known) = self.seen.instance(&device) {
            return Ok(known);
        }
        self.used = true;
        let found = devices::newest_instances(&mut self.connection, &[device]).await?;
        Ok(found.first().map(|(_, newest)| *newest))
    }

    /// The running clock at the start of the group.
    pub(crate) fn now(&self) -> RunningMillis {
        self.now
    }

    /// When and where this transaction looks at rows.
    pub(crate) fn moment(&self) -> Result<Moment, Refusal> {
        Ok(Moment {
            now: self.now,
            started: self.clock.started(),
            incarnation: self.published.standing.incarnation,
            home: self.roster()?.home(),
        })
    }

    /// The end of the log inside this transaction.
    pub(crate) fn standing(&self) -> Standing {
        self.published.standing
    }

    /// The roster inside this transaction.
    pub(crate) fn roster(&self) -> Result<&Arc<Roster>, Refusal> {
        self.roster.as_ref().ok_or(Refusal::NotFounded)
    }

    /// Replaces the roster.
    pub(crate) fn set_roster(&mut self, roster: Roster) {
        self.roster = Some(Arc::new(roster));
    }

    /// Gives the database another incarnation after a restore. Nothing may be collected from then on: what
    /// devices still have may name objects that no row knows.
    pub(crate) async fn set_incarnation(&mut self, incarnation: Incarnation) -> sqlx::Result<()> {
        sqlx::query("UPDATE home SET incarnation = $1, restored = 1")
            .bind(&incarnation.as_bytes()[..])
            .execute(self.sql().await?)
            .await?;
        self.published.standing.incarnation = incarnation;
        Ok(())
    }

    /// Numbers the next object.
    pub(crate) fn number_object(&mut self) -> u64 {
        let number = self.next_object;
        self.next_object += 1;
        number
    }

    /// Appends to the log and returns the new standing.
    pub(crate) fn append_log(&mut self, entry: &LogEntry) -> Result<Standing, Stop> {
        let before = self.published.standing;
        let position = before.position.next().ok_or(Stop::Closing)?;
        let root = LogEntry::chain(before.root, entry);
        let mut bytes = Vec::with_capacity(LogEntry::LEN);
        entry.encode(&mut bytes);
        self.own.append_log(LogRow {
            position,
            entry: bytes,
            root,
            image: entry.image,
            device: entry.device,
        });
        self.published.standing = Standing {
            position,
            root,
            ..before
        };
        Ok(self.published.standing)
    }
}

async fn load_standing(connection: &mut SqliteConnection) -> sqlx::Result<Standing> {
    let incarnation = sqlx::query("SELECT incarnation FROM home")
        .fetch_one(&mut *connection)
        .await?
        .id(0, Incarnation::from_bytes)?;
    let read = |row: SqliteRow| {
        Ok(Standing {
            incarnation,
            position: LogPosition(row.number(0)?),
            root: row.id(1, LogRoot::from_bytes)?,
        })
    };
    let newest = sqlx::query("SELECT position, root FROM log ORDER BY position DESC LIMIT 1")
        .fetch_optional(connection)
        .await?;
    newest.map_or(
        Ok(Standing {
            incarnation,
            position: LogPosition(0),
            root: LogEntry::EMPTY_ROOT,
        }),
        read,
    )
}

/// The image id of log entries that concern no image.
pub(crate) const NO_IMAGE: ImageId = ImageId::from_bytes([0; 32]);
/// The device id of log entries that the home wrote by itself.
pub(crate) const NO_DEVICE: DeviceId = DeviceId::from_bytes([0; 32]);
