//! The inviter's side: issues invites, and answers who asks to join under them.

use img_proto::{Answer, Call, Refusal};
use img_records::{Invite, JoinAnswer, JoinRequest, Signed, entry_id};
use img_types::limits::INVITE_TTL;
use img_types::{InviteId, LogPosition, WallMillis};
use zeroize::Zeroizing;

use super::papers::{self, EnrolError};
use crate::events;
use crate::home::{CallError, Home};
use crate::state::{IssuedInvite, State};

/// Issues an invite.
///
/// # Errors
/// The home is away or refuses, or the state folder fails.
pub async fn invite(home: &Home, state: &State) -> Result<Invite, CallError> {
    home.catch_up().await?;
    let mut secret = Zeroizing::new([0; 16]);
    getrandom::fill(secret.as_mut()).expect("the kernel has randomness once a daemon runs");
    let roster = home.roster();
    let ttl_ms = u64::try_from(INVITE_TTL.as_millis()).unwrap_or(u64::MAX);
    let expires = events::now().0.saturating_add_unsigned(ttl_ms);
    let pin = home.pin();
    let invite = Invite {
        address: pin.address.clone(),
        home_key_hash: pin.home_key_hash,
        home: pin.home,
        roster_seq: roster.seq(),
        roster_head: roster.head(),
        secret: *secret,
        expires: WallMillis(expires),
        position: home.seen().map_or(LogPosition(0), |seen| seen.position),
    };
    let issued = IssuedInvite {
        invite: invite.id(),
        secret,
        expires: invite.expires,
        entry: None,
    };
    state.with(move |db| db.put_invite(&issued)).await?;
    let call = Call::RegisterInvite {
        invite: invite.id(),
        ttl_ms,
    };
    match home.mutate(call).await {
        Ok(mutated) => home.settle(mutated.request).await?,
        Err(error) => {
            let id = invite.id();
            state.with(move |db| db.forget_invite(id)).await?;
            return Err(error);
        }
    }
    Ok(invite)
}

/// Answers every join that waits under an invite of this device. Returns whether invites are still open.
///
/// # Errors
/// The home is away or refuses, or the state folder fails.
pub async fn answer_joins(home: &Home, state: &State) -> Result<bool, CallError> {
    let mut open = state.with(|db| db.invites()).await?;
    if open.is_empty() {
        return Ok(false);
    }
    let joins = match home.ask(Call::PendingJoins).await? {
        Answer::PendingJoins { joins } => joins,
        _ => return Err(CallError::Protocol("no list of joins")),
    };
    for join in joins {
        let Some(at) = open.iter().position(|issued| issued.invite == join.invite) else {
            continue;
        };
        let issued = open.swap_remove(at);
        let turned_down = answer_join(home, state, issued, &join.request).await?;
        open.extend(turned_down);
    }
    // The home answers for a while longer than the invite says: a proof may have reached it in time.
    let long_over = events::now().0 - i64::try_from(INVITE_TTL.as_millis()).unwrap_or(0);
    let mut still_open = false;
    for issued in open {
        if issued.expires.0 < long_over {
            forget(state, issued.invite).await?;
        } else {
            still_open = true;
        }
    }
    Ok(still_open)
}

/// Answers one join. Returns the invite where it stays good: the joiner's name was turned down, and nothing else.
async fn answer_join(
    home: &Home,
    state: &State,
    mut issued: IssuedInvite,
    request: &[u8],
) -> Result<Option<IssuedInvite>, CallError> {
    let mut asks_again = false;
    let answer = match admit(home, state, &mut issued, request).await? {
        Ok(entry) => Some(JoinAnswer::new(&issued.secret, entry).encode().into()),
        Err(EnrolError::NameTaken) => {
            tracing::info!("a join under a name that is taken was turned down");
            // No entry: only the inviter can say so, and the joiner has to choose another name.
            asks_again = true;
            let taken = JoinAnswer::new(&issued.secret, Vec::new());
            Some(taken.encode().into())
        }
        Err(error) => {
            tracing::warn!(%error, "a join was turned down; its invite is burnt");
            None
        }
    };
    let call = Call::AnswerJoin {
        invite: issued.invite,
        answer,
    };
    let mutated = home.mutate(call).await?;
    home.settle(mutated.request).await?;
    if asks_again {
        return Ok(Some(issued));
    }
    forget(state, issued.invite).await?;
    Ok(None)
}

/// Brings the entry that adds the joiner onto the roster, or says why not.
async fn admit(
    home: &Home,
    state: &State,
    issued: &mut IssuedInvite,
    request: &[u8],
) -> Result<Result<Vec<u8>, EnrolError>, CallError> {
    let Ok(request) = JoinRequest::decode(request) else {
        return Ok(Err(EnrolError::Proof));
    };
    loop {
        home.catch_up().await?;
        let roster = home.roster();
        let entry = match &issued.entry {
            // Signed before a restart: if it is on the roster, or still can be, it stands.
            Some(bytes) => Signed::decode(bytes).ok(),
            None => None,
        };
        if let Some(entry) = &entry
            && roster.contains(entry_id(entry, &roster.home()))
        {
            return Ok(Ok(entry.to_bytes()));
        }
        let keys = home.objects().keyring();
        let made = papers::admit(
            home.identity(),
            &roster,
            &keys,
            &issued.secret,
            &request,
            events::now(),
        );
        let entry = match made {
            Ok(entry) => entry.to_bytes(),
            Err(error) => return Ok(Err(error)),
        };
        issued.entry = Some(entry.clone());
        let written = issued.clone();
        state.with(move |db| db.put_invite(&written)).await?;
        let call = Call::RosterAppend {
            entry: entry.into(),
        };
        match home.mutate(call).await {
            Ok(mutated) => home.settle(mutated.request).await?,
            // Somebody else was faster; sign again behind their entry.
            Err(CallError::Refused(Refusal::RosterMoved { .. })) => {}
            Err(error) => return Err(error),
        }
    }
}

async fn forget(state: &State, invite: InviteId) -> Result<(), CallError> {
    Ok(state.with(move |db| db.forget_invite(invite)).await?)
}
