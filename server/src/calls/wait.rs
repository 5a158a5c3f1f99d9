//! Calls that wait for something: joins, answers to joins, and changes.
//!
//! A waiting call looks, and looks again after each durable transaction, until there is something to
//! tell or its time is up; then the device asks again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use img_proto::{Answer, PendingJoin, Refusal};
use img_records::{JoinAnswer, JoinRequest};
use img_types::limits::RECORDS_PER_REPLY_MAX;
use img_types::{DeviceId, InviteId, LogPosition};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Session;
use crate::db::{NO_IMAGE, Published, Stop, devices, history};
use crate::home::Home;
use crate::proposal::bad;

/// How long a call waits: below every idle limit on the way.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(20);

/// Keeps a join request for the inviter and waits for the answer; asked again, it only waits.
pub(super) async fn join(
    home: &Arc<Home>,
    session: &Session,
    invite: InviteId,
    request: Option<Bytes>,
) -> Result<Answer, Stop> {
    if let Some(request) = request {
        JoinRequest::decode(&request).map_err(bad)?;
        let keep = home.db.writer().call(move |tx| {
            Box::pin(async move {
                let row = devices::find_invite(tx.sql().await?, invite).await?;
                let row = row.ok_or(Refusal::InviteUnknown)?;
                match row.request {
                    // The same one may come again.
                    Some(earlier) if earlier == request => Ok(()),
                    // The inviter has checked its proof, and its name was taken.
                    Some(_) if is_turned_down(row.answer.as_deref()) && row.until > tx.now() => {
                        devices::ask_again(tx, invite, &request).await
                    }
                    // The proof that came first counts.
                    Some(_) => Err(Refusal::InviteUnknown.into()),
                    None if row.until <= tx.now() => Err(Refusal::InviteUnknown.into()),
                    None => devices::set_join(tx, invite, &request).await,
                }
            })
        });
        keep.await?;
    }
    let mut waiting = Waiting::new(home);
    loop {
        let mut connection = home.db.reads().acquire().await?;
        let row = devices::find_invite(&mut connection, invite).await?;
        drop(connection);
        let answer = row.ok_or(Refusal::InviteUnknown)?.answer;
        session.set_invited();
        if answer.is_some() || !waiting.more().await? {
            return Ok(Answer::Join {
                answer: answer.map(Into::into),
            });
        }
    }
}

/// Whether an answer turns a name down and not the device: it has no roster entry.
fn is_turned_down(answer: Option<&[u8]>) -> bool {
    answer.is_some_and(|answer| {
        JoinAnswer::decode(answer).is_ok_and(|answer| answer.entry.is_empty())
    })
}

/// Joins that wait for a device; while it has unanswered invites, the call waits for the first one.
pub(super) async fn pending_joins(home: &Arc<Home>, device: DeviceId) -> Result<Answer, Stop> {
    let limit = u32::try_from(RECORDS_PER_REPLY_MAX).unwrap_or(u32::MAX);
    let mut waiting = Waiting::new(home);
    loop {
        let mut connection = home.db.reads().acquire().await?;
        let joins = devices::pending_joins(&mut connection, device, limit).await?;
        let open = devices::count_open_invites(&mut connection, device).await?;
        drop(connection);
        if joins.is_empty() && open > 0 && waiting.more().await? {
            continue;
        }
        let joins = joins.into_iter().map(|(invite, request)| PendingJoin {
            invite,
            request: request.into(),
        });
        return Ok(Answer::PendingJoins {
            joins: joins.collect(),
        });
    }
}

/// Images that log entries after a position concern; waits for the first such entry.
pub(super) async fn watch(home: &Arc<Home>, after: LogPosition) -> Result<Answer, Stop> {
    let mut waiting = Waiting::new(home);
    while home.standing().position <= after {
        if !waiting.more().await? {
            return Ok(Answer::Changed { images: Vec::new() });
        }
    }
    let mut connection = home.db.reads().acquire().await?;
    let images = history::images_after(&mut connection, after).await?;
    Ok(Answer::Changed {
        images: images.into_iter().filter(|id| *id != NO_IMAGE).collect(),
    })
}

/// Lets a call look again after each transaction.
struct Waiting {
    published: watch::Receiver<Published>,
    deadline: Instant,
}

impl Waiting {
    /// Begins before the first look, so that what happens after it is not missed.
    fn new(home: &Home) -> Self {
        let mut published = home.published();
        published.mark_unchanged();
        Self {
            published,
            deadline: Instant::now() + WAIT_MAX,
        }
    }

    /// Waits for a transaction since the last look; false when the time is up.
    async fn more(&mut self) -> Result<bool, Stop> {
        match timeout_at(self.deadline, self.published.changed()).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(_)) => Err(Stop::Closing),
            Err(_) => Ok(false),
        }
    }
}
