//! Brings everything below a root to this device's disk.
//!
//! What was asked for is written down until it is complete: it goes on after a restart and when the home is back,
//! whether or not anybody watches. What only a person can mend ends it, and is shown until it is asked for again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use img_index::NodeSource;
use img_proto::Class;
use img_seal::Reference;
use img_store::StoreError;
use tokio::sync::{Notify, watch};

use super::{Checkout, ending, lock};
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::objects::{FetchError, Objects};
use crate::state::{HydrationRow, StateError};

/// Objects that were fetched, and their bytes; or why not everything was.
type Outcome = Result<(u64, u64), ApiError>;

/// How far a checkout's hydration is.
#[derive(Debug)]
pub(super) struct Hydration {
    reporter: Reporter,
    /// What becomes of the one that runs; ended where its sender is gone.
    running: Mutex<Option<watch::Receiver<Option<Outcome>>>>,
    /// Somebody asks while an absent home is waited for.
    asked: Notify,
    problem: Mutex<Option<ApiError>>,
}

impl Default for Hydration {
    fn default() -> Self {
        Self {
            reporter: Reporter::new(Phase::Fetch),
            running: Mutex::default(),
            asked: Notify::new(),
            problem: Mutex::default(),
        }
    }
}

impl Hydration {
    /// Bytes fetched by the one that runs.
    pub(super) fn now(&self) -> Option<u64> {
        self.running().map(|_| self.reporter.now().done_bytes)
    }

    /// Why the last one did not bring everything.
    pub(super) fn problem(&self) -> Option<ApiError> {
        lock(&self.problem).clone()
    }

    fn running(&self) -> Option<watch::Receiver<Option<Outcome>>> {
        let running = lock(&self.running).clone();
        running.filter(|running| running.has_changed().is_ok())
    }

    /// Notes why the last one has ended before everything was here, or that it goes on.
    fn set_problem(&self, problem: Option<ApiError>) {
        *lock(&self.problem) = problem;
    }

    /// Brings everything below a root to the disk. Returns the objects that were fetched, and their bytes.
    ///
    /// The cache gives up its oldest objects for new ones, and these may be the root's own. So the index is
    /// walked again until nothing was given up on the way. What is fetched is the newest, so as long as all of it
    /// fits, nothing is fetched twice; once more was fetched than the cache may hold, the root does not fit.
    ///
    /// # Errors
    /// Something cannot be had, or does not fit ([`StoreError::NoRoom`]).
    pub(super) async fn run(
        &self,
        objects: &Arc<Objects>,
        root: Reference,
    ) -> Result<(u64, u64), FetchError> {
        self.reporter.phase(Phase::Fetch, None);
        let mut fetched = Fetched::default();
        loop {
            let (before, evictions) = (fetched.objects, objects.usage().evictions);
            self.walk(objects, root, &mut fetched).await?;
            if fetched.objects == before || objects.usage().evictions == evictions {
                return Ok((fetched.objects, fetched.bytes));
            }
        }
    }

    /// Walks the index depth first, with the objects of each leaf at once.
    async fn walk(
        &self,
        objects: &Arc<Objects>,
        root: Reference,
        fetched: &mut Fetched,
    ) -> Result<(), FetchError> {
        let mut nodes = vec![root];
        while let Some(reference) = nodes.pop() {
            let len = objects.bring(&reference.id, Class::Hydrate).await?;
            fetched.objects += u64::from(len.is_some());
            fetched.bytes += len.unwrap_or(0);
            let node = loop {
                if let Some(node) = objects.node(&reference) {
                    break node;
                }
                objects.fetch_nodes(&[reference], Class::Hydrate).await?;
            };
            if node.level() > 0 {
                // The leftmost child is visited first.
                nodes.extend((0..node.len()).rev().map(|position| node.child(position)));
                continue;
            }
            let values = (0..node.len()).map(|position| node.entry(position).1);
            let below: Vec<_> = values
                .flat_map(|value| value.references().map(|found| found.id).collect::<Vec<_>>())
                .collect();
            let mut arrivals = stream::iter(below)
                .map(|id| async move { objects.bring(&id, Class::Hydrate).await })
                .buffer_unordered(FETCHES_AT_ONCE);
            while let Some(arrived) = arrivals.try_next().await? {
                if let Some(len) = arrived {
                    fetched.objects += 1;
                    fetched.bytes += len;
                    self.reporter.advance(len);
                }
            }
            if fetched.bytes > objects.allowance() {
                return Err(StoreError::NoRoom.into());
            }
        }
        Ok(())
    }
}

impl Checkout {
    /// Where its hydration says how far it is.
    pub fn hydration_reporter(&self) -> &Reporter {
        &self.hydration.reporter
    }

    /// Fetches everything of the checkout's root. Returns the objects that were fetched, and their bytes. It goes
    /// on by itself where whoever asked goes away, the daemon ends, or the home is away.
    ///
    /// # Errors
    /// The home is away, or something cannot be had or does not fit.
    pub async fn hydrate(self: &Arc<Self>) -> Outcome {
        self.want_hydration().await?;
        let Some(mut running) = self.go_on_hydrating() else {
            return Ok((0, 0));
        };
        if running.borrow().is_some() {
            // What was said before is not the answer: the home may be back.
            running.mark_unchanged();
            self.hydration.asked.notify_one();
        }
        loop {
            let is_over = running.changed().await.is_err();
            let outcome = running.borrow_and_update().clone();
            match outcome {
                Some(outcome) => return outcome,
                None if is_over => return Err(ending()),
                None => {}
            }
        }
    }

    /// Writes down that everything is wanted here.
    ///
    /// # Errors
    /// The disk is full.
    pub(super) async fn want_hydration(&self) -> Result<(), ApiError> {
        let wanted = self.keep_hydration(HydrationRow::default()).await;
        wanted.map_err(ApiError::failed)
    }

    /// Goes on with what was asked for before the daemon ended.
    pub(super) fn hydrate_again(self: &Arc<Self>, row: HydrationRow) {
        match row.problem {
            Some((message, hint)) => {
                let problem = ApiError::new(Kind::Failed, message, hint);
                self.hydration.set_problem(Some(problem));
            }
            None => drop(self.go_on_hydrating()),
        }
    }

    /// Starts the task that fetches everything, or joins the one that runs. Nothing where there is nothing to fetch
    /// for.
    pub(super) fn go_on_hydrating(self: &Arc<Self>) -> Option<watch::Receiver<Option<Outcome>>> {
        self.tree.as_ref()?;
        if let Some(running) = self.hydration.running() {
            return Some(running);
        }
        self.hydration.set_problem(None);
        let (outcome, running) = watch::channel(None);
        *lock(&self.hydration.running) = Some(running.clone());
        let checkout = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                // It is wanted on where the daemon ends.
                () = checkout.commands.closed() => {}
                () = checkout.bring_all(&outcome) => {}
            }
        });
        Some(running)
    }

    async fn bring_all(&self, outcome: &watch::Sender<Option<Outcome>>) {
        loop {
            let brought = match self.tree.as_ref().and_then(|tree| tree.root()) {
                Some(root) => self.hydration.run(self.shared.home.objects(), root).await,
                None => Ok((0, 0)),
            };
            let is_away = matches!(brought, Err(FetchError::Away | FetchError::Never));
            let brought = brought.map_err(|error| explain(&error, &self.name()));
            if !is_away {
                let kept = self.hydration_ended(brought.as_ref().err()).await;
                if let Err(error) = kept {
                    tracing::warn!(%error, "a hydration is made once more after a restart");
                }
                outcome.send_replace(Some(brought));
                return;
            }
            // Who waits hears it; all goes on when the home is back.
            outcome.send_replace(Some(brought));
            let is_back = async {
                tokio::time::sleep(PAUSE).await;
                self.shared.home.reachable().await;
            };
            tokio::select! {
                () = is_back => {}
                () = self.hydration.asked.notified() => {}
            }
            outcome.send_replace(None);
        }
    }

    async fn hydration_ended(&self, problem: Option<&ApiError>) -> Result<(), StateError> {
        self.hydration.set_problem(problem.cloned());
        let Some(problem) = problem else {
            let checkout = self.id;
            let state = &self.shared.state;
            return state.with(move |db| db.hydrated(checkout)).await;
        };
        tracing::warn!(error = %problem, "not everything was fetched");
        self.keep_hydration(HydrationRow {
            problem: Some((problem.message.clone(), problem.hint.clone())),
        })
        .await
    }

    async fn keep_hydration(&self, row: HydrationRow) -> Result<(), StateError> {
        let checkout = self.id;
        let state = &self.shared.state;
        state.with(move |db| db.set_hydration(checkout, &row)).await
    }
}

/// What came from the home so far.
#[derive(Debug, Default)]
struct Fetched {
    objects: u64,
    bytes: u64,
}

pub(super) fn explain(error: &FetchError, name: &str) -> ApiError {
    match error {
        FetchError::Away => ApiError::away(STAYS),
        FetchError::Never => ApiError::new(
            Kind::HomeAway,
            format!("{name} cannot be fetched: {error}."),
            STAYS,
        ),
        FetchError::Missing(_) | FetchError::Corrupt(_) => ApiError::new(
            Kind::Corrupt,
            format!("A part of {name} cannot be had: {error}."),
            "Ask whoever runs the home; `imgctl doctor` checks this device.",
        ),
        FetchError::Store(StoreError::NoRoom) => ApiError::new(
            Kind::NoRoom,
            format!(
                "{name} does not fit on this device: its cache is full, or its disk. What is here goes on \
                 working; the rest is fetched when it is read."
            ),
            "`imgctl cache` shows the limit and what is free; make room, or set a higher one with --limit, and ask again with `imgctl hydrate`.",
        ),
        FetchError::Store(_) => ApiError::failed(error),
    }
}

/// What becomes of a hydration whose home is away.
pub const STAYS: &str =
    "What has been fetched stays, and the rest is fetched by itself when the home can be reached.";
/// Pause before an absent home is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// Objects asked for at once: enough for a long link, in a few batches.
const FETCHES_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests;
