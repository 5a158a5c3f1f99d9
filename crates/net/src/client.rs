//! One connection of a device to its home, or of a stranger who wants to join.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use img_proto::frame::{OBJECT_FRAME_LEN_MAX, REPLY_LEN_MAX, REQUEST_LEN_MAX};
use img_proto::{Answer, Call, Class, Refusal, Reply, Request};
use img_types::limits::DEMAND_TIMEOUT;
use img_types::{HomeKey, ObjectId, UploadId, object};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime,
    TransportErrorCode, VarInt,
};
use tokio::time::{sleep, timeout};

use crate::frames::{self, FrameFault};
use crate::identity::{PinnedHome, TlsIdentity, peer_key};
use crate::transport::{self, HANDSHAKE_MAX};

/// How long a push may stand still, with an object that waits for room in the stream or without an
/// acknowledgement after the last: the slowest link that is of use sends an object in this time.
const PUSH_SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long a home may give no sign of life while it is asked for one; some round trips of this link are added.
/// Acknowledgements count: a home that is only busy is not silent.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Round trips that are added, each at most as long as [`SILENCE_MAX`].
const SILENCE_ROUND_TRIPS: u32 = 4;
/// How often a silent home is asked for a sign of life.
const SIGN_INTERVAL: Duration = Duration::from_millis(250);
/// What asks for one; nobody reads it.
const SIGN: &[u8] = &[0];
/// Addresses of one name that are tried at once.
const ADDRESSES_MAX: usize = 4;
/// TLS refuses a handshake without a common protocol with this alert (RFC 7301).
const ALERT_NO_APPLICATION_PROTOCOL: u8 = 120;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The address is none, or its name has no address now.
    #[error("{0} is not an address that can be resolved")]
    Address(String),
    /// Nobody answers there.
    #[error("the home does not answer")]
    Unreachable,
    /// Another key answers than the pinned one.
    #[error("another home answers at this address")]
    WrongHome,
    /// The home speaks another version of the protocol.
    #[error("the home speaks another version of the protocol")]
    Version,
    /// This machine refuses a socket.
    #[error("no socket: {0}")]
    Socket(String),
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The home does not answer, or not in time. Whether it has done what was asked is unknown; the same
    /// request may be sent again.
    #[error("the home cannot be reached")]
    Away,
    /// Another home answers at this address.
    #[error("another home answers at this address")]
    WrongHome,
    /// The home refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The home sent something that is no answer to what was asked.
    #[error("the home broke the protocol: {0}")]
    Protocol(&'static str),
    /// The home sent other bytes than the object's.
    #[error("the home sent a damaged object")]
    Corrupt(ObjectId),
}

impl From<ConnectError> for LinkError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::WrongHome => Self::WrongHome,
            ConnectError::Version => Self::Protocol("another version"),
            ConnectError::Address(_) | ConnectError::Unreachable | ConnectError::Socket(_) => {
                Self::Away
            }
        }
    }
}

impl From<FrameFault> for LinkError {
    fn from(fault: FrameFault) -> Self {
        match fault {
            FrameFault::Gone | FrameFault::TooSlow => Self::Away,
            FrameFault::Malformed(_) => Self::Protocol("malformed frame"),
        }
    }
}

/// How much of a push is durable at the home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Objects since the push began.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A connection to the pinned home; cheap to clone. It ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Connection {
    connection: quinn::Connection,
    home_key: HomeKey,
}

/// Connects to the home whose key has `home_key_hash` (see [`crate::key_hash`]) at `HOST:PORT`. All
/// addresses of a name are tried at once; the first home that answers is taken.
///
/// # Errors
/// Nobody or another home answers; see [`ConnectError`].
pub async fn connect(
    address: &str,
    home_key_hash: [u8; 32],
    identity: &TlsIdentity,
) -> Result<Connection, ConnectError> {
    let endpoint = client_endpoint().map_err(|error| ConnectError::Socket(error.to_string()))?;
    connect_from(&endpoint, address, home_key_hash, identity).await
}

pub(crate) fn client_endpoint() -> io::Result<Endpoint> {
    Endpoint::new(
        EndpointConfig::default(),
        None,
        transport::client_socket()?,
        Arc::new(TokioRuntime),
    )
}

pub(crate) async fn connect_from(
    endpoint: &Endpoint,
    address: &str,
    home_key_hash: [u8; 32],
    identity: &TlsIdentity,
) -> Result<Connection, ConnectError> {
    let unresolved = || ConnectError::Address(address.to_owned());
    let resolved = timeout(HANDSHAKE_MAX, tokio::net::lookup_host(address)).await;
    let resolved = resolved.map_err(|_| unresolved())?;
    let attempts = resolved
        .map_err(|_| unresolved())?
        .take(ADDRESSES_MAX)
        .map(|address| shake_hands(endpoint, address, home_key_hash, identity));
    first_connected(attempts)
        .await
        .unwrap_or_else(|| Err(unresolved()))
}

/// The first attempt that succeeds; else the failure that says most: that somebody answered, and who. Nothing
/// if there are no attempts.
async fn first_connected<C>(
    attempts: impl Iterator<Item = impl Future<Output = Result<C, ConnectError>>>,
) -> Option<Result<C, ConnectError>> {
    let mut attempts: FuturesUnordered<_> = attempts.collect();
    let mut failure = None;
    while let Some(outcome) = attempts.next().await {
        match (outcome, &failure) {
            (Ok(connection), _) => return Some(Ok(connection)),
            (Err(_), Some(ConnectError::WrongHome)) => {}
            (Err(ConnectError::Unreachable | ConnectError::Socket(_)), Some(_)) => {}
            (Err(error), _) => failure = Some(error),
        }
    }
    failure.map(Err)
}

impl Connection {
    /// Makes one call and waits for its reply, which may be a refusal. Calls that wait for somebody (`Watch`
    /// and the join calls) wait as long as the connection lives, all others for a bounded time, and only while
    /// the home gives signs of life.
    ///
    /// # Errors
    /// There is no answer, or something that is none.
    pub async fn call(&self, request: &Request, class: Class) -> Result<Reply, LinkError> {
        let answered = async {
            let (mut send, mut receive) = self.open(request, class).await?;
            let _ = send.finish();
            read_reply(&mut receive).await
        };
        match time_max(&request.call) {
            Some(limit) => {
                let answered = timeout(limit, answered);
                let answered = self.unless_silent(answered).await;
                answered.and_then(|answer| answer.unwrap_or(Err(LinkError::Away)))
            }
            None => answered.await,
        }
    }

    /// Sends objects and reports what is durable as the home acknowledges it; returns when all are.
    ///
    /// # Errors
    /// The home refuses, breaks the protocol or goes away; what was acknowledged is durable.
    pub async fn push(
        &self,
        upload: UploadId,
        objects: impl Stream<Item = Bytes> + Send,
        mut on_ack: impl FnMut(Pushed) + Send,
    ) -> Result<Pushed, LinkError> {
        let request = Request {
            id: None,
            call: Call::Push { upload },
        };
        let (send, receive) = self.open(&request, Class::Upload).await?;
        let acknowledgements = AtomicU64::new(0);
        let counted = |pushed| {
            acknowledgements.fetch_add(1, Ordering::Relaxed);
            on_ack(pushed);
        };
        let mut writing = std::pin::pin!(write_objects(send, objects));
        let mut reading = std::pin::pin!(read_acknowledgements(receive, counted));
        let written = tokio::select! {
            written = &mut writing => written,
            // The home said its last word before it had everything.
            early = &mut reading => {
                return Err(early.err().unwrap_or(LinkError::Protocol("push cut short")));
            }
        };
        // Also if the home stopped reading: its last reply says why.
        let acknowledged = loop {
            let before = acknowledgements.load(Ordering::Relaxed);
            match timeout(PUSH_SILENCE_MAX, &mut reading).await {
                Ok(outcome) => break outcome?,
                Err(_) if acknowledgements.load(Ordering::Relaxed) > before => {}
                Err(_) => return Err(LinkError::Away),
            }
        };
        if written? == acknowledged.objects {
            Ok(acknowledged)
        } else {
            Err(LinkError::Protocol("push not acknowledged"))
        }
    }

    /// Asks for objects; [`Fetched::next`] yields them in the order asked.
    pub(crate) async fn fetch(
        &self,
        ids: Vec<ObjectId>,
        class: Class,
    ) -> Result<Fetched, LinkError> {
        let request = Request {
            id: None,
            call: Call::Fetch {
                ids: ids.clone(),
                class,
            },
        };
        let (mut send, receive) = self.open(&request, class).await?;
        let _ = send.finish();
        Ok(Fetched {
            connection: self.clone(),
            receive,
            ids: ids.into_iter(),
            answered: false,
        })
    }

    /// The home's public key, whose hash was pinned.
    pub fn home_key(&self) -> HomeKey {
        self.home_key
    }

    /// Bytes that only the two ends of this connection know, for signatures that are valid here only.
    pub fn exporter(&self) -> [u8; 32] {
        exporter(&self.connection)
    }

    /// Whether the connection has not ended.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Ends the connection for all handles.
    pub fn close(&self) {
        self.connection
            .close(VarInt::from_u32(0), b"the device is done");
    }

    /// Does something for which the home is needed. A home that vanished without a word is found out, and
    /// the connection ends, long before its idle time is over.
    async fn unless_silent<T>(&self, work: impl Future<Output = T>) -> Result<T, LinkError> {
        tokio::select! {
            done = work => Ok(done),
            () = self.falls_silent() => {
                self.connection.close(VarInt::from_u32(0), b"no sign of life");
                Err(LinkError::Away)
            }
        }
    }

    /// Resolves when the home does not even acknowledge what is sent to it.
    async fn falls_silent(&self) {
        let mut heard = None;
        // Counted in turns, not in time: a process that was stopped has packets to read first.
        let mut silent_turns = 0;
        loop {
            sleep(SIGN_INTERVAL).await;
            let now_heard = Some(self.connection.stats().udp_rx.datagrams);
            let asked = self.connection.send_datagram(Bytes::from_static(SIGN));
            if now_heard != heard || asked.is_err() {
                heard = now_heard;
                silent_turns = 0;
                continue;
            }
            silent_turns += 1;
            let round_trip = self.connection.rtt().min(SILENCE_MAX);
            if SIGN_INTERVAL * silent_turns >= SILENCE_MAX + round_trip * SILENCE_ROUND_TRIPS {
                return;
            }
        }
    }

    async fn open(
        &self,
        request: &Request,
        class: Class,
    ) -> Result<(SendStream, RecvStream), LinkError> {
        let (mut send, receive) = self
            .connection
            .open_bi()
            .await
            .map_err(|_| LinkError::Away)?;
        // A stream that has just been opened can be ordered.
        let _ = send.set_priority(class.priority());
        frames::write_message(&mut send, request, REQUEST_LEN_MAX).await?;
        Ok((send, receive))
    }
}

/// The objects of one fetch request.
#[derive(Debug)]
pub(crate) struct Fetched {
    connection: Connection,
    receive: RecvStream,
    ids: std::vec::IntoIter<ObjectId>,
    answered: bool,
}

impl Fetched {
    /// The next object, checked against its id; nothing after the last.
    pub(crate) async fn next(&mut self) -> Option<(ObjectId, Result<Option<Bytes>, LinkError>)> {
        let id = self.ids.next()?;
        let connection = self.connection.clone();
        let read = timeout(DEMAND_TIMEOUT, self.read(id));
        let read = connection.unless_silent(read).await;
        Some((
            id,
            read.and_then(|read| read.unwrap_or(Err(LinkError::Away))),
        ))
    }

    async fn read(&mut self, id: ObjectId) -> Result<Option<Bytes>, LinkError> {
        if !self.answered {
            let reply = read_reply(&mut self.receive).await?;
            let Answer::Objects = reply.result? else {
                return Err(LinkError::Protocol("no objects"));
            };
            self.answered = true;
        }
        let frame = frames::read(&mut self.receive, OBJECT_FRAME_LEN_MAX).await?;
        let frame = frame.ok_or(LinkError::Away)?;
        if frame.is_empty() {
            Ok(None)
        } else if object::verify(id, &frame).is_ok() {
            Ok(Some(frame))
        } else {
            Err(LinkError::Corrupt(id))
        }
    }
}

/// The exporter of a connection (RFC 8446, section 7.5), which recovery signs.
pub(crate) fn exporter(connection: &quinn::Connection) -> [u8; 32] {
    let mut bytes = [0; 32];
    connection
        .export_keying_material(&mut bytes, b"imgctl exporter v1", b"")
        .expect("32 bytes can be exported once the handshake is done");
    bytes
}

fn time_max(call: &Call) -> Option<Duration> {
    match call {
        Call::Watch { .. } | Call::JoinRequest { .. } | Call::JoinPoll { .. } => None,
        _ => Some(DEMAND_TIMEOUT),
    }
}

fn shake_hands(
    endpoint: &Endpoint,
    address: SocketAddr,
    home_key_hash: [u8; 32],
    identity: &TlsIdentity,
) -> impl Future<Output = Result<Connection, ConnectError>> + Send + 'static {
    let home = Arc::new(PinnedHome::new(home_key_hash));
    let connecting = begin(endpoint, address, identity, Arc::clone(&home));
    async move {
        let connection = match timeout(HANDSHAKE_MAX, connecting?).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(_)) if home.other_answered() => return Err(ConnectError::WrongHome),
            Ok(Err(error)) if is_version(&error) => return Err(ConnectError::Version),
            Ok(Err(_)) | Err(_) => return Err(ConnectError::Unreachable),
        };
        let home_key = peer_key(&connection).ok_or(ConnectError::WrongHome)?;
        Ok(Connection {
            connection,
            home_key: HomeKey::from_bytes(home_key),
        })
    }
}

fn begin(
    endpoint: &Endpoint,
    address: SocketAddr,
    identity: &TlsIdentity,
    home: Arc<PinnedHome>,
) -> Result<quinn::Connecting, ConnectError> {
    let failed = |error: &dyn std::error::Error| ConnectError::Socket(error.to_string());
    let tls = identity
        .client_config(home)
        .map_err(|error| failed(&error))?;
    let tls = QuicClientConfig::try_from(tls).map_err(|error| failed(&error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(transport::client_config());
    // Raw public keys carry no name; what counts is the pinned key.
    endpoint
        .connect_with(config, address, "home")
        .map_err(|error| failed(&error))
}

fn is_version(error: &ConnectionError) -> bool {
    let refused = TransportErrorCode::crypto(ALERT_NO_APPLICATION_PROTOCOL);
    match error {
        ConnectionError::VersionMismatch => true,
        ConnectionError::ConnectionClosed(close) => close.error_code == refused,
        ConnectionError::TransportError(error) => error.code == refused,
        _ => false,
    }
}

async fn read_reply(receive: &mut RecvStream) -> Result<Reply, LinkError> {
    let reply = frames::read_message(receive, REPLY_LEN_MAX).await?;
    reply.ok_or(LinkError::Away)
}

/// Writes all objects and ends the stream; returns their number.
async fn write_objects(
    mut send: SendStream,
    objects: impl Stream<Item = Bytes>,
) -> Result<u64, LinkError> {
    let mut objects = std::pin::pin!(objects);
    let mut count = 0;
    while let Some(object) = objects.next().await {
        let written = timeout(PUSH_SILENCE_MAX, frames::write_object(&mut send, object)).await;
        written.map_err(|_| LinkError::Away)??;
        count += 1;
    }
    let _ = send.finish();
    Ok(count)
}

/// Reads acknowledgements up to the end of the stream; returns the last.
async fn read_acknowledgements(
    mut receive: RecvStream,
    mut on_ack: impl FnMut(Pushed),
) -> Result<Pushed, LinkError> {
    let mut pushed = Pushed::default();
    while let Some(reply) = frames::read_message::<Reply>(&mut receive, REPLY_LEN_MAX).await? {
        let Answer::Pushed { objects, bytes } = reply.result? else {
            return Err(LinkError::Protocol("no acknowledgement"));
        };
        pushed = Pushed { objects, bytes };
        on_ack(pushed);
    }
    Ok(pushed)
}

#[cfg(test)]
mod tests;
