//! Why somebody took an image over: asked of the home once, for the person who lost it.

use img_lease::holder::State as HolderState;
use img_proto::{Answer, Call};
use img_types::{CheckoutId, ImageId};

use super::{Called, Kept, Task, rival, word};
use crate::commits::open_reason;
use crate::events::Event;
use crate::home::{CallError, Home};

impl Kept {
    /// Whether a device has taken the image over, and why is not known.
    pub(super) fn is_unexplained(&self) -> bool {
        matches!(self.holder.state(), HolderState::Orphan { rival: Some(_) }) && !self.explained
    }
}

/// Asks the home for somebody who watches a lease.
pub(super) async fn ask(home: &Home, image: ImageId, checkout: CheckoutId) -> Called {
    Called::Explained(checkout, why(home, image, checkout).await)
}

/// Asks the home why a checkout's image was taken over; nothing where no reason was given, or nobody took it by force.
///
/// # Errors
/// The home is away, or makes no sense.
pub async fn why(
    home: &Home,
    image: ImageId,
    checkout: CheckoutId,
) -> Result<Option<String>, CallError> {
    let asked = home.ask(Call::StolenBy { image, checkout }).await;
    match asked {
        Ok(Answer::StolenBy { steal }) => {
            let reason =
                steal.map(|steal| home.trusted(|trust| open_reason(trust, image, &steal.reason)));
            Ok(reason.filter(|reason| !reason.is_empty()))
        }
        Ok(_) => Err(CallError::Protocol("no answer to who took an image")),
        // It will not say.
        Err(CallError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Task {
    /// Keeps a reason, and tells everybody the state once more with it.
    pub(super) fn explained(&mut self, checkout: CheckoutId, reason: Option<String>) {
        let Some(kept) = self.kept.get_mut(&checkout) else {
            return;
        };
        if !kept.is_unexplained() {
            return;
        }
        kept.explained = true;
        if reason.is_some() {
            self.events.send(Event::Checkout {
                checkout,
                name: kept.label.name.clone(),
                dir: kept.label.dir.clone(),
                state: word(kept.holder.kind()),
                rival: rival(&self.home, &kept.holder),
                reason: reason.clone(),
                left: None,
            });
        }
        self.reasons.send_modify(|reasons| {
            reasons.insert(checkout, reason.unwrap_or_default());
        });
    }

    /// What was said about a lease of before says nothing about how it stands now.
    pub(super) fn forget_reason(&mut self, checkout: CheckoutId) {
        if let Some(kept) = self.kept.get_mut(&checkout) {
            kept.explained = false;
        }
        self.reasons
            .send_if_modified(|reasons| reasons.remove(&checkout).is_some());
    }
}
