//! Outcomes of mutating calls, written with their effects, so that a repeated call has none.

use img_proto::{Answer, Call, Refusal};
use img_types::limits::REQUEST_KEPT;
use img_types::{DeviceId, RequestId};

use sqlx::SqliteConnection;

use super::batch::{Batch, Shapes, repeat_last};
use super::{Columns as _, Stop, Tx, big};
use crate::clock::RunningMillis;

/// Identifies a call's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHash([u8; 32]);

/// Hashes a call as it came over the wire.
pub(crate) fn hash(call: &Call) -> Result<RequestHash, Refusal> {
    let bytes =
        postcard::to_allocvec(call).map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok(RequestHash(*blake3::hash(&bytes).as_bytes()))
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    hash: RequestHash,
    answer: Vec<u8>,
}

/// Who made a call, and which of its calls it is.
pub(crate) type RequestKey = (DeviceId, RequestId);

static FIND: Batch = Batch::new(|| {
    Shapes::groups(
        "SELECT device, request, hash, outcome FROM requests WHERE (device, request) IN (VALUES",
        2,
        ")",
    )
});
static INSERT: Batch = Batch::new(|| {
    Shapes::groups(
        "INSERT INTO requests (device, request, hash, outcome, made_ms) VALUES",
        5,
        "",
    )
});

/// The outcome of an earlier call with this id.
///
/// # Errors
/// [`Refusal::RequestReused`] if that call was another one.
pub(crate) async fn outcome(
    tx: &mut Tx,
    key: RequestKey,
    hash: RequestHash,
) -> Result<Option<Answer>, Stop> {
    let Some(earlier) = tx.outcome(key).await? else {
        return Ok(None);
    };
    if earlier.hash != hash {
        return Err(Refusal::RequestReused.into());
    }
    let answer = postcard::from_bytes(&earlier.answer)
        .map_err(|error| Stop::Broken(format!("a stored outcome does not decode: {error}")))?;
    Ok(Some(answer))
}

/// Keeps an outcome.
pub(crate) fn keep(
    tx: &mut Tx,
    key: RequestKey,
    hash: RequestHash,
    answer: &Answer,
) -> Result<(), Stop> {
    let answer = postcard::to_allocvec(answer)
        .map_err(|error| Stop::Broken(format!("an outcome does not encode: {error}")))?;
    tx.set_outcome(key, Outcome { hash, answer });
    Ok(())
}

/// Reads outcomes; those that are not here are left out.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    keys: &[RequestKey],
) -> sqlx::Result<Vec<(RequestKey, Outcome)>> {
    let mut found = Vec::new();
    for (sql, part, fill) in FIND.padded(keys) {
        let mut query = sqlx::query(sql);
        for (device, request) in repeat_last(part, fill) {
            query = query
                .bind(&device.as_bytes()[..])
                .bind(&request.as_bytes()[..]);
        }
        for row in query.fetch_all(&mut *connection).await? {
            let key = (
                row.id(0, DeviceId::from_bytes)?,
                row.id(1, RequestId::from_bytes)?,
            );
            let outcome = Outcome {
                hash: row.id(2, RequestHash)?,
                answer: row.bytes(3)?,
            };
            found.push((key, outcome));
        }
    }
    Ok(found)
}

/// Writes outcomes of calls made now.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    now: RunningMillis,
    outcomes: &[(RequestKey, Outcome)],
) -> sqlx::Result<()> {
    for (sql, part) in INSERT.exact(outcomes) {
        let mut query = sqlx::query(sql);
        for ((device, request), outcome) in part {
            query = query
                .bind(&device.as_bytes()[..])
                .bind(&request.as_bytes()[..])
                .bind(&outcome.hash.0[..])
                .bind(&outcome.answer[..])
                .bind(big(now.0));
        }
        query.execute(&mut *connection).await?;
    }
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
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}
