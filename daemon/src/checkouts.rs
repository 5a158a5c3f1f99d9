//! What is checked out on this device: opening, finding, recovering and ending checkouts.
//!
//! Owns the list; each checkout is owned by a worker task ([`worker`]) that is sent commands. Leases belong to
//! [`crate::keeper`], files to [`crate::tree`], mounts to [`crate::mount`]; here is decided what happens to them,
//! in which order. `docs/architecture.md` describes the paths, the design of leases the order of durable writes.

mod addressing;
mod apps;
mod branching;
mod deletion;
mod hydrate;
mod lost;
mod metadata;
mod opening;
mod pace;
mod processes;
mod recovery;
mod restoring;
mod rivals;
mod roots;
mod run_id;
#[cfg(test)]
pub(crate) mod scene;
mod status;
mod stealing;
mod thinning;
mod work;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use img_lease::holder::Kind as LeaseKind;
use img_proto::LeaseTerms;
use img_types::{CheckoutId, CommitId, ImageId, ImageName, Token};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::commits::Trust;
use crate::config::Checkpoints;
use crate::error::{ApiError, Kind};
use crate::events::{Event, Events, Reporter};
use crate::home::Home;
use crate::images::{CommitSpec, Images, LocalState};
use crate::keeper::{Clock, Keeper};
use crate::state::{ClosedCheckout, State, TakenRow};
use crate::stream::Uploader;
use crate::tree::Tree;

pub use crate::state::CommitRequest;
pub use hydrate::STAYS as HYDRATION_STAYS;
pub use restoring::RestoreRequest;
pub use stealing::{BranchChoice, StealRequest};

use hydrate::Hydration;
use run_id::RunIds;
use status::View;
use worker::Command;

/// All checkouts of this device.
#[derive(Debug)]
pub struct Checkouts {
    shared: Arc<Shared>,
}

/// What every checkout works with.
#[derive(Debug)]
struct Shared {
    home: Arc<Home>,
    images: Images,
    state: State,
    /// When checkpoints are taken without anybody asking.
    pace: Checkpoints,
    events: Events,
    keeper: Keeper,
    clock: Clock,
    run_ids: RunIds,
    open: Mutex<BTreeMap<CheckoutId, Arc<Checkout>>>,
    /// Folders and checkouts that are being opened, and checkouts that wait for a grant.
    opening: Mutex<BTreeSet<Opening>>,
    /// Names and heads of images as last seen at the home.
    seen: Mutex<BTreeMap<ImageId, Seen>>,
    /// Images that were checked out here when the home had them no more.
    gone: Mutex<BTreeSet<ImageId>>,
    /// Where a branch that keeps an orphan's work has been looked for.
    searched: Mutex<BTreeSet<(CheckoutId, ImageId)>>,
    /// Whether rivals are looked for again soon.
    looks_later: AtomicBool,
}

/// What was last seen of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    name: String,
    head: CommitId,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Opening {
    Dir(PathBuf),
    Checkout(CheckoutId),
}

/// One checkout, for those who ask about it or want something of it.
#[derive(Debug)]
pub struct Checkout {
    shared: Arc<Shared>,
    id: CheckoutId,
    image: ImageId,
    name: String,
    dir: PathBuf,
    opened: img_types::WallMillis,
    /// Nothing where only the lease is left to be given back.
    tree: Option<Arc<Tree>>,
    reporter: Reporter,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    fetched_before: (u64, u64),
    hydration: Hydration,
}

/// How a person names a checkout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its image's name: the leased one, else the only one.
    Name(ImageName),
    /// By its folder.
    Dir(PathBuf),
    /// By a word that is both: the leased one of this name, else the one in the folder, else by name.
    NameOrDir(ImageName, PathBuf),
}

impl Which {
    fn name(&self) -> Option<&ImageName> {
        match self {
            Self::Name(name) | Self::NameOrDir(name, _) => Some(name),
            Self::Dir(_) => None,
        }
    }

    fn dir(&self) -> Option<PathBuf> {
        match self {
            Self::Dir(dir) | Self::NameOrDir(_, dir) => Some(resolve(dir)),
            Self::Name(_) => None,
        }
    }
}

/// Whose files the image's owner's are shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerChoice {
    /// The mounter's.
    Map,
    /// As they are stored.
    Keep,
}

/// A checkout that is wanted.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// Of which image.
    pub name: ImageName,
    /// Where; absolute.
    pub dir: PathBuf,
    /// Without a lease.
    pub read_only: bool,
    /// Of which commit; only without a lease.
    pub at: Option<CommitSpec>,
    /// Terms of the lease.
    pub terms: LeaseTerms,
    /// Whether they were asked for: a checkout that is open already gets them too.
    pub renews: bool,
    /// Whether everything is fetched in the background.
    pub hydrate: bool,
    /// Also over a lapsed lease with newer work at home.
    pub take_over: bool,
    /// How owners are shown; by who runs the daemon where nothing is said.
    pub owner: Option<OwnerChoice>,
}

impl Checkouts {
    /// The checkout that a person means.
    ///
    /// # Errors
    /// There is none, or the name alone does not say which.
    pub fn find(&self, which: &Which) -> Result<Arc<Checkout>, ApiError> {
        let open = self.shared.list();
        let (name, dir) = (which.name(), which.dir());
        let mut of_name: Vec<_> = open
            .iter()
            .filter(|checkout| name.is_some_and(|name| checkout.name() == name.as_str()))
            .collect();
        if let Some(leased) = of_name.iter().find(|checkout| checkout.has_token()) {
            return Ok(Arc::clone(leased));
        }
        let in_dir = |checkout: &&Arc<Checkout>| Some(&checkout.dir) == dir.as_ref();
        if let Some(found) = open.iter().find(in_dir) {
            return Ok(Arc::clone(found));
        }
        match (of_name.pop(), of_name.is_empty(), name, dir) {
            (Some(only), true, ..) => Ok(Arc::clone(only)),
            (Some(_), false, Some(name), _) => Err(ApiError::usage(format!(
                "{name} is checked out more than once; say which by its folder (`imgctl status` lists them)."
            ))),
            (_, _, Some(name), _) => Err(ApiError::not_found(
                format!("{name} is not checked out on this device."),
                format!(
                    "`imgctl checkout {name}` checks it out; `imgctl status` lists the checkouts."
                ),
            )),
            (_, _, None, dir) => Err(ApiError::not_found(
                format!(
                    "Nothing is checked out at {}.",
                    dir.unwrap_or_default().display()
                ),
                "`imgctl status` lists the checkouts of this device.",
            )),
        }
    }

    /// The status of every checkout.
    pub fn list_json(&self) -> Vec<Value> {
        let open = self.shared.list();
        open.iter().map(|checkout| checkout.to_json()).collect()
    }

    /// The folder of an image's checkout: the leased one, else another.
    pub fn dir_of(&self, image: ImageId) -> Option<String> {
        let mut of_image: Vec<_> = self.shared.of_image(image);
        of_image.sort_by_key(|checkout| (!checkout.has_token(), checkout.is_read_only()));
        let first = of_image.first()?;
        Some(first.dir.display().to_string())
    }

    /// The checkout that a person means, if it has ended not long ago.
    pub async fn closed(&self, which: &Which) -> Option<ClosedCheckout> {
        let (name, dir) = (which.name().map(ToString::to_string), which.dir());
        let found = self
            .shared
            .state
            .with(move |db| db.closed_checkout(name.as_deref(), dir.as_deref()))
            .await;
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "ended checkouts cannot be read");
            None
        })
    }

    /// The state of an image's checkout as it is now, sealed on this device: of the one that was to be committed,
    /// else of another. Nothing where there is none.
    ///
    /// # Errors
    /// The disk is full, or something that a seal needs is not here.
    pub async fn sealed_state(&self, name: &ImageName) -> Result<Option<LocalState>, ApiError> {
        let open = self.shared.list().into_iter();
        let of_name = open.filter(|checkout| checkout.name() == name.as_str());
        let Some(checkout) = of_name.min_by_key(|checkout| checkout.is_read_only()) else {
            return Ok(None);
        };
        let Some(tree) = checkout.tree.clone() else {
            return Ok(None);
        };
        checkout.checkpoint(String::new()).await?;
        if let Err(mut told) = checkout.sealed().await {
            if checkout.view.borrow().unsealed.is_some() {
                told.hint = format!(
                    "Copy the files that you need from {}: `cp -a` works there.",
                    checkout.dir.display()
                );
            }
            return Err(told);
        }
        let id = checkout.id;
        let row = self.shared.state.with(move |db| db.checkout(id)).await;
        let row = row.map_err(ApiError::failed)?.ok_or_else(ending)?;
        let open = |trust: &Trust<'_>| trust.open_descriptor(row.image, &row.descriptor);
        let descriptor = self.shared.images.trusted(open).map_err(ApiError::failed)?;
        Ok(tree.root().map(|root| LocalState {
            root,
            boundary: descriptor.boundary,
        }))
    }

    /// Whether a grant to a checkout is awaited or in use.
    pub fn wants(&self, checkout: CheckoutId, token: Token) -> bool {
        let awaited = lock(&self.shared.opening).contains(&Opening::Checkout(checkout));
        let holder = self.shared.keeper.holder(checkout);
        awaited || holder.is_some_and(|holder| holder.token() == Some(token))
    }

    /// Whether a checkout is open here.
    pub fn has(&self, checkout: CheckoutId) -> bool {
        lock(&self.shared.open).contains_key(&checkout)
    }

    /// The home answers again.
    pub fn home_is_back(&self) {
        if !lock(&self.shared.open).is_empty() {
            self.refresh_heads();
        }
    }

    /// The home says that an image has changed.
    pub fn image_changed(&self, image: ImageId) {
        if !self.shared.of_image(image).is_empty() {
            self.refresh_heads();
        }
    }

    /// Syncs and unmounts everything; leases and what is uncommitted stay as they are.
    pub async fn stop(&self) {
        let stopping = self.shared.list().into_iter().map(|checkout| async move {
            let _ = checkout.ask(|done| Command::Stop { done }).await;
        });
        futures_util::future::join_all(stopping).await;
    }

    /// Learns the heads of the images that are checked out, and tells of those that moved.
    fn refresh_heads(&self) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let asked = shared.clock.now();
            let open = shared.list().into_iter().map(|checkout| {
                let of = checkout.image();
                (checkout, of)
            });
            let open: Vec<_> = open.collect();
            match shared.images.list().await {
                Ok(listing) if !listing.stale => {
                    shared.notice_rivals(&listing.images, asked).await;
                    shared.notice_deletions(&open, &listing.images).await;
                    for image in listing.images {
                        if let Some(head) = image.head_id() {
                            shared.saw_head(image.row.image, image.name().as_str(), head);
                        }
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the images could not be listed"),
            }
        });
    }
}

impl Shared {
    fn list(&self) -> Vec<Arc<Checkout>> {
        lock(&self.open).values().cloned().collect()
    }

    fn of_image(&self, image: ImageId) -> Vec<Arc<Checkout>> {
        let open = lock(&self.open);
        let of_image = open.values().filter(|checkout| checkout.image() == image);
        of_image.cloned().collect()
    }

    fn uploader(&self, checkout: CheckoutId) -> Uploader {
        let (home, state) = (Arc::clone(&self.home), self.state.clone());
        Uploader::new(home, state, self.keeper.clone(), checkout)
    }

    fn head(&self, image: ImageId) -> Option<CommitId> {
        lock(&self.seen).get(&image).map(|seen| seen.head)
    }

    fn name(&self, image: ImageId) -> Option<String> {
        lock(&self.seen).get(&image).map(|seen| seen.name.clone())
    }

    fn saw_head(&self, image: ImageId, name: &str, head: CommitId) {
        let name = name.to_owned();
        let seen = Seen {
            name: name.clone(),
            head,
        };
        let before = lock(&self.seen).insert(image, seen);
        if before.is_none_or(|before| before.head != head) {
            self.events.send(Event::Head { image, name, head });
        }
    }

    fn tell_state(&self, checkout: &Checkout, state: &'static str) {
        self.tell_taken(checkout, state, None);
    }

    /// Tells of a checkout's state, and of who took over what it was of before.
    fn tell_taken(&self, checkout: &Checkout, state: &'static str, taken: Option<TakenRow>) {
        let (rival, reason, left) = match taken {
            Some(taken) => (Some(taken.device), taken.reason, Some(taken.name)),
            None => (None, None, None),
        };
        self.events.send(Event::Checkout {
            checkout: checkout.id,
            name: checkout.name(),
            dir: checkout.dir.display().to_string(),
            state,
            rival,
            reason,
            left,
        });
    }
}

impl Checkout {
    /// Where its operations say how far they are.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Takes a checkpoint; returns when it is durable on this device.
    ///
    /// # Errors
    /// The disk is full, or the checkout is ending.
    pub async fn checkpoint(&self, message: String) -> Result<Value, ApiError> {
        let cut = self
            .ask(|done| Command::Checkpoint { message, done })
            .await??;
        Ok(cut.to_json())
    }

    /// Commits everything up to now; returns when it is at home, or with `wait` unset when the checkpoint is
    /// durable on this device.
    ///
    /// # Errors
    /// The home is away or refuses, or the checkout may not commit.
    pub async fn commit(&self, request: CommitRequest, wait: bool) -> Result<Value, ApiError> {
        let (committed, outcome) = oneshot::channel();
        let cut = self
            .ask(|done| Command::Commit {
                request,
                done,
                committed,
            })
            .await??;
        if !wait {
            return Ok(cut.to_json());
        }
        outcome.await.map_err(|_| ending())?
    }

    /// An application starts in the checkout, in this cgroup if one could be made. Returns its run id and the file
    /// that holds it.
    ///
    /// # Errors
    /// Another one runs, or it is no cgroup of an application.
    pub async fn run(&self, cgroup: Option<PathBuf>) -> Result<Value, ApiError> {
        self.ask(|done| Command::Run { cgroup, done }).await?
    }

    /// Closes the checkout.
    ///
    /// # Errors
    /// Files are open, or something would be lost, or the home is away: then it finishes by itself.
    pub async fn release(&self, discard: bool) -> Result<Value, ApiError> {
        self.ask(|done| Command::Release { discard, done }).await?
    }

    async fn mount_again(&self) -> Result<(), ApiError> {
        self.ask(|done| Command::Mount { done }).await?
    }

    /// The image that it is of: it may have gone on as a branch since it was opened.
    fn image(&self) -> ImageId {
        let holder = self.shared.keeper.holder(self.id);
        holder.map_or(self.image, |holder| holder.image())
    }

    /// The image's name: it may have been renamed since the checkout was opened.
    fn name(&self) -> String {
        let seen = self.shared.name(self.image());
        seen.unwrap_or_else(|| self.name.clone())
    }

    fn is_read_only(&self) -> bool {
        let holder = self.shared.keeper.holder(self.id);
        holder.is_some_and(|holder| holder.kind() == LeaseKind::ReadOnly)
    }

    /// Whether something here is in no commit at home.
    fn is_changed(&self) -> bool {
        let stats = self.tree.as_ref().map(|tree| tree.stats());
        stats.is_some_and(|stats| stats.changed || stats.closed > 0)
            || !self.view.borrow().checkpoints.is_empty()
    }

    /// Whether its lease is somebody else's, or its image is gone.
    fn is_lost(&self) -> bool {
        let holder = self.shared.keeper.holder(self.id);
        holder.is_some_and(|holder| holder.kind() == LeaseKind::Orphan)
    }

    fn has_token(&self) -> bool {
        let holder = self.shared.keeper.holder(self.id);
        holder.is_some_and(|holder| holder.token().is_some())
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ApiError> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(command(done)).await;
        sent.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())
    }
}

fn ending() -> ApiError {
    ApiError::new(
        Kind::Failed,
        "The checkout has ended, or the daemon is ending.",
        "`imgctl status` shows where things stand.",
    )
}

/// A folder's path without links; as it is where it does not exist.
fn resolve(dir: &Path) -> PathBuf {
    // Of the folder itself only the parent is looked at: a dead mount answers nothing.
    let resolved = dir
        .parent()
        .zip(dir.file_name())
        .and_then(|(parent, name)| Some(parent.canonicalize().ok()?.join(name)));
    resolved.unwrap_or_else(|| dir.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
