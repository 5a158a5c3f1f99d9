//! End-to-end tests: the real programs, real mounts, real input.

mod back_in_time;
mod bad_input;
mod crash;
mod cuts;
mod enrolment;
mod full_disk;
mod history;
mod leases;
mod offline;
mod pace;
mod programs;
mod restore;
mod revocation;
mod run;
mod scene;
mod secrecy;
mod steal;
mod tour;
mod words;
