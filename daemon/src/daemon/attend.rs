//! What a member does all the time: repeats calls that nobody waits for, answers joins, hears of changes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use img_net::LinkState;
use img_proto::{Answer, Call};
use img_records::SignedCommit;
use img_types::LogPosition;

use super::Member;
use crate::enrol;
use crate::events::{Event, Events};
use crate::home::CallError;
use crate::state::JournaledRequest;

/// Starts the tasks; each ends with the member.
pub(super) fn start(member: &Arc<Member>, events: &Events) {
    tokio::spawn(follow_link(Arc::downgrade(member), events.clone()));
    tokio::spawn(answer_joins(Arc::downgrade(member)));
    tokio::spawn(watch_images(Arc::downgrade(member)));
}

/// Tells whether the home answers, and repeats unanswered calls whenever it does again.
async fn follow_link(member: Weak<Member>, events: Events) {
    let Some(mut state) = member.upgrade().map(|member| member.home.link().state()) else {
        return;
    };
    let mut was_connected = None;
    loop {
        let connected = matches!(&*state.borrow_and_update(), LinkState::Connected(_));
        let Some(member) = member.upgrade() else {
            return;
        };
        if was_connected != Some(connected) {
            events.send(Event::Home { connected });
            was_connected = Some(connected);
        }
        if connected {
            tracing::info!(home = %member.home.pin().address, "the home answers");
            if let Err(error) = repeat_unanswered(&member).await {
                tracing::warn!(%error, "calls of before could not be repeated");
            }
            member.checkouts.home_is_back();
        }
        drop(member);
        if state.changed().await.is_err() {
            return;
        }
    }
}

async fn repeat_unanswered(member: &Member) -> Result<(), CallError> {
    for JournaledRequest { id, call } in member.home.unanswered().await? {
        match member.home.repeat(id, call.clone()).await {
            Ok(answer) => give_back(member, &call, &answer).await?,
            Err(CallError::Refused(refusal)) => {
                tracing::debug!(%refusal, "a call of before was refused");
            }
            Err(error) => return Err(error),
        }
        member.home.settle(id).await?;
    }
    Ok(())
}

/// Releases a grant that nobody waits for any more.
async fn give_back(member: &Member, call: &Call, answer: &Answer) -> Result<(), CallError> {
    let (image, checkout, token) = match (call, answer) {
        (
            Call::Acquire {
                image, checkout, ..
            }
            | Call::Steal {
                image, checkout, ..
            },
            Answer::Granted {
                token,
                current: true,
                ..
            },
        ) if !member.checkouts.wants(*checkout, *token) => (*image, *checkout, *token),
        (Call::Branch { commit, .. }, Answer::Branched { token, .. }) => {
            let first = SignedCommit::decode(commit);
            let first = first.map_err(|_| CallError::Protocol("a branch without a commit"))?;
            // A checkout that is here goes on as the branch: it finds it in the home's list.
            if member.checkouts.has(first.record.checkout) {
                return Ok(());
            }
            (first.record.image, first.record.checkout, *token)
        }
        _ => return Ok(()),
    };
    let release = Call::Release {
        image,
        checkout,
        token,
    };
    let released = member.home.mutate(release).await?;
    Ok(member.home.settle(released.request).await?)
}

/// Answers who asks to join, as long as invites of this device are open.
async fn answer_joins(member: Weak<Member>) {
    loop {
        let Some(member) = member.upgrade() else {
            return;
        };
        let open = match enrol::answer_joins(&member.home, &member.state).await {
            Ok(open) => open,
            Err(CallError::Away) => {
                member.home.reachable().await;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "joins could not be answered");
                true
            }
        };
        let invited = member.invited.notified();
        if open {
            // Whoever joins waits for this.
            tokio::time::sleep(JOIN_INTERVAL).await;
        } else {
            invited.await;
        }
    }
}

/// Hears from the home which images changed.
async fn watch_images(member: Weak<Member>) {
    // Where this task is, not the device: another call's answer may have come by a change without telling it.
    let mut after = None;
    loop {
        let Some(member) = member.upgrade() else {
            return;
        };
        let seen = || member.home.seen().map(|seen| seen.position);
        let from = after.or_else(seen).unwrap_or(LogPosition(0));
        match member.home.ask_at(Call::Watch { after: from }).await {
            Ok((Answer::Changed { images }, at)) => {
                after = at.map(|at| at.position);
                for image in images {
                    member.checkouts.image_changed(image);
                }
            }
            Ok(_) => tokio::time::sleep(WATCH_PAUSE).await,
            Err(error) => {
                tracing::debug!(%error, "the home does not tell of changes");
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        }
    }
}

/// How often the home is asked for joins while an invite is open.
const JOIN_INTERVAL: Duration = Duration::from_millis(500);
/// Pause after the home did not tell of changes.
const WATCH_PAUSE: Duration = Duration::from_secs(5);
