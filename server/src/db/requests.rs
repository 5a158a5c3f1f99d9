//! Outcomes of mutating calls, written with their effects, so that a repeated call has none.

use img_proto::{Answer, Call, Refusal};
use img_types::limits::REQUEST_KEPT;
use img_types::{DeviceId, RequestId};

use super::{Columns as _, Stop, Tx, big};

/// Identifies a call's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHash([u8; 32]);

/// Hashes a call as it came over the wire.
pub(crate) fn hash(call: &Call) -> Result<RequestHash, Refusal> {
    let bytes =
        postcard::to_allocvec(call).map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok(RequestHash(*blake3::hash(&bytes).as_bytes()))
}

/// The outcome of an earlier call with this id.
///
/// # Errors
/// [`Refusal::RequestReused`] if that call was another one.
pub(crate) async fn outcome(
    tx: &mut Tx,
    device: DeviceId,
    request: RequestId,
    hash: RequestHash,
) -> Result<Option<Answer>, Stop> {
    let row = sqlx::query("SELECT hash, outcome FROM requests WHERE device = $1 AND request = $2")
        .bind(&device.as_bytes()[..])
        .bind(&request.as_bytes()[..])
        .fetch_optional(tx.sql())
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.id(0, RequestHash)? != hash {
        return Err(Refusal::RequestReused.into());
    }
    let answer = postcard::from_bytes(&row.bytes(1)?)
        .map_err(|error| Stop::Broken(format!("a stored outcome does not decode: {error}")))?;
    Ok(Some(answer))
}

/// Keeps an outcome.
pub(crate) async fn keep(
    tx: &mut Tx,
    device: DeviceId,
    request: RequestId,
    hash: RequestHash,
    answer: &Answer,
) -> Result<(), Stop> {
    let now = big(tx.now().0);
    let outcome = postcard::to_allocvec(answer)
        .map_err(|error| Stop::Broken(format!("an outcome does not encode: {error}")))?;
    sqlx::query(
        "INSERT INTO requests (device, request, hash, outcome, made_ms) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&device.as_bytes()[..])
    .bind(&request.as_bytes()[..])
    .bind(&hash.0[..])
    .bind(outcome)
    .bind(now)
    .execute(tx.sql())
    .await?;
    Ok(())
}

/// Forgets outcomes that nobody can ask for any more.
pub(crate) async fn expire(tx: &mut Tx) -> Result<(), Stop> {
    let kept_ms = u64::try_from(REQUEST_KEPT.as_millis()).unwrap_or(u64::MAX);
    let Some(before) = tx.now().0.checked_sub(kept_ms) else {
        return Ok(());
    };
    sqlx::query("DELETE FROM requests WHERE made_ms < $1")
        .bind(big(before))
        .execute(tx.sql())
        .await?;
    Ok(())
}
