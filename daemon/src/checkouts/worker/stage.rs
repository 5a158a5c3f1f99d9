//! The worker's way from a checkpoint to a staged record: what is home already when somebody takes over.
//!
//! A staged checkpoint is no commit; it is what a thief can keep of this checkout's work, and what survives the
//! loss of this device. It gives way to a commit at any moment, but for the one call that names it: that is
//! waited for, so that it cannot arrive after the commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use img_lease::holder::Kind as LeaseKind;
use img_proto::{Answer, Call, Refusal};
use img_records::CommitKind;
use img_types::{CommitId, RequestId};
use tokio::time::Instant;

use super::{Arrived, Worker};
use crate::checkouts::Shared;
use crate::checkouts::work::{self, CommitError};
use crate::commits::OpenCommit;
use crate::events::Phase;
use crate::home::CallError;
use crate::state::Stage;
use crate::stream::{Draft, UploadError};

/// A staging that is under way: the task that streams it and the worker that may stop it have one word on which of
/// the two comes first.
///
/// ```text
///  streaming ──the task sends──▶ sending ──the home lacks objects──▶ streaming
///      └──the worker stops it──▶ stopped
/// ```
#[derive(Debug, Clone, Default)]
pub(super) struct Staging(Arc<AtomicU8>);

impl Worker {
    /// Begins to stage the newest checkpoint that is to be, while nothing more important is to be done.
    pub(super) fn start_stage(&mut self) {
        let idle = self.streaming.is_none() && self.onward.is_none() && self.wishes.is_empty();
        if !idle || self.stage != Stage::Open || self.stage_again.is_some() {
            return;
        }
        let Some(generation) = self.stage_upto.filter(|upto| *upto <= self.sealed_upto) else {
            return;
        };
        let holder = self.shared.keeper.holder(self.checkout);
        let holder =
            holder.filter(|holder| matches!(holder.kind(), LeaseKind::Leased | LeaseKind::Lapsed));
        let token = holder.and_then(|holder| holder.token());
        let current = self.tree.as_ref().and_then(|tree| tree.root());
        let sealed = self.roots.get(&generation).map(|(root, _)| *root);
        let sealed = sealed.or(self.kept.get(&generation).copied());
        let base = self.base.as_ref().map(OpenCommit::root);
        let root = sealed.or(current).filter(|root| Some(*root) != base);
        let (Some(token), Some(root)) = (token, root) else {
            self.stage_upto = None;
            return;
        };
        if self.is_written_down() {
            return;
        }
        let named = self.checkpoints.iter().rev();
        let named = named.filter(|row| row.generation <= generation);
        let staged_upto = self.automatic.staged_upto;
        let automatic = named
            .clone()
            .all(|row| row.automatic || row.generation <= staged_upto);
        let mut named = named;
        let sealed_bytes = self.roots.range(..=generation);
        let draft = Draft {
            image: self.image,
            checkout: self.checkout,
            token,
            base: self.base.clone(),
            root,
            message: named
                .next()
                .map_or(String::new(), |row| row.message.clone()),
            kind: CommitKind::Checkpoint,
            maps: self.maps_of(generation),
            logical_bytes: 0,
            files: 0,
            sealed_bytes: sealed_bytes.map(|(_, (_, bytes))| bytes).sum(),
        };
        let staging = Staging::default();
        self.staging = Some(staging.clone());
        let (shared, reporter) = (Arc::clone(&self.shared), self.reporter.clone());
        let hurry = self.automatic.hurry(automatic);
        self.streaming = Some(tokio::spawn(async move {
            reporter.phase(Phase::Push, Some(draft.sealed_bytes));
            let uploader = shared.uploader(draft.checkout).patiently(hurry);
            let mut sent = uploader.stream(draft.root.id, &reporter).await?;
            for _ in 0..ROUNDS_MAX {
                match staging.stage(&shared, &draft).await {
                    // It may have lost what it had of the base.
                    Err(CommitError::Call(CallError::Refused(Refusal::Incomplete { .. }))) => {
                        sent.add(uploader.mend(draft.root.id, &reporter).await?);
                    }
                    Err(CommitError::Call(CallError::Refused(Refusal::SessionClosed))) => {
                        sent.add(uploader.stream(draft.root.id, &reporter).await?);
                    }
                    staged => return Ok(Some((generation, Arrived::Staged(staged?, sent)))),
                }
            }
            Err(CallError::Protocol("a checkpoint that stays incomplete").into())
        }));
    }

    /// Stops a staging, so that something more important can be done; false while it cannot be stopped.
    pub(super) fn give_way(&mut self) -> bool {
        let Some(staging) = &self.staging else {
            return self.streaming.is_none();
        };
        if !staging.stop() {
            return false;
        }
        if let Some(streaming) = self.streaming.take() {
            streaming.abort();
        }
        self.staging = None;
        true
    }

    /// A checkpoint is staged.
    pub(super) fn staged(&mut self, generation: u64, commit: CommitId) {
        tracing::info!(checkout = %self.checkout.short(), commit = %commit.short(), "a checkpoint is staged at home");
        self.stage_upto = self.stage_upto.filter(|upto| *upto > generation);
        self.automatic.staged_upto = generation;
        self.view.send_modify(|view| view.staged = Some(commit));
    }

    /// A checkpoint is not staged; it is as durable here as it was, and nobody waits for it.
    pub(super) fn not_staged(&mut self, error: &CommitError) {
        tracing::info!(checkout = %self.checkout.short(), %error, "a checkpoint is not staged yet");
        match error {
            // Room is for commits.
            CommitError::Call(CallError::Refused(Refusal::NoRoom(_))) => self.stage_upto = None,
            // A home that was restored gives the lease anew; where it is gone, there is nothing to be staged.
            CommitError::Call(CallError::Refused(Refusal::TokenStale { .. })) => {
                self.stage_again = Some(Instant::now() + STAGE_PAUSE);
            }
            // The next checkpoint tries again.
            error if work::is_final(error) => self.stage_upto = None,
            _ => self.stage_again = Some(Instant::now() + STAGE_PAUSE),
        }
    }
}

impl Staging {
    /// Claims the right to send the record; false once it has been stopped.
    fn send(&self) -> bool {
        self.pass(STREAMING, SENDING)
    }

    /// Claims the right to stop it; false while the record is being sent.
    fn stop(&self) -> bool {
        self.pass(STREAMING, STOPPED)
    }

    fn pass(&self, from: u8, to: u8) -> bool {
        let passed = self
            .0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        passed.is_ok()
    }

    /// Tells the home of a record whose objects it has. It may be stopped again once the home says that it lacks some.
    async fn stage(&self, shared: &Shared, draft: &Draft) -> Result<CommitId, CommitError> {
        let (files, logical_bytes) = work::totals(&shared.home, draft.root).await?;
        let draft = Draft {
            files,
            logical_bytes,
            ..draft.clone()
        };
        let commit = draft.sign(&shared.home).map_err(UploadError::from)?;
        // Not journaled: after a restart the newest checkpoint is staged anew.
        let request = RequestId::from_bytes(*commit.id.as_bytes());
        let call = Call::Stage {
            commit: commit.signed.to_bytes().into(),
        };
        if !self.send() {
            return Err(UploadError::Interrupted.into());
        }
        match shared.home.repeat(request, call).await {
            Ok(Answer::Done) => Ok(commit.id),
            Ok(_) => Err(CallError::Protocol("no answer to a stage").into()),
            Err(error) => {
                if let CallError::Refused(Refusal::Incomplete { .. } | Refusal::SessionClosed) =
                    &error
                {
                    self.0.store(STREAMING, Ordering::Release);
                }
                Err(error.into())
            }
        }
    }
}

/// Objects are brought home; the call comes after them.
const STREAMING: u8 = 0;
/// The call that names the record is under way.
const SENDING: u8 = 1;
/// It has been stopped, and sends nothing.
const STOPPED: u8 = 2;
/// How often a record is sent again after what was missing has been brought home.
const ROUNDS_MAX: usize = 5;
/// Pause before a checkpoint that could not be staged is tried again.
const STAGE_PAUSE: std::time::Duration = std::time::Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};
    use tokio::time::{interval, timeout};

    use super::super::Command;
    use super::*;
    use crate::checkouts::CommitRequest;
    use crate::checkouts::scene::Scene;

    async fn drive(worker: &mut Worker, is_done: impl Fn(&Worker) -> bool) {
        let (_commands, mut inbox) = mpsc::channel(1);
        let mut tick = interval(Duration::from_secs(3_600));
        loop {
            worker.advance().await;
            if is_done(worker) {
                return;
            }
            let happened = worker.next(&mut inbox, &mut tick).await;
            worker.apply(happened).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_home_has_lost_is_brought_again_before_a_checkpoint_is_staged() {
        let scene = Scene::new().await;
        let mut worker = scene.worker();
        worker.mount().unwrap();
        let mut noise = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        fs::write(scene.mount().join("first"), noise).unwrap();
        let ((done, _cut), (committed, _outcome)) = (oneshot::channel(), oneshot::channel());
        let request = CommitRequest::default();
        worker.obey(Command::Commit {
            request,
            done,
            committed,
        });
        drive(&mut worker, |worker| worker.base.is_some()).await;
        fs::write(scene.mount().join("second"), "2").unwrap();
        scene.fake.lock().objects.clear();
        let (done, _cut) = oneshot::channel();
        worker.obey(Command::Checkpoint {
            message: String::new(),
            done,
        });
        let is_staged = |worker: &Worker| worker.view.borrow().staged.is_some();
        let staged = timeout(SOON, drive(&mut worker, is_staged)).await;
        assert!(staged.is_ok(), "it is sent again and again");
        worker.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checkpoint_that_cannot_be_completed_is_not_sent_again_and_again() {
        let scene = Scene::new().await;
        let mut worker = scene.worker();
        worker.mount().unwrap();
        fs::write(scene.mount().join("file"), "1").unwrap();
        // It says that it lacks what it said it has.
        scene.fake.lock().stays_incomplete = true;
        let (done, _cut) = oneshot::channel();
        worker.obey(Command::Checkpoint {
            message: String::new(),
            done,
        });
        let gave_up = |worker: &Worker| worker.stage_again.is_some();
        let ended = timeout(SOON, drive(&mut worker, gave_up)).await;
        assert!(ended.is_ok(), "it is sent again and again");
        worker.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_refused_every_time_is_not_tried_again() {
        let scene = Scene::new().await;
        let mut worker = scene.worker();
        for (refusal, again) in [(Refusal::Busy, true), (Refusal::NotMember, false)] {
            (worker.stage_upto, worker.stage_again) = (Some(1), None);
            worker.not_staged(&CallError::Refused(refusal).into());
            let tries = (worker.stage_upto.is_some(), worker.stage_again.is_some());
            assert_eq!(tries, (again, again));
        }
    }

    /// Longer than any of it takes.
    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn a_staging_is_sent_or_stopped_and_never_both() {
        let staging = Staging::default();
        assert!(
            staging.stop() && !staging.send(),
            "stopped while it streams"
        );
        let staging = Staging::default();
        assert!(
            staging.send() && !staging.stop(),
            "waited for while it is sent"
        );
        for _ in 0..1_000 {
            let staging = Staging::default();
            let task = staging.clone();
            let sent = std::thread::spawn(move || task.send());
            let stopped = staging.stop();
            assert_ne!(sent.join().unwrap(), stopped);
        }
    }
}
