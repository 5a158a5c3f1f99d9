//! Measures this project beside a peer in one run, and prints ratios.
//!
//! A figure counts only as a ratio within one run, because machines differ and are noisy: both sides do
//! the same work in turn, for several rounds, and the medians are compared. Start it with
//! `cargo xtask bench NAME`, which builds everything in release first.
#![allow(clippy::print_stdout)]

mod background;
mod corpus;
mod etcd;
mod leases;
mod ours;
mod rates;
mod restic;
mod timing;
mod works;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use contend::fleet::Order;

/// Benchmarks beside restic and etcd.
#[derive(Debug, Parser)]
struct Cli {
    /// How often each side does the work
    #[arg(long, default_value_t = 3, global = true)]
    rounds: usize,
    /// The tree to work on
    #[arg(long, default_value = "/usr", global = true)]
    tree: PathBuf,
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum Work {
    /// First import of a tree, until it is durable at home; restic backs it up to a local folder
    Import,
    /// Everything of a raw disk on a second device; restic restores it
    Checkout,
    /// A commit after 3,500 random page writes to a raw disk; restic backs the disk up again
    Commit,
    /// An application that writes 50 MB/s, without and with checkpoints that stream; no peer
    Background,
    /// Contention for leases between client processes that are stopped and killed; checks every answer
    Leases(Contention),
    /// Durable lease calls per second; etcd grants leases and runs transactions
    LeaseRate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
struct Contention {
    /// Calls that are answered, at least
    #[arg(long, default_value_t = 1_000_000)]
    calls: u64,
    /// Client processes
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// Images that they contend for
    #[arg(long, default_value_t = 8)]
    images: u32,
    /// The last ones of them, which nobody steals and whose leases lapse
    #[arg(long, default_value_t = 2)]
    lapsing: u32,
    /// Chooses what clients do and what is done to them
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let table = match cli.work {
        Work::Leases(contention) => return leases::contend(&contention.order()),
        Work::LeaseRate => return leases::rate(cli.rounds),
        Work::Import => works::import(&cli.tree, cli.rounds)?,
        Work::Checkout => works::checkout(&cli.tree, cli.rounds)?,
        Work::Background => background::run(cli.rounds)?,
        Work::Commit => works::commit(&cli.tree, cli.rounds)?,
    };
    println!("{table}");
    Ok(())
}

impl Contention {
    fn order(self) -> Order {
        Order {
            calls: self.calls,
            clients: self.clients,
            images: self.images,
            lapsing: self.lapsing,
            seed: self.seed,
            calm: Duration::from_secs(1),
        }
    }
}
