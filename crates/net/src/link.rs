//! A device's standing connection to its home: one at a time, opened again when it is lost.
//!
//! ```text
//!              handshake and Hello
//!  Connecting ────────────────────▶ Connected
//!    │    ▲                          ▲     │
//!    │    └──────────── lost ────────┼─────┘
//!    ▼ failed                        │
//!   Away ── again after a while, or ─┘
//!           when somebody calls
//! ```
//!
//! One task owns the state. A call made while it connects waits for the outcome; a call made while the home
//! is away sets off an attempt at once, and waits for it a short time only.

mod fetch;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use img_proto::{Class, Reply, Request};
use img_types::UploadId;
use img_types::limits::{DEMAND_TIMEOUT, STREAMS_PER_CONNECTION_MAX};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{self, Connection, LinkError, Pushed};
use crate::identity::TlsIdentity;

/// First pause after a failed attempt, and the least between two.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between attempts: a home that is back is noticed within this time.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a call waits for a connection that is being made: a person waits for it.
const CONTACT_PATIENCE: Duration = Duration::from_secs(3);
/// How long a call waits for a home that did not answer last time, or has just vanished: long enough for one
/// that is back.
const AWAY_PATIENCE: Duration = Duration::from_secs(1);
/// Streams for bulk fetches, and for pushes. Two keep a link busy, and what waits in their windows leaves
/// room in the connection's for a demand fetch.
const BULK_STREAMS: usize = 2;
/// Streams for demand fetches; what is left of the connection's streams serves calls.
const DEMAND_STREAMS: usize = STREAMS_PER_CONNECTION_MAX as usize - 2 * BULK_STREAMS - 12;

/// Where the home is and who it must be.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// `HOST:PORT`.
    pub address: String,
    /// The pinned hash of the home's key; see [`crate::key_hash`].
    pub home_key_hash: [u8; 32],
    /// This device's key.
    pub identity: TlsIdentity,
}

/// Whether the home can be called.
#[derive(Debug, Clone)]
pub enum LinkState {
    /// The first attempt since the start or since the connection was lost.
    Connecting,
    /// Hello has been answered.
    Connected(Connection),
    /// The last attempt failed, and why.
    Away(LinkError),
}

/// A device's connection to its home; cheap to clone. It ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: watch::Receiver<LinkState>,
    wanted: Arc<Notify>,
    address: watch::Sender<String>,
    demand: Semaphore,
    bulk: Semaphore,
    pushes: Semaphore,
    task: JoinHandle<()>,
}

impl Link {
    /// Begins to connect. `hello` opens each conversation before any other call goes out: it says Hello and
    /// whatever has to be known first; its error keeps the link [`LinkState::Away`]. Must be called within a
    /// tokio runtime.
    pub fn new<H, F>(config: LinkConfig, hello: H) -> Self
    where
        H: Fn(Connection) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), LinkError>> + Send + 'static,
    {
        let (sender, state) = watch::channel(LinkState::Connecting);
        let wanted = Arc::new(Notify::new());
        let (address, addresses) = watch::channel(config.address.clone());
        let home = Whereabouts { config, addresses };
        let task = tokio::spawn(stay_connected(home, hello, sender, Arc::clone(&wanted)));
        let shared = Shared {
            state,
            wanted,
            address,
            demand: Semaphore::new(DEMAND_STREAMS),
            bulk: Semaphore::new(BULK_STREAMS),
            pushes: Semaphore::new(BULK_STREAMS),
            task,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The state, now and whenever it changes.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.shared.state.clone()
    }

    /// Connects to another address of the home from now on.
    pub fn move_to(&self, address: &str) {
        self.shared.address.send_replace(address.to_owned());
        self.shared.wanted.notify_one();
    }

    /// Makes one call and waits for its reply, which may be a refusal: [`Reply::result`]. If the connection
    /// is lost meanwhile the same request is sent again, within the time that a call may take.
    ///
    /// # Errors
    /// The home is away, or answers something that is no reply.
    pub async fn call(&self, request: &Request, class: Class) -> Result<Reply, LinkError> {
        let deadline = Instant::now() + DEMAND_TIMEOUT;
        let mut patience = CONTACT_PATIENCE;
        loop {
            let connection = self.connected(Instant::now() + patience).await?;
            match connection.call(request, class).await {
                Err(LinkError::Away) if !connection.is_open() && Instant::now() < deadline => {
                    patience = AWAY_PATIENCE;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends objects and reports what is durable as the home acknowledges it; returns when all are. A push
    /// that fails is resumed by the caller: what was acknowledged need not be sent again.
    ///
    /// # Errors
    /// The home refuses, breaks the protocol or goes away.
    pub async fn push(
        &self,
        upload: UploadId,
        objects: impl Stream<Item = Bytes> + Send,
        on_ack: impl FnMut(Pushed) + Send,
    ) -> Result<Pushed, LinkError> {
        let turn = self.shared.pushes.acquire().await;
        let _turn = turn.map_err(|_| LinkError::Away)?;
        let connection = self.connected(Instant::now() + DEMAND_TIMEOUT).await?;
        connection.push(upload, objects, on_ack).await
    }

    /// The connection after its Hello, as soon as there is one.
    ///
    /// # Errors
    /// There is none by `deadline`, or sooner if the home is known to be away.
    pub async fn connected(&self, deadline: Instant) -> Result<Connection, LinkError> {
        let mut state = self.shared.state.clone();
        let mut deadline = deadline;
        let mut was_away = false;
        loop {
            match &*state.borrow_and_update() {
                LinkState::Connected(connection) if connection.is_open() => {
                    return Ok(connection.clone());
                }
                LinkState::Away(reason) if was_away => return Err(reason.clone()),
                LinkState::Away(_) => {
                    was_away = true;
                    deadline = deadline.min(Instant::now() + AWAY_PATIENCE);
                    self.shared.wanted.notify_one();
                }
                LinkState::Connected(_) | LinkState::Connecting => {}
            }
            let changed = timeout_at(deadline, state.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(match &*state.borrow() {
                    LinkState::Away(reason) => reason.clone(),
                    LinkState::Connecting | LinkState::Connected(_) => LinkError::Away,
                });
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The home, wherever it is now.
struct Whereabouts {
    config: LinkConfig,
    addresses: watch::Receiver<String>,
}

async fn stay_connected<H, F>(
    mut home: Whereabouts,
    hello: H,
    state: watch::Sender<LinkState>,
    wanted: Arc<Notify>,
) where
    H: Fn(Connection) -> F + Send + Sync,
    F: Future<Output = Result<(), LinkError>> + Send,
{
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        home.config
            .address
            .clone_from(&home.addresses.borrow_and_update());
        match attempt(&home.config, &hello).await {
            Ok(connection) => {
                state.send_replace(LinkState::Connected(connection.clone()));
                tokio::select! {
                    () = connection.closed() => {}
                    Ok(()) = home.addresses.changed() => connection.close(),
                }
                tracing::debug!("the connection to the home was lost");
                state.send_replace(LinkState::Connecting);
                if began.elapsed() > PAUSE_MAX {
                    pause = PAUSE_MIN;
                    continue;
                }
                sleep(PAUSE_MIN).await;
            }
            Err(reason) => {
                tracing::debug!(%reason, "no connection to the home");
                state.send_replace(LinkState::Away(reason));
                sleep(PAUSE_MIN).await;
                let rest = with_jitter(pause) - PAUSE_MIN.min(pause);
                tokio::select! {
                    () = sleep(rest) => {}
                    () = wanted.notified() => {}
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

async fn attempt<H, F>(config: &LinkConfig, hello: &H) -> Result<Connection, LinkError>
where
    H: Fn(Connection) -> F,
    F: Future<Output = Result<(), LinkError>>,
{
    let connection =
        client::connect(&config.address, config.home_key_hash, &config.identity).await?;
    hello(connection.clone()).await?;
    Ok(connection)
}

/// Up to a quarter longer, so that not all devices come back to a restarted home at once.
fn with_jitter(pause: Duration) -> Duration {
    // Without randomness the pause is as good, only not spread.
    let luck = getrandom::u32().unwrap_or(0);
    pause + pause.mul_f64(f64::from(luck) / f64::from(u32::MAX) / 4.0)
}
