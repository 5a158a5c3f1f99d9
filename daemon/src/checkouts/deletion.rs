//! What becomes of checkouts whose image is deleted: refused where it can be, and nothing is lost where not.

use std::collections::BTreeSet;

use img_lease::holder::{Event as LeaseEvent, Holder};
use img_types::ImageId;

use super::{Checkout, Checkouts, Shared, lock};
use crate::error::{ApiError, Kind};
use crate::images::Image;
use crate::keeper::Label;
use crate::state::{CheckoutRow, State};

impl Checkouts {
    /// Refuses to delete an image while it is checked out here.
    ///
    /// # Errors
    /// It is.
    pub fn refuse_deletion(&self, image: &Image) -> Result<(), ApiError> {
        let mut of_image = self.shared.of_image(image.row.image);
        // The one with the most to lose is named.
        of_image.sort_by_key(|checkout| !checkout.is_changed());
        let Some(checkout) = of_image.first() else {
            return Ok(());
        };
        let (name, dir) = (image.name(), checkout.dir.display());
        let (changes, first) = if checkout.is_changed() {
            (", with changes that are not home", "Commit and release")
        } else {
            ("", "Release")
        };
        Err(ApiError::new(
            Kind::CheckedOut,
            format!("{name} is checked out on this device at {dir}{changes}. It was not deleted."),
            format!(
                "{first} it before: `imgctl release {dir}`; `imgctl export {name} DEST` keeps a copy of what is home. `imgctl delete {name} --force` deletes it all the same: what is checked out stays, as an orphan."
            ),
        )
        .with("dir", dir.to_string()))
    }

    /// An image has been deleted: whatever is checked out of it here goes on as an orphan, with all its work.
    pub async fn image_deleted(&self, image: ImageId) {
        for checkout in self.shared.of_image(image) {
            self.shared.orphan(&checkout, image).await;
        }
    }
}

/// The images of checkouts without a lease that the home did not list any more when it was last asked: they were
/// deleted, and nothing of them can be adopted.
pub(super) async fn gone(
    rows: &[CheckoutRow],
    kept: &[(Label, Holder)],
    state: &State,
) -> BTreeSet<ImageId> {
    let listed = match state.with(|db| db.images()).await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, "deleted images are noticed when the home answers");
            return BTreeSet::new();
        }
    };
    let listed: BTreeSet<_> = listed.into_iter().map(|row| row.image).collect();
    let leased = kept.iter().filter(|(_, holder)| holder.token().is_some());
    let leased: BTreeSet<_> = leased.map(|(_, holder)| holder.checkout()).collect();
    let lost = rows.iter().filter(|row| !leased.contains(&row.checkout));
    let images = lost.map(|row| row.image);
    images.filter(|image| !listed.contains(image)).collect()
}

impl Shared {
    /// Notices which of these checkouts are of images that the home does not list any more; each with the image
    /// that it was of before the home was asked, because it may have gone on as a new one since.
    pub(super) async fn notice_deletions(
        &self,
        open: &[(std::sync::Arc<Checkout>, ImageId)],
        images: &[Image],
    ) {
        for (checkout, of) in open {
            if images.iter().any(|image| image.row.image == *of) {
                // Another device may have given it back to a restored home.
                lock(&self.gone).remove(of);
            } else {
                self.orphan(checkout, *of).await;
            }
        }
    }

    /// Whether an image is known to have been deleted.
    pub(super) fn is_gone(&self, image: ImageId) -> bool {
        lock(&self.gone).contains(&image)
    }

    /// The home has no such image any more.
    pub(super) fn saw_no_more(&self, image: ImageId) {
        lock(&self.gone).insert(image);
    }

    /// A checkout of an image that is gone has no lease any more.
    async fn orphan(&self, checkout: &Checkout, image: ImageId) {
        self.saw_no_more(image);
        let Some(holder) = self.keeper.holder(checkout.id) else {
            return;
        };
        let Some(token) = holder.token() else {
            return;
        };
        let stale = LeaseEvent::TokenStale {
            image,
            token,
            rival: None,
        };
        if let Err(error) = self.keeper.apply(checkout.id, stale).await {
            // The next renewal or commit finds out.
            tracing::warn!(checkout = %checkout.id.short(), %error, "an orphan could not be written down");
        }
    }
}
