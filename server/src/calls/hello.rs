//! Hello: which daemon this is, and whether the home still has the log that its device has seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use img_lease::{Daemon as Start, grantor};
use img_proto::{Answer, Refusal, Standing};
use img_types::{DaemonNonce, DeviceId, Instance};

use super::transaction::refused;
use super::{Daemon, Session};
use crate::db::{Stop, devices, history};
use crate::home::Home;

/// The instance of a daemon whose first Hello came after that of a later one: it is never the newest.
const LATE: Instance = Instance(0);

/// On which connection the newest daemon of each device was met, as far as this process has met it.
///
/// A Hello can lie in the network or in a stalled home's socket until its daemon is dead and the next one has
/// been greeted; taken for a newer start it would fence the one that lives. A process began its connection
/// before it ended, and so before the next one began its own: the order of connections tells.
///
/// What is written here may yet be taken back in the database, so that it counts only for the daemon that is the
/// newest there.
#[derive(Debug, Default)]
pub(crate) struct Greeted(Mutex<BTreeMap<(DeviceId, DaemonNonce), u64>>);

impl Greeted {
    /// Whether a later connection than this one brought the newest daemon of a device.
    fn later_than(&self, device: DeviceId, newest: Option<&Start>, connection: u64) -> bool {
        let met = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = newest.and_then(|newest| met.get(&(device, newest.nonce)));
        newest.is_some_and(|newest| *newest > connection)
    }

    /// A daemon takes the place of the newest one.
    fn set(&self, device: DeviceId, newest: Option<&Start>, nonce: DaemonNonce, connection: u64) {
        let mut met = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = newest.map(|newest| newest.nonce);
        met.retain(|(of, nonce), _| *of != device || Some(*nonce) == newest);
        met.insert((device, nonce), connection);
    }
}

/// Registers the daemon and compares logs.
pub(super) async fn hello(
    home: &Arc<Home>,
    session: &Session,
    nonce: DaemonNonce,
    seen: Option<Standing>,
) -> Result<Answer, Stop> {
    let device = session.device(home)?;
    let (greeted, connection) = (Arc::clone(&home.greeted), session.number);
    let call = home.db.writer().call(move |tx| {
        Box::pin(async move {
            let newest = tx.standing();
            let mut at_seen = None;
            if let Some(seen) = seen {
                at_seen = history::standing_at(tx.sql().await?, newest, seen.position).await?;
                // The log goes on across incarnations, so that only position and root count.
                if at_seen.map(|at| at.root) != Some(seen.root) {
                    return Err(Refusal::WentBack { at_seen }.into());
                }
            }
            let current = devices::newest_daemon(tx.sql().await?, device).await?;
            let earlier = devices::instance_of(tx.sql().await?, device, nonce).await?;
            if earlier.is_none() && greeted.later_than(device, current.as_ref(), connection) {
                let instance = LATE;
                devices::add_daemon(tx, device, Start { nonce, instance }).await?;
                return Ok((Some(LATE), Err(Refusal::InstanceFenced.into())));
            }
            let daemon = match grantor::hello(current.as_ref(), nonce, earlier.is_some()) {
                Ok(daemon) => daemon,
                Err(why) => return Ok((earlier, Err(refused(why)))),
            };
            if earlier.is_none() {
                devices::add_daemon(tx, device, daemon).await?;
                greeted.set(device, current.as_ref(), nonce, connection);
            }
            history::renew_pins(tx, device).await?;
            Ok((Some(daemon.instance), Ok((daemon.instance, at_seen))))
        })
    });
    let (known, greeted) = call.await?;
    // A fenced daemon is known too: it may still read, upload and branch what it has.
    if let Some(instance) = known {
        session.set_daemon(Daemon { device, instance });
    }
    let (instance, at_seen) = greeted?;
    Ok(Answer::Hello { instance, at_seen })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_whose_row_was_taken_back_is_not_met_and_the_one_before_it_still_is() {
        let greeted = Greeted::default();
        let device = DeviceId::from_bytes([1; 32]);
        let start = |number: u8| Start {
            nonce: DaemonNonce::from_bytes([number; 32]),
            instance: Instance(u64::from(number)),
        };
        let (first, second) = (start(1), start(2));
        greeted.set(device, None, first.nonce, 3);
        greeted.set(device, Some(&first), second.nonce, 5);
        // As the database has it, with and without the second.
        assert!(greeted.later_than(device, Some(&second), 4));
        assert!(!greeted.later_than(device, Some(&first), 4));
        assert!(greeted.later_than(device, Some(&first), 2));
        assert!(!greeted.later_than(device, None, 2));
    }
}
