//! Contention between real processes: clients that hammer one `imghome`, are stopped and killed, and a
//! check of everything they were told.
//!
//! A client is a process that says what a daemon says, without files or mounts, and some of what a daemon
//! must not say. Every request and every answer is written down before it counts ([`journal`]), so that
//! afterwards the whole conversation of all clients is compared with the home's log ([`check`]).

pub mod check;
pub mod client;
pub mod fleet;
pub mod journal;
pub mod luck;
pub mod papers;
pub mod talk;
