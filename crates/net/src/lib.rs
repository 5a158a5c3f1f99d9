//! The wire between a device and its home: QUIC with raw public keys, framing, reconnecting.
//!
//! This crate owns connections and streams: who is at the other end, in which order bytes go out, how long
//! anything may take. It knows no database, no cache and no lease: calls and answers pass through as
//! `img-proto` defines them. `docs/protocol.md` describes the rules.
//!
//! - [`identity`]: Ed25519 keys as TLS identities.
//! - [`client`]: one connection to a pinned home; [`link`]: one that comes back by itself.
//! - [`server`]: the home's end.

pub mod client;
pub mod identity;
pub mod link;
pub mod server;

mod frames;
mod transport;

pub use client::{ConnectError, Connection, LinkError, Pushed, connect};
pub use identity::{TlsIdentity, key_hash};
pub use link::{Link, LinkConfig, LinkState};
pub use server::{Arriving, Peer, Replies, RequestStream, Server, StreamError, Uploads};
