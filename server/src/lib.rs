//! The home server.
