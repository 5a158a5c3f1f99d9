//! What a member does all the time: repeats calls that nobody waits for, answers joins, hears of changes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use img_net::LinkState;
use img_proto::{Answer, Call};
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
    let (
        Call::Acquire {
            image, checkout, ..
        },
        Answer::Granted {
            token,
            current: true,
            ..
        },
    ) = (call, answer)
    else {
        return Ok(());
    };
    if member.checkouts.wants(*checkout, *token) {
        return Ok(());
    }
    let release = Call::Release {
        image: *image,
        checkout: *checkout,
        token: *token,
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
    loop {
        let Some(member) = member.upgrade() else {
            return;
        };
        let after = member
            .home
            .seen()
            .map_or(LogPosition(0), |seen| seen.position);
        match member.home.ask(Call::Watch { after }).await {
            Ok(Answer::Changed { images }) => {
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
