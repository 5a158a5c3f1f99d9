//! Measures this project beside a peer in one run, and prints ratios.
//!
//! A figure counts only as a ratio within one run, because machines differ and are noisy: both sides do
//! the same work in turn, for several rounds, and the medians are compared. Start it with
//! `cargo xtask bench NAME`, which builds everything in release first.
#![allow(clippy::print_stdout)]

mod corpus;
mod ours;
mod restic;
mod timing;
mod works;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Benchmarks beside restic.
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
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let table = match cli.work {
        Work::Import => works::import(&cli.tree, cli.rounds)?,
        Work::Checkout => works::checkout(&cli.tree, cli.rounds)?,
        Work::Commit => works::commit(&cli.tree, cli.rounds)?,
    };
    println!("{table}");
    Ok(())
}
