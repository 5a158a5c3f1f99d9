//! What happens around the calls: daemon starts, time, pins, deletion, revocation, restore.

use img_types::limits::{KEPT_AFTER_LOSS, LEASE_TTL_DEFAULT};
use img_types::{CheckoutId, CommitId, DaemonNonce, DeviceId, Incarnation, Instance, LogPosition};

use crate::rows::millis;
use crate::{Caller, Daemon, Effect, ImageState, Lease, Logged, Pin, Refused, Staged};

/// Registers a daemon start. The current nonce keeps its instance, a nonce never seen gets the next
/// one, and the device's leases move along, because no lease row names an instance.
///
/// `seen_before` says whether the nonce is among the device's earlier ones.
///
/// # Errors
/// [`Refused::InstanceFenced`] for an earlier nonce, for ever: of a cloned disk the newer wins.
pub fn hello(
    device: Option<&Daemon>,
    nonce: DaemonNonce,
    seen_before: bool,
) -> Result<Daemon, Refused> {
    match device {
        Some(daemon) if daemon.nonce == nonce => Ok(*daemon),
        _ if seen_before => Err(Refused::InstanceFenced),
        Some(daemon) => Ok(Daemon {
            nonce,
            instance: daemon.instance.next().ok_or(Refused::Exhausted)?,
        }),
        None => Ok(Daemon {
            nonce,
            instance: Instance(1),
        }),
    }
}

/// The time after a home's start in which no lease lapses, because nobody could renew before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace {
    remaining_ms: u64,
}

impl Grace {
    /// Begins at the home's start and lasts one online ttl.
    pub fn begin(online_ttl_ms: u64) -> Self {
        Self {
            remaining_ms: online_ttl_ms,
        }
    }

    /// The grace of one lease at an uptime of the home, in milliseconds like that at which its row was
    /// written, which is zero for one of before the start.
    ///
    /// Such a lease does not lapse for one online ttl after the start: its holder could not renew while
    /// the home was down. Whoever was granted or renewed since then needs no grace. A lease with nothing
    /// left that has not lapsed is one that this grace holds.
    pub fn of(lease: &Lease, written_ms: u64, uptime_ms: u64) -> Self {
        let ends_ms = written_ms.saturating_add(lease.remaining_ms);
        if lease.remaining_ms > 0 && ends_ms > lease.ttl_ms {
            return Self::over();
        }
        Self::begin(millis(LEASE_TTL_DEFAULT)).after(uptime_ms)
    }

    /// No grace: for a home that has been running.
    pub fn over() -> Self {
        Self { remaining_ms: 0 }
    }

    /// The grace after more running time.
    pub fn after(self, elapsed_ms: u64) -> Self {
        Self {
            remaining_ms: self.remaining_ms.saturating_sub(elapsed_ms),
        }
    }

    /// Whether deadlines are suspended.
    pub fn holds(self) -> bool {
        self.remaining_ms > 0
    }
}

/// Lets the home's running time pass for one image: HELD becomes LAPSED at the deadline unless the
/// grace holds, and staged records whose token is not current run out. Nothing else changes.
pub fn tick(
    image: &ImageState,
    incarnation: Incarnation,
    elapsed_ms: u64,
    grace: Grace,
) -> ImageState {
    let lease = image.lease.map(|lease| {
        let remaining_ms = lease.remaining_ms.saturating_sub(elapsed_ms);
        Lease {
            remaining_ms,
            lapsed: lease.lapsed || (remaining_ms == 0 && !grace.holds()),
            ..lease
        }
    });
    let staged = image
        .staged
        .iter()
        .filter_map(|staged| {
            if image.holder_staged(staged, incarnation) {
                return Some(*staged);
            }
            let remaining_ms = staged.remaining_ms.checked_sub(elapsed_ms)?;
            (remaining_ms > 0).then_some(Staged {
                remaining_ms,
                ..*staged
            })
        })
        .collect();
    ImageState {
        lease,
        staged,
        tombstone_ms: image
            .tombstone_ms
            .map(|remaining_ms| remaining_ms.saturating_sub(elapsed_ms)),
        ..image.clone()
    }
}

/// Keeps a commit for a read-only checkout; asked again, it counts anew.
///
/// # Errors
/// [`Refused::UnknownCommit`] if no history has the commit.
pub fn pin(
    caller: &Caller,
    commit: CommitId,
    checkout: CheckoutId,
    known: bool,
) -> Result<Pin, Refused> {
    caller.acts()?;
    if !known {
        return Err(Refused::UnknownCommit);
    }
    Ok(Pin {
        commit,
        checkout,
        device: caller.device,
        remaining_ms: millis(KEPT_AFTER_LOSS),
    })
}

/// Says whether a pin ends at the caller's word: only its own device's does.
///
/// # Errors
/// The caller is no member or was fenced.
pub fn unpin(pin: Option<&Pin>, caller: &Caller) -> Result<bool, Refused> {
    caller.acts()?;
    Ok(pin.is_some_and(|pin| pin.device == caller.device))
}

/// Lets the home's running time pass for a pin; nothing when it has run out.
pub fn tick_pin(pin: &Pin, elapsed_ms: u64) -> Option<Pin> {
    let remaining_ms = pin.remaining_ms.saturating_sub(elapsed_ms);
    (remaining_ms > 0).then_some(Pin {
        remaining_ms,
        ..*pin
    })
}

/// Deletes an image: a tombstone is left that keeps the epoch, and for a while the commits and
/// staged records, for a branch. Nothing if it was deleted already.
///
/// # Errors
/// [`Refused::Leased`] under another device's lease, HELD or LAPSED, unless forced, which is logged
/// as a steal.
pub fn delete(image: &ImageState, caller: &Caller, force: bool) -> Result<Option<Effect>, Refused> {
    caller.acts()?;
    if image.tombstone_ms.is_some() {
        return Ok(None);
    }
    let mut log = Vec::new();
    if let Some(lease) = image.lease.filter(|lease| lease.device != caller.device) {
        if !force {
            return Err(Refused::Leased(Box::new(lease)));
        }
        log.push(Logged::Steal(lease.checkout));
    }
    log.push(Logged::Delete);
    Ok(Some(Effect {
        image: tombstone(image),
        log,
        loser: image.lease,
    }))
}

/// An image's rows after its deletion.
pub(super) fn tombstone(image: &ImageState) -> ImageState {
    ImageState {
        lease: None,
        tombstone_ms: Some(millis(KEPT_AFTER_LOSS)),
        ..image.clone()
    }
}

/// Checks that a revocation names a log position after which the device did nothing.
///
/// # Errors
/// [`Refused::LogMoved`] with the position to sign instead.
pub fn revocable(at: LogPosition, newest_of_device: Option<LogPosition>) -> Result<(), Refused> {
    match newest_of_device {
        Some(position) if position > at => Err(Refused::LogMoved { position }),
        _ => Ok(()),
    }
}

/// Ends a revoked device's lease of an image. Nothing if it has none.
pub fn revoke(image: &ImageState, device: DeviceId) -> Option<Effect> {
    let lease = image.lease.filter(|lease| lease.device == device)?;
    Some(Effect {
        image: ImageState {
            lease: None,
            ..image.clone()
        },
        log: Vec::new(),
        loser: Some(lease),
    })
}

/// An image's rows after the home was restored from a backup: its lease is void. The home has a new
/// incarnation from then on, so no token of before can ever be current again.
pub fn restored(image: &ImageState) -> ImageState {
    ImageState {
        lease: None,
        ..image.clone()
    }
}
