//! The worker's way from a release to the end of the checkout.

use img_lease::holder::Kind as LeaseKind;
use img_types::CheckoutId;
use rustix::io::Errno;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::block_in_place;

use super::{Looking, Worker};
use crate::checkouts::{lock, processes, work};
use crate::error::{ApiError, Kind};
use crate::events::Phase;
use crate::home::Home;
use crate::state::{ClosedCheckout, Stage, State};

impl Worker {
    /// Begins to close the checkout, or joins those who wait for its end.
    pub(super) fn release(
        &mut self,
        discard: bool,
        done: oneshot::Sender<Result<Value, ApiError>>,
    ) {
        let begun = match (self.stage, discard) {
            (Stage::Discarding, _) | (Stage::Releasing, false) => Ok(()),
            (Stage::Opening | Stage::Open | Stage::Releasing, _) => self.begin_release(discard),
        };
        match begun {
            Ok(()) => {
                self.forget_refusal();
                self.away_since = None;
                self.release_waiters.push(done);
            }
            Err(error) => {
                let _ = done.send(Err(error));
            }
        }
    }

    fn begin_release(&mut self, discard: bool) -> Result<(), ApiError> {
        if !discard {
            self.refuse_to_lose()?;
        }
        let was_mounted = self.mounted.is_some();
        self.reporter.phase(Phase::Unmount, None);
        self.unmount()?;
        let begun = if discard {
            self.begin_discard()
        } else {
            self.begin_last_commit()
        };
        if begun.is_err() && was_mounted {
            self.mount_again();
        }
        begun
    }

    fn begin_discard(&mut self) -> Result<(), ApiError> {
        // Durable before anything is dropped: if it cannot be, all goes on.
        self.enter(Stage::Discarding)?;
        self.discard();
        Ok(())
    }

    fn begin_last_commit(&mut self) -> Result<(), ApiError> {
        // What was written between the look and the unmount is not lost either.
        self.refuse_to_lose()?;
        if let Some(tree) = self.tree.clone()
            && self.is_unsaved()
        {
            // Durable before the promise to finish by itself.
            block_in_place(|| tree.sync()).map_err(|error| {
                ApiError::new(
                    Kind::NoRoom,
                    format!("The last changes cannot be written: {error}."),
                    "Make room on this device and ask again.",
                )
            })?;
        }
        self.enter(Stage::Releasing)?;
        self.wish_for_the_rest();
        Ok(())
    }

    /// Mounts after a release that did not come about, as before.
    fn mount_again(&mut self) {
        match self.mount() {
            Ok(()) => self.set_problem(None),
            Err(failed) => {
                tracing::warn!(error = %failed, "a checkout is not mounted again");
                self.set_problem(Some(failed.message));
            }
        }
    }

    /// A checkout that cannot commit is not closed while it holds changes.
    fn refuse_to_lose(&self) -> Result<(), ApiError> {
        if !self.is_unsaved() {
            return Ok(());
        }
        let holder = self.shared.keeper.holder(self.checkout);
        match holder.map(|holder| holder.kind()) {
            Some(LeaseKind::Orphan) => Err(work::orphan(
                &self.shared,
                self.image,
                &self.name,
                &self.dir,
            )),
            Some(LeaseKind::ReadOnly) => Err(ApiError::new(
                Kind::Unsaved,
                format!("This read-only checkout of {} holds changes.", self.name),
                format!(
                    "Commit them with `imgctl commit {0}` (if nothing was committed since), save them as a new image with `imgctl commit {0} --branch NEW`, or drop them with `imgctl release {0} --discard`.",
                    self.dir.display()
                ),
            )),
            Some(LeaseKind::Leased | LeaseKind::Lapsed | LeaseKind::Closed) | None => Ok(()),
        }
    }

    /// Whether something here is in no commit at home.
    pub(super) fn is_unsaved(&self) -> bool {
        self.tree.as_ref().is_some_and(|tree| {
            let stats = tree.stats();
            stats.changed || stats.closed > 0 || self.is_ahead(tree)
        })
    }

    fn unmount(&mut self) -> Result<(), ApiError> {
        let Some(mounted) = &mut self.mounted else {
            return Ok(());
        };
        let unmounted = block_in_place(|| mounted.unmount());
        match unmounted {
            Ok(()) => {
                self.mounted = None;
                Ok(())
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                let users = block_in_place(|| processes::users_of(&self.dir));
                Err(processes::busy(&self.dir, &users))
            }
            Err(error) => Err(ApiError::failed(format!(
                "{} cannot be unmounted: {error}",
                self.dir.display()
            ))),
        }
    }

    fn discard(&mut self) {
        // The call that stages is waited for: what it stages is dropped at home too.
        if !self.give_way()
            && self.staging.is_none()
            && let Some(streaming) = self.streaming.take()
        {
            streaming.abort();
        }
        let dropped = || ApiError::failed("the changes were dropped");
        for waiting in std::mem::take(&mut self.waiting_cuts) {
            let _ = waiting.done.send(Err(dropped()));
        }
        for mut wish in self.wishes.take_all() {
            wish.answer(Err(dropped()));
        }
    }

    fn enter(&mut self, stage: Stage) -> Result<(), ApiError> {
        let checkout = self.checkout;
        block_in_place(|| self.shared.state.now(|db| db.set_stage(checkout, stage)))
            .map_err(ApiError::failed)?;
        self.stage = stage;
        Ok(())
    }

    /// The last commit was refused. Where somebody has taken the lease over, the home is asked whether the work
    /// is to go on as a branch: then the release ends there.
    pub(super) fn not_released(&mut self, error: ApiError) {
        let holder = self.shared.keeper.holder(self.checkout);
        if holder.is_none_or(|holder| holder.kind() != LeaseKind::Orphan) {
            self.call_off_release(error);
            return;
        }
        let shared = self.shared.clone();
        self.looking = Some(Looking {
            task: tokio::spawn(async move { shared.look_for_rivals().await }),
            error,
        });
    }

    /// The home has been asked what became of the lease; a branch to go on as has been heard of before this.
    pub(super) fn looked(&mut self, error: ApiError) {
        let holder = self.shared.keeper.holder(self.checkout);
        let goes_on =
            self.onward.is_some() || holder.is_some_and(|holder| holder.token().is_some());
        if self.stage == Stage::Releasing && !goes_on {
            self.call_off_release(error);
        }
    }

    /// The last commit was refused: the checkout stays, mounted as before.
    fn call_off_release(&mut self, error: ApiError) {
        if self
            .release_waiters
            .iter()
            .any(|waiter| !waiter.is_closed())
        {
            self.forget_refusal();
        } else {
            // Whoever asked for it has gone.
            self.keep_refusal(format!("It could not be released. {}", error.message));
        }
        if let Err(failed) = self.enter(Stage::Open) {
            // A restart would try it once more, and be refused as well.
            tracing::error!(error = %failed, "a release that is called off may be tried again");
            self.stage = Stage::Open;
        }
        self.mount_again();
        self.answer_release(|| Err(error.clone()));
    }

    /// Gives the lease back, once nothing is left to be committed.
    pub(super) fn start_farewell(&mut self) {
        let is_due = match self.stage {
            Stage::Opening | Stage::Open => false,
            Stage::Releasing if self.looking.is_some() || self.onward.is_some() => false,
            Stage::Releasing => {
                let settled = self.wishes.is_empty() && self.streaming.is_none();
                if settled && self.sealing.is_none() && self.is_unsaved() {
                    self.wish_for_the_rest();
                    // What is sealed already brings no event that would start it.
                    self.start_commit();
                }
                settled && self.wishes.is_empty() && !self.is_unsaved()
            }
            // What a seal still puts into the outbox is to be removed too.
            Stage::Discarding => self.sealing.is_none() && self.streaming.is_none(),
        };
        if !is_due || self.farewell.is_some() || self.farewell_again.is_some() {
            return;
        }
        self.farewell = Some(tokio::spawn(work::end_at_home(
            self.shared.clone(),
            self.image,
            self.checkout,
            self.base.as_ref().map(|base| base.id),
            // Only a checkpoint that no commit contains can be staged.
            self.stage == Stage::Discarding && !self.checkpoints.is_empty(),
            self.reporter.clone(),
        )));
    }

    /// Nothing at home belongs to this checkout any more: what is here goes too.
    pub(super) async fn end(&mut self) {
        // From here on a restart only has to clean up.
        if let Err(error) = self.enter(Stage::Discarding) {
            tracing::error!(%error, "a checkout that has ended stays listed");
        }
        let shared = self.shared.clone();
        let holder = shared.keeper.holder(self.checkout);
        let wrote = holder.is_none_or(|holder| holder.kind() != LeaseKind::ReadOnly);
        let commit = self.base.as_ref().filter(|_| wrote).map(|base| base.id);
        if shared.keeper.forget(self.checkout).await.is_err() {
            tracing::debug!("the daemon is ending");
        }
        let checkout = lock(&shared.open).remove(&self.checkout);
        if let Some(checkout) = &checkout {
            shared.tell_state(checkout, "closed");
        }
        drop(checkout);
        let closed = ClosedCheckout {
            name: shared.name(self.image).unwrap_or_else(|| self.name.clone()),
            dir: self.dir.clone(),
            head: commit,
        };
        if let Err(error) = block_in_place(|| self.clean_up(&closed)) {
            tracing::warn!(%error, "what a closed checkout left behind is removed at the next start");
        }
        tracing::info!(checkout = %self.checkout.short(), name = self.name, "a checkout is closed");
        let done = json!({
            "name": self.name,
            "dir": self.dir.display().to_string(),
            "commit": commit,
            "taken": self.view.borrow().taken,
        });
        self.answer_release(|| Ok(done.clone()));
    }

    fn clean_up(&mut self, closed: &ClosedCheckout) -> anyhow::Result<()> {
        if let Some(tree) = self.tree.take() {
            // Nothing may be left to be written once the folder is gone.
            tree.sync()?;
        }
        let (state, checkout) = (&self.shared.state, self.checkout);
        self.shared.run_ids.forget(checkout);
        remove_files(state, &self.shared.home, checkout)?;
        state.now(|db| db.close_checkout(checkout, closed))?;
        Ok(())
    }

    /// What is told while the home is away.
    pub(super) fn release_waits(&self) -> ApiError {
        let name = &self.name;
        let message = if self.stage == Stage::Discarding {
            format!(
                "The home cannot be reached. {name} is unmounted and its changes are dropped; its lease is given back by itself when the home is reachable."
            )
        } else {
            format!(
                "The home cannot be reached. {name} is unmounted; its last changes are kept on this device and it keeps its lease. The release will finish by itself when the home is reachable."
            )
        };
        let hint = "`imgctl status` lists it until then.";
        ApiError::new(Kind::HomeAway, message, hint)
    }

    /// What is told to who wants something of a checkout whose changes are dropped.
    pub(super) fn is_being_closed(&self) -> ApiError {
        let message = format!(
            "The checkout of {} at {} is being closed, and its changes are dropped.",
            self.name,
            self.dir.display()
        );
        let hint = "`imgctl status` lists it until its lease is given back.";
        ApiError::new(Kind::Failed, message, hint)
    }

    pub(super) fn answer_release(&mut self, answer: impl Fn() -> Result<Value, ApiError>) {
        for waiter in std::mem::take(&mut self.release_waiters) {
            let _ = waiter.send(answer());
        }
    }
}

/// Removes what a checkout that never was mounted has on this device; blocks on the disk. The row goes last, so
/// that it can be repeated.
pub(in crate::checkouts) fn remove(
    state: &State,
    home: &Home,
    checkout: CheckoutId,
) -> anyhow::Result<()> {
    remove_files(state, home, checkout)?;
    state.now(|db| db.remove_checkout(checkout))?;
    Ok(())
}

fn remove_files(state: &State, home: &Home, checkout: CheckoutId) -> anyhow::Result<()> {
    let objects = home.objects();
    objects.release(checkout, &objects.outbox(checkout))?;
    match std::fs::remove_dir_all(state.checkout_dir(checkout)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
