//! Runs a campaign; started by `cargo xtask crash`.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use crash::campaign::Campaign;
use crash::disk::Way;
use crash::gate::Fault;
use crash::scenario;

/// Crashes the programs at every step of their disks.
#[derive(Debug, Parser)]
struct Cli {
    /// How many points of each scenario, evenly spread, or all
    #[arg(long, default_value = "40")]
    points: String,
    /// Only the scenario of this name
    #[arg(long)]
    scenario: Option<String>,
    /// Decides what a torn disk keeps
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<u64> {
    let mut losses = 0;
    for one in scenario::ALL {
        if cli.scenario.as_deref().is_some_and(|name| name != one.name) {
            continue;
        }
        let begun = Instant::now();
        let mut campaign = Campaign::new(one, cli.seed)?;
        println!("prepared {:?}", begun.elapsed());
        let (steps, syncs) = campaign.count()?;
        println!("{} {steps} {syncs} {:?}", one.name, begun.elapsed());
        let points: u64 = cli.points.parse()?;
        for n in 0..points.min(steps) {
            let at = 1 + n * steps / points.min(steps);
            for way in Way::ALL {
                let one = Instant::now();
                match campaign.visit(Fault::Kill(at), way) {
                    Ok(visit) => println!("{at} {way:?} {:?} {:?}", visit.hit, one.elapsed()),
                    Err(error) => {
                        losses += 1;
                        println!("{at} {way:?} LOSS {error:#} {:?}", one.elapsed());
                    }
                }
            }
        }
        println!("{losses} {:?}", begun.elapsed());
    }
    Ok(losses)
}
