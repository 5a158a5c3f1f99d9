//! What the home's list of images says about the leases of this device's checkouts: the loser's side.
//!
//! A holder learns of a steal when it is told that an image changed, and not only at its next renewal. The list
//! proves nothing that a refusal would not: an epoch only grows, so a token of an earlier one is over.
//!
//! An image that is leased to a checkout which is of another image is a branch with the checkout's work, made by
//! a thief or by this device just before its daemon ended; or what the checkout left behind when it branched. A
//! checkout only ever goes on as a descendant of what it is of, so that it never comes back to what it has left.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use img_lease::Terms;
use img_lease::holder::{Event as LeaseEvent, Granted, Holder, Kind as LeaseKind, Moment};
use img_proto::LeaseRow;
use img_types::{CheckoutId, CommitId, Epoch, ImageId, Seq, Token};

use super::branching::Onward;
use super::stealing::NAMES_TRIED_MAX;
use super::worker::Command;
use super::{Checkout, CommitRequest, Shared, lock, work};
use crate::commits::OpenCommit;
use crate::error::{ApiError, Kind};
use crate::images::Image;
use crate::keeper::{self, luck};

impl Shared {
    /// Asks the home for the list, and compares; waits out an absent home.
    pub(super) async fn look_for_rivals(self: &Arc<Self>) {
        loop {
            let asked = self.clock.now();
            match self.images.list().await {
                Ok(listing) if !listing.stale => {
                    return self.notice_rivals(&listing.images, asked).await;
                }
                Ok(_) => self.home.reachable().await,
                Err(error) => {
                    tracing::warn!(%error, "the images could not be listed");
                    return;
                }
            }
        }
    }

    /// Compares the list with what the checkouts believe; `asked` is when it was asked for.
    pub(super) async fn notice_rivals(self: &Arc<Self>, images: &[Image], asked: Moment) {
        self.leave_closed(images).await;
        for checkout in self.list() {
            let Some(holder) = self.keeper.holder(checkout.id) else {
                continue;
            };
            let (mut goes_on, mut unknown) = (false, false);
            for image in images {
                let Some(lease) = image.row.lease.as_ref().filter(|lease| {
                    (lease.device, lease.checkout) == (self.home.device(), checkout.id)
                }) else {
                    continue;
                };
                if image.row.image == holder.image() {
                    continue;
                }
                match self.keeps_work_of(image, &holder, images).await {
                    Ok(true) => {
                        goes_on = true;
                        self.go_on(&checkout, &holder, image, lease, asked).await;
                    }
                    Ok(false) => self.leave(image, lease).await,
                    Err(error) => {
                        tracing::debug!(%error, "what continues a checkout is looked for again");
                        unknown = true;
                        self.look_later();
                    }
                }
            }
            if !goes_on {
                self.notice_rival(images, &holder).await;
            }
            if !goes_on && !unknown {
                self.search_lost_branch(images, &checkout).await;
            }
        }
    }

    /// Looks again after a while, once however often that is wanted meanwhile.
    pub(super) fn look_later(self: &Arc<Self>) {
        self.look_after(LOOK_PAUSE);
    }

    /// Looks again at once; where a look is due already, with that.
    pub(super) fn look_again(self: &Arc<Self>) {
        self.look_after(Duration::ZERO);
    }

    fn look_after(self: &Arc<Self>, pause: Duration) {
        if self.looks_later.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            shared.looks_later.store(false, Ordering::Release);
            shared.look_for_rivals().await;
        });
    }

    /// Whether an image is a branch that continues what a checkout stands on: made of the image that the checkout
    /// is of, or of a branch that was made of it for the same checkout, and so on. Whoever made them: what was left
    /// of a branch that others took continues that branch, and a thief's may be stolen with a branch as well.
    ///
    /// # Errors
    /// What lies in between is not known now, which proves nothing.
    async fn keeps_work_of(
        &self,
        image: &Image,
        holder: &Holder,
        images: &[Image],
    ) -> Result<bool, ApiError> {
        let Some(head) = image.head.as_ref().map(|head| head.record()) else {
            return Ok(false);
        };
        if head.seq != Seq(0) || image.row.epoch != Epoch(1) {
            return Ok(false);
        }
        let (mut by, mut parent) = (head.checkout, head.parent);
        // As many links as there are images: a home that shows a circle is not followed for ever.
        for _ in images {
            let Some(of) = parent.filter(|_| by == holder.checkout()) else {
                return Ok(false);
            };
            if of.image == holder.image() {
                return Ok(true);
            }
            let mut others = images.iter();
            let Some(link) = others.find(|other| other.row.image == of.image) else {
                return Ok(false);
            };
            let first = self.images.first_commit(link).await?;
            (by, parent) = (first.record().checkout, first.record().parent);
        }
        Ok(false)
    }

    /// Whether a commit is the first one of a branch that a thief made of a checkout's work.
    fn is_of_work(&self, first: &OpenCommit, holder: &Holder) -> bool {
        let first = first.record();
        let parent = first.parent.map(|parent| parent.image);
        parent == Some(holder.image())
            && first.checkout == holder.checkout()
            && first.device != self.home.device()
    }

    async fn go_on(
        &self,
        checkout: &Checkout,
        holder: &Holder,
        image: &Image,
        lease: &LeaseRow,
        asked: Moment,
    ) {
        let (Some(first), Some(token)) = (image.head.clone(), self.token(lease)) else {
            return;
        };
        let thief = first.record().device;
        let by = if thief == self.home.device() {
            None
        } else {
            let asked = keeper::why(&self.home, holder.image(), checkout.id);
            // Who took it is told without it, too.
            let why = asked.await.inspect_err(
                |error| tracing::debug!(%error, "why an image was taken over is not known"),
            );
            Some((thief, why.ok().flatten()))
        };
        let onward = Onward {
            from: holder.image(),
            by,
            descriptor: image.descriptor.clone(),
            granted: Granted {
                token,
                terms: Terms {
                    ttl_ms: lease.remaining_ms,
                    mode: lease.mode,
                },
                head: Some(first.id),
                sent: asked,
                luck: luck(),
            },
            first,
        };
        let command = Command::Onward(Box::new(onward));
        if checkout.commands.send(command).await.is_err() {
            tracing::debug!(checkout = %checkout.id.short(), "a checkout ended before it could go on");
        }
    }

    /// Gives back the lease of an image that a checkout has left.
    async fn leave(&self, image: &Image, lease: &LeaseRow) {
        let Some(token) = self.token(lease) else {
            return;
        };
        let (image, checkout) = (image.row.image, lease.checkout);
        if let Err(error) = work::give_back(self, image, checkout, token).await {
            tracing::warn!(%error, "the lease of an image that was left lasts until it lapses");
        }
    }

    /// Gives back a lease that was granted to a checkout which this device does not know: a late copy of a call
    /// that had been refused took it, or the state folder is one of before. Returns whether there was one.
    pub(super) async fn leave_stray(&self, image: &Image, lease: &LeaseRow) -> bool {
        let checkout = lease.checkout;
        if lease.device != self.home.device() {
            return false;
        }
        match self.state.with(|db| db.checkouts()).await {
            Ok(rows) if rows.iter().all(|row| row.checkout != checkout) => {
                self.leave(image, lease).await;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    async fn notice_rival(&self, images: &[Image], holder: &Holder) {
        let mut rows = images.iter().map(|image| &image.row);
        let row = rows.find(|row| row.image == holder.image());
        let (Some(row), Some(token)) = (row, holder.token()) else {
            return;
        };
        let incarnation = self.home.seen().map(|seen| seen.incarnation);
        if incarnation != Some(token.incarnation) || row.epoch <= token.epoch {
            return;
        }
        let event = LeaseEvent::TokenStale {
            image: holder.image(),
            token,
            rival: row.lease.as_ref().map(|lease| lease.device),
        };
        let checkout: CheckoutId = holder.checkout();
        if let Err(error) = self.keeper.apply(checkout, event).await {
            tracing::warn!(checkout = %checkout.short(), %error, "a lost lease could not be written down");
        }
    }

    /// Gives back branches that keep the work of checkouts which have ended here meanwhile.
    async fn leave_closed(&self, images: &[Image]) {
        let kept = images.iter().filter_map(|image| {
            let lease = image.row.lease.as_ref()?;
            let first = image.head.as_ref()?.record();
            let by_thief = first.seq == Seq(0) && first.device != self.home.device();
            let own = lease.device == self.home.device() && first.checkout == lease.checkout;
            (by_thief && own).then_some((image, lease))
        });
        let kept: Vec<_> = kept.collect();
        if kept.is_empty() {
            return;
        }
        let Ok(rows) = self.state.with(|db| db.checkouts()).await else {
            return;
        };
        for (image, lease) in kept {
            if !rows.iter().any(|row| row.checkout == lease.checkout) {
                self.leave(image, lease).await;
            }
        }
    }

    /// An orphan whose branch was taken by others before it was back: the rest becomes a branch of its own.
    async fn search_lost_branch(self: &Arc<Self>, images: &[Image], checkout: &Arc<Checkout>) {
        let holder = self.keeper.holder(checkout.id);
        let Some(holder) = holder.filter(|holder| holder.kind() == LeaseKind::Orphan) else {
            return;
        };
        if self.awaits_branch(checkout.id).await {
            return;
        }
        for image in images {
            let new = lock(&self.searched).insert((checkout.id, image.row.image));
            if !new || image.row.image == holder.image() || image.row.epoch <= Epoch(1) {
                continue;
            }
            let first = match self.images.first_commit(image).await {
                Ok(first) => first,
                Err(error) => {
                    tracing::debug!(%error, "a lost branch is searched again");
                    lock(&self.searched).remove(&(checkout.id, image.row.image));
                    continue;
                }
            };
            if self.is_of_work(&first, &holder) {
                let (shared, checkout) = (Arc::clone(self), Arc::clone(checkout));
                let (stem, found) = (image.name().to_string(), image.row.image);
                // It holds what was staged here over the same base, so the rest stands on it.
                let parent = first.record().parent.map(|parent| parent.commit);
                let onto = (parent == holder.base()).then_some((image.row.image, first.id));
                tokio::spawn(async move {
                    if let Err(error) = shared.save_the_rest(&checkout, &stem, onto).await {
                        tracing::warn!(%error, "an orphan's work is not saved as a branch");
                        if error.kind == Kind::HomeAway {
                            // What is asked for by now goes on by itself, and may find its name taken.
                            lock(&shared.searched).remove(&(checkout.id, found));
                        }
                    }
                });
                return;
            }
        }
    }

    /// Whether a checkout was asked for a branch that is still to be made.
    async fn awaits_branch(&self, checkout: CheckoutId) -> bool {
        let wishes = self.state.with(move |db| db.wishes(checkout)).await;
        let branches = wishes.map(|wishes| wishes.iter().any(|wish| wish.request.branch.is_some()));
        branches.unwrap_or_else(|error| {
            tracing::warn!(%error, "what a checkout was asked for cannot be read");
            true
        })
    }

    async fn save_the_rest(
        &self,
        checkout: &Checkout,
        stem: &str,
        onto: Option<(ImageId, CommitId)>,
    ) -> Result<(), ApiError> {
        for _ in 0..NAMES_TRIED_MAX {
            let name = self.free_name(stem).await?;
            let request = CommitRequest {
                message: format!("What was here when {stem} had gone to somebody else"),
                branch: Some(name.to_string()),
                onto,
                ..CommitRequest::default()
            };
            match checkout.commit(request, true).await {
                Ok(_) => {
                    tracing::info!(checkout = %checkout.id.short(), name = %name, "an orphan's work is saved");
                    return Ok(());
                }
                Err(error) if error.kind == Kind::NameTaken => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn token(&self, lease: &LeaseRow) -> Option<Token> {
        Some(Token {
            incarnation: self.home.seen()?.incarnation,
            epoch: lease.epoch,
        })
    }
}

/// Pause before the home is asked again for what it takes to judge a branch: whoever waits for it goes on meanwhile.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
