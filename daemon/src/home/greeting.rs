//! What this device knows of its home, and how each connection begins: Hello, log check, roster.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use bytes::Bytes;
use img_net::{Connection, LinkError};
use img_proto::{Answer, Call, Class, Refusal, Request, Standing};
use img_records::{Roster, Signed};
use img_types::{DaemonNonce, HomeKey, Instance};
use tokio::sync::watch;

use super::restored::{BackInTime, Visit};
use super::standing::{confirms, went_back};
use super::{CallError, receipts};
use crate::commits::Trust;
use crate::events::{Event, Events};
use crate::identity::{Identity, Keys, key_ring};
use crate::state::{HomePin, State};

/// What is known of the home, shared by the link and by those who call over it.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) state: State,
    pub(super) identity: Arc<Identity>,
    pin: RwLock<Arc<HomePin>>,
    pub(super) nonce: DaemonNonce,
    roster: RwLock<Arc<Roster>>,
    /// Held while the roster grows: two who read the same entries store them once.
    growing: tokio::sync::Mutex<()>,
    keys: Keys,
    seen: watch::Sender<Option<Standing>>,
    back_in_time: watch::Sender<Option<Arc<BackInTime>>>,
    known: Mutex<Known>,
    events: Events,
}

/// What a connection told.
#[derive(Debug, Clone, Copy)]
struct Known {
    home_key: Option<HomeKey>,
    instance: Option<Instance>,
}

impl Core {
    pub(super) fn new(
        state: State,
        identity: Arc<Identity>,
        pin: HomePin,
        nonce: DaemonNonce,
        roster: Roster,
        keys: Keys,
        events: Events,
    ) -> Arc<Self> {
        let known = Known {
            home_key: pin.home_key,
            instance: None,
        };
        Arc::new(Self {
            state,
            identity,
            nonce,
            roster: RwLock::new(Arc::new(roster)),
            growing: tokio::sync::Mutex::default(),
            keys,
            seen: watch::Sender::new(pin.seen),
            back_in_time: watch::Sender::new(None),
            known: Mutex::new(known),
            events,
            pin: RwLock::new(Arc::new(pin)),
        })
    }

    pub(super) fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The home as it is pinned.
    pub(super) fn pin(&self) -> Arc<HomePin> {
        Arc::clone(&self.pin.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for the home at another address from now on; durable when this returns.
    pub(super) async fn move_to(&self, address: &str) -> Result<(), CallError> {
        let new = address.to_owned();
        self.state.with(move |db| db.set_address(&new)).await?;
        let mut pin = self.pin.write().unwrap_or_else(PoisonError::into_inner);
        *pin = Arc::new(HomePin {
            address: address.to_owned(),
            ..HomePin::clone(&pin)
        });
        Ok(())
    }

    pub(super) fn seen(&self) -> Option<Standing> {
        *self.seen.borrow()
    }

    /// What the home lost, while it is one that went back in time.
    pub(super) fn back_in_time(&self) -> Option<Arc<BackInTime>> {
        self.back_in_time.borrow().clone()
    }

    /// Whether this device has been taken off the roster, as far as it has heard.
    pub(super) fn is_revoked(&self) -> bool {
        let roster = self.roster();
        roster.revocation(&self.identity.device()).is_some()
    }

    pub(super) fn is_bad(&self) -> bool {
        self.back_in_time.borrow().is_some()
    }

    /// Runs `work` with what this device trusts now.
    pub(super) fn trusted<T>(&self, work: impl FnOnce(&Trust<'_>) -> T) -> T {
        let (roster, keys) = (self.roster(), self.keys.now());
        work(&Trust {
            home: self.pin().home,
            roster: &roster,
            keys: &keys,
        })
    }

    pub(super) fn home_key(&self) -> Option<HomeKey> {
        self.known().home_key
    }

    pub(super) fn instance(&self) -> Option<Instance> {
        self.known().instance
    }

    /// Compares a reply's standing with what was seen when its call was sent, and remembers it.
    pub(super) fn observe(&self, before: Option<Standing>, at: Standing) -> Result<(), CallError> {
        if before.is_some_and(|before| went_back(&before, &at)) {
            self.declare_bad(BackInTime::default());
            return Err(CallError::WentBack);
        }
        self.seen.send_if_modified(|seen| {
            let newer = seen.is_none_or(|seen| {
                seen.incarnation != at.incarnation || seen.position < at.position
            });
            if newer {
                *seen = Some(at);
            }
            newer
        });
        Ok(())
    }

    /// Keeps what the home has signed for with an answer, before anybody acts on it.
    pub(super) async fn keep_receipts(
        &self,
        call: &Call,
        answer: &Answer,
    ) -> Result<(), CallError> {
        let Some(key) = self.home_key() else {
            return Ok(());
        };
        let signed = receipts::acknowledged(&self.pin().home, &key, call, answer);
        if signed.is_empty() {
            return Ok(());
        }
        let kept = self.state.with(move |db| db.keep_acknowledged(&signed));
        Ok(kept.await?)
    }

    /// Goes on with a home that went back in time, from where it stands now; durable when this returns.
    pub(super) async fn go_on(&self, at: Standing) -> Result<(), CallError> {
        self.state.with(move |db| db.set_seen(at)).await?;
        self.seen.send_replace(Some(at));
        self.back_in_time.send_replace(None);
        tracing::warn!("this device goes on with a home that went back in time");
        Ok(())
    }

    /// Takes roster entries from number `from` on; each is checked, stored and then used.
    pub(super) async fn grow_roster(&self, from: u64, entries: &[Bytes]) -> Result<(), CallError> {
        let _one_at_a_time = self.growing.lock().await;
        let mut roster = Roster::clone(&self.roster());
        let known = roster.seq();
        for (seq, bytes) in (from..).zip(entries) {
            if seq <= roster.seq() {
                continue;
            }
            let malformed = CallError::Protocol("a roster entry that does not verify");
            let Ok(entry) = Signed::decode(bytes) else {
                return Err(malformed);
            };
            if roster.append(&entry).is_err() {
                return Err(malformed);
            }
            let bytes = bytes.to_vec();
            self.state
                .with(move |db| db.append_roster(seq, &bytes))
                .await?;
        }
        if roster.seq() > known {
            if roster.revocation(&self.identity.device()).is_some() && !self.is_revoked() {
                tracing::warn!("this device has been revoked; what is checked out here stays");
            }
            if let Ok(ring) = key_ring(self.identity.kem(), &roster) {
                self.keys.replace(ring);
            }
            let mut current = self.roster.write().unwrap_or_else(PoisonError::into_inner);
            if current.seq() < roster.seq() {
                *current = Arc::new(roster);
            }
        }
        Ok(())
    }

    fn known(&self) -> Known {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends nothing to the home any more.
    pub(super) fn declare_bad(&self, lost: BackInTime) {
        if self
            .back_in_time
            .send_replace(Some(Arc::new(lost)))
            .is_none()
        {
            tracing::error!(
                "the home is behind or unlike what this device saw of it; nothing is sent to it any more"
            );
            self.events.send(Event::Home { connected: false });
        }
    }

    async fn remember_home_key(&self, key: HomeKey) -> Result<(), CallError> {
        if self.home_key() != Some(key) {
            self.state.with(move |db| db.set_home_key(key)).await?;
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.home_key = Some(key);
        }
        Ok(())
    }
}

/// Opens a conversation: says Hello, checks the home's log against what was seen, reads the roster.
pub(super) async fn greet(core: Arc<Core>, connection: Connection) -> Result<(), LinkError> {
    let greeted = match core.is_revoked() {
        true => Err(CallError::Refused(Refusal::NotMember)),
        false => say_hello(&core, &connection).await,
    };
    greeted.map_err(|error| match error {
        CallError::Away | CallError::State(_) => LinkError::Away,
        CallError::WrongHome => LinkError::WrongHome,
        CallError::Refused(refusal) => LinkError::Refused(refusal),
        CallError::WentBack => LinkError::Refused(Refusal::WentBack { at_seen: None }),
        CallError::Protocol(what) => LinkError::Protocol(what),
    })
}

async fn say_hello(core: &Core, connection: &Connection) -> Result<(), CallError> {
    let seen = core.seen();
    let hello = Request {
        id: None,
        call: Call::Hello {
            nonce: core.nonce,
            seen,
        },
    };
    let reply = connection.call(&hello, Class::Control).await?;
    let instance = match reply.result {
        Ok(Answer::Hello { instance, at_seen })
            if seen.is_none_or(|seen| confirms(at_seen.as_ref(), &seen)) =>
        {
            instance
        }
        // Where such a home stands is not what this device saw of it.
        Ok(Answer::Hello { .. }) | Err(Refusal::WentBack { .. }) => {
            return Err(look_at_restored(core, connection, seen).await);
        }
        Ok(_) => return Err(CallError::Protocol("no answer to Hello")),
        Err(Refusal::NotMember) => {
            // Whom it has revoked the home shows the signed entry that says so.
            if let Err(error) = read_roster(core, connection).await {
                tracing::debug!(%error, "the home does not say why this device is no member");
            }
            return Err(Refusal::NotMember.into());
        }
        Err(refusal) => return Err(refusal.into()),
    };
    core.back_in_time.send_replace(None);
    if let Some(at) = reply.at {
        core.observe(seen, at)?;
    }
    core.known
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .instance = Some(instance);
    core.remember_home_key(connection.home_key()).await?;
    read_roster(core, connection).await
}

/// Reads what the roster has grown by.
async fn read_roster(core: &Core, connection: &Connection) -> Result<(), CallError> {
    loop {
        let from = core.roster().seq() + 1;
        match ask(core, connection, Call::Roster { from }).await? {
            Answer::Roster { entries, more } => {
                core.grow_roster(from, &entries).await?;
                if !more || entries.is_empty() {
                    return Ok(());
                }
            }
            _ => return Err(CallError::Protocol("no roster")),
        }
    }
}

/// Learns what a home lost that is not the one that was seen.
async fn look_at_restored(
    core: &Core,
    connection: &Connection,
    seen: Option<Standing>,
) -> CallError {
    let looked = async {
        let visit = Visit::begin(core, connection).await?;
        let rows = visit.images().await?;
        visit.losses(&rows).await
    };
    let losses = match looked.await {
        Ok(losses) => losses,
        Err(CallError::Away) => return CallError::Away,
        Err(error) => {
            tracing::warn!(%error, "it is not known what the home lost");
            Vec::new()
        }
    };
    if core.seen() != seen {
        // Meanwhile a person said how to go on.
        return CallError::Away;
    }
    core.declare_bad(BackInTime { losses });
    CallError::WentBack
}

async fn ask(core: &Core, connection: &Connection, call: Call) -> Result<Answer, CallError> {
    let before = core.seen();
    let request = Request { id: None, call };
    let reply = connection.call(&request, Class::Control).await?;
    if let Some(at) = reply.at {
        core.observe(before, at)?;
    }
    Ok(reply.result?)
}

/// Keeps the newest standing on the disk, as long as the home's side of the daemon lives.
pub(super) async fn persist_standing(core: Weak<Core>) {
    let Some(mut seen) = core.upgrade().map(|core| core.seen.subscribe()) else {
        return;
    };
    while seen.changed().await.is_ok() {
        let Some(core) = core.upgrade() else {
            return;
        };
        let Some(standing) = *seen.borrow_and_update() else {
            continue;
        };
        if let Err(error) = core.state.with(move |db| db.set_seen(standing)).await {
            tracing::error!(%error, "what was seen of the home cannot be kept");
        }
    }
}
