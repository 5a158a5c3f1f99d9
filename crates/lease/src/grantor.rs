//! The home's side: one pure function for each event that concerns a lease or a head.
//!
//! Each takes rows and returns the rows afterwards, or refuses; the server runs it inside one
//! database transaction. Safety depends on no clock: the head moves by one rule, checked in that
//! transaction: **the token is current, and the commit's base is the head's commit id**
//! ([`commit_guard`]). Time enters only in [`tick`] and only decides when a lease may be offered to
//! somebody else.
//!
//! ```text
//!                 acquire                    deadline                 acquire by another, epoch+1
//!          FREE ───────────▶ HELD ─────────────────────────▶ LAPSED ─────────────────────▶ HELD
//!           ▲                │  ▲ ◀─────────────────────────── │
//!           │      release   │  │   renew by the same token    │
//!           ├────────────────┘  └─ steal: HELD by another,     │
//!           └──────────────────────epoch+1─────────────────────┘ release
//! ```
//!
//! Signatures, completeness of the root, quotas and request ids are checked by the server before it
//! asks; a refusal here always means that nothing changes.

mod grant;
mod history;
mod life;
#[cfg(test)]
mod tests;

use img_types::{CheckoutId, DeviceId, Token};

pub use grant::{
    Acquire, Creation, Expectation, LOSER_TTL_MS, Stolen, acquire, create, grant_stands, release,
    renew, steal, steal_to_branch,
};
pub use history::{History, branch, commit, commit_guard, readmit, stage, unstage};
pub use life::{Grace, delete, hello, pin, restored, revocable, revoke, tick, tick_pin, unpin};

use crate::{Caller, ImageState, Lease, Refused};

/// Who claims to hold an image's lease: the connection's device, or the signer of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The token.
    pub token: Token,
    /// The device that acts or signed.
    pub device: DeviceId,
    /// Its checkout.
    pub checkout: CheckoutId,
}

/// Decides whether a token is current, and returns its lease; the one meaning of these words.
///
/// The row's incarnation and epoch equal the claim's; the row's device is the connection's device
/// and the claim's; the row's checkout is the claim's; the connection's instance is the device's
/// newest. HELD and LAPSED rows both count; a FREE image has no current token.
///
/// # Errors
/// [`Refused::InstanceFenced`] if only the instance is wrong, else [`Refused::TokenStale`].
pub fn current<'a>(
    image: &'a ImageState,
    caller: &Caller,
    claim: &Claim,
) -> Result<&'a Lease, Refused> {
    let lease = image
        .lease
        .as_ref()
        .filter(|lease| {
            claim.token.incarnation == caller.incarnation
                && claim.token.epoch == lease.epoch
                && claim.device == lease.device
                && claim.checkout == lease.checkout
                && caller.device == lease.device
        })
        .ok_or(Refused::TokenStale {
            epoch: image.epoch,
            holder: image.lease.map(|lease| lease.device),
            mode: image.lease.map(|lease| lease.mode),
        })?;
    if caller.instance == caller.newest_instance {
        Ok(lease)
    } else {
        Err(Refused::InstanceFenced)
    }
}
