//! The worker's way on as another image: a branch that it made itself, or one that a thief made of its work.
//!
//! The tree does not change: it is a root and changes over it, whichever image they belong to. Only what the
//! checkout stands on does, so that the next commit is made of the difference to the branch's first one.

use std::sync::Arc;

use img_lease::holder::Event as LeaseEvent;
use img_seal::Reference;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::block_in_place;

use super::cuts::WaitingCut;
use super::{TRIM_AFTER, Worker};
use crate::checkouts::branching::{Branched, Left, Onward};
use crate::checkouts::{CommitRequest, lock};
use crate::error::ApiError;
use crate::keeper::{self, KeeperError, Label};
use crate::state::{BranchedRow, Stage, TakenRow};

impl Worker {
    /// Wants to go on as a branch that the home has leased to this checkout.
    pub(super) fn wish_onward(&mut self, onward: Onward) {
        if self.image == onward.image() {
            return;
        }
        if self.image == onward.from {
            self.onward = Some(onward);
        } else {
            // It continues what was left meanwhile.
            self.look_again();
        }
    }

    /// Asks the home what is leased to this checkout, so that what is not gone on as is given back.
    fn look_again(&self) {
        self.shared.look_again();
    }

    /// Goes on as the branch that is wanted, once no commit of before is under way: the home may know it.
    pub(super) async fn start_onward(&mut self) {
        if self.onward.is_none() || self.paused.is_some() || !self.give_way() {
            return;
        }
        if self.is_written_down() && !self.signed_in_vain {
            self.resume_commit();
            return;
        }
        let Some(onward) = self.onward.take() else {
            return;
        };
        let contained = self.generation_of(onward.first.root());
        let (left, name) = (self.name.clone(), onward.descriptor.name.to_string());
        // What was to become this branch has become it.
        let fulfilled = self.wishes.to_become(&name);
        if let Err(error) = self.go_on(onward, contained, fulfilled).await {
            tracing::error!(checkout = %self.checkout.short(), %error, "a checkout does not go on as its branch");
            self.shared.look_later();
            return;
        }
        tracing::info!(checkout = %self.checkout.short(), from = left, to = self.name, "a checkout goes on as a branch");
        let answer = self.branch_answer(0);
        for mut wish in self.wishes.become_branch(&name) {
            wish.answer(Ok(answer.clone()));
        }
        // Another one may have been wanted beside it.
        self.look_again();
        if self.stage == Stage::Open && self.is_unsaved() {
            self.commit_the_rest();
        }
    }

    /// This checkout's state is the first commit of a new image.
    pub(super) async fn branched(&mut self, generation_max: u64, branched: Branched) {
        let left = Left::by(&self.shared, self.checkout);
        let (first, sent) = (branched.onward.first.clone(), branched.sent);
        let fulfilled = self.wishes.numbers_under_way();
        if let Err(error) = self.go_on(branched.onward, generation_max, fulfilled).await {
            // The branch is there: it is found in the home's list.
            self.shared.look_later();
            let told = ApiError::failed(error);
            self.wishes.tell(&told);
            self.pause();
            return;
        }
        if self.onward.take().is_some() {
            // A branch of what was left just now, by somebody who took that over.
            self.look_again();
        }
        let (shared, checkout) = (Arc::clone(&self.shared), self.checkout);
        tokio::spawn(async move {
            if let Err(error) = shared.home.settle(branched.request).await {
                tracing::warn!(%error, "a branch is asked for once more, which changes nothing");
            }
            left.give_back(&shared, checkout).await;
        });
        self.view.send_modify(|view| {
            view.sealed_bytes = first.private.sealed_bytes;
            view.sent_bytes = sent.bytes;
        });
        let answer = self.branch_answer(sent.bytes);
        let left_out = std::mem::take(&mut self.left_out);
        for mut wish in self.settle_wishes() {
            let mut answer = answer.clone();
            if wish.request.partial {
                wish.left_out.extend(left_out.iter().cloned());
                answer["left_out"] = json!(wish.left_out);
            }
            wish.answer(Ok(answer));
        }
    }

    /// What is told of the branch that the checkout has become.
    fn branch_answer(&self, sent_bytes: u64) -> Value {
        let first = self.base.as_ref();
        json!({
            "commit": first.map(|first| first.id),
            "seq": first.map(|first| first.record().seq),
            "sent_bytes": sent_bytes,
            "sealed_bytes": first.map_or(0, |first| first.private.sealed_bytes),
            "message": first.map(|first| &first.private.message),
            "unchanged": false,
            "branch": { "name": self.name, "image": self.image },
        })
    }

    /// Stands on a branch's first commit, durably, which contains the generations up to one.
    async fn go_on(
        &mut self,
        onward: Onward,
        generation_max: u64,
        fulfilled: Vec<u64>,
    ) -> Result<(), KeeperError> {
        let keeper = self.shared.keeper.clone();
        let mut holder = keeper.holder(self.checkout).ok_or(KeeperError::Unknown)?;
        let (image, name) = (onward.image(), onward.descriptor.name.to_string());
        let left = self.shared.name(self.image);
        let taken = onward.by.map(|(device, reason)| TakenRow {
            device: self.shared.images.device_name(&device),
            reason,
            name: left.unwrap_or_else(|| self.name.clone()),
            branch: name.clone(),
        });
        holder.apply(LeaseEvent::Branched {
            image,
            granted: onward.granted,
        })?;
        let row = BranchedRow {
            image,
            name: name.clone(),
            descriptor: onward.descriptor.signed.to_bytes(),
            base: onward.first.signed.to_bytes(),
            holder: keeper::encode(&holder),
            generation_max,
            wishes: fulfilled,
            taken: taken.clone(),
        };
        let (checkout, state) = (self.checkout, self.shared.state.clone());
        state.with(move |db| db.branched(checkout, &row)).await?;
        let label = Label {
            name: name.clone(),
            dir: self.dir.display().to_string(),
        };
        keeper.keep(label, holder.clone()).await?;
        // The keeper may have written the lease of before in between.
        let encoded = keeper::encode(&holder);
        let rewritten = state.with(move |db| db.set_holder(checkout, &encoded));
        if let Err(error) = rewritten.await {
            tracing::warn!(%error, "a restart finds a branch at home and goes on as it once more");
        }
        self.image = image;
        self.name = name;
        self.descriptor = onward.descriptor;
        self.base = Some(onward.first);
        // What was signed for the image that was left is struck out with it.
        (self.paused, self.signed_in_vain) = (None, false);
        self.forget_refusal();
        self.untrimmed = TRIM_AFTER;
        self.renew_run_id();
        self.view.send_modify(|view| {
            view.staged = None;
            view.taken.clone_from(&taken);
        });
        self.set_problem(None);
        self.forget_upto(generation_max);
        self.show();
        if let Some(base) = &self.base {
            self.shared.saw_head(image, &self.name, base.id);
        }
        let listed = lock(&self.shared.open).get(&checkout).cloned();
        if let Some(listed) = listed {
            let state = keeper::word(holder.kind());
            self.shared.tell_taken(&listed, state, taken);
        }
        Ok(())
    }

    /// A person goes on here, and has been told what became of the checkout.
    pub(super) fn forget_taken(&mut self) {
        if self.view.borrow().taken.is_none() {
            return;
        }
        let checkout = self.checkout;
        let forgotten = block_in_place(|| {
            let state = &self.shared.state;
            state.now(|db| db.forget_taken(checkout))
        });
        if let Err(error) = forgotten {
            tracing::warn!(%error, "who took an image over is told once more after a restart");
        }
        self.view.send_modify(|view| view.taken = None);
    }

    /// The newest generation that a root contains, as far as this daemon knows.
    fn generation_of(&self, root: Reference) -> u64 {
        let sealed = self.roots.iter().map(|(of, (root, _))| (of, root));
        // Those of before a restart are known where they are a checkpoint's.
        let known = sealed.chain(&self.kept);
        let contained = known.filter(|(_, known)| **known == root);
        contained.map(|(of, _)| *of).max().unwrap_or(0)
    }

    /// Commits what the branch's first commit does not contain; nobody waits for it.
    fn commit_the_rest(&mut self) {
        self.cut_or_wait(WaitingCut {
            message: String::new(),
            done: oneshot::channel().0,
            wish: Some((CommitRequest::default(), oneshot::channel().0)),
        });
    }
}

#[cfg(test)]
mod tests;
