//! The task that owns one checkout: its mount, its cuts, what is sealed and streamed, and its end.
//!
//! ```text
//!  open ──release──▶ releasing ──nothing uncommitted──▶ ending ──lease given back──▶ gone
//!    ▲  ──discard──▶ discarding ───────────────────────▶ ending
//!    └── the home refuses the last commit ──┘
//! ```
//!
//! Commands and the outcomes of background work come in one at a time; between two the worker starts what can go
//! on: at most one seal, one commit and one farewell at a time. Sealing does not wait for streaming, so that
//! checkpoints go on while a slow link is busy.

mod adopt;
mod application;
mod automatic;
mod commit;
mod cuts;
mod ending;
mod kept;
mod restore;
mod stage;
mod waiting;
mod wishes;

use std::collections::BTreeMap;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;

use img_overlay::GenerationId;
use img_proto::LeaseTerms;
use img_seal::Reference;
use img_types::{CheckoutId, CommitId, ImageId};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::branching::{Branched, Onward};
use super::lost::{LeftOut, Place, seal_oldest};
use super::status::{Cut, View};
use super::work::{self, CommitError, SealingError};
use super::{CommitRequest, Shared};
use crate::cgroup::Cgroup;
use crate::commits::{OpenCommit, OpenDescriptor};
use crate::error::{ApiError, Kind};
use crate::events::{self, Reporter};
use crate::home::CallError;
use crate::images::NamedRoot;
use crate::mount::{MountConfig, Mounted};
use crate::seal::{SealError, SealedRoot};
use crate::state::{CheckpointRow, Stage, TakenRow, WishRow};
use crate::stream::{Sent, Settled, UploadError};
use crate::tree::Tree;

use automatic::Automatic;
pub(super) use automatic::AutomaticView;
use commit::Pause;
use cuts::WaitingCut;
pub(super) use ending::remove;
pub(super) use restore::{Restoring, Step};
use stage::Staging;
use wishes::Wishes;

/// What others want of a checkout.
#[derive(Debug)]
pub(super) enum Command {
    Checkpoint {
        message: String,
        done: oneshot::Sender<Result<Cut, ApiError>>,
    },
    Commit {
        request: CommitRequest,
        done: oneshot::Sender<Result<Cut, ApiError>>,
        committed: oneshot::Sender<Result<Value, ApiError>>,
    },
    Release {
        discard: bool,
        done: oneshot::Sender<Result<Value, ApiError>>,
    },
    /// Goes back to another root.
    Restore {
        restoring: Box<Restoring>,
        done: oneshot::Sender<Result<Step, ApiError>>,
    },
    /// Mounts again what somebody unmounted.
    Mount {
        done: oneshot::Sender<Result<(), ApiError>>,
    },
    /// An application starts, in this cgroup if there is one.
    Run {
        cgroup: Option<PathBuf>,
        done: oneshot::Sender<Result<Value, ApiError>>,
    },
    /// Goes on as a branch that the home has leased to this checkout.
    Onward(Box<Onward>),
    /// Syncs and unmounts; the daemon is ending.
    Stop { done: oneshot::Sender<()> },
}

impl Command {
    /// Refuses what a checkout whose changes are dropped has nothing for; returns anything else.
    fn refused(self, told: impl FnOnce() -> ApiError) -> Option<Self> {
        match self {
            Self::Checkpoint { done, .. } | Self::Commit { done, .. } => {
                let _ = done.send(Err(told()));
            }
            Self::Mount { done } => {
                let _ = done.send(Err(told()));
            }
            other => return Some(other),
        }
        None
    }
}

/// Everything about one checkout.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) checkout: CheckoutId,
    pub(super) image: ImageId,
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) descriptor: OpenDescriptor,
    pub(super) terms: LeaseTerms,
    pub(super) stage: Stage,
    /// Nothing where only the lease is left to be given back.
    pub(super) tree: Option<Arc<Tree>>,
    pub(super) mounted: Option<Mounted>,
    /// What holds the application that was started in it.
    application: Option<Cgroup>,
    pub(super) base: Option<OpenCommit>,
    pub(super) checkpoints: Vec<CheckpointRow>,
    pub(super) reporter: Reporter,
    pub(super) view: watch::Sender<View>,
    /// Roots of generations that no commit contains, with the bytes sealed for each.
    pub(super) roots: BTreeMap<u64, (Reference, u64)>,
    pub(super) sealed_upto: u64,
    /// Checkpoints that are kept although a later state is a commit, oldest first.
    past: Vec<CheckpointRow>,
    /// Roots of all checkpoints, by the generations that they end with.
    kept: BTreeMap<u64, Reference>,
    waiting_cuts: Vec<WaitingCut>,
    pub(super) wishes: Wishes,
    /// Set while a commit that did not come about waits to be tried again.
    paused: Option<Pause>,
    /// How often in succession none came about.
    tries: u32,
    /// Whether the home has refused the signed commit that waits.
    signed_in_vain: bool,
    /// Why what somebody wanted who has gone is wanted no more.
    refusal: Option<String>,
    /// The branch to go on as.
    onward: Option<Onward>,
    /// The generation up to which a person's checkpoints are to be staged.
    stage_upto: Option<u64>,
    /// Set while what streams is a staging.
    staging: Option<Staging>,
    stage_again: Option<Instant>,
    automatic: Automatic,
    release_waiters: Vec<oneshot::Sender<Result<Value, ApiError>>>,
    /// Set while a release does not know whether it goes on.
    looking: Option<Looking>,
    sealing: Option<JoinHandle<Sealed>>,
    seal_again: Option<Instant>,
    streaming: Option<JoinHandle<Streamed>>,
    /// Lost files that a seal has left out for a commit that waits for it, as they are told.
    left_out: Vec<Value>,
    /// Generations sealed since the outbox was last trimmed.
    untrimmed: u32,
    farewell: Option<JoinHandle<Result<(), CallError>>>,
    farewell_again: Option<Instant>,
    /// Since when the home has been away, or has not answered, while somebody waits.
    away_since: Option<Instant>,
    shown_last: Option<events::Progress>,
}

/// A generation that was sealed, if there was one.
type Sealed = Result<Option<(GenerationId, SealedRoot)>, SealingError>;

/// What is in history, and the newest generation that it contains; nothing where none was to be resumed.
type Streamed = Result<Option<(u64, Arrived)>, CommitError>;

/// How a root came home.
enum Arrived {
    /// As the image's head.
    Commit(Box<Settled>),
    /// As the first commit of a branch.
    Branch(Box<Branched>),
    /// Beside the head, with what had to be sent for it.
    Staged(CommitId, Sent),
    /// It is there: an orphan that stands on it has the lease again.
    Adopted,
    /// Not: parts are lost, and have been taken out of the checkout.
    LeftOut(Vec<LeftOut>),
}

impl Arrived {
    /// How long the connection was used for it.
    fn busy(&self) -> std::time::Duration {
        match self {
            Self::Commit(settled) => settled.sent.busy,
            Self::Branch(branched) => branched.sent.busy,
            Self::Staged(_, sent) => sent.busy,
            Self::LeftOut(_) | Self::Adopted => std::time::Duration::ZERO,
        }
    }
}

/// A question to the home, what became of a lease that was lost during a release.
struct Looking {
    task: JoinHandle<()>,
    /// Why the last commit was refused.
    error: ApiError,
}

/// What ends a worker.
enum Flow {
    GoOn,
    End,
}

/// What happens to a worker.
enum Happened {
    Commanded(Option<Command>),
    Sealed(Sealed),
    Streamed(Streamed),
    NotStaged(CommitError),
    SaidFarewell(Result<(), CallError>),
    Looked(ApiError),
    GenerationClosed,
    Due,
    Unmounted,
    ApplicationEnded,
    Ticked,
}

/// What a worker starts with.
pub(super) struct Beginning {
    pub(super) shared: Arc<Shared>,
    pub(super) row: crate::state::CheckoutRow,
    pub(super) descriptor: OpenDescriptor,
    pub(super) tree: Option<Arc<Tree>>,
    pub(super) base: Option<OpenCommit>,
    pub(super) checkpoints: Vec<CheckpointRow>,
    /// Commits that were wanted before the restart.
    pub(super) wishes: Vec<WishRow>,
    /// Who took over what it was of before.
    pub(super) taken: Option<TakenRow>,
    pub(super) reporter: Reporter,
    /// Whether a commit was under way before the restart.
    pub(super) pending: bool,
    /// What ran in it before the restart; it may have ended.
    pub(super) application: Option<Cgroup>,
}

impl Worker {
    /// A worker that has not begun, and what it shows.
    pub(super) fn new(beginning: Beginning) -> (Self, watch::Receiver<View>) {
        let (view, shown) = watch::channel(View::default());
        let row = beginning.row;
        let automatic = Automatic::new(
            beginning.shared.pace.clone(),
            &beginning.checkpoints,
            &beginning.wishes,
        );
        let mut worker = Self {
            shared: beginning.shared,
            checkout: row.checkout,
            image: row.image,
            name: row.name,
            dir: row.dir,
            descriptor: beginning.descriptor,
            terms: row.terms,
            stage: row.stage,
            tree: beginning.tree,
            mounted: None,
            application: beginning.application,
            base: beginning.base,
            checkpoints: beginning.checkpoints,
            reporter: beginning.reporter,
            view,
            roots: BTreeMap::new(),
            sealed_upto: 0,
            past: Vec::new(),
            kept: BTreeMap::new(),
            waiting_cuts: Vec::new(),
            wishes: Wishes::default(),
            paused: None,
            tries: 0,
            signed_in_vain: false,
            refusal: None,
            onward: None,
            stage_upto: None,
            staging: None,
            stage_again: None,
            automatic,
            release_waiters: Vec::new(),
            looking: None,
            sealing: None,
            seal_again: None,
            streaming: None,
            left_out: Vec::new(),
            // Whatever the daemon that ended left.
            untrimmed: TRIM_AFTER,
            farewell: None,
            farewell_again: None,
            away_since: None,
            shown_last: None,
        };
        worker.sealed_upto = worker.tree.as_ref().map_or(0, |tree| tree.sealed_upto());
        worker.take_kept();
        worker.take_refusal();
        worker.view.send_modify(|view| {
            view.sealed_bytes = row.sealed_bytes;
            view.sent_bytes = row.sent_bytes;
            view.taken = beginning.taken;
            view.show_cut(worker.checkpoints.last());
        });
        worker.show_application();
        // Whether it was staged is not known any more.
        worker.stage_upto = worker.checkpoints.last().map(|row| row.generation);
        worker.show();
        worker.wish_again(beginning.wishes);
        // What was taken for a commit alone is given back with all the rest.
        if beginning.pending && worker.stage != Stage::Discarding {
            worker.resume_commit();
        }
        if worker.stage == Stage::Releasing {
            worker.wish_for_the_rest();
        }
        (worker, shown)
    }

    /// Mounts the tree.
    pub(super) fn mount(&mut self) -> Result<(), ApiError> {
        let Some(tree) = self.tree.clone().filter(|_| self.mounted.is_none()) else {
            return Ok(());
        };
        let config = MountConfig {
            dir: self.dir.clone(),
            suid: false,
            dev: false,
            shared: rustix::process::geteuid().is_root(),
        };
        let mounted = block_in_place(|| {
            std::fs::create_dir_all(&self.dir)?;
            Mounted::new(tree, &config, &Handle::current())
        });
        self.mounted = Some(mounted.map_err(|error| self.cannot_mount(&error))?);
        self.set_problem(None);
        self.show();
        Ok(())
    }

    /// Works until the checkout is gone or the daemon ends.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.advance().await;
            self.show();
            let happened = self.next(&mut inbox, &mut tick).await;
            if let Flow::End = self.apply(happened).await {
                return;
            }
        }
    }

    async fn next(
        &mut self,
        inbox: &mut mpsc::Receiver<Command>,
        tick: &mut tokio::time::Interval,
    ) -> Happened {
        let again = [self.seal_again, self.farewell_again, self.stage_again]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            biased;
            command = inbox.recv() => Happened::Commanded(command),
            sealed = joined(&mut self.sealing, || SealError::Ending.into()) => {
                self.sealing = None;
                Happened::Sealed(sealed)
            }
            streamed = joined(&mut self.streaming, || UploadError::Interrupted.into()) => {
                self.streaming = None;
                self.count_stream(&streamed);
                match (self.staging.take(), streamed) {
                    (Some(_), Err(error)) => Happened::NotStaged(error),
                    (_, streamed) => Happened::Streamed(streamed),
                }
            }
            said = joined(&mut self.farewell, || CallError::Away) => {
                self.farewell = None;
                Happened::SaidFarewell(said)
            }
            error = looked(&mut self.looking) => {
                self.looking = None;
                Happened::Looked(error)
            }
            () = Pause::end(&mut self.paused) => {
                self.paused = None;
                Happened::Ticked
            }
            () = Automatic::due(self.automatic.wake()) => Happened::Due,
            () = closed(self.tree.as_ref()) => Happened::GenerationClosed,
            () = unmounted(self.mounted.as_ref()) => Happened::Unmounted,
            () = application::ended(self.application.as_ref()) => Happened::ApplicationEnded,
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                self.seal_again = None;
                self.farewell_again = None;
                self.stage_again = None;
                Happened::Ticked
            }
            _ = tick.tick(), if self.somebody_waits() => Happened::Ticked,
        }
    }

    async fn apply(&mut self, happened: Happened) -> Flow {
        match happened {
            Happened::Commanded(Some(Command::Stop { done })) => {
                self.stop();
                let _ = done.send(());
                return Flow::End;
            }
            Happened::Commanded(None) => {
                self.stop();
                return Flow::End;
            }
            Happened::Commanded(Some(command)) => self.obey(command),
            Happened::Sealed(Ok(Some((generation, sealed)))) => {
                // A restore may have come between the seal and this word of it.
                self.sealed_upto = self.sealed_upto.max(generation.0);
                self.automatic.pace.spend(sealed.core_time);
                self.roots
                    .insert(generation.0, (sealed.root, sealed.sealed_bytes));
                self.keep_checkpoint_root(generation.0, sealed.root);
                self.keep_root(generation.0);
                self.untrimmed = self.untrimmed.saturating_add(1);
                self.view.send_modify(|view| view.unsealed = None);
                self.set_problem(None);
                self.cut_waiting();
            }
            Happened::Sealed(Ok(None)) => {}
            Happened::Sealed(Err(SealingError::LeftOut(left_out))) => {
                self.left_out_early(&left_out);
            }
            Happened::Sealed(Err(error)) => {
                tracing::warn!(checkout = %self.checkout.short(), %error, "changes are not sealed yet");
                let told = work::explain_sealing(&error);
                self.view.send_modify(|view| {
                    view.unsealed = Some(told.clone());
                    view.seal_failures += 1;
                });
                self.set_problem(Some(told.message.clone()));
                self.seal_again = Some(Instant::now() + SEAL_PAUSE);
                self.tell_who_waits(&told);
            }
            Happened::Streamed(Ok(Some((generation_max, Arrived::Commit(settled))))) => {
                self.committed(generation_max, *settled);
            }
            Happened::Streamed(Ok(Some((generation_max, Arrived::Branch(branched))))) => {
                self.branched(generation_max, *branched).await;
            }
            Happened::Streamed(Ok(Some((generation, Arrived::Staged(commit, _))))) => {
                self.staged(generation, commit);
            }
            Happened::Streamed(Ok(Some((generation_max, Arrived::Adopted)))) => {
                self.adopted(generation_max);
            }
            Happened::Streamed(Ok(Some((generation_max, Arrived::LeftOut(left_out))))) => {
                self.left_out(generation_max, left_out);
            }
            Happened::NotStaged(error) => self.not_staged(&error),
            Happened::Streamed(Ok(None)) => {}
            Happened::Streamed(Err(error)) => self.not_committed(&error),
            Happened::SaidFarewell(Ok(())) => {
                self.end().await;
                return Flow::End;
            }
            Happened::SaidFarewell(Err(error)) => {
                tracing::warn!(checkout = %self.checkout.short(), %error, "the lease is not given back yet");
                let error = self.shared.home.explain(&error, &self.name);
                self.answer_release(|| Err(error.clone()));
                self.farewell_again = Some(Instant::now() + SEAL_PAUSE);
            }
            Happened::Looked(error) => self.looked(error),
            Happened::Unmounted => self.unmounted_by_others(),
            Happened::ApplicationEnded => self.application_ended(),
            Happened::GenerationClosed | Happened::Due => {}
            Happened::Ticked => self.notice_absence(),
        }
        Flow::GoOn
    }

    fn obey(&mut self, command: Command) {
        let command = match self.stage {
            Stage::Discarding => command.refused(|| self.is_being_closed()),
            _ => Some(command),
        };
        let Some(command) = command else {
            return;
        };
        if matches!(
            command,
            Command::Checkpoint { .. }
                | Command::Commit { .. }
                | Command::Release { .. }
                | Command::Restore { .. }
        ) {
            self.forget_taken();
        }
        match command {
            Command::Checkpoint { message, done } => {
                self.seal_again = None;
                self.cut_or_wait(WaitingCut {
                    message,
                    done,
                    wish: None,
                });
            }
            Command::Commit {
                request,
                done,
                committed,
            } => {
                if let Err(error) = self.may_commit(&request) {
                    let _ = done.send(Err(error));
                    return;
                }
                self.forget_refusal();
                self.seal_again = None;
                self.cut_or_wait(WaitingCut {
                    message: request.message.clone(),
                    done,
                    wish: Some((request, committed)),
                });
            }
            Command::Release { discard, done } => {
                self.paused = None;
                self.release(discard, done);
            }
            Command::Restore { restoring, done } => {
                let _ = done.send(self.restore(&restoring));
            }
            Command::Mount { done } => {
                let _ = done.send(self.mount());
            }
            Command::Run { cgroup, done } => {
                let _ = done.send(self.run_application(cgroup.as_deref()));
            }
            Command::Onward(onward) => self.wish_onward(*onward),
            // Handled where the task can end.
            Command::Stop { .. } => {}
        }
    }

    /// Starts what can go on.
    async fn advance(&mut self) {
        self.start_automatic();
        if self.sealing.is_none()
            && self.seal_again.is_none()
            && self.stage != Stage::Discarding
            && let Some(tree) = &self.tree
            && tree.closed_oldest().is_some()
        {
            let place = Place {
                shared: Arc::clone(&self.shared),
                checkout: self.checkout,
                boundary: self.descriptor.boundary,
                name: self.name.clone(),
                dir: self.dir.clone(),
                leaves_out: self.leaves_out(),
            };
            self.sealing = Some(tokio::spawn(seal_oldest(place, Arc::clone(tree))));
        }
        self.start_onward().await;
        self.start_commit();
        self.start_stage();
        self.start_trim();
        self.start_farewell();
    }

    /// Trims the outbox now and then, in place of a seal: the two must not meet.
    fn start_trim(&mut self) {
        let is_due = self.untrimmed >= TRIM_AFTER && self.stage != Stage::Discarding;
        if !is_due || self.sealing.is_some() || self.streaming.is_some() || self.is_written_down() {
            return;
        }
        let Some(tree) = self.tree.clone() else {
            return;
        };
        self.untrimmed = 0;
        let base = self.base.as_ref().map(OpenCommit::root);
        let wished = self.wishes.iter();
        let wished = wished.map(|wish| wish.generation).chain(self.stage_upto);
        let wished = wished.filter_map(|generation| self.roots.get(&generation));
        let roots = wished.map(|(root, _)| *root).chain(tree.root());
        let roots = roots.chain(self.kept_roots());
        let roots = roots.filter(|root| Some(*root) != base);
        let roots = roots.map(|root| root.id).collect();
        let (shared, checkout) = (Arc::clone(&self.shared), self.checkout);
        self.sealing = Some(tokio::spawn(async move {
            if let Err(error) = work::trim(&shared, checkout, tree, roots).await {
                tracing::warn!(checkout = %checkout.short(), %error, "the outbox is not trimmed");
            }
            Ok(None)
        }));
    }

    /// Somebody else unmounted: that is a checkpoint, and the lease stays.
    fn unmounted_by_others(&mut self) {
        if let Some(mut mounted) = self.mounted.take()
            && let Err(error) = block_in_place(|| mounted.unmount())
        {
            tracing::warn!(%error, "a mount ended badly");
        }
        tracing::info!(checkout = %self.checkout.short(), "a checkout was unmounted; its lease is kept");
        if let Err(error) = self.cut("") {
            tracing::warn!(%error, "no checkpoint was taken");
        }
    }

    /// Shows what does not go on; where all does, what was refused while nobody waited.
    pub(super) fn set_problem(&self, problem: Option<String>) {
        let problem = problem.or_else(|| self.refusal.clone());
        let refused = problem.is_some() && problem == self.refusal;
        self.view
            .send_modify(|view| (view.problem, view.refused) = (problem, refused));
    }

    fn show(&self) {
        self.view.send_modify(|view| {
            view.mounted = self.mounted.is_some();
            let base = self.base.as_ref();
            view.base = base.map(|base| NamedRoot::new(base.id, base.root()));
            view.checkpoints.clone_from(&self.checkpoints);
            view.streaming = self.streaming.is_some();
            view.releasing = self.stage != Stage::Open;
            view.discarding = self.stage == Stage::Discarding;
        });
    }

    fn cannot_mount(&self, error: &std::io::Error) -> ApiError {
        let message = format!(
            "{} cannot be mounted at {}: {error}.",
            self.name,
            self.dir.display()
        );
        ApiError::new(
            Kind::Failed,
            message,
            "`imgctl doctor` checks what mounting needs.",
        )
    }

    /// Durable and unmounted, as it stands; for the end of the daemon.
    fn stop(&mut self) {
        // All of it is repeated after the restart.
        if let Some(task) = self.sealing.take() {
            task.abort();
        }
        if let Some(task) = self.streaming.take() {
            task.abort();
        }
        if let Some(task) = self.farewell.take() {
            task.abort();
        }
        if let Some(looking) = self.looking.take() {
            looking.task.abort();
        }
        block_in_place(|| {
            if let Some(mut mounted) = self.mounted.take()
                && let Err(error) = mounted.unmount()
            {
                tracing::warn!(dir = %self.dir.display(), %error, "files are open; the mount is detached");
            }
            if let Some(tree) = &self.tree
                && let Err(error) = tree.sync()
            {
                tracing::error!(%error, "a checkout ends without its last changes");
            }
        });
        self.show();
    }
}

/// Waits for a task that runs, for ever if there is none; one that panicked ends with `broken`.
async fn joined<T, E>(
    task: &mut Option<JoinHandle<Result<T, E>>>,
    broken: impl FnOnce() -> E,
) -> Result<T, E> {
    match task {
        Some(running) => running.await.unwrap_or_else(|_| Err(broken())),
        None => pending().await,
    }
}

/// Waits until the home has been asked; returns why the last commit was refused.
async fn looked(looking: &mut Option<Looking>) -> ApiError {
    match looking {
        Some(looking) => {
            // One that panicked has found nothing.
            let _ = (&mut looking.task).await;
            looking.error.clone()
        }
        None => pending().await,
    }
}

async fn closed(tree: Option<&Arc<Tree>>) {
    match tree {
        Some(tree) => tree.generation_closed().await,
        None => pending().await,
    }
}

async fn unmounted(mounted: Option<&Mounted>) {
    match mounted {
        Some(mounted) => mounted.ended().await,
        None => pending().await,
    }
}

/// How often it is looked whether the home is away while somebody waits.
const TICK: std::time::Duration = std::time::Duration::from_millis(500);
/// Generations that may be sealed without a commit before the outbox is trimmed: each leaves a few nodes.
const TRIM_AFTER: u32 = 16;
/// Pause before a seal or a farewell that failed is tried again.
const SEAL_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);
