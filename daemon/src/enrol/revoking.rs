//! Taking a device off the roster: an admin's side, and what the revoked device knows of it.
//!
//! One signed entry does all of it at the home, in one transaction: the device is a member no more, its leases
//! end, and the next home secret is there for everybody who stays. So a revocation that was interrupted is done
//! or it is not, and whoever asks again finds out which. The entry names a position of the home's log, after
//! which the device did nothing; if it was faster, the entry is signed again.

use img_proto::{Call, Refusal};
use img_records::{Change, Roster};
use img_seal::KeyRing;
use img_types::{DeviceId, LogPosition, WallMillis};
use serde_json::{Value, json};

use super::papers::{self, device_name};
use crate::error::{ApiError, Kind};
use crate::events::{self, time};
use crate::home::{CallError, Home};

/// When a device was revoked, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// The admin's clock.
    pub time: WallMillis,
    /// The admin's device.
    pub by: DeviceId,
}

impl Revocation {
    /// The revocation of a device, if its roster has one.
    pub fn of(roster: &Roster, device: &DeviceId) -> Option<Self> {
        let entry = &roster.revocation(device)?.record;
        Some(Self {
            time: entry.time,
            by: entry.signer,
        })
    }
}

/// Takes a device off the roster. A device that is off it already stays so.
///
/// # Errors
/// There is no such device, this one is no admin or the last one, or the home is away or refuses.
pub async fn revoke(home: &Home, name: &str) -> Result<Value, ApiError> {
    let caught_up = home.catch_up().await;
    caught_up.map_err(|error| home.explain(&error, name))?;
    let (roster, keys) = (home.roster(), home.objects().keyring());
    let device = find(&keys, &roster, name)?;
    let already = roster.revocation(&device).is_some();
    if !already {
        if !roster.is_admin(&home.device()) {
            let refusal = CallError::Refused(Refusal::NotAdmin);
            return Err(home.explain(&refusal, name));
        }
        refuse_last_admin(&roster, device, device == home.device())?;
        if let Err(error) = append(home, device).await {
            return Err(match error {
                CallError::Away => unknown(name, device),
                error => home.explain(&error, name),
            });
        }
    }
    let roster = home.roster();
    let revoked = Revocation::of(&roster, &device);
    Ok(json!({
        "device": device,
        "name": device_name(&keys, &roster, &device),
        "time": revoked.map(|revoked| time(revoked.time)),
        "by": revoked.map(|revoked| device_name(&keys, &roster, &revoked.by)),
        "already": already,
        "key_epoch": roster.key_epoch(),
    }))
}

/// Signs and sends the entry until the home takes it, or somebody else's does the same.
async fn append(home: &Home, device: DeviceId) -> Result<(), CallError> {
    let mut at = LogPosition(0);
    let mut last = Refusal::LogMoved { position: at };
    for _ in 0..TRIES_MAX {
        let roster = home.roster();
        if roster.revocation(&device).is_some() {
            return Ok(());
        }
        let seen = home.seen().map_or(at, |seen| seen.position);
        at = LogPosition(at.0.max(seen.0));
        let keys = home.objects().keyring();
        let entry = papers::revoke(home.identity(), &roster, &keys, device, at, events::now());
        let entry = entry.map_err(|_| CallError::Protocol("a roster without usable keys"))?;
        let call = Call::RosterAppend {
            entry: entry.to_bytes().into(),
        };
        match home.mutate(call).await {
            Ok(appended) => {
                home.settle(appended.request).await?;
                return learn(home, device).await;
            }
            Err(CallError::Refused(Refusal::LogMoved { position })) => {
                // What the device does up to there counts for ever: the home has to show a log that gets so far.
                home.catch_up().await?;
                if home.seen().is_none_or(|seen| seen.position < position) {
                    return Err(CallError::Protocol("a position beyond the end of the log"));
                }
                at = position;
                last = Refusal::LogMoved { position };
            }
            Err(CallError::Refused(refusal @ Refusal::RosterMoved { .. })) => {
                home.catch_up().await?;
                last = refusal;
            }
            // Whoever revokes itself may be shown the door before the answer.
            Err(_) if home.roster().revocation(&device).is_some() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(CallError::Refused(last))
}

/// Takes the new entry, and with it the new home secret, into use.
async fn learn(home: &Home, device: DeviceId) -> Result<(), CallError> {
    match home.catch_up().await {
        // The home has taken it, and tells it at the next contact.
        Err(CallError::Away) => Ok(()),
        Err(CallError::Refused(Refusal::NotMember)) if device == home.device() => Ok(()),
        learned => learned,
    }
}

/// The device that a person means: by the name that it has on the roster now, by the beginning of its id, or by
/// the name that it had before it was revoked.
pub(super) fn find(keys: &KeyRing, roster: &Roster, text: &str) -> Result<DeviceId, ApiError> {
    let named = |active: bool| {
        let members = roster.members();
        let mut of_name: Vec<_> = members
            .filter(|(device, state)| {
                state.active() == active && device_name(keys, roster, device) == text
            })
            .collect();
        of_name.sort_by_key(|(_, state)| state.added);
        of_name.last().map(|(device, _)| **device)
    };
    let by_id = || {
        let prefix = text.to_ascii_lowercase();
        let ids = roster.members().map(|(device, _)| *device);
        let mut begins: Vec<_> = ids
            .filter(|device| {
                prefix.len() >= ID_DIGITS_MIN && device.to_string().starts_with(&prefix)
            })
            .collect();
        let first = begins.pop();
        first.filter(|_| begins.is_empty())
    };
    named(true)
        .or_else(by_id)
        .or_else(|| named(false))
        .ok_or_else(|| {
            ApiError::not_found(
                format!("No device of this home is called {text}."),
                "`imgctl device list` lists them.",
            )
        })
}

pub(super) fn refuse_last_admin(
    roster: &Roster,
    device: DeviceId,
    this: bool,
) -> Result<(), ApiError> {
    let mut others = roster.members().filter(|(other, _)| **other != device);
    if others.any(|(other, _)| roster.is_admin(other)) {
        return Ok(());
    }
    let who = if this { "This device" } else { "It" };
    Err(ApiError::new(
        Kind::NotAllowed,
        format!(
            "{who} is the last admin of the home: without it nobody could invite or revoke devices. Nothing was changed."
        ),
        "Bring another device in with the recovery words first (`imgctl recover`): it becomes an admin and can revoke this one.",
    ))
}

/// The home went away between the question and the answer.
fn unknown(name: &str, device: DeviceId) -> ApiError {
    ApiError::new(
        Kind::HomeAway,
        format!(
            "The home went away before it answered, so it is not known whether {name} is revoked."
        ),
        // A revoked device's name is free: by now it may be another's.
        format!(
            "`imgctl device revoke {device}` finds out when the home is back, and changes nothing where it is done."
        ),
    )
}

/// How a revoked device is told so, in answer to whatever it asks of the home.
pub fn explain(revocation: Revocation, by: &str) -> ApiError {
    ApiError::new(
        Kind::Revoked,
        format!(
            "This device was revoked on {} by {by}. It has no leases any more, and may commit, stage and branch nothing. What is checked out here stays, and can be read and written.",
            events::time_in_words(revocation.time)
        ),
        "Save the work that is here with `imgctl export NAME DEST`. To belong to the home again this machine needs a new identity: start imgd with a new state folder, and join with an invite.",
    )
    .with("revoked", time(revocation.time))
    .with("by", by)
}

/// Whether a change of the roster revokes a device.
pub fn revokes(change: &Change) -> Option<DeviceId> {
    match change {
        Change::Revoke { device, .. } => Some(*device),
        _ => None,
    }
}

/// How often an entry is signed anew when the roster or the device to be revoked was faster.
const TRIES_MAX: u32 = 16;
/// Fewest digits of an id that stand for it.
const ID_DIGITS_MIN: usize = 6;

#[cfg(test)]
mod tests {
    use img_types::LeaseMode;

    use super::*;
    use crate::stream::fake::{Device, FakeHome};

    #[tokio::test]
    async fn a_position_that_the_log_does_not_reach_is_not_signed() {
        let fake = FakeHome::start().await;
        let dir = tempfile::tempdir().unwrap();
        let device = Device::enrol(dir.path(), &fake, LeaseMode::Online).await;
        let home = &device.home;
        home.reachable().await;
        let asked = |refused_at: u64| {
            let mut inner = fake.lock();
            inner.calls.clear();
            inner.log_moved = LogPosition(refused_at);
        };
        asked(u64::MAX);
        let refused = append(home, home.device()).await;
        assert!(
            matches!(refused, Err(CallError::Protocol(_))),
            "{refused:?}"
        );
        assert_eq!(fake.lock().calls, ["append"]);

        // One that it does reach is signed the next time.
        asked(1);
        let refused = append(home, home.device()).await;
        assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
        assert_eq!(fake.lock().calls.len(), TRIES_MAX as usize);
    }
}
