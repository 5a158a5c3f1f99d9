//! The conversation with the home: calls, their journal, and the check that it never goes back.
//!
//! Owns the standing that this device has seen, the roster, and which mutating calls are not answered. It
//! knows nothing of checkouts: what an answer means is its caller's business. `docs/protocol.md` describes the calls,
//! `docs/formats.md` the log check.

mod acquiring;
mod forward;
mod greeting;
mod line;
mod receipts;
mod restored;
mod standing;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use img_net::{Link, LinkConfig, LinkError, LinkState};
use img_proto::{Answer, Call, Class, Refusal, Request, Standing};
use img_records::Roster;
use img_store::{Cache, StoreError};
use img_types::{DaemonNonce, DeviceId, HomeId, HomeKey, Instance, ObjectId, RequestId, Token};
use tokio::time::Instant;

use crate::commits::Trust;
use crate::enrol::Revocation;
use crate::error::{self, About, ApiError};
use crate::events::Events;
use crate::identity::{Identity, Keys};
use crate::objects::{Arrival, Objects, Remote, Trouble};
use crate::state::{HomePin, JournaledRequest, State, StateError};
use crate::uplink::Uplink;

pub use forward::{Forwarded, Given, Lost};
pub use line::Missing;
pub use restored::{BackInTime, Loss, Place};

use greeting::Core;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The home cannot be reached, or the connection broke before the answer came.
    #[error("the home cannot be reached")]
    Away,
    /// The home refused; nothing changed there.
    #[error("the home refused: {0}")]
    Refused(#[from] Refusal),
    /// The home is behind or unlike what this device saw of it.
    #[error("the home went back in time")]
    WentBack,
    /// Another machine answers at the home's address.
    #[error("another home answers at this address")]
    WrongHome,
    /// The answer is not one to this call, or does not verify.
    #[error("the home's answer makes no sense: {0}")]
    Protocol(&'static str),
    /// The state folder failed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<LinkError> for CallError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Away => Self::Away,
            LinkError::WrongHome => Self::WrongHome,
            LinkError::Refused(Refusal::WentBack { .. }) => Self::WentBack,
            LinkError::Refused(refusal) => Self::Refused(refusal),
            LinkError::Protocol(what) => Self::Protocol(what),
            LinkError::Corrupt(_) => Self::Protocol("a damaged object"),
        }
    }
}

/// The answer to a journaled call. Its effect here has to be made durable, together with
/// [`Home::settle`] or in one transaction with striking out `request`.
#[derive(Debug)]
#[must_use]
pub struct Mutated {
    /// What the home answered.
    pub answer: Answer,
    /// The call's place in the journal.
    pub request: RequestId,
}

/// The device's home.
#[derive(Debug)]
pub struct Home {
    link: Link,
    core: Arc<Core>,
    objects: Arc<Objects>,
    uplink: Uplink,
    awaited: Mutex<HashSet<RequestId>>,
    /// When it last answered.
    heard: Mutex<Instant>,
}

/// Why the home's side of the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state folder failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The object cache failed.
    #[error("the object cache cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The roster that was stored does not verify or holds no keys for this device.
    #[error("the stored roster is damaged: {0}")]
    Roster(String),
}

impl Home {
    /// Begins to talk to the pinned home, over the object cache.
    ///
    /// # Errors
    /// What is stored is damaged.
    pub async fn open(
        state: &State,
        identity: Arc<Identity>,
        nonce: DaemonNonce,
        pin: HomePin,
        cache: Cache,
        uplink: Uplink,
        events: Events,
    ) -> Result<Arc<Self>, OpenError> {
        let entries = state.with(|db| db.roster()).await?;
        let damaged = |error: &dyn std::error::Error| OpenError::Roster(error.to_string());
        let roster = crate::enrol::papers::replay(&entries).map_err(|error| damaged(&error))?;
        let ring =
            crate::identity::key_ring(identity.kem(), &roster).map_err(|error| damaged(&error))?;
        let keys = Keys::new(ring);
        let config = LinkConfig {
            address: pin.address.clone(),
            home_key_hash: pin.home_key_hash,
            identity: identity.tls(),
        };
        let core = Core::new(
            state.clone(),
            identity,
            pin,
            nonce,
            roster,
            keys.clone(),
            events,
        );
        let greeter = Arc::clone(&core);
        let link = Link::new(config, move |connection| {
            greeting::greet(Arc::clone(&greeter), connection)
        });
        tokio::spawn(greeting::persist_standing(Arc::downgrade(&core)));
        let remote = HomeRemote {
            link: link.clone(),
            core: Arc::clone(&core),
        };
        let objects = Objects::new(cache, Arc::new(remote), keys);
        Ok(Arc::new(Self {
            link,
            core,
            objects,
            uplink,
            awaited: Mutex::default(),
            heard: Mutex::new(Instant::now()),
        }))
    }

    /// Asks something that changes nothing.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn ask(&self, call: Call) -> Result<Answer, CallError> {
        Ok(self.ask_at(call).await?.0)
    }

    /// Asks something that changes nothing; the answer comes with the home's standing, which is not newer than
    /// what was read for it.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn ask_at(&self, call: Call) -> Result<(Answer, Option<Standing>), CallError> {
        self.send(Request { id: None, call }).await
    }

    /// Makes a call that changes what the home keeps. It is journaled first; once sent it is repeated until it is
    /// answered, by this call or, if that fails with [`CallError::Away`], by the daemon when the home is back.
    ///
    /// # Errors
    /// [`CallError`]; a refusal strikes the call out, but not one that only a newer daemon of this device met.
    pub async fn mutate(&self, call: Call) -> Result<Mutated, CallError> {
        self.refuse_if_revoked()?;
        // Nothing is promised to a home that is not there.
        let connection = self.link.connected(Instant::now() + PATIENCE).await?;
        let request = JournaledRequest {
            id: self.request_id(),
            call,
        };
        let _awaited = Awaited::new(&self.awaited, request.id);
        let journaled = request.clone();
        self.core
            .state
            .with(move |db| db.journal_request(&journaled))
            .await?;
        match self.repeat(request.id, request.call).await {
            Ok(answer) => Ok(Mutated {
                answer,
                request: request.id,
            }),
            Err(error) => {
                let struck_out = match &error {
                    // Sent a second time, it may have had its effect before a newer daemon came; the next start of
                    // this one hears of it. The first time, over this very connection, it had none.
                    CallError::Refused(Refusal::InstanceFenced) => connection.is_open(),
                    error => matches!(error, CallError::Refused(_)),
                };
                if struck_out {
                    self.settle(request.id).await?;
                }
                Err(error)
            }
        }
    }

    /// Strikes a journaled call out: its effect is durable.
    ///
    /// # Errors
    /// The state folder failed.
    pub async fn settle(&self, request: RequestId) -> Result<(), StateError> {
        self.core
            .state
            .with(move |db| db.settle_request(request))
            .await
    }

    /// Makes a call with an effect that the caller has persisted itself, under its own request id.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn repeat(&self, request: RequestId, call: Call) -> Result<Answer, CallError> {
        let repeated = self.send(Request {
            id: Some(request),
            call,
        });
        Ok(repeated.await?.0)
    }

    /// A new request id: the start of this daemon, then randomness.
    pub fn request_id(&self) -> RequestId {
        let mut id = [0; RequestId::LEN];
        id[..16].copy_from_slice(&self.core.nonce.as_bytes()[..16]);
        getrandom::fill(&mut id[16..]).expect("the kernel has randomness once a daemon runs");
        RequestId::from_bytes(id)
    }

    /// Calls that nobody here waits for, to be repeated now that the home is back.
    ///
    /// # Errors
    /// The state folder failed.
    pub async fn unanswered(&self) -> Result<Vec<JournaledRequest>, StateError> {
        let requests = self.core.state.with(|db| db.journaled_requests()).await?;
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = requests.into_iter();
        Ok(forgotten
            .filter(|request| !awaited.contains(&request.id))
            .collect())
    }

    /// The connection, for uploads and fetches.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The objects behind this home.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    /// The device's own keys.
    pub fn identity(&self) -> &Identity {
        &self.core.identity
    }

    /// The home's id.
    pub fn id(&self) -> HomeId {
        self.core.pin().home
    }

    /// The home as it was pinned.
    pub fn pin(&self) -> Arc<HomePin> {
        self.core.pin()
    }

    /// Looks for the home at another address from now on, if it answers there.
    ///
    /// # Errors
    /// Nobody answers there, or another home; nothing changed.
    pub async fn move_to(&self, address: &str) -> Result<(), CallError> {
        let identity = self.core.identity.tls();
        let connecting = img_net::connect(address, self.pin().home_key_hash, &identity);
        let connected = tokio::time::timeout(PATIENCE, connecting).await;
        let connected = connected.map_err(|_| CallError::Away)?;
        connected.map_err(LinkError::from)?.close();
        self.core.move_to(address).await?;
        self.link.move_to(address);
        let _ = self.link.connected(Instant::now() + PATIENCE).await;
        Ok(())
    }

    /// The home's public key, once a connection has shown it.
    pub fn home_key(&self) -> Option<HomeKey> {
        self.core.home_key()
    }

    /// This device.
    pub fn device(&self) -> DeviceId {
        self.core.identity.device()
    }

    /// What the home called this start of the daemon; nothing before the first contact.
    pub fn instance(&self) -> Option<Instance> {
        self.core.instance()
    }

    /// The roster as this device knows it.
    pub fn roster(&self) -> Arc<Roster> {
        self.core.roster()
    }

    /// This device's revocation, once it has heard of it: it is for good.
    pub fn revocation(&self) -> Option<Revocation> {
        Revocation::of(&self.roster(), &self.device())
    }

    /// What a revoked device is told; nothing where this one is a member.
    pub fn revoked(&self) -> Option<ApiError> {
        let revocation = self.revocation()?;
        let by = crate::enrol::device_name(&self.objects.keyring(), &self.roster(), &revocation.by);
        Some(crate::enrol::explain_revocation(revocation, &by))
    }

    /// The newest standing of the home that this device has seen.
    pub fn seen(&self) -> Option<Standing> {
        self.core.seen()
    }

    /// Runs `work` with what this device trusts now.
    pub fn trusted<T>(&self, work: impl FnOnce(&Trust<'_>) -> T) -> T {
        self.core.trusted(work)
    }

    /// Reads what the roster has grown by.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn catch_up(&self) -> Result<(), CallError> {
        loop {
            let from = self.roster().seq() + 1;
            match self.ask(Call::Roster { from }).await? {
                Answer::Roster { entries, more } => {
                    self.core.grow_roster(from, &entries).await?;
                    if !more || entries.is_empty() {
                        return Ok(());
                    }
                }
                _ => return Err(CallError::Protocol("no roster")),
            }
        }
    }

    /// Whether a token is of a database that the home has no more: it is void, though nobody took the lease.
    pub fn is_void(&self, token: &Token) -> bool {
        self.seen()
            .is_some_and(|seen| seen.incarnation != token.incarnation)
    }

    /// What uploads may take of the connection.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Whether the home answers now.
    pub fn connected(&self) -> bool {
        let answers = match &*self.link.state().borrow() {
            LinkState::Connected(connection) => connection.is_open(),
            LinkState::Connecting | LinkState::Away(_) => false,
        };
        answers && !self.core.is_bad()
    }

    /// Why the home does not answer now.
    pub fn absence(&self) -> CallError {
        match &*self.link.state().borrow() {
            _ if self.core.is_revoked() => CallError::Refused(Refusal::NotMember),
            _ if self.core.is_bad() => CallError::WentBack,
            LinkState::Away(reason) => reason.clone().into(),
            LinkState::Connecting | LinkState::Connected(_) => CallError::Away,
        }
    }

    /// Finds out whether the home is still there, if it was and has not been heard for a while: one that vanished
    /// without a word is missed by nobody who asks for nothing.
    pub async fn look(&self) {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if self.connected() && heard.elapsed() >= LOOKED_AFTER {
            let _ = tokio::time::timeout(PATIENCE, self.catch_up()).await;
        }
    }

    /// Why the home is of no use now, for a person; nothing while it answers, or is asked for the first time.
    pub fn trouble(&self) -> Option<ApiError> {
        let begins = matches!(&*self.link.state().borrow(), LinkState::Connecting)
            && self.instance().is_none();
        if self.connected() || (begins && !self.core.is_bad()) {
            return None;
        }
        Some(self.explain(&self.absence(), "the home"))
    }

    /// Resolves once the home answers; asks for it where it is away.
    pub async fn reachable(&self) {
        reachable(&self.link).await;
    }

    /// The error for a person, of a call about `image`.
    pub fn explain(&self, error: &CallError, image: &str) -> ApiError {
        match error {
            CallError::Away => ApiError::away(
                "What is checked out here goes on working: everything local can be read and written, checkpoints are taken.",
            ),
            CallError::Refused(refusal) => {
                if let (Refusal::NotMember | Refusal::HelloFirst, Some(told)) =
                    (refusal, self.revoked())
                {
                    return told;
                }
                let roster = self.roster();
                let keys = self.objects.keyring();
                let device_name =
                    |device: &DeviceId| crate::enrol::device_name(&keys, &roster, device);
                let about = About {
                    image,
                    this: Some(self.device()),
                    device_name: &device_name,
                };
                ApiError::refused(refusal, about)
            }
            CallError::WentBack => self.core.back_in_time().unwrap_or_default().explain(),
            CallError::WrongHome => error::wrong_home(),
            CallError::Protocol(_) => ApiError::new(
                error::Kind::Corrupt,
                error.to_string(),
                "Nothing was changed here.",
            ),
            CallError::State(_) => ApiError::failed(error),
        }
    }

    fn refuse_if_revoked(&self) -> Result<(), CallError> {
        match self.core.is_revoked() {
            true => Err(CallError::Refused(Refusal::NotMember)),
            false => Ok(()),
        }
    }

    async fn send(&self, request: Request) -> Result<(Answer, Option<Standing>), CallError> {
        self.refuse_if_revoked()?;
        if self.core.is_bad() {
            return Err(CallError::WentBack);
        }
        let mut busy = 0;
        loop {
            let before = self.seen();
            let reply = self.link.call(&request, Class::Control).await?;
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            if let Some(at) = reply.at {
                self.core.observe(before, at)?;
            }
            match reply.result {
                Err(Refusal::Busy) if busy < BUSY_MAX => {
                    busy += 1;
                    tokio::time::sleep(BUSY_PAUSE * busy).await;
                }
                outcome => {
                    let answer = outcome?;
                    self.core.keep_receipts(&request.call, &answer).await?;
                    return Ok((answer, reply.at));
                }
            }
        }
    }
}

/// Marks a request as waited for while it lives.
struct Awaited<'a> {
    set: &'a Mutex<HashSet<RequestId>>,
    request: RequestId,
}

impl<'a> Awaited<'a> {
    fn new(set: &'a Mutex<HashSet<RequestId>>, request: RequestId) -> Self {
        set.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(request);
        Self { set, request }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.set
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.request);
    }
}

/// The home as the place where objects come from.
struct HomeRemote {
    link: Link,
    core: Arc<Core>,
}

impl Remote for HomeRemote {
    fn fetch(&self, ids: Vec<ObjectId>, class: Class) -> BoxStream<'static, Arrival> {
        let arrivals = self.link.fetch(ids, class).map(|arrival| {
            arrival.map_err(|error| match error {
                LinkError::Corrupt(id) => Trouble::Corrupt(id),
                _ => Trouble::Disconnected,
            })
        });
        arrivals.boxed()
    }

    fn reachable(&self) -> BoxFuture<'static, ()> {
        let link = self.link.clone();
        async move { reachable(&link).await }.boxed()
    }

    fn hopeless(&self) -> BoxFuture<'static, ()> {
        let (link, core) = (self.link.clone(), Arc::clone(&self.core));
        async move {
            while !core.is_revoked() {
                // The newest attempt counts: the home may be back since the last one.
                match link.connected(Instant::now() + PATIENCE).await {
                    Ok(_) => std::future::pending().await,
                    Err(error) => match CallError::from(error) {
                        CallError::WrongHome
                        | CallError::WentBack
                        | CallError::Refused(Refusal::NotMember)
                        | CallError::Protocol(_) => return,
                        _ => tokio::time::sleep(RETRY_PAUSE).await,
                    },
                }
            }
        }
        .boxed()
    }
}

async fn reachable(link: &Link) {
    // Each try sets off an attempt to connect.
    while link.connected(Instant::now() + PATIENCE).await.is_err() {
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// How long a call waits for a connection before it is given up: a person waits for it.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
/// How long a home may have been quiet before a person who wants to know is told that it is there.
const LOOKED_AFTER: std::time::Duration = std::time::Duration::from_secs(2);
/// Pause between two tries to reach the home for somebody who waits.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);
/// How often a busy home is asked again.
const BUSY_MAX: u32 = 5;
/// First pause before a busy home is asked again; grows with every time.
const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
