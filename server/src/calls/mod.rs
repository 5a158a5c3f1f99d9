//! What each call does: one module per concern, behind one door for members and one for strangers.
//!
//! Mutating calls run inside the writer's transaction with their request id's outcome; the lease
//! rules themselves are `img-lease`'s. Reads take their standing before they look, so that what a
//! device hears is never older than the position it is told.

mod commit;
mod enrol;
mod hello;
mod image;
mod lease;
mod member;
mod pins;
mod read;
mod restore;
mod steal;
mod transaction;
mod transfer;
mod wait;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use img_proto::{Answer, Call, Refusal, Reply, Request};
use img_types::{DeviceId, Instance};
use tokio::sync::Semaphore;

use crate::audit::Subject;
use crate::db::Stop;
use crate::home::Home;

pub(crate) use enrol::founding_hash;
pub(crate) use hello::Greeted;
pub(crate) use read::{Figures, figures};
pub(crate) use restore::begin as begin_incarnation;
pub(crate) use transaction::tidy;
pub(crate) use transfer::{Room, all_room, serve};
pub(crate) use wait::WAIT_MAX;

/// Pushes of one connection that are read at a time: each holds an object, of up to 4 MiB, that has no
/// room among those on their way yet.
const PUSHES_MAX: usize = 4;

/// One connection: whose key it was made with, and which daemon said Hello on it.
#[derive(Debug)]
pub(crate) struct Session {
    tls: [u8; 32],
    exporter: [u8; 32],
    /// Which connection of this process it is, in the order in which they began.
    number: u64,
    daemon: Mutex<Option<Daemon>>,
    recovering: AtomicBool,
    invited: AtomicBool,
    /// Bytes that it sent as a stranger.
    taken: AtomicUsize,
    pushes: Semaphore,
    reading: Arc<Semaphore>,
}

/// A member's daemon that has said Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Daemon {
    pub(crate) device: DeviceId,
    pub(crate) instance: Instance,
}

impl Session {
    pub(crate) fn new(tls: [u8; 32], exporter: [u8; 32], number: u64) -> Self {
        Self {
            tls,
            exporter,
            number,
            daemon: Mutex::new(None),
            recovering: AtomicBool::new(false),
            invited: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            pushes: Semaphore::new(PUSHES_MAX),
            reading: transfer::own_room(),
        }
    }

    /// The member behind this connection, as of now.
    pub(crate) fn device(&self, home: &Home) -> Result<DeviceId, Refusal> {
        let roster = home.roster()?;
        let device = roster.by_tls(&self.tls).ok_or(Refusal::NotMember)?;
        match roster.member(&device) {
            Some(member) if member.active() => Ok(device),
            _ => Err(Refusal::NotMember),
        }
    }

    /// The entry that took the device behind this connection off the roster.
    fn revocation(&self, home: &Home) -> Option<u64> {
        let roster = home.roster().ok()?;
        let mut members = roster.members();
        let (device, _) = members.find(|(_, state)| state.member.keys.tls == self.tls)?;
        Some(roster.revocation(device)?.record.seq)
    }

    /// The daemon that said Hello, if its device is still a member.
    fn daemon(&self, home: &Home) -> Result<Daemon, Refusal> {
        let device = self.device(home)?;
        let daemon = *self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        daemon
            .filter(|daemon| daemon.device == device)
            .ok_or(Refusal::HelloFirst)
    }

    fn set_daemon(&self, daemon: Daemon) {
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(daemon);
    }

    /// Whether the peer has proved that it holds the recovery key.
    pub(crate) fn recovering(&self) -> bool {
        self.recovering.load(Ordering::Relaxed)
    }

    fn set_recovering(&self) {
        self.recovering.store(true, Ordering::Relaxed);
    }

    /// Whether the peer has named an invite that a member registered.
    pub(crate) fn invited(&self) -> bool {
        self.invited.load(Ordering::Relaxed)
    }

    fn set_invited(&self) {
        self.invited.store(true, Ordering::Relaxed);
    }
}

/// Answers a call that needs one reply and no objects.
pub(crate) async fn answer(home: &Arc<Home>, session: &Session, request: Request) -> Reply {
    let before = home.standing();
    let mutates = request.call.mutates();
    let subject = Subject::of(&request.call);
    let result = decide(home, session, request).await;
    note(home, session, &subject, &result);
    // A mutating call is answered with a standing that has its effect; a read with one that its
    // rows are at least as new as.
    let at = if mutates { home.standing() } else { before };
    reply(home, session, at, result)
}

/// Makes the reply for a result; strangers are not told where the home stands.
pub(crate) fn reply(
    home: &Home,
    session: &Session,
    at: img_proto::Standing,
    result: Result<Answer, Stop>,
) -> Reply {
    let member = session.device(home).is_ok();
    Reply {
        at: member.then_some(at),
        result: result.map_err(refusal),
    }
}

/// What a device is told of a failure; only the log has the reason.
pub(crate) fn refusal(stop: Stop) -> Refusal {
    match stop {
        Stop::Refused(refusal) => refusal,
        Stop::Closing => Refusal::Busy,
        Stop::Database(error) => {
            tracing::error!(%error, "a call failed in the database");
            Refusal::Internal("database".to_owned())
        }
        Stop::Broken(error) => {
            tracing::error!(%error, "a call failed");
            Refusal::Internal("storage".to_owned())
        }
    }
}

/// Writes down what was refused.
fn note<T>(home: &Home, session: &Session, subject: &Subject, result: &Result<T, Stop>) {
    if let Err(Stop::Refused(why)) = result {
        let roster = home.roster().ok();
        let device = roster.and_then(|roster| roster.by_tls(&session.tls));
        home.audit.refused(device, subject, why);
    }
}

async fn decide(home: &Arc<Home>, session: &Session, request: Request) -> Result<Answer, Stop> {
    match request.call {
        Call::Hello { nonce, seen } => hello::hello(home, session, nonce, seen).await,
        Call::Found { secret, genesis } => enrol::found(home, session, secret, &genesis).await,
        Call::JoinRequest { invite, request } => {
            wait::join(home, session, invite, Some(request)).await
        }
        Call::JoinPoll { invite } => wait::join(home, session, invite, None).await,
        Call::RecoverRoster { proof } => enrol::recover_roster(home, session, &proof).await,
        Call::RecoverAppend { proof, entry } => {
            enrol::recover_append(home, session, &proof, entry).await
        }
        Call::ShowReceipt { receipt } => restore::shown(home, session, &receipt).await,
        Call::Roster { from } if session.device(home).is_err() => {
            enrol::show_revocation(home, session, from).await
        }
        call => {
            let daemon = session.daemon(home)?;
            member::answer(home, daemon, request.id, call).await
        }
    }
}
