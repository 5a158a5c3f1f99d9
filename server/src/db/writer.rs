//! The one task that writes: groups queued work into transactions and answers when it is durable.
//!
//! Each piece of work runs inside a savepoint. A refusal rolls its savepoint back, so a refused
//! call changes nothing, and the others of its group go on. Nobody is answered before the group's
//! transaction is on disk. A failing commit ends the process: what is in memory is then ahead of
//! what is durable, and start-up reads the truth again.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use img_proto::{Refusal, Standing};
use img_records::log::LogEntry;
use img_records::roster::Roster;
use img_types::{ImageId, LogPosition};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::images::Moment;
use super::{Columns as _, SharedRoster, big};
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

/// What the writer tells everybody after each durable transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published {
    /// The end of the log.
    pub(crate) standing: Standing,
    /// Grows with every group; wakes those who wait for rows outside the log.
    pub(crate) group: u64,
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

impl Tx {
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

type Answer = Box<dyn FnOnce() + Send>;
type Work = Box<dyn for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, (bool, Answer)> + Send>;

/// Sends work to the writer task.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Work>,
    published: watch::Receiver<Published>,
    roster: watch::Receiver<SharedRoster>,
    clock: RunningClock,
    task: Arc<tokio::sync::Mutex<Option<JoinHandle<()>>>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Writer {
    /// Starts the task.
    pub(super) async fn start(
        mut connection: SqliteConnection,
        roster: Option<Roster>,
        group_max: usize,
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
        let tx = Tx {
            connection,
            published: Published { standing, group: 0 },
            roster: roster.map(Arc::new),
            now: clock.now(),
            clock: clock.clone(),
            next_object,
        };
        let (publish, published) = watch::channel(tx.published);
        let (publish_roster, roster) = watch::channel(tx.roster.clone());
        let (queue, incoming) = mpsc::channel(group_max);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(
            tx,
            incoming,
            (publish, publish_roster),
            stopped,
            group_max,
        ));
        Ok(Self {
            queue,
            published,
            roster,
            clock,
            task: Arc::new(tokio::sync::Mutex::new(Some(task))),
            stop: Arc::new(stop),
        })
    }

    /// Runs `work` inside a transaction and answers once that is durable.
    ///
    /// # Errors
    /// The work was refused or failed, and then had no effect.
    pub(crate) async fn call<T, F>(&self, work: F) -> Result<T, Stop>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, Result<T, Stop>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |tx| {
            Box::pin(async move {
                let result = work(tx).await;
                let keep = result.is_ok();
                let answer: Answer = Box::new(move || {
                    // A caller who no longer waits finds the outcome under its request id.
                    let _ = answer.send(result);
                });
                (keep, answer)
            })
        });
        self.queue.send(work).await.map_err(|_| Stop::Closing)?;
        answered.await.map_err(|_| Stop::Closing)?
    }

    /// What the newest durable transaction left.
    pub(crate) fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    /// The roster that the newest durable transaction left.
    pub(crate) fn roster(&self) -> watch::Receiver<SharedRoster> {
        self.roster.clone()
    }

    /// The running clock now.
    pub(crate) fn now(&self) -> RunningMillis {
        self.clock.now()
    }

    /// Moves the running clock on.
    #[cfg(test)]
    pub(crate) fn advance_clock(&self, ms: u64) {
        self.clock.advance(ms);
    }

    /// When this process began to serve, on the running clock.
    pub(crate) fn started(&self) -> RunningMillis {
        self.clock.started()
    }

    /// Finishes what is queued and ends the task.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.lock().await.take() {
            // A panic of the task has been reported by the runtime.
            let _ = task.await;
        }
    }
}

async fn run(
    mut tx: Tx,
    mut incoming: mpsc::Receiver<Work>,
    publish: (watch::Sender<Published>, watch::Sender<SharedRoster>),
    mut stopped: watch::Receiver<bool>,
    group_max: usize,
) {
    let mut group = Vec::with_capacity(group_max);
    loop {
        let taken = tokio::select! {
            biased;
            taken = incoming.recv_many(&mut group, group_max) => taken,
            // Closing refuses new work; what is queued is still taken above.
            _ = stopped.wait_for(|stop| *stop), if !incoming.is_closed() => {
                incoming.close();
                continue;
            }
        };
        if taken == 0 {
            break;
        }
        match run_group(&mut tx, group.drain(..)).await {
            Ok(answers) => {
                tx.published.group += 1;
                publish.1.send_if_modified(|roster| {
                    let seq = |roster: &SharedRoster| roster.as_ref().map(|roster| roster.seq());
                    let changed = seq(roster) != seq(&tx.roster);
                    if changed {
                        roster.clone_from(&tx.roster);
                    }
                    changed
                });
                publish.0.send_replace(tx.published);
                for answer in answers {
                    answer();
                }
            }
            Err(error) => fatal(&error),
        }
    }
    if let Err(error) = sqlx::Connection::close(tx.connection).await {
        tracing::error!(%error, "the database did not close cleanly");
    }
}

async fn run_group(tx: &mut Tx, group: impl Iterator<Item = Work>) -> sqlx::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    tx.now = tx.clock.now();
    execute(tx, "BEGIN IMMEDIATE").await?;
    for work in group {
        let before = (tx.published, tx.roster.clone());
        execute(tx, "SAVEPOINT work").await?;
        let (keep, answer) = work(tx).await;
        if !keep {
            execute(tx, "ROLLBACK TO SAVEPOINT work").await?;
            (tx.published, tx.roster) = before;
        }
        execute(tx, "RELEASE SAVEPOINT work").await?;
        answers.push(answer);
    }
    sqlx::query("UPDATE home SET running_ms = $1")
        .bind(big(tx.now.0))
        .execute(&mut tx.connection)
        .await?;
    execute(tx, "COMMIT").await?;
    Ok(answers)
}

async fn execute(tx: &mut Tx, sql: &'static str) -> sqlx::Result<()> {
    sqlx::query(sql).execute(&mut tx.connection).await?;
    Ok(())
}

async fn load_standing(connection: &mut SqliteConnection) -> sqlx::Result<Standing> {
    let incarnation = sqlx::query("SELECT incarnation FROM home")
        .fetch_one(&mut *connection)
        .await?
        .id(0, img_types::Incarnation::from_bytes)?;
    let read = |row: SqliteRow| {
        Ok(Standing {
            incarnation,
            position: LogPosition(row.number(0)?),
            root: row.id(1, img_types::LogRoot::from_bytes)?,
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

fn fatal(error: &sqlx::Error) -> ! {
    tracing::error!(%error, "a transaction did not become durable; the home stops here");
    std::process::abort()
}

/// The image id of log entries that concern no image.
pub(crate) const NO_IMAGE: ImageId = ImageId::from_bytes([0; 32]);
