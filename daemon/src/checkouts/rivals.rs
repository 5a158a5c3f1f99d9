//! What the home's list of images says about the leases of this device's checkouts: the loser's side.
//!
//! A holder learns of a steal when it is told that an image changed, and not only at its next renewal. The list
//! proves nothing that a refusal would not: an epoch only grows, so a token of an earlier one is over.
//!
//! An image that is leased to a checkout which is of another image is a branch with the checkout's work, made by
//! a thief or by this device just before its daemon ended; or what the checkout left behind when it branched.

use img_lease::Terms;
use img_lease::holder::{Event as LeaseEvent, Granted, Holder, Moment};
use img_proto::LeaseRow;
use img_types::{CheckoutId, Epoch, Seq, Token};

use super::branching::Onward;
use super::worker::Command;
use super::{Checkout, Shared, work};
use crate::images::Image;
use crate::keeper::luck;

impl Shared {
    /// Compares the list with what the checkouts believe; `asked` is when it was asked for.
    pub(super) async fn notice_rivals(&self, images: &[Image], asked: Moment) {
        for checkout in self.list() {
            let Some(holder) = self.keeper.holder(checkout.id) else {
                continue;
            };
            let mut goes_on = false;
            for image in images {
                let Some(lease) = image.row.lease.as_ref().filter(|lease| {
                    (lease.device, lease.checkout) == (self.home.device(), checkout.id)
                }) else {
                    continue;
                };
                if image.row.image == holder.image() {
                    continue;
                }
                if self.keeps_work_of(image, &holder) {
                    goes_on = true;
                    self.go_on(&checkout, image, lease, asked).await;
                } else {
                    self.leave(image, lease).await;
                }
            }
            if !goes_on {
                self.notice_rival(images, &holder).await;
            }
        }
    }

    /// Whether an image is a branch that continues what a checkout stands on.
    fn keeps_work_of(&self, image: &Image, holder: &Holder) -> bool {
        let Some(head) = image.head.as_ref().map(|head| head.record()) else {
            return false;
        };
        // A branch that a thief made of such a branch has another parent, but not this device's signature.
        let continues = head
            .parent
            .is_some_and(|parent| parent.image == holder.image());
        head.seq == Seq(0)
            && head.checkout == holder.checkout()
            && image.row.epoch == Epoch(1)
            && (continues || head.device != self.home.device())
    }

    async fn go_on(&self, checkout: &Checkout, image: &Image, lease: &LeaseRow, asked: Moment) {
        let (Some(first), Some(token)) = (image.head.clone(), self.token(lease)) else {
            return;
        };
        let onward = Onward {
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
            token,
            rival: row.lease.as_ref().map(|lease| lease.device),
        };
        let checkout: CheckoutId = holder.checkout();
        if let Err(error) = self.keeper.apply(checkout, event).await {
            tracing::warn!(checkout = %checkout.short(), %error, "a lost lease could not be written down");
        }
    }

    fn token(&self, lease: &LeaseRow) -> Option<Token> {
        Some(Token {
            incarnation: self.home.seen()?.incarnation,
            epoch: lease.epoch,
        })
    }
}
