//! The worker's way from a cut to a commit.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use img_lease::holder::Kind as LeaseKind;
use img_net::LinkState;
use img_records::CommitKind;
use img_seal::Reference;
use img_types::ImageName;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep_until};

use super::cuts::disk_full;
use super::wishes::{self, Wish, Wishes};
use super::{Arrived, TRIM_AFTER, Worker};
use crate::checkouts::CommitRequest;
use crate::checkouts::branching;
use crate::checkouts::lost::{LeftOut, Loss};
use crate::checkouts::work::{self, CommitError, CommitJob};
use crate::commits::OpenCommit;
use crate::error::{ApiError, Kind};
use crate::keeper::KeeperError;
use crate::state::{Stage, WishRow};
use crate::stream::{Settled, UploadError};
use crate::tree::FreezeError;

impl Worker {
    /// Whether a commit may be asked for at all.
    pub(super) fn may_commit(&self, request: &CommitRequest) -> Result<(), ApiError> {
        if let Some(told) = work::revoked(&self.shared, &self.dir) {
            return Err(told);
        }
        let holder = self.shared.keeper.holder(self.checkout);
        match holder.map(|holder| holder.kind()) {
            Some(LeaseKind::Orphan) if !request.adopt_orphan && request.branch.is_none() => Err(
                work::orphan(&self.shared, self.image, &self.name, &self.dir),
            ),
            Some(LeaseKind::Closed) | None => Err(ApiError::failed(KeeperError::Ended)),
            Some(_) => Ok(()),
        }
    }

    /// Wants a commit, durably: who asked may go now.
    pub(super) fn wish(
        &mut self,
        generation: u64,
        request: CommitRequest,
        committed: oneshot::Sender<Result<Value, ApiError>>,
    ) -> Result<(), ApiError> {
        let checkout = self.checkout;
        if generation <= self.sealed_upto
            && let Some(root) = self.tree.as_ref().and_then(|tree| tree.root())
        {
            // Also where the base is all of it: no root says that it is not sealed yet.
            self.roots.entry(generation).or_insert((root, 0));
        }
        let root = self.roots.get(&generation).copied();
        let written = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.add_wish(checkout, generation, &request, root))
        });
        let number = written.map_err(|error| {
            ApiError::failed(format!(
                "The commit cannot be written down: {error}. Its checkpoint is kept"
            ))
        })?;
        self.wishes.push(Wish {
            number: Some(number),
            generation,
            request,
            under_way: false,
            committed: Some(committed),
            left_out: Vec::new(),
        });
        Ok(())
    }

    /// Wants what was wanted before the daemon ended.
    pub(super) fn wish_again(&mut self, rows: Vec<WishRow>) {
        for row in &rows {
            self.roots
                .extend(row.root.map(|root| (row.generation, root)));
        }
        let current = self.tree.as_ref().and_then(|tree| tree.root());
        let base = self.base.as_ref().map(OpenCommit::root);
        if let Some(root) = current
            && Some(root) != base
        {
            // Ended before it could be written down with the wishes for it, or wanted by nobody yet.
            self.roots.entry(self.sealed_upto).or_insert((root, 0));
        }
        let lacking = rows.iter().filter(|row| row.root.is_none());
        let lacking = lacking.map(|row| row.generation);
        let lacking: Vec<_> = lacking.filter(|of| *of <= self.sealed_upto).collect();
        self.wishes = Wishes::of(rows);
        for generation in lacking {
            // Sealed, and its root was not written down.
            let root = match self
                .checkpoints
                .iter()
                .any(|row| row.generation <= generation)
            {
                true => self.next_root(generation),
                // A commit that contains it has struck its checkpoint out.
                false => base,
            };
            if let Some(root) = root {
                self.roots.entry(generation).or_insert((root, 0));
            }
            self.keep_root(generation);
        }
    }

    /// The oldest root that is known to contain a generation: more than was asked for, if need be, and never less.
    fn next_root(&self, generation: u64) -> Option<Reference> {
        let sealed = self.roots.range(generation..).next();
        let sealed = sealed.map(|(of, (root, _))| (*of, *root));
        let kept = self.kept.range(generation..).next();
        let kept = kept.map(|(of, root)| (*of, *root));
        let oldest = sealed.into_iter().chain(kept).min_by_key(|(of, _)| *of);
        oldest.map(|(_, root)| root)
    }

    /// A generation is sealed: a commit of it is one of this root, also if a restart comes after later seals.
    pub(super) fn keep_root(&mut self, generation: u64) {
        let Some(&(root, sealed_bytes)) = self.roots.get(&generation) else {
            return;
        };
        let of_it = self.wishes.iter();
        let of_it = wishes::numbers(of_it.filter(|wish| wish.generation == generation));
        for number in of_it {
            let kept = block_in_place(|| {
                let state = &self.shared.state;
                state.now(|db| db.set_wish_root(number, root, sealed_bytes))
            });
            if let Err(error) = kept {
                tracing::warn!(%error, "a commit may contain more than was asked if the daemon ends now");
            }
        }
    }

    /// What is told while the home is away.
    pub(super) fn commit_waits(&self) -> ApiError {
        ApiError::new(
            Kind::HomeAway,
            "The home cannot be reached. The checkpoint is kept on this device, and the commit will finish by itself when the home is reachable.",
            self.goes_on(),
        )
    }

    fn goes_on(&self) -> String {
        format!(
            "Work goes on meanwhile; `imgctl status {}` shows what is durable at home.",
            self.dir.display()
        )
    }

    /// Goes on with a commit that was signed before, and ends the lease that was taken for it alone.
    pub(super) fn resume_commit(&mut self) {
        let (shared, reporter) = (Arc::clone(&self.shared), self.reporter.clone());
        let (image, checkout) = (self.image, self.checkout);
        match block_in_place(|| shared.state.now(|db| db.signed_wishes(checkout))) {
            Ok(signed) => self.wishes.resume(&signed),
            Err(error) => tracing::warn!(%error, "what a signed commit is for cannot be read"),
        }
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
            let ended = work::end_late_lease(&shared, image, checkout).await;
            match settled {
                Some((generation, settled)) => {
                    if let Err(error) = ended {
                        tracing::warn!(%error, "a lease that was taken for one commit is kept");
                    }
                    Ok(Some((generation, Arrived::Commit(Box::new(settled)))))
                }
                None => ended.map(|()| None),
            }
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
                        number: None,
                        generation,
                        request: CommitRequest::default(),
                        under_way: false,
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
        while self.has_no_need_of_next() {}
    }

    /// Starts the next commit; true if there was no need of it, so that the one after it may be due.
    fn has_no_need_of_next(&mut self) -> bool {
        let waits = self.onward.is_some() || self.looking.is_some() || self.paused.is_some();
        if waits || self.stage == Stage::Discarding {
            return false;
        }
        let Some(next) = self.wishes.next(self.sealed_upto) else {
            return false;
        };
        let branches = next.request.branch.is_some();
        if !self.give_way() {
            return false;
        }
        // A branch needs no lease, and takes what was signed before along where that was refused.
        let is_blocked = self.is_written_down() && !(branches && self.signed_in_vain);
        if is_blocked {
            self.resume_commit();
            return false;
        }
        let Some(batch) = self.wishes.begin(self.sealed_upto) else {
            return false;
        };
        let (generation_max, request) = (batch.generation, batch.request);
        let sealed = self.roots.get(&generation_max).map(|(root, _)| *root);
        let base = self.base.as_ref().map(OpenCommit::root);
        let current = self.tree.as_ref().and_then(|tree| tree.root());
        // What was asked is in the base already where no later root is kept for it.
        let root = match sealed {
            None if batch.is_last => current,
            None => base.or(current),
            sealed => sealed,
        };
        let root = match root {
            Some(root) if branches || Some(root) != base || self.is_to_be_said(&request) => root,
            // Who takes an orphan up wants its lease, also where there is nothing to commit.
            Some(root) if self.is_to_be_adopted(&request) => root,
            None if branches => {
                let error = branching::no_commit_yet(&self.name);
                self.not_committed(&CommitError::Forbidden(Box::new(error)));
                return false;
            }
            _ => {
                self.nothing_changed(generation_max);
                return true;
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
            wishes: batch.numbers,
            maps: self.maps_of(generation_max),
            sealed_bytes,
            hurry: self.automatic.hurry(request.automatic),
            request,
            reporter: self.reporter.clone(),
        };
        let adopts = Some(root) == base && !self.is_to_be_said(&job.request);
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
                None if adopts => job.adopt().await.map(|()| Arrived::Adopted),
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
        false
    }

    /// Whether a person says something about what has become a commit without anybody: that is a commit too.
    fn is_to_be_said(&self, request: &CommitRequest) -> bool {
        let base = self.base.as_ref();
        let unsaid = base.is_some_and(|base| base.private.kind == CommitKind::Checkpoint);
        unsaid && !request.automatic && !request.message.is_empty()
    }

    /// Whether it is an orphan that somebody wants to take up.
    fn is_to_be_adopted(&self, request: &CommitRequest) -> bool {
        let holder = self.shared.keeper.holder(self.checkout);
        let is_orphan = holder.is_some_and(|holder| holder.kind() == LeaseKind::Orphan);
        is_orphan && request.adopt_orphan
    }

    /// An orphan that had nothing to commit has the lease again.
    pub(super) fn adopted(&mut self, generation_max: u64) {
        tracing::info!(checkout = %self.checkout.short(), "an orphan has taken the lease again");
        self.set_problem(None);
        self.nothing_new(generation_max, true);
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
            // What is sealed meanwhile still names them: they are found gone, and it is cut again, but not at once.
            Err(FreezeError::Unsealed) => {
                self.pause();
                generation_max
            }
            Err(error) => {
                let told = disk_full(&error);
                self.wishes.tell(&told);
                self.pause();
                return;
            }
        };
        for wish in self.wishes.under_way() {
            wish.generation = generation;
            let paths = left_out.iter().map(LeftOut::to_json);
            for path in paths {
                if !wish.left_out.contains(&path) {
                    wish.left_out.push(path);
                }
            }
        }
        let moved = self.wishes.numbers_under_way();
        let kept = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.move_wishes(&moved, generation))
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "a branch is looked through for what is lost once more if the daemon ends now");
        }
        self.keep_root(generation);
    }

    /// What was sealed is what the base has: there is nothing to commit.
    fn nothing_changed(&mut self, generation_max: u64) {
        self.nothing_new(generation_max, false);
    }

    fn nothing_new(&mut self, generation_max: u64, adopted: bool) {
        let checkout = self.checkout;
        let fulfilled = self.settle_wishes();
        let numbers = wishes::numbers(&fulfilled);
        let kept = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.unchanged(checkout, generation_max, &numbers))
        });
        if let Err(error) = kept {
            tracing::error!(%error, "checkpoints could not be struck out");
        }
        self.forget_upto(generation_max);
        let answer = json!({
            "commit": self.base.as_ref().map(|base| base.id),
            "seq": self.base.as_ref().map(|base| base.record().seq),
            "sent_bytes": 0,
            "sealed_bytes": 0,
            "message": self.base.as_ref().map(|base| &base.private.message),
            "unchanged": true,
            "adopted": adopted,
            "taken": self.view.borrow().taken,
        });
        for mut wish in fulfilled {
            wish.answer(Ok(answer.clone()));
        }
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
            "taken": self.view.borrow().taken,
        });
        tracing::info!(checkout = %self.checkout.short(), commit = %commit.id.short(), "committed");
        self.base = Some(commit);
        self.automatic.pace.committed(Instant::now());
        self.untrimmed = TRIM_AFTER;
        self.view.send_modify(|view| view.staged = None);
        self.set_problem(None);
        self.forget_upto(generation_max);
        for mut wish in self.settle_wishes() {
            wish.answer(Ok(answer.clone()));
        }
    }

    /// Takes out the wishes that a commit fulfilled: the next one is begun without a pause.
    pub(super) fn settle_wishes(&mut self) -> Vec<Wish> {
        (self.tries, self.signed_in_vain) = (0, false);
        self.wishes.settle()
    }

    /// A commit did not come about: those who wait for it hear why, and nothing local changes. What can still come
    /// true is tried again; what is refused for good is wanted no more, and nothing else.
    pub(super) fn not_committed(&mut self, error: &CommitError) {
        match error {
            // What was taken anew goes on under the new lease.
            CommitError::Upload(UploadError::TakenAnew) => return,
            // Where the daemon does not end, something in it has failed, and may fail again.
            CommitError::Upload(UploadError::Interrupted) => return self.pause(),
            _ => {}
        }
        if work::says_deleted(error) {
            self.shared.saw_no_more(self.image);
        }
        let told = work::explain(&self.shared, error, self.image, &self.name, &self.dir);
        tracing::warn!(checkout = %self.checkout.short(), %error, "not committed");
        let is_final = work::is_final(error);
        self.signed_in_vain = is_final && self.is_written_down();
        if is_final {
            self.refuse_wishes(&told);
            if self.stage == Stage::Releasing {
                self.wishes.forget_last();
                self.not_released(told);
            }
        } else {
            self.pause();
            let told = self.is_tried_again(told);
            self.set_problem(Some(told.message.clone()));
            self.wishes.tell(&told);
            self.answer_release(|| Err(told.clone()));
        }
    }

    /// What the commit under way was to fulfil will not be tried again, also not after a restart.
    fn refuse_wishes(&mut self, told: &ApiError) {
        let mut refused = self.wishes.settle();
        if refused.is_empty() {
            // It was made before a restart, for a release or for somebody who has been answered: others come after
            // it, but not at once.
            self.pause();
            self.wishes.tell(told);
        }
        let (checkout, numbers) = (self.checkout, wishes::numbers(&refused));
        let automatic = !refused.is_empty() && refused.iter().all(Wish::is_automatic);
        let kept = (!automatic).then_some(told.message.as_str());
        let dropped = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.refuse_wishes(checkout, &numbers, kept))
        });
        if let Err(error) = dropped {
            tracing::warn!(%error, "a refused commit is tried once more after a restart");
        }
        if refused.iter().any(|wish| wish.request.partial) {
            self.left_out.clear();
        }
        let mut is_heard = false;
        for wish in &mut refused {
            is_heard |= wish.answer(Err(told.clone()));
        }
        // Whoever asked for it may have gone: then it is shown until something else is asked for.
        let is_orphan = told.kind == Kind::Orphan;
        if automatic {
            // The next one may do better; what became of an orphan its state says.
            self.set_problem((!is_orphan).then(|| told.message.clone()));
            return;
        }
        self.refusal = Some(told.message.clone());
        if is_heard {
            self.forget_refusal();
        }
        self.set_problem(None);
    }

    /// Shows what was refused until something else is asked for, also after a restart.
    pub(super) fn keep_refusal(&mut self, told: String) {
        let checkout = self.checkout;
        let kept = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.set_refusal(checkout, Some(&told)))
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "a refusal is shown until the daemon ends");
        }
        self.refusal = Some(told);
    }

    /// What was refused has been heard, or something else is asked for.
    pub(super) fn forget_refusal(&mut self) {
        if self.refusal.take().is_none() {
            return;
        }
        let checkout = self.checkout;
        let forgotten = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.set_refusal(checkout, None))
        });
        if let Err(error) = forgotten {
            tracing::warn!(%error, "a refusal that was heard is shown again after a restart");
        }
    }

    /// Shows what was refused before the daemon ended.
    pub(super) fn take_refusal(&mut self) {
        let checkout = self.checkout;
        match block_in_place(|| self.shared.state.now(|db| db.refusal(checkout))) {
            Ok(told) => self.refusal = told,
            Err(error) => tracing::warn!(%error, "what was refused cannot be read"),
        }
        self.set_problem(None);
    }

    /// Tries again after a while, and when the home comes back.
    pub(super) fn pause(&mut self) {
        let pause = RETRY_PAUSE_MAX.min(RETRY_PAUSE * 2_u32.saturating_pow(self.tries));
        self.tries = self.tries.saturating_add(1);
        let mut link = self.shared.home.link().state();
        link.mark_unchanged();
        self.paused = Some(Pause {
            until: Instant::now() + pause,
            link,
        });
    }

    /// What is told of an error that passes.
    fn is_tried_again(&self, error: ApiError) -> ApiError {
        let what = match self.stage {
            Stage::Releasing => "the release",
            _ => "the commit",
        };
        let message = format!(
            "{} The checkpoint is kept on this device, and {what} is tried again by itself until it succeeds.",
            error.message
        );
        let hint = match error.kind {
            // Somebody has to say how to go on.
            Kind::WentBack | Kind::WrongHome | Kind::Corrupt => error.hint.clone(),
            _ => self.goes_on(),
        };
        ApiError {
            message,
            hint,
            ..error
        }
    }

    pub(super) fn forget_upto(&mut self, generation_max: u64) {
        self.roots
            .retain(|generation, _| *generation > generation_max);
        self.pass_checkpoints(generation_max);
    }
}

/// A pause before a commit is tried again, which ends early when the home comes back.
#[derive(Debug)]
pub(super) struct Pause {
    until: Instant,
    link: watch::Receiver<LinkState>,
}

impl Pause {
    /// Waits for its end; for ever if there is none.
    pub(super) async fn end(pause: &mut Option<Self>) {
        let Some(pause) = pause else {
            return pending().await;
        };
        let (until, link) = (pause.until, &mut pause.link);
        let is_back = async {
            while link.changed().await.is_ok() {
                if matches!(&*link.borrow_and_update(), LinkState::Connected(_)) {
                    return;
                }
            }
            pending().await
        };
        tokio::select! {
            () = sleep_until(until) => {}
            () = is_back => {}
        }
    }
}

/// First pause before a commit that did not come about is tried again; doubles with every time.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Longest such pause: a home that has made room again does not say so.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
