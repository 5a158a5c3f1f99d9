//! The lease rules as pure functions: the grantor at the home and the holder at the device.
//!
//! This crate owns every decision about who may move an image's head: grants, renewals, releases,
//! steals, the commit rule, staged records, pins, branches and readmission ([`grantor`]), and what a
//! checkout knows about its own lease ([`holder`]). `docs/architecture.md` names the parts around it
//! and the lease rules are described in the project's protocol document.
//!
//! It deliberately knows no database, no signatures, no wire and no clock: rows come in and go out as
//! plain structs, time is elapsed milliseconds or a reading in an argument, and luck is an argument.
//! So the same code runs in the server, in the daemon and in the model that explores it.

pub mod grantor;
pub mod holder;
mod refused;
mod rows;

pub use refused::Refused;
pub use rows::{
    Caller, Daemon, Effect, Grant, Head, ImageState, Lease, Logged, Pin, Proposal, Staged, Terms,
};
