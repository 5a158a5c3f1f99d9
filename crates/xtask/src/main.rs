//! The project's own tasks: `cargo xtask test`, `cargo xtask demo` and their parts.
//!
//! Everything here drives cargo, the real programs and ordinary tools; it shares no code with them.

mod arrows;
mod bench;
mod checks;
mod crash;
mod demo;
mod model;
mod needs;
mod shell;
mod sim;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the imgctl project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show the whole system at work on this machine, on a real tree, and clean up
    Demo {
        /// The folder to import; several hundred megabytes of this system by default
        path: Option<PathBuf>,
    },
    /// Measure this project beside a peer: import, checkout, commit, leases or lease-rate; --help for more
    #[command(disable_help_flag = true)]
    Bench {
        /// What the benchmark takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Explore the lease rules in full, which takes minutes
    Model {
        /// Only explorations and mutants whose name contains one of these words
        words: Vec<String>,
    },
    /// Simulate a home and its devices with faults: --seeds N, --from S, --mutant NAME; --help for more
    #[command(disable_help_flag = true)]
    Sim {
        /// What the simulation takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Crash the programs at every step of their disks: --points N|all, --scenario S; --help for more
    #[command(disable_help_flag = true)]
    Crash {
        /// What the campaign takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run everything that must pass before a push: `check`, all tests and the doc tests
    Test,
    /// Check the format, the lints and the crate arrows
    Check,
    /// Check that each crate imports only what docs/architecture.md allows
    Arrows,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Demo { path } => demo::run(path.as_deref()),
        Task::Bench { args } => bench::run(&args),
        Task::Model { words } => model::run(&words),
        Task::Sim { args } => sim::run(&args),
        Task::Crash { args } => crash::run(&args),
        Task::Test => checks::test(),
        Task::Check => checks::check(),
        Task::Arrows => arrows::check(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
