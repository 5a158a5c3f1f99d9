//! One transaction of the writer, as the work inside it sees it.

use std::sync::Arc;

use img_proto::{Refusal, Standing};
use img_records::{LogEntry, Roster};
use img_types::{DeviceId, ImageId, Incarnation, LogPosition, LogRoot};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, SqliteConnection};

use super::images::Moment;
use super::{Columns as _, Published, SharedRoster, big};
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

    /// Begins a group and its first piece of work.
    pub(super) async fn begin(&mut self) -> sqlx::Result<()> {
        self.now = self.clock.now();
        self.execute("BEGIN IMMEDIATE; SAVEPOINT work").await
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
        self.restore(saved);
    }

    fn restore(&mut self, saved: Saved) {
        self.published = saved.published;
        self.roster = saved.roster;
    }

    /// Ends a piece of work and begins the next.
    pub(super) async fn keep(&mut self) -> sqlx::Result<()> {
        self.execute("RELEASE SAVEPOINT work; SAVEPOINT work").await
    }

    /// Takes a piece of work back and begins the next; the savepoint stays.
    pub(super) async fn take_back(&mut self, saved: Saved) -> sqlx::Result<()> {
        self.execute("ROLLBACK TO SAVEPOINT work").await?;
        self.restore(saved);
        Ok(())
    }

    /// Makes the group durable, and with it the running clock.
    pub(super) async fn commit(&mut self) -> sqlx::Result<()> {
        sqlx::query("UPDATE home SET running_ms = $1")
            .bind(big(self.now.0))
            .execute(&mut self.connection)
            .await?;
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

    /// The connection, inside the transaction.
    pub(crate) fn sql(&mut self) -> &mut SqliteConnection {
        &mut self.connection
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
            .execute(&mut self.connection)
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
    pub(crate) async fn append_log(&mut self, entry: &LogEntry) -> Result<Standing, Stop> {
        let before = self.published.standing;
        let position = before.position.next().ok_or(Stop::Closing)?;
        let root = LogEntry::chain(before.root, entry);
        let mut bytes = Vec::with_capacity(LogEntry::LEN);
        entry.encode(&mut bytes);
        sqlx::query(
            "INSERT INTO log (position, entry, root, image, device) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(big(position.0))
        .bind(bytes)
        .bind(&root.as_bytes()[..])
        .bind(&entry.image.as_bytes()[..])
        .bind(&entry.device.as_bytes()[..])
        .execute(&mut self.connection)
        .await?;
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
