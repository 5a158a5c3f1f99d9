//! Crashes the real programs at every step of their disks and checks that nothing acknowledged is lost.
//!
//! A [`disk::Disk`] in memory knows what a power cut would take; [`mount`] serves it through FUSE, so that the
//! programs run on it as they ship; a [`gate::Gate`] counts what they write, sync, rename and remove, and kills
//! them at one step or fails it. A [`scenario::Scenario`] is a play for a home and two devices that notes in a
//! [`ledger::Ledger`] what was acknowledged; [`campaign`] plays it up to every step in turn, cuts the power in
//! every way, starts again and compares. A new scenario is a row in [`scenario::ALL`].

pub mod campaign;
pub mod disk;
pub mod gate;
pub mod ledger;
pub mod luck;
pub mod mount;
pub mod scenario;
pub mod stage;
