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
#[derive(Debug, Default)]
pub(crate) struct Greeted(Mutex<BTreeMap<DeviceId, u64>>);

impl Greeted {
    /// Whether a later connection than this one brought the newest daemon of a device.
    fn later_than(&self, device: DeviceId, connection: u64) -> bool {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest
            .get(&device)
            .is_some_and(|newest| *newest > connection)
    }

    fn set(&self, device: DeviceId, connection: u64) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.insert(device, connection);
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
            if earlier.is_none() && greeted.later_than(device, connection) {
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
                greeted.set(device, connection);
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
