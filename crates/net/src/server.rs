//! The home's end: arriving connections, their requests, and the limits that hold before anybody is known.
//!
//! A peer begins as a stranger with room for a few small calls; [`Peer::admit`] gives it a member's room.
//! Who is a member is not decided here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use img_proto::frame::{FrameError, OBJECT_FRAME_LEN_MAX, REPLY_LEN_MAX};
use img_proto::{Class, Reply, Request};
use img_types::limits::INCOMING_MAX;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::client::exporter;
use crate::frames::{self, FrameFault};
use crate::identity::{TlsIdentity, peer_key};
use crate::transport::{self, HANDSHAKE_MAX};

const CID_CONTEXT: &str = "imgctl 2026-11-21 quic connection ids v1";

/// Why a peer's request cannot be read or answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer or its connection has gone.
    #[error("the peer has gone")]
    Gone,
    /// The peer began a frame and did not go on with it.
    #[error("the peer is too slow")]
    TooSlow,
    /// The peer sent something that is no message, or one over its limit.
    #[error(transparent)]
    Malformed(FrameError),
}

impl From<FrameFault> for StreamError {
    fn from(fault: FrameFault) -> Self {
        match fault {
            FrameFault::Gone => Self::Gone,
            FrameFault::TooSlow => Self::TooSlow,
            FrameFault::Malformed(error) => Self::Malformed(error),
        }
    }
}

/// A home's socket.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    handshakes: Arc<Semaphore>,
}

/// A connection whose handshake is under way.
#[derive(Debug)]
pub struct Arriving {
    endpoint: Endpoint,
    connecting: quinn::Connecting,
    _room: OwnedSemaphorePermit,
}

/// A connected device or stranger, known by its key only; cheap to clone.
#[derive(Debug, Clone)]
pub struct Peer {
    endpoint: Endpoint,
    connection: quinn::Connection,
    key: [u8; 32],
}

/// One request and the way back.
#[derive(Debug)]
pub struct RequestStream {
    uploads: Uploads,
    replies: Replies,
}

/// What a peer sends on a stream: its request, and the objects of a push.
#[derive(Debug)]
pub struct Uploads(RecvStream);

/// What a home sends on a stream: replies, and the objects of a fetch.
#[derive(Debug)]
pub struct Replies(SendStream);

impl Server {
    /// Listens on a UDP address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address is taken or not this machine's.
    pub fn bind(address: SocketAddr, identity: &TlsIdentity) -> io::Result<Self> {
        let tls = identity.server_config().map_err(io::Error::other)?;
        let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config
            .transport_config(transport::server_config())
            .max_incoming(INCOMING_MAX);
        let endpoint = Endpoint::new(
            endpoint_config(identity),
            Some(config),
            transport::socket(address)?,
            Arc::new(TokioRuntime),
        )?;
        Ok(Self {
            endpoint,
            handshakes: Arc::new(Semaphore::new(INCOMING_MAX)),
        })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Waits for the next connection; nothing after [`Server::close`]. Finish its handshake on a task of its
    /// own. While many handshakes are under way a newcomer has to prove its address first; while too many
    /// are, it is refused.
    pub async fn accept(&self) -> Option<Arriving> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let Ok(room) = Arc::clone(&self.handshakes).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            if self.handshakes.available_permits() < INCOMING_MAX / 2 && incoming.may_retry() {
                // It comes back with a token, or was never there.
                let _ = incoming.retry();
                continue;
            }
            match incoming.accept() {
                Ok(connecting) => {
                    return Some(Arriving {
                        endpoint: self.endpoint.clone(),
                        connecting,
                        _room: room,
                    });
                }
                Err(error) => tracing::debug!(%error, "a connection did not begin"),
            }
        }
    }

    /// Takes the room of this many handshakes.
    #[cfg(test)]
    pub(crate) fn occupy(&self, handshakes: usize) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.handshakes);
        let count = u32::try_from(handshakes).unwrap();
        room.try_acquire_many_owned(count).unwrap()
    }

    /// Ends all connections and takes no more; returns when the peers have been told.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"the home stops");
        self.endpoint.wait_idle().await;
    }
}

impl Arriving {
    /// Finishes the handshake.
    ///
    /// # Errors
    /// The peer went away, took too long or has no key.
    pub async fn establish(self) -> Result<Peer, StreamError> {
        let connection = timeout(HANDSHAKE_MAX, self.connecting)
            .await
            .map_err(|_| StreamError::TooSlow)?
            .map_err(|_| StreamError::Gone)?;
        let key = peer_key(&connection).ok_or(StreamError::Gone)?;
        Ok(Peer {
            endpoint: self.endpoint,
            connection,
            key,
        })
    }
}

impl Peer {
    /// The peer's TLS public key.
    pub fn key(&self) -> [u8; 32] {
        self.key
    }

    /// The address that the peer's packets come from; the handshake has shown that it gets ours.
    pub fn address(&self) -> IpAddr {
        self.connection.remote_address().ip()
    }

    /// Gives the peer a member's streams and window.
    pub fn admit(&self) {
        transport::admit(&self.connection, self.endpoint.open_connections());
    }

    /// Waits for the next request. Read it on a task of its own.
    ///
    /// # Errors
    /// [`StreamError::Gone`]: the connection has ended.
    pub async fn accept(&self) -> Result<RequestStream, StreamError> {
        let stream = self.connection.accept_bi().await;
        let (send, receive) = stream.map_err(|_| StreamError::Gone)?;
        Ok(RequestStream {
            uploads: Uploads(receive),
            replies: Replies(send),
        })
    }

    /// Bytes that only the two ends of this connection know, for signatures that are valid here only.
    pub fn exporter(&self) -> [u8; 32] {
        exporter(&self.connection)
    }

    /// Whether both are handles of the same connection.
    pub fn is_same_connection(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Ends the connection; the reason is for logs.
    pub fn close(&self, reason: &str) {
        self.connection
            .close(VarInt::from_u32(1), reason.as_bytes());
    }
}

impl RequestStream {
    /// Reads the request; `max` bytes are allowed to this peer.
    ///
    /// # Errors
    /// The peer has gone, is too slow, or sent something else.
    pub async fn read_request(&mut self, max: usize) -> Result<Request, StreamError> {
        let request = frames::read_message(&mut self.uploads.0, max).await?;
        request.ok_or(StreamError::Gone)
    }

    /// Decides who this stream's answer overtakes. Call it before the first reply.
    pub fn set_class(&self, class: Class) {
        self.replies.set_class(class);
    }

    /// Sends a reply; a fetch is followed by objects, a push by more replies.
    ///
    /// # Errors
    /// The peer has gone, or the reply is over its limit.
    pub async fn reply(&mut self, reply: &Reply) -> Result<(), StreamError> {
        self.replies.reply(reply).await
    }

    /// Sends an object, or nothing for one that the home does not have.
    ///
    /// # Errors
    /// The peer has gone.
    pub async fn send_object(&mut self, object: Option<Bytes>) -> Result<(), StreamError> {
        self.replies.send_object(object).await
    }

    /// Parts the two directions, so that one task reads uploads while another acknowledges.
    pub fn split(self) -> (Uploads, Replies) {
        (self.uploads, self.replies)
    }

    /// Says that the answer is complete, as dropping the stream does.
    pub fn finish(self) {
        self.replies.finish();
    }
}

impl Uploads {
    /// Reads the next object of a push; nothing after the last. The caller computes its id.
    ///
    /// # Errors
    /// The peer has gone, is too slow, or sent something else.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        Ok(frames::read(&mut self.0, OBJECT_FRAME_LEN_MAX).await?)
    }
}

impl Replies {
    /// Decides who this stream's answer overtakes. Call it before the first reply.
    pub fn set_class(&self, class: Class) {
        // A stream that has ended has no order to keep.
        let _ = self.0.set_priority(class.priority());
    }

    /// Sends a reply.
    ///
    /// # Errors
    /// The peer has gone, or the reply is over its limit.
    pub async fn reply(&mut self, reply: &Reply) -> Result<(), StreamError> {
        Ok(frames::write_message(&mut self.0, reply, REPLY_LEN_MAX).await?)
    }

    /// Sends an object, or nothing for one that the home does not have.
    ///
    /// # Errors
    /// The peer has gone.
    pub async fn send_object(&mut self, object: Option<Bytes>) -> Result<(), StreamError> {
        Ok(frames::write_object(&mut self.0, object.unwrap_or_default()).await?)
    }

    /// Says that the answer is complete, as dropping the stream does.
    pub fn finish(mut self) {
        // A peer that no longer listens does not need to know.
        let _ = self.0.finish();
    }
}

/// Connection ids and reset tokens that a restarted home still recognises: a device whose connection died
/// with the old process is told so by its next packet, and not by a timeout.
fn endpoint_config(identity: &TlsIdentity) -> EndpointConfig {
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, identity.reset_secret());
    let cid_key = blake3::derive_key(CID_CONTEXT, identity.reset_secret());
    let cid_key = u64::from_le_bytes(*cid_key.first_chunk().expect("32 bytes hold eight"));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    config
}
