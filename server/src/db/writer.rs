//! The one task that writes: groups queued work into transactions and answers when it is durable.
//!
//! What a piece of work leaves waits in memory or stands behind a savepoint. A refusal drops the one and rolls
//! back the other, so a refused call changes nothing, and the others of its group go on. Nobody is answered
//! before the group's transaction is on disk. If what the group left cannot be written, the group is taken back
//! and everybody in it is told; a failing commit ends the process: what is in memory is then ahead of what is
//! durable, and start-up reads the truth again.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use img_proto::{Refusal, Standing};
use img_records::Roster;
use sqlx::SqliteConnection;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::{Needs, SharedRoster, Stop, Tx};
use crate::clock::{RunningClock, RunningMillis};

/// What the writer tells everybody after each durable transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published {
    /// The end of the log.
    pub(crate) standing: Standing,
    /// Grows with every group; wakes those who wait for rows outside the log.
    pub(crate) group: u64,
}

/// Tells a caller how its work ended, or that its group was lost.
type Answer = Box<dyn FnOnce(Option<Lost>) + Send>;
type Work = Box<dyn for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, (Ended, Answer)> + Send>;

/// A piece of work in the queue.
struct Queued {
    needs: Option<Needs>,
    work: Work,
}

/// What becomes of a piece of work, or of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Kept,
    TakenBack,
    Lost(Lost),
}

/// Why a group was taken back whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// The disk is full, and SQLite may have taken the group back by itself.
    Full,
    /// Its rows could not be written.
    Unwritten,
}

impl Lost {
    fn by(error: &sqlx::Error) -> Self {
        if is_full(error) {
            tracing::error!("the database's disk is full; nothing was written");
            Self::Full
        } else {
            tracing::error!(%error, "a group of calls could not be written");
            Self::Unwritten
        }
    }

    fn stop(self) -> Stop {
        match self {
            Self::Full => Refusal::NoRoom("the database's disk is full".to_owned()).into(),
            Self::Unwritten => Stop::Broken("its group could not be written".to_owned()),
        }
    }
}

/// Sends work to the writer task.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Queued>,
    published: watch::Receiver<Published>,
    roster: watch::Receiver<SharedRoster>,
    clock: RunningClock,
    task: Arc<tokio::sync::Mutex<Option<JoinHandle<()>>>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Writer {
    /// Starts the task.
    pub(super) async fn start(
        connection: SqliteConnection,
        roster: Option<Roster>,
        group_max: usize,
    ) -> sqlx::Result<Self> {
        let tx = Tx::open(connection, roster).await?;
        let clock = tx.clock().clone();
        let (publish, published) = watch::channel(tx.published());
        let (publish_roster, roster) = watch::channel(tx.shared_roster().clone());
        let (queue, incoming) = mpsc::channel(group_max);
        let (stop, stopped) = watch::channel(false);
        let run = run(
            tx,
            incoming,
            Publish {
                published: publish,
                roster: publish_roster,
            },
            stopped,
            group_max,
        );
        // Each statement is a turn of the database's thread, which a thread of its own waits for most cheaply:
        // a task would go through the runtime's poller every time.
        let runtime = tokio::runtime::Handle::current();
        let task = tokio::task::spawn_blocking(move || runtime.block_on(run));
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
        self.queue_up(None, work).await
    }

    /// The same for work of which is known what it will ask for, which is read with what others of its group
    /// need.
    ///
    /// # Errors
    /// As of [`Writer::call`].
    pub(crate) async fn call_needing<T, F>(&self, needs: Needs, work: F) -> Result<T, Stop>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, Result<T, Stop>> + Send + 'static,
    {
        self.queue_up(Some(needs), work).await
    }

    async fn queue_up<T, F>(&self, needs: Option<Needs>, work: F) -> Result<T, Stop>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, Result<T, Stop>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |tx| {
            Box::pin(async move {
                let result = work(tx).await;
                let ended = match &result {
                    Ok(_) => Ended::Kept,
                    Err(Stop::Database(error)) if is_full(error) => Ended::Lost(Lost::by(error)),
                    Err(_) => Ended::TakenBack,
                };
                let answer: Answer = Box::new(move |lost| {
                    let result = lost.map_or(result, |lost| Err(lost.stop()));
                    // A caller who no longer waits finds the outcome under its request id.
                    let _ = answer.send(result);
                });
                (ended, answer)
            })
        });
        let queued = Queued { needs, work };
        self.queue.send(queued).await.map_err(|_| Stop::Closing)?;
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

/// Tells everybody what has become durable.
struct Publish {
    published: watch::Sender<Published>,
    roster: watch::Sender<SharedRoster>,
}

impl Publish {
    fn tell(&self, tx: &Tx) {
        let seq = |roster: &SharedRoster| roster.as_ref().map(|roster| roster.seq());
        self.roster.send_if_modified(|roster| {
            let changed = seq(roster) != seq(tx.shared_roster());
            if changed {
                roster.clone_from(tx.shared_roster());
            }
            changed
        });
        self.published.send_replace(tx.published());
    }
}

async fn run(
    mut tx: Tx,
    mut incoming: mpsc::Receiver<Queued>,
    publish: Publish,
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
        let before = tx.memory();
        let mut answers = Vec::with_capacity(group.len());
        let lost = match run_group(&mut tx, &mut group, &mut answers).await {
            Ok(Ended::Kept) => {
                publish.tell(&tx);
                None
            }
            Ok(Ended::TakenBack) => {
                tx.abandon(before).await;
                None
            }
            Ok(Ended::Lost(lost)) => {
                tx.abandon(before).await;
                Some(lost)
            }
            Err(error) => fatal(&error),
        };
        answers.into_iter().for_each(|answer| answer(lost));
    }
    if let Err(error) = tx.close().await {
        tracing::error!(%error, "the database did not close cleanly");
    }
}

/// Runs a group and makes it durable, unless all of it was taken back (so that refusals, which strangers
/// can provoke, cost no sync) or cannot be written. Work of a lost group that did not run is told nothing but
/// that its queue has gone.
async fn run_group(
    tx: &mut Tx,
    group: &mut Vec<Queued>,
    answers: &mut Vec<Answer>,
) -> sqlx::Result<Ended> {
    let needs: Vec<Needs> = group.iter().filter_map(|queued| queued.needs).collect();
    tx.begin(&needs).await?;
    let mut whole = Ended::TakenBack;
    for queued in group.drain(..) {
        let before = tx.memory();
        let (ended, answer) = (queued.work)(tx).await;
        answers.push(answer);
        if let Some(error) = tx.torn() {
            return Ok(Ended::Lost(Lost::by(&error)));
        }
        match ended {
            Ended::Lost(lost) => return Ok(Ended::Lost(lost)),
            Ended::Kept => {
                whole = Ended::Kept;
                tx.keep().await?;
            }
            Ended::TakenBack => tx.take_back(before).await?,
        }
    }
    if whole == Ended::TakenBack {
        return Ok(whole);
    }
    if let Err(error) = tx.write().await {
        return Ok(Ended::Lost(Lost::by(&error)));
    }
    match tx.commit().await {
        Err(error) if is_full(&error) => Ok(Ended::Lost(Lost::by(&error))),
        outcome => outcome.map(|()| whole),
    }
}

/// SQLite's code for a full disk: the one failure of a commit that leaves nothing in doubt.
fn is_full(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some("13")
}

fn fatal(error: &sqlx::Error) -> ! {
    tracing::error!(%error, "a transaction did not become durable; the home stops here");
    std::process::abort()
}

#[cfg(test)]
mod tests;
