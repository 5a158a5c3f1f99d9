//! The lease rules from outside: each promise by name, and random interleavings of all calls.

mod interleavings;
mod promises;
mod world;
