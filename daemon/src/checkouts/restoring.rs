//! The way back: a checkout stands on an older state, on the live mount, after what is there has been saved.
//!
//! ```text
//!  find the state ─▶ cut and seal what is here ─▶ fetch what tells the two apart ─▶ the worker's moment ─▶ done
//!                            ▲                                                            │
//!                            └──────────── something was written meanwhile ───────────────┘
//! ```
//!
//! Nothing of the checkout changes before the last step, so that whatever fails leaves it as it was; and that step
//! takes one write of the journal, whatever the size of the image ([`super::worker`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use img_seal::Reference;
use img_types::{CommitId, ImageName};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::worker::{Command, Restoring, Step};
use super::{Checkout, Checkouts, Which, processes};
use crate::diff::{DiffError, touched};
use crate::error::{ApiError, Kind};
use crate::home::CallError;
use crate::images::{CommitSpec, Local, NamedRoot};
use crate::import::Cancel;
use crate::mount::Forget;
use crate::objects::FetchError;
use crate::tree::{Failure, Tree};

/// A restore that is wanted.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// To what; to the commit that the checkout stands on where nothing is said.
    pub to: Option<CommitSpec>,
    /// Also while files are open for writing.
    pub force: bool,
}

/// A state to go back to.
struct Target {
    named: NamedRoot,
    /// Where it is a checkpoint of the same checkout, the generation that it ends with.
    generation: Option<u64>,
}

impl Checkouts {
    /// Sets a checkout to an older state, after having saved what is there. Programs go on in it.
    ///
    /// # Errors
    /// There is no such state, or it is not here and the home is away; files are open for writing, or programs do
    /// not stop writing. Nothing has changed then.
    pub async fn restore(&self, which: &Which, request: RestoreRequest) -> Result<Value, ApiError> {
        let started = Instant::now();
        let checkout = self.find(which)?;
        let Some(tree) = checkout.tree.clone() else {
            return Err(super::ending());
        };
        let target = self.target(&checkout, request.to.as_ref()).await?;
        let mut saved = Value::Null;
        for _ in 0..ROUNDS_MAX {
            if !request.force && tree.writers() > 0 {
                return Err(checkout.is_written());
            }
            let cut = checkout.checkpoint(SAVED.to_owned()).await?;
            let replaced = cut["checkpoint"].clone();
            if cut["unchanged"] == false {
                saved.clone_from(&replaced);
            }
            checkout.sealed().await?;
            let Some(from) = tree.root() else {
                continue;
            };
            let forget = self.touched(&checkout, &tree, from, &target).await?;
            let differing = forget.inodes.len() + forget.entries.len();
            let restoring = Box::new(Restoring {
                from,
                root: target.named.root(),
                id: target.named.id,
                generation: target.generation,
                force: request.force,
                forget,
            });
            let done = |checkpoint: Value| {
                json!({
                    "restored_to": target.named.id,
                    "saved": saved,
                    "replaced": replaced,
                    "unchanged": checkpoint.is_null(),
                    "checkpoint": checkpoint,
                    "differing": differing,
                    "ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                })
            };
            if from == restoring.root {
                return Ok(done(Value::Null));
            }
            let step = checkout.ask(|done| Command::Restore { restoring, done });
            match step.await?? {
                Step::Done(row) => {
                    let id = data_encoding::HEXLOWER.encode(&row.checkpoint);
                    return Ok(done(Value::String(id)));
                }
                Step::Writers => return Err(checkout.is_written()),
                Step::Again => {}
            }
        }
        Err(ApiError::new(
            Kind::Busy,
            format!(
                "Nothing was restored: programs write to {} all the time.",
                checkout.dir.display()
            ),
            "Stop them, or wait until they pause, and ask again. What they wrote up to now is in checkpoints.",
        ))
    }

    /// Finds the state that is meant.
    async fn target(
        &self,
        checkout: &Checkout,
        to: Option<&CommitSpec>,
    ) -> Result<Target, ApiError> {
        let Some(to) = to else {
            return checkout.base_target().await;
        };
        // Whoever names one that is not sealed hears of it.
        let _ = checkout.sealed().await;
        let local = self.own_local(checkout).await;
        // What is here is found although the home is away or the image is gone.
        let named = match self.only_here(checkout, to, &local).await? {
            Some(named) => named,
            None => {
                let name = ImageName::parse(&checkout.name()).map_err(ApiError::failed)?;
                let image = self.shared.images.find_seen(&name).await?;
                self.shared.images.restorable(&image, to, &local).await?
            }
        };
        let mut own = local.checkpoints.iter();
        let own = own.find(|own| CommitId::from_bytes(own.row.checkpoint) == named.id);
        Ok(Target {
            named,
            generation: own.map(|own| own.row.generation),
        })
    }

    /// What is known here beside the history, of this checkout: what another one has goes with that one.
    async fn own_local(&self, checkout: &Checkout) -> Local {
        let mut local = self.local_of(checkout.image()).await;
        local
            .checkpoints
            .retain(|other| other.row.checkout == checkout.id);
        local
    }

    /// A checkpoint of this checkout that is meant, unless a commit that is known here may be meant as well.
    async fn only_here(
        &self,
        checkout: &Checkout,
        to: &CommitSpec,
        local: &Local,
    ) -> Result<Option<NamedRoot>, ApiError> {
        let Some(named) = local.only_here(to) else {
            return Ok(None);
        };
        let image = checkout.image();
        let known = self.shared.state.with(move |db| db.acknowledged(image));
        let known = known.await.map_err(ApiError::failed)?;
        let is_only = known.iter().all(|known| !to.may_mean(&known.commit));
        Ok(is_only.then_some(named))
    }

    /// Finds what tells two states apart, and brings what that needs to this device.
    async fn touched(
        &self,
        checkout: &Checkout,
        tree: &Arc<Tree>,
        from: Reference,
        target: &Target,
    ) -> Result<Forget, ApiError> {
        let (objects, root) = (Arc::clone(self.shared.home.objects()), target.named.root());
        let (runtime, cancel) = (Handle::current(), Cancel::default());
        let cancelled = cancel.clone();
        let found = tokio::task::spawn_blocking(move || {
            touched(&objects, &runtime, from, root, &cancelled)
        });
        let found = tokio::select! {
            found = found => found.map_err(ApiError::failed)?,
            () = self.home_is_missed() => {
                cancel.cancel();
                Err(FetchError::Away.into())
            }
        };
        let forget = found.map_err(|error| self.explain_absent(checkout, &error))?;
        if let Err(Failure::Absent(wanted)) = tree.can_stand_on(&root) {
            let stands = Arc::clone(tree).repeat(wanted, move |tree| tree.can_stand_on(&root));
            let away = |_| self.explain_absent(checkout, &FetchError::Away.into());
            stands.await.map_err(away)?;
        }
        Ok(forget)
    }

    /// Returns when the home has been away for a while and something is to come from it.
    async fn home_is_missed(&self) {
        let home = &self.shared.home;
        let mut since = Instant::now();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if home.connected() || !home.objects().waits_for_home() {
                since = Instant::now();
            } else if since.elapsed() > AWAY_PATIENCE {
                return;
            }
        }
    }

    fn explain_absent(&self, checkout: &Checkout, error: &DiffError) -> ApiError {
        let (home, name) = (&self.shared.home, checkout.name());
        let told = match error {
            DiffError::Fetch(FetchError::Away) => home.explain(&CallError::Away, &name),
            DiffError::Fetch(FetchError::Never) => home.explain(&home.absence(), &name),
            DiffError::Fetch(FetchError::Store(_)) | DiffError::Cancelled => {
                return ApiError::failed(error);
            }
            _ => ApiError::new(
                Kind::Corrupt,
                format!("A part of {name} cannot be had: {error}."),
                "Ask whoever runs the home; `imgctl doctor` checks this device.",
            ),
        };
        let message = format!(
            "{} Parts of that state are not on this device; nothing was changed.",
            told.message
        );
        ApiError { message, ..told }
    }
}

impl Checkout {
    /// The commit that the checkout stands on.
    async fn base_target(&self) -> Result<Target, ApiError> {
        let id = self.id;
        let row = self.shared.state.with(move |db| db.checkout(id)).await;
        let row = row.map_err(ApiError::failed)?.ok_or_else(super::ending)?;
        let Some(base) = row.base else {
            return Err(ApiError::usage(format!(
                "{} has no commit yet: say with --to which checkpoint it is to go back to.",
                self.name()
            )));
        };
        let images = &self.shared.images;
        let base = images.trusted(|trust| trust.reopen_commit(row.image, &base));
        let base = base.map_err(ApiError::failed)?;
        Ok(Target {
            named: NamedRoot::new(base.id, base.root()),
            generation: None,
        })
    }

    fn is_written(&self) -> ApiError {
        let writers = tokio::task::block_in_place(|| processes::writers_of(&self.dir));
        processes::written(&self.dir, &writers)
    }
}

/// What the checkpoint is called that holds what was replaced.
const SAVED: &str = "before restore";
/// How often it is tried to find a moment in which nobody has written anything since the last cut.
const ROUNDS_MAX: u32 = 10;
/// How often it is looked whether the home is away.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long an absent home is waited for: a person looks on.
const AWAY_PATIENCE: Duration = Duration::from_secs(3);
