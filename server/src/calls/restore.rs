//! A home whose database went back in time: a new incarnation continues its log.
//!
//! Begun by the operator (`imghome restore`), or proved by a device with a receipt that this home signed in its
//! present incarnation and whose place in the log is not there, or in one that the log does not name: it went back
//! to before its own new incarnation. A log position without a signature proves nothing: any member could claim
//! one and void everybody's leases.

use std::sync::Arc;

use bytes::Bytes;
use img_lease::grantor;
use img_proto::Answer;
use img_records::{LogEntry, LogKind, Receipt, SignedReceipt};
use img_types::{Epoch, Incarnation};

use super::Session;
use crate::clock;
use crate::db::{NO_DEVICE, NO_IMAGE, Stop, Tx, effects, history, images, uploads};
use crate::home::Home;
use crate::proposal::bad;

/// Begins a new incarnation: all leases are void, what uploads were told is forgotten, and nothing may be
/// collected.
pub(crate) async fn begin(tx: &mut Tx) -> Result<(), Stop> {
    let incarnation = crate::random().map_err(|error| Stop::Broken(error.to_string()))?;
    let incarnation = Incarnation::from_bytes(incarnation);
    for image in images::leased(tx, None).await? {
        if let Some(image) = tx.image(image).await? {
            effects::write_state(tx, &grantor::restored(&image.state)).await?;
        }
    }
    uploads::forget(tx).await?;
    // Nothing else names the first one.
    name(tx, tx.standing().incarnation).await?;
    tx.set_incarnation(incarnation).await?;
    name(tx, incarnation).await?;
    tracing::warn!("this home went back in time and has a new incarnation; all leases are void");
    Ok(())
}

/// Writes down that this home has or had an incarnation, unless the log says so: from then on its receipts start
/// nothing.
async fn name(tx: &mut Tx, incarnation: Incarnation) -> Result<(), Stop> {
    if history::names(tx.sql().await?, incarnation).await? {
        return Ok(());
    }
    let line = LogEntry {
        kind: LogKind::Incarnation,
        image: NO_IMAGE,
        subject: *incarnation.as_bytes(),
        device: NO_DEVICE,
        epoch: Epoch(0),
        time: clock::wall_millis(),
    };
    tx.append_log(&line)?;
    Ok(())
}

/// Begins a new incarnation if a receipt, whose signature was checked, proves that this database is not the
/// newest of its own.
pub(super) async fn begin_if_proved(tx: &mut Tx, receipt: &Receipt) -> Result<bool, Stop> {
    let newest = tx.standing();
    let known = if receipt.incarnation == newest.incarnation {
        let here = history::standing_at(tx.sql().await?, newest, receipt.position).await?;
        here.map(|here| here.root) == Some(receipt.log_root)
    } else {
        history::names(tx.sql().await?, receipt.incarnation).await?
    };
    if known {
        return Ok(false);
    }
    // Once is enough: the next receipt of that incarnation is one of an earlier.
    name(tx, receipt.incarnation).await?;
    begin(tx).await?;
    Ok(true)
}

/// Takes a receipt that a member shows, also before it said Hello: that was refused.
pub(super) async fn shown(
    home: &Arc<Home>,
    session: &Session,
    receipt: &Bytes,
) -> Result<Answer, Stop> {
    session.device(home)?;
    let receipt = SignedReceipt::decode(receipt).map_err(bad)?;
    let signed = receipt.verify(&home.roster()?.home(), &home.key.public());
    signed.map_err(bad)?;
    let begin = home
        .db
        .writer()
        .call(move |tx| Box::pin(async move { begin_if_proved(tx, &receipt.record).await }));
    begin.await?;
    Ok(Answer::Done)
}
