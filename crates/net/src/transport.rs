//! Sockets and transport settings of both ends, and the times that bound them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use img_types::limits::{
    CONNECTION_IDLE_MAX, KEEP_ALIVE, RECEIVE_WINDOW, STREAM_RECEIVE_WINDOW,
    STREAMS_PER_CONNECTION_MAX,
};
use quinn::{TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

/// The longest that a handshake may take; QUIC repeats its first packet after 1, 2 and 4 seconds.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A frame that has begun may take this long before its rate counts.
const FRAME_GRACE: Duration = Duration::from_secs(10);
/// Least bytes a second of a frame that has begun.
const FRAME_RATE_MIN: u64 = 4 * 1024;
/// Size asked of the kernel for a socket's buffers: a burst while the process does not run is not lost.
const SOCKET_BUFFER: usize = 8 * 1024 * 1024;

/// Streams of a peer that is not admitted.
pub(crate) const STRANGER_STREAMS_MAX: u32 = 2;
/// Bytes that a peer that is not admitted may send before they are read.
pub(crate) const STRANGER_RECEIVE_WINDOW: u32 = 64 * 1024;

/// Bytes that all peers of a home together may send before they are read: each newcomer gets its share.
const RECEIVE_BUDGET: u64 = 256 * 1024 * 1024;
/// The least share: a few blocks, so that an upload still goes on.
const RECEIVE_WINDOW_MIN: u64 = 256 * 1024;

/// Room for datagrams and what quinn keeps beside them: they ask for signs of life, and nobody reads them.
const DATAGRAMS_LEN_MAX: usize = 256;

/// Settings that both ends share; what is not named is quinn's default.
pub(crate) fn config() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = CONNECTION_IDLE_MAX
        .try_into()
        .expect("a minute is a valid idle time");
    config
        .max_idle_timeout(Some(idle))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(DATAGRAMS_LEN_MAX))
        .receive_window(window(RECEIVE_WINDOW))
        .stream_receive_window(window(STREAM_RECEIVE_WINDOW))
        // A stream is held back by its own window long before this one: bulk data that waits for a slow
        // link must not take the room of the small streams that overtake it.
        .send_window(RECEIVE_WINDOW);
    config
}

/// Settings of a device: it opens all streams and keeps the connection alive.
pub(crate) fn client_config() -> Arc<TransportConfig> {
    let mut config = config();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    Arc::new(config)
}

/// Settings of a home towards a peer that it does not know yet.
pub(crate) fn server_config() -> Arc<TransportConfig> {
    let mut config = config();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS_MAX))
        .receive_window(VarInt::from_u32(STRANGER_RECEIVE_WINDOW));
    Arc::new(config)
}

/// Gives a peer the room of a member, less of it where many are connected.
pub(crate) fn admit(connection: &quinn::Connection, connections: usize) {
    let share = RECEIVE_BUDGET / connections.max(1) as u64;
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_PER_CONNECTION_MAX));
    connection.set_receive_window(window(share.clamp(RECEIVE_WINDOW_MIN, RECEIVE_WINDOW)));
}

/// How long the rest of a frame of `len` bytes may take once it has begun.
pub(crate) fn frame_time_max(len: usize) -> Duration {
    FRAME_GRACE + Duration::from_secs(len as u64 / FRAME_RATE_MIN)
}

/// A UDP socket with large buffers; one on `[::]` takes IPv4 too.
pub(crate) fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel caps what is asked; smaller buffers only cost speed.
    let sizes = [
        socket.set_recv_buffer_size(SOCKET_BUFFER),
        socket.set_send_buffer_size(SOCKET_BUFFER),
    ];
    for error in sizes.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "the socket keeps its buffer size");
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A UDP socket on any port for both address families, or for IPv4 where there is no IPv6.
pub(crate) fn client_socket() -> io::Result<UdpSocket> {
    socket((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| socket((Ipv4Addr::UNSPECIFIED, 0).into()))
}

fn window(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).expect("windows are below 2^62 bytes")
}
