//! Hello: which daemon this is, and whether the home still has the log that its device has seen.

use std::sync::Arc;

use img_lease::grantor;
use img_proto::{Answer, Refusal, Standing};
use img_types::DaemonNonce;

use super::transaction::refused;
use super::{Daemon, Session};
use crate::db::{Stop, devices, history};
use crate::home::Home;

/// Registers the daemon and compares logs.
pub(super) async fn hello(
    home: &Arc<Home>,
    session: &Session,
    nonce: DaemonNonce,
    seen: Option<Standing>,
) -> Result<Answer, Stop> {
    let device = session.device(home)?;
    let call = home.db.writer().call(move |tx| {
        Box::pin(async move {
            let newest = tx.standing();
            let mut at_seen = None;
            if let Some(seen) = seen {
                at_seen = history::standing_at(tx.sql(), newest, seen.position).await?;
                // The log goes on across incarnations, so that only position and root count.
                if at_seen.map(|at| at.root) != Some(seen.root) {
                    return Err(Refusal::WentBack { at_seen }.into());
                }
            }
            let current = devices::newest_daemon(tx.sql(), device).await?;
            let earlier = devices::instance_of(tx.sql(), device, nonce).await?;
            let daemon = match grantor::hello(current.as_ref(), nonce, earlier.is_some()) {
                Ok(daemon) => daemon,
                Err(why) => return Ok((earlier, Err(refused(why)))),
            };
            if earlier.is_none() {
                devices::add_daemon(tx, device, daemon).await?;
            }
            history::renew_pins(tx, device).await?;
            Ok((Some(daemon.instance), Ok((daemon.instance, at_seen))))
        })
    });
    let (known, greeted) = call.await?;
    // A fenced daemon is known too: it may still look, upload and branch what it has.
    if let Some(instance) = known {
        session.set_daemon(Daemon { device, instance });
    }
    let (instance, at_seen) = greeted?;
    Ok(Answer::Hello { instance, at_seen })
}
