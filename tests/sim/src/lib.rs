//! A deterministic simulation of one home and its devices: one seed is one run.
//!
//! The home's rows are testkit's `ModelHome` and each checkout's lease is an `img_lease::holder::Holder`:
//! the very code that ships decides every grant, commit and deadline here. Around it time is virtual, the
//! network loses, doubles and delays, disks lose what was not durable, processes die at any durable write,
//! machines sleep, reboot and are cloned, wall clocks jump, and the home goes back to an old copy. People
//! do everything that the command line offers. In the end everything is mended and closed, and what must
//! hold according to `docs/protocol.md` is checked all along ([`checks`]).
//!
//! Not in it: keys, signatures, the tree of an index, several objects of one block, quotas, revocation and
//! collection. They have tests of their own.

pub mod checks;
pub mod clock;
pub mod content;
pub mod device;
pub mod disk;
pub mod home;
pub mod ids;
pub mod luck;
pub mod net;
pub mod person;
pub mod process;
pub mod run;
pub mod stored;
pub mod trace;
pub mod wire;
pub mod world;

pub use run::{Options, Report, run};
