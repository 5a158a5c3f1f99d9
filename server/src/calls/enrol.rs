//! Founding, the roster, invites, and recovery by the words on paper.

use std::sync::Arc;

use bytes::Bytes;
use img_lease::grantor;
use img_proto::{Answer, Refusal};
use img_records::{
    Change, LogEntry, LogKind, Roster, RosterError, SignedRosterEntry, entry_id, verify,
};
use img_types::limits::{INVITE_TTL, RECORDS_PER_REPLY_MAX, ROSTER_ENTRY_LEN_MAX};
use img_types::{DeviceId, Epoch, InviteId};

use super::Session;
use super::transaction::{Context, refused};
use crate::clock;
use crate::db::{Columns as _, NO_IMAGE, Stop, Tx, devices, effects, images};
use crate::home::Home;
use crate::proposal::bad;

/// Invites that one device may have under way.
const INVITES_PER_DEVICE_MAX: u64 = 64;
const FOUNDING_CONTEXT: &str = "imgctl founding secret v1";

/// What the home keeps of a founding invite's secret.
pub(crate) fn founding_hash(secret: &[u8; 16]) -> [u8; 32] {
    blake3::derive_key(FOUNDING_CONTEXT, secret)
}

/// Founds the home. The same genesis gets the same answer; another one comes too late.
pub(super) async fn found(
    home: &Arc<Home>,
    session: &Session,
    secret: [u8; 16],
    genesis: &[u8],
) -> Result<Answer, Stop> {
    let entry = SignedRosterEntry::decode(genesis).map_err(bad)?;
    let roster = Roster::found(&entry).map_err(bad)?;
    if roster.by_tls(&session.tls).is_none() {
        return Err(Refusal::BadRecord("another device founds".to_owned()).into());
    }
    let found = home.db.writer().call(move |tx| {
        Box::pin(async move {
            if let Ok(founded) = tx.roster() {
                let same = founded.home() == roster.home();
                return if same {
                    Ok(())
                } else {
                    Err(Refusal::AlreadyFounded.into())
                };
            }
            let row = sqlx::query("SELECT founding_hash FROM home")
                .fetch_one(tx.sql().await?)
                .await?;
            // Comparing hashes tells nothing about the secret by how long it takes.
            if row.id(0, |hash| hash)? != founding_hash(&secret) {
                return Err(Refusal::WrongFounding.into());
            }
            devices::append_roster(tx, 0, &entry.to_bytes()).await?;
            tx.set_roster(roster);
            log_roster(tx, &entry, entry.record.signer).await
        })
    });
    found.await?;
    tracing::info!("the home has been founded");
    Ok(Answer::Founded)
}

/// Shows the roster to the holder of the recovery words.
pub(super) async fn recover_roster(
    home: &Arc<Home>,
    session: &Session,
    proof: &[u8],
) -> Result<Answer, Stop> {
    check_recovery(home, session, proof)?;
    session.set_recovering();
    roster(home, 0).await
}

/// Adds a device at the word of the recovery key.
pub(super) async fn recover_append(
    home: &Arc<Home>,
    session: &Session,
    proof: &[u8],
    entry: Bytes,
) -> Result<Answer, Stop> {
    let entry = SignedRosterEntry::decode(&entry).map_err(bad)?;
    let Change::Recover { member, .. } = &entry.record.change else {
        return Err(Refusal::BadRecord("it is no recover entry".to_owned()).into());
    };
    if member.keys.tls != session.tls {
        return Err(Refusal::BadRecord("another device is recovered".to_owned()).into());
    }
    let known = home.roster()?;
    // The recovery keys change with the entry, so a repeated call proves the old ones.
    if known.contains(entry_id(&entry, &known.home())) {
        return Ok(Answer::Done);
    }
    check_recovery(home, session, proof)?;
    let append = home
        .db
        .writer()
        .call(move |tx| Box::pin(async move { append_entry(tx, &entry).await }));
    append.await?;
    tracing::warn!("a device was enrolled with the recovery words");
    Ok(Answer::Done)
}

/// Roster entries from a number on, as many as fit a reply.
pub(super) async fn roster(home: &Arc<Home>, from: u64) -> Result<Answer, Stop> {
    let per_reply =
        (img_proto::frame::REPLY_LEN_MAX / (ROSTER_ENTRY_LEN_MAX + 64)).min(RECORDS_PER_REPLY_MAX);
    let limit = u32::try_from(per_reply + 1).unwrap_or(u32::MAX);
    let mut connection = home.db.reads().acquire().await?;
    let mut entries = devices::roster_from(&mut connection, from, limit).await?;
    let more = entries.len() > per_reply;
    entries.truncate(per_reply);
    Ok(Answer::Roster {
        entries: entries.into_iter().map(Into::into).collect(),
        more,
    })
}

/// Shows a revoked device the entries up to the one that revoked it, and nothing later: it learns when that
/// was and by whom, with an admin's signature, so that it believes no home that only says so.
pub(super) async fn show_revocation(
    home: &Arc<Home>,
    session: &Session,
    from: u64,
) -> Result<Answer, Stop> {
    let last = session.revocation(home).ok_or(Refusal::NotMember)?;
    let Answer::Roster { mut entries, more } = roster(home, from).await? else {
        return Err(Refusal::NotMember.into());
    };
    let left = (last + 1).saturating_sub(from);
    let shown = entries.len();
    entries.truncate(usize::try_from(left).unwrap_or(usize::MAX));
    let more = more && entries.len() == shown && (shown as u64) < left;
    Ok(Answer::Roster { entries, more })
}

/// Appends to the roster. Who signed the entry counts, and not who brings it: a home that was restored gets
/// entries back from whoever has them.
pub(super) async fn append(context: &mut Context<'_>, entry: &[u8]) -> Result<Answer, Stop> {
    context.caller.acts().map_err(refused)?;
    let entry = SignedRosterEntry::decode(entry).map_err(bad)?;
    append_entry(context.tx, &entry).await?;
    Ok(Answer::Done)
}

/// Announces an invite.
pub(super) async fn register_invite(
    context: &mut Context<'_>,
    invite: InviteId,
    ttl_ms: u64,
) -> Result<Answer, Stop> {
    context.caller.acts().map_err(refused)?;
    let device = context.caller.device;
    if !context.tx.roster()?.is_admin(&device) {
        return Err(Refusal::NotAdmin.into());
    }
    if devices::count_invites(context.tx.sql().await?, device).await? >= INVITES_PER_DEVICE_MAX {
        return Err(Refusal::OverLimit("invites of one device".to_owned()).into());
    }
    let ttl_max = u64::try_from(INVITE_TTL.as_millis()).unwrap_or(u64::MAX);
    let until = context.tx.now().plus(ttl_ms.min(ttl_max));
    devices::add_invite(context.tx, invite, device, until).await?;
    Ok(Answer::Done)
}

/// Keeps the inviter's answer for the joiner, or burns the invite.
pub(super) async fn answer_join(
    context: &mut Context<'_>,
    invite: InviteId,
    answer: Option<Bytes>,
) -> Result<Answer, Stop> {
    context.caller.acts().map_err(refused)?;
    let row = devices::find_invite(context.tx.sql().await?, invite).await?;
    let own = row.is_some_and(|row| row.device == context.caller.device);
    if !own {
        return Err(Refusal::InviteUnknown.into());
    }
    devices::answer_join(context.tx, invite, answer.as_deref()).await?;
    Ok(Answer::Done)
}

/// Appends an entry that continues the newest one, with what follows for leases.
async fn append_entry(tx: &mut Tx, entry: &SignedRosterEntry) -> Result<(), Stop> {
    let mut roster = Roster::clone(tx.roster()?);
    roster.append(entry).map_err(|error| match error {
        RosterError::NotNext { newest } => Refusal::RosterMoved { seq: newest },
        RosterError::NotAdmin => Refusal::NotAdmin,
        RosterError::Full => Refusal::OverLimit("devices".to_owned()),
        other => bad(other),
    })?;
    if let Change::Revoke { device, at, .. } = &entry.record.change {
        let newest = devices::newest_position(tx, *device).await?;
        grantor::revocable(*at, newest).map_err(refused)?;
        end_leases(tx, *device).await?;
    }
    devices::append_roster(tx, entry.record.seq, &entry.to_bytes()).await?;
    tx.set_roster(roster);
    log_roster(tx, entry, entry.record.signer).await
}

async fn end_leases(tx: &mut Tx, device: DeviceId) -> Result<(), Stop> {
    for image in images::leased(tx, Some(device)).await? {
        if let Some(image) = tx.image(image).await?
            && let Some(effect) = grantor::revoke(&image.state, device)
        {
            effects::apply(tx, &effect, device).await?;
        }
    }
    Ok(())
}

async fn log_roster(tx: &mut Tx, entry: &SignedRosterEntry, device: DeviceId) -> Result<(), Stop> {
    let home = tx.roster()?.home();
    let line = LogEntry {
        kind: LogKind::Roster,
        image: NO_IMAGE,
        subject: *entry_id(entry, &home).as_bytes(),
        device,
        epoch: Epoch(0),
        time: clock::wall_millis(),
    };
    tx.append_log(&line)?;
    Ok(())
}

fn check_recovery(home: &Home, session: &Session, proof: &[u8]) -> Result<(), Refusal> {
    let proof = proof.try_into().map_err(bad)?;
    verify(&home.roster()?.recovery().sign, &session.exporter, proof).map_err(bad)
}
