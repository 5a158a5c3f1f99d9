//! A lease that is asked for again, after the answer to an earlier call was lost.

use img_proto::{Call, Refusal};
use img_types::Token;

use super::{CallError, Home, Mutated};

impl Home {
    /// Asks for a lease as [`Home::mutate`] does. If this very checkout has it, from a call whose answer nobody
    /// took before the daemon or the connection ended, that grant is given back first: a checkout that asks has
    /// no token, so nobody uses it.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn acquire(&self, call: Call) -> Result<Mutated, CallError> {
        let asked = self.mutate(call.clone()).await;
        let (
            Err(CallError::Refused(Refusal::Leased(lease))),
            Call::Acquire {
                image, checkout, ..
            },
        ) = (&asked, &call)
        else {
            return asked;
        };
        let Some(seen) = self.seen() else {
            return asked;
        };
        if (lease.device, lease.checkout) != (self.device(), *checkout) {
            return asked;
        }
        let release = Call::Release {
            image: *image,
            checkout: *checkout,
            token: Token {
                incarnation: seen.incarnation,
                epoch: lease.epoch,
            },
        };
        let released = self.mutate(release).await?;
        self.settle(released.request).await?;
        self.mutate(call).await
    }
}
