//! The worker's way from a cut to a commit.

use std::sync::Arc;

use img_lease::holder::Kind as LeaseKind;
use img_types::ImageName;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::block_in_place;

use super::cuts::disk_full;
use super::{Arrived, TRIM_AFTER, Worker};
use crate::checkouts::CommitRequest;
use crate::checkouts::lost::{LeftOut, Loss};
use crate::checkouts::work::{self, CommitError, CommitJob};
use crate::commits::OpenCommit;
use crate::error::{ApiError, Kind};
use crate::keeper::KeeperError;
use crate::state::Stage;
use crate::stream::{Settled, UploadError};
use crate::tree::FreezeError;

/// A commit that somebody wants.
#[derive(Debug)]
pub(in crate::checkouts) struct Wish {
    /// The newest generation that it has to contain.
    pub(in crate::checkouts) generation: u64,
    pub(in crate::checkouts) request: CommitRequest,
    /// Nobody any more, where the home was away for long.
    pub(in crate::checkouts) committed: Option<oneshot::Sender<Result<Value, ApiError>>>,
    /// Lost files that were taken out for it, as they are told.
    pub(in crate::checkouts) left_out: Vec<Value>,
}

impl Worker {
    /// Whether a commit may be asked for at all.
    pub(super) fn may_commit(&self, request: &CommitRequest) -> Result<(), ApiError> {
        let holder = self.shared.keeper.holder(self.checkout);
        match holder.map(|holder| holder.kind()) {
            Some(LeaseKind::Orphan) if !request.adopt_orphan && request.branch.is_none() => Err(
                work::orphan(&self.shared, self.image, &self.name, &self.dir),
            ),
            Some(LeaseKind::Closed) | None => Err(ApiError::failed(KeeperError::Ended)),
            Some(_) => Ok(()),
        }
    }

    /// Makes a wish durable, with the checkpoint that it is about: who asked may go now.
    pub(super) fn write_wish_down(&mut self, request: &CommitRequest) -> Result<(), ApiError> {
        let Some(row) = self.checkpoints.last_mut() else {
            return Ok(());
        };
        let checkpoint = row.checkpoint;
        let written =
            block_in_place(|| self.shared.state.now(|db| db.wish_for(checkpoint, request)));
        written.map_err(|error| {
            ApiError::failed(format!(
                "The commit cannot be written down: {error}. Its checkpoint is kept"
            ))
        })?;
        row.wish = Some(request.clone());
        Ok(())
    }

    /// Wants what was wanted before the daemon ended.
    pub(super) fn wish_again(&mut self) {
        let wanted = self.checkpoints.iter().filter_map(|row| {
            Some(Wish {
                generation: row.generation,
                request: row.wish.clone()?,
                committed: None,
                left_out: Vec::new(),
            })
        });
        self.wishes = wanted.collect();
    }

    /// Answers those who wait for a commit; it is wanted all the same.
    pub(super) fn answer_wishes(&mut self, error: &ApiError) {
        for wish in &mut self.wishes {
            if let Some(committed) = wish.committed.take() {
                let _ = committed.send(Err(error.clone()));
            }
        }
    }

    /// What is told while the home is away.
    pub(super) fn commit_waits(&self) -> ApiError {
        ApiError::new(
            Kind::HomeAway,
            "The home cannot be reached. The checkpoint is kept on this device, and the commit will finish by itself when the home is reachable.",
            format!(
                "Work goes on meanwhile; `imgctl status {}` shows what is durable at home.",
                self.dir.display()
            ),
        )
    }

    /// Goes on with a commit that was signed before, and ends the lease that was taken for it alone.
    pub(super) fn resume_commit(&mut self) {
        let (shared, reporter) = (Arc::clone(&self.shared), self.reporter.clone());
        let (image, checkout) = (self.image, self.checkout);
        self.streaming = Some(tokio::spawn(async move {
            let resumed = shared.uploader(checkout).resume(&reporter).await;
            if let Err(UploadError::Lost(lost)) = &resumed
                && let Ok(None) = shared
                    .state
                    .with(move |db| db.pending_commit(checkout))
                    .await
            {
                // Whoever wanted it is told when it is made anew.
                tracing::warn!(object = %lost.0, "a signed commit can never be complete");
                return Ok(None);
            }
            let settled = resumed?;
            work::end_late_lease(&shared, image, checkout).await?;
            Ok(settled
                .map(|(generation, settled)| (generation, Arrived::Commit(Box::new(settled)))))
        }));
    }

    /// Whether a signed commit waits, whose outcome is not known: no other may be made before it.
    pub(super) fn is_written_down(&self) -> bool {
        let checkout = self.checkout;
        let pending = block_in_place(|| self.shared.state.now(|db| db.pending_commit(checkout)));
        !matches!(pending, Ok(None))
    }

    /// Wants whatever no commit contains, for a release.
    pub(in crate::checkouts) fn wish_for_the_rest(&mut self) {
        let Some(tree) = self.tree.clone() else {
            return;
        };
        match self.cut("") {
            Ok((_, generation)) => {
                if generation > 0 || self.is_ahead(&tree) {
                    self.wishes.push(Wish {
                        generation,
                        request: CommitRequest::default(),
                        committed: None,
                        left_out: Vec::new(),
                    });
                }
            }
            Err(FreezeError::Unsealed) => tracing::debug!("the last checkpoint waits for a seal"),
            Err(error) => {
                tracing::warn!(%error, "the last checkpoint waits");
                let told = disk_full(&error);
                self.answer_release(|| Err(told.clone()));
            }
        }
    }

    /// Starts the next commit, if one is wanted and its generation is sealed.
    pub(super) fn start_commit(&mut self) {
        let waits = self.onward.is_some() || self.looking.is_some();
        if waits || self.stage == Stage::Discarding {
            return;
        }
        let ready = self
            .wishes
            .iter()
            .filter(|wish| wish.generation <= self.sealed_upto)
            .max_by_key(|wish| wish.generation);
        let Some(wish) = ready else {
            return;
        };
        let (generation_max, mut request) = (wish.generation, wish.request.clone());
        if !self.give_way() {
            return;
        }
        if self.is_written_down() {
            self.resume_commit();
            return;
        }
        for other in self
            .wishes
            .iter()
            .filter(|other| other.generation <= generation_max)
        {
            if request.message.is_empty() {
                request.message.clone_from(&other.request.message);
            }
            request.adopt_orphan |= other.request.adopt_orphan;
            request.take_over |= other.request.take_over;
            request.keep |= other.request.keep;
            if request.branch.is_none() {
                request.branch.clone_from(&other.request.branch);
                request.onto = other.request.onto;
                request.partial = other.request.partial;
            }
        }
        let sealed = self.roots.get(&generation_max).map(|(root, _)| *root);
        let current = self.tree.as_ref().and_then(|tree| tree.root());
        let root = match sealed.or(current) {
            Some(root) if request.branch.is_some() => root,
            Some(root) if Some(root) != self.base.as_ref().map(OpenCommit::root) => root,
            _ => {
                self.nothing_changed(generation_max);
                return;
            }
        };
        let sealed_bytes = self
            .roots
            .range(..=generation_max)
            .map(|(_, (_, bytes))| bytes)
            .sum();
        let job = CommitJob {
            shared: self.shared.clone(),
            checkout: self.checkout,
            image: self.image,
            name: self.name.clone(),
            dir: self.dir.clone(),
            terms: self.terms,
            base: self.base.clone(),
            root,
            generation_max,
            sealed_bytes,
            request,
            reporter: self.reporter.clone(),
        };
        let branch = job.request.branch.as_deref().map(ImageName::parse);
        let descriptor = self.descriptor.clone();
        let loss = Loss {
            shared: self.shared.clone(),
            checkout: self.checkout,
            root,
            name: self.name.clone(),
            dir: self.dir.clone(),
            tree: self.tree.clone().filter(|_| job.request.partial),
        };
        self.streaming = Some(tokio::spawn(async move {
            let arrived = match branch {
                None => job
                    .run()
                    .await
                    .map(|settled| Arrived::Commit(Box::new(settled))),
                Some(Ok(name)) => {
                    let branched = job.branch(descriptor, name).await;
                    branched.map(|branched| Arrived::Branch(Box::new(branched)))
                }
                Some(Err(error)) => {
                    let error = ApiError::usage(error.to_string());
                    return Err(CommitError::Forbidden(Box::new(error)));
                }
            };
            let arrived = match arrived {
                Err(CommitError::Upload(UploadError::Lost(lost))) => {
                    Arrived::LeftOut(loss.leave_out(lost).await?)
                }
                arrived => arrived?,
            };
            Ok(Some((generation_max, arrived)))
        }));
    }

    /// Whether somebody wants what is lost to be left out.
    pub(super) fn leaves_out(&self) -> bool {
        let waiting = self.waiting_cuts.iter().filter_map(|cut| cut.wish.as_ref());
        let wished = self.wishes.iter().map(|wish| &wish.request);
        let mut requests = waiting.map(|(request, _)| request).chain(wished);
        requests.any(|request| request.partial)
    }

    /// A seal needed files that are lost, and they have been taken out of the checkout: it is made again at once.
    pub(super) fn left_out_early(&mut self, left_out: &[LeftOut]) {
        self.forget_left_out(left_out);
        self.left_out.extend(left_out.iter().map(LeftOut::to_json));
    }

    fn forget_left_out(&self, left_out: &[LeftOut]) {
        tracing::warn!(checkout = %self.checkout.short(), names = left_out.len(), "lost files are left out of a branch");
        for file in left_out {
            if let Some(mounted) = &self.mounted {
                block_in_place(|| mounted.forget_entry(file.parent, &file.name));
            }
        }
    }

    /// Files that are lost have been taken out of the checkout: what was wanted is wanted of the state without them.
    pub(super) fn left_out(&mut self, generation_max: u64, left_out: Vec<LeftOut>) {
        self.forget_left_out(&left_out);
        let generation = match self.cut("") {
            Ok((_, generation)) => generation,
            // What is sealed meanwhile still names them: they are found gone, and it is cut again.
            Err(FreezeError::Unsealed) => generation_max,
            Err(error) => {
                let told = disk_full(&error);
                self.answer_upto(generation_max, |_| Err(told.clone()));
                return;
            }
        };
        let again = self.wishes.iter_mut();
        let mut again = again.filter(|wish| wish.generation <= generation_max);
        let mut request = None;
        for wish in &mut again {
            wish.generation = generation;
            let paths = left_out.iter().map(LeftOut::to_json);
            for path in paths {
                if !wish.left_out.contains(&path) {
                    wish.left_out.push(path);
                }
            }
            request = Some(wish.request.clone());
        }
        if let Some(request) = request
            && let Err(error) = self.write_wish_down(&request)
        {
            tracing::warn!(%error, "a branch is not made if the daemon ends now");
        }
    }

    /// What was sealed is what the base has: there is nothing to commit.
    fn nothing_changed(&mut self, generation_max: u64) {
        if let Some(base) = &self.base {
            let (checkout, record) = (self.checkout, base.signed.to_bytes());
            let view = self.view.borrow().clone();
            let kept = block_in_place(|| {
                self.shared.state.now(|db| {
                    let (sealed, sent) = (view.sealed_bytes, view.sent_bytes);
                    db.committed(checkout, &record, generation_max, sealed, sent)
                })
            });
            if let Err(error) = kept {
                tracing::error!(%error, "checkpoints could not be struck out");
            }
        }
        self.forget_upto(generation_max);
        let answer = json!({
            "commit": self.base.as_ref().map(|base| base.id),
            "seq": self.base.as_ref().map(|base| base.record().seq),
            "sent_bytes": 0,
            "sealed_bytes": 0,
            "message": self.base.as_ref().map(|base| &base.private.message),
            "unchanged": true,
        });
        self.answer_upto(generation_max, |_| Ok(answer.clone()));
    }

    /// A commit is in history.
    pub(super) fn committed(&mut self, generation_max: u64, settled: Settled) {
        let Settled { commit, sent, .. } = settled;
        let record = commit.record();
        let renamed = self.shared.name(self.image);
        let name = renamed.as_ref().unwrap_or(&self.name);
        self.shared.saw_head(self.image, name, commit.id);
        self.view.send_modify(|view| {
            view.sealed_bytes = commit.private.sealed_bytes;
            view.sent_bytes = sent.bytes;
        });
        let answer = json!({
            "commit": commit.id,
            "seq": record.seq,
            "sent_bytes": sent.bytes,
            "sealed_bytes": commit.private.sealed_bytes,
            "message": commit.private.message,
            "unchanged": false,
        });
        tracing::info!(checkout = %self.checkout.short(), commit = %commit.id.short(), "committed");
        self.base = Some(commit);
        self.untrimmed = TRIM_AFTER;
        self.view.send_modify(|view| view.staged = None);
        self.set_problem(None);
        self.forget_upto(generation_max);
        self.answer_upto(generation_max, |_| Ok(answer.clone()));
    }

    /// A commit did not come about: those who wait for it hear why, and nothing local changes.
    pub(super) fn not_committed(&mut self, error: &CommitError) {
        // What was taken anew goes on under the new lease.
        if matches!(
            error,
            CommitError::Upload(UploadError::Interrupted | UploadError::TakenAnew)
        ) {
            return;
        }
        if work::says_deleted(error) {
            self.shared.saw_no_more(self.image);
        }
        let told = work::explain(&self.shared, error, self.image, &self.name, &self.dir);
        tracing::warn!(checkout = %self.checkout.short(), %error, "not committed");
        self.set_problem(Some(told.message.clone()));
        self.drop_wishes();
        self.answer_upto(u64::MAX, |_| Err(told.clone()));
        if self.stage == Stage::Releasing {
            self.not_released(told);
        }
    }

    /// What was wanted will not be tried again after a restart.
    fn drop_wishes(&mut self) {
        let checkout = self.checkout;
        let dropped = block_in_place(|| self.shared.state.now(|db| db.drop_wishes(checkout)));
        if let Err(error) = dropped {
            tracing::warn!(%error, "a refused commit is tried once more after a restart");
        }
        for row in &mut self.checkpoints {
            row.wish = None;
        }
    }

    pub(super) fn forget_upto(&mut self, generation_max: u64) {
        self.roots
            .retain(|generation, _| *generation > generation_max);
        self.checkpoints
            .retain(|row| row.generation > generation_max);
    }

    pub(super) fn answer_upto(
        &mut self,
        generation_max: u64,
        answer: impl Fn(&Wish) -> Result<Value, ApiError>,
    ) {
        let (answered, left) = std::mem::take(&mut self.wishes)
            .into_iter()
            .partition(|wish| wish.generation <= generation_max);
        self.wishes = left;
        let answered: Vec<Wish> = answered;
        for mut wish in answered {
            let outcome = answer(&wish);
            if let Some(committed) = wish.committed.take() {
                let _ = committed.send(outcome);
            }
        }
    }
}
