//! What a member does all the time: repeats calls that nobody waits for, answers joins, hears of changes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use img_net::LinkState;
use img_proto::{Answer, Call, Refusal};
use img_records::{Commit, SignedCommit};
use img_types::{CheckoutId, KeyEpoch, LogPosition, Token};

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
            // It may have had its effect before a newer daemon came: the next start of this one repeats it, and
            // gives back a grant that nobody waits for.
            Err(CallError::Refused(Refusal::InstanceFenced)) => continue,
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
    let checkouts = &member.checkouts;
    let wants = |checkout, token| checkouts.wants(checkout, token);
    let Some(release) = left_behind(call, answer, wants, |checkout| checkouts.has(checkout))?
    else {
        return Ok(());
    };
    let released = member.home.mutate(release).await?;
    Ok(member.home.settle(released.request).await?)
}

/// The call that gives back what an answer leaves leased without anybody to use it. `wants` says whether a
/// checkout waits for a grant or goes on under it, `has` whether one is open here.
fn left_behind(
    call: &Call,
    answer: &Answer,
    wants: impl Fn(CheckoutId, Token) -> bool,
    has: impl Fn(CheckoutId) -> bool,
) -> Result<Option<Call>, CallError> {
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
        ) if !wants(*checkout, *token) => (*image, *checkout, *token),
        // A checkout that is here goes on as the branch: it finds it in the home's list.
        (Call::Branch { commit, .. }, Answer::Branched { token, .. }) => {
            let first = record(commit)?;
            if has(first.checkout) {
                return Ok(None);
            }
            (first.image, first.checkout, *token)
        }
        // The lease of an import ends with its commit; a checkout goes on under its own.
        (Call::Commit { commit }, Answer::Committed { .. }) => {
            let made = record(commit)?;
            match made.token {
                Some(token) if !has(made.checkout) => (made.image, made.checkout, token),
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(Call::Release {
        image,
        checkout,
        token,
    }))
}

/// The record of a call that was journaled here.
fn record(commit: &[u8]) -> Result<Commit, CallError> {
    let signed = SignedCommit::decode(commit);
    let signed = signed.map_err(|_| CallError::Protocol("a call without its commit"))?;
    Ok(signed.record)
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
            Err(_) if member.home.revocation().is_some() => return,
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

/// Hears from the home which images changed, and whether the roster did.
async fn watch_images(member: Weak<Member>) {
    // Where this task is, not the device: another call's answer may have come by a change without telling it.
    let mut after = None;
    let mut keys = KeyEpoch(0);
    loop {
        let Some(member) = member.upgrade() else {
            return;
        };
        if member.home.revocation().is_some() {
            return;
        }
        let newest = member.home.roster().key_epoch();
        if keys != newest {
            // The commits of a revoked device count with their receipts, which have to be here when the home is not.
            match member.images.list().await {
                Ok(listing) if !listing.stale => keys = newest,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the images are listed again later"),
            }
        }
        let seen = || member.home.seen().map(|seen| seen.position);
        let from = after.or_else(seen).unwrap_or(LogPosition(0));
        match member.home.ask_at(Call::Watch { after: from }).await {
            Ok((Answer::Changed { images }, at)) => {
                if at.is_some_and(|at| at.position > from)
                    && let Err(error) = member.home.catch_up().await
                {
                    tracing::debug!(%error, "the roster is read at the next contact");
                }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use img_records::{CommitKind, Maps};
    use img_types::object::ObjectKind;
    use img_types::{LeaseMode, RequestId};
    use tokio::sync::Notify;

    use super::*;
    use crate::checkouts::Checkouts;
    use crate::config;
    use crate::images::Images;
    use crate::stream::Draft;
    use crate::stream::fake::{CHECKOUT, Device, FakeHome, IMAGE};

    /// A device whose daemon died before the first commit of its import was answered.
    async fn scene() -> (tempfile::TempDir, FakeHome, Member, JournaledRequest) {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeHome::start().await;
        let device = Device::enrol(dir.path(), &fake, LeaseMode::Online).await;
        let root = {
            let mut sealer = device.home.objects().keyring().sealer();
            let sealed = sealer.seal(ObjectKind::Block, b"all of it").unwrap();
            let objects = &mut fake.lock().objects;
            objects.insert(sealed.reference.id, sealed.bytes.into());
            sealed.reference
        };
        let draft = Draft {
            image: IMAGE,
            checkout: CHECKOUT,
            token: device.token(),
            base: None,
            root,
            message: String::new(),
            kind: CommitKind::Import,
            maps: Maps::Exact,
            logical_bytes: 0,
            files: 0,
            sealed_bytes: 0,
        };
        let commit = draft.sign(&device.home).unwrap();
        let request = JournaledRequest {
            id: RequestId::from_bytes(*commit.id.as_bytes()),
            call: Call::Commit {
                commit: commit.signed.to_bytes().into(),
            },
        };
        let state = device.state.clone();
        state.now(|db| db.remove_checkout(CHECKOUT)).unwrap();
        state.now(|db| db.journal_request(&request)).unwrap();
        let images = Images::new(Arc::clone(&device.home), state.clone());
        let socket = dir.path().join("imgd.sock");
        let checkouts = Checkouts::recover(
            Arc::clone(&device.home),
            images.clone(),
            state.clone(),
            config::Checkpoints::default(),
            device.events.clone(),
            &socket,
        );
        let member = Member {
            home: Arc::clone(&device.home),
            images,
            checkouts: checkouts.await.unwrap(),
            state,
            invited: Notify::new(),
        };
        (dir, fake, member, request)
    }

    #[tokio::test]
    async fn the_lease_of_an_import_that_was_cut_off_is_given_back_with_its_commit() {
        let (_dir, fake, member, _) = scene().await;
        repeat_unanswered(&member).await.unwrap();
        assert!(fake.lock().head().is_some(), "it is committed");
        assert_eq!(fake.lock().image.lease, None);
        let left = member.state.now(|db| db.journaled_requests()).unwrap();
        assert_eq!(left, []);
    }

    #[tokio::test]
    async fn a_call_that_a_newer_daemon_met_waits_for_the_next_start() {
        let (_dir, fake, member, request) = scene().await;
        let journal = || member.state.now(|db| db.journaled_requests()).unwrap();
        fake.lock().fence_after = Some(0);
        repeat_unanswered(&member).await.unwrap();
        assert_eq!(journal(), [request]);
        fake.lock().fence_after = None;
        repeat_unanswered(&member).await.unwrap();
        assert_eq!(journal(), []);
        assert_eq!(fake.lock().image.lease, None, "and its grant is given back");
    }

    #[tokio::test]
    async fn a_call_that_may_have_had_its_effect_before_a_newer_daemon_came_is_kept() {
        let (_dir, fake, member, JournaledRequest { id, call }) = scene().await;
        member.home.settle(id).await.unwrap();
        let journal = || member.state.now(|db| db.journaled_requests()).unwrap();
        fake.lock().fence_after = Some(0);
        let refused = member.home.mutate(call.clone()).await.unwrap_err();
        assert!(matches!(
            refused,
            CallError::Refused(Refusal::InstanceFenced)
        ));
        assert_eq!(journal(), [], "it was never taken");
        {
            let mut fake = fake.lock();
            (fake.fence_after, fake.lose_receipt) = (Some(1), true);
        }
        let refused = member.home.mutate(call.clone()).await.unwrap_err();
        assert!(matches!(
            refused,
            CallError::Refused(Refusal::InstanceFenced)
        ));
        let left: Vec<_> = journal().into_iter().map(|request| request.call).collect();
        assert_eq!(left, [call]);
    }

    #[tokio::test]
    async fn a_checkout_keeps_its_lease_when_a_commit_of_it_is_answered() {
        let (_dir, _fake, member, JournaledRequest { id, call }) = scene().await;
        let answer = member.home.repeat(id, call.clone()).await.unwrap();
        let released = |open: bool| left_behind(&call, &answer, |_, _| false, |_| open).unwrap();
        assert!(released(false).is_some());
        assert_eq!(released(true), None);
    }
}
