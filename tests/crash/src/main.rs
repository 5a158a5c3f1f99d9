//! Runs a campaign; started by `cargo xtask crash`.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use crash::campaign::{Campaign, Trial, spread};
use crash::scenario;

/// Crashes the programs at the steps of their disks: writes, syncs, new names, removals, cuts.
///
/// At each point the victim is killed and the power is cut in three ways: nothing unsynced survives, everything
/// does, a torn part of it does. Then single steps, all later steps and syncs fail, and the disk is full.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask crash")]
struct Cli {
    /// How many points of each scenario, evenly spread, or all
    #[arg(long, default_value = "40", value_parser = points)]
    points: u64,
    /// Only the scenario of this name
    #[arg(long)]
    scenario: Option<String>,
    /// Only power cuts
    #[arg(long)]
    cuts: bool,
    /// Decides what a torn disk keeps
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(losses) => {
            println!("{losses} failed.");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a table; returns how many visits failed.
fn run(cli: &Cli) -> Result<u64> {
    let asked = |name| cli.scenario.as_deref().is_none_or(|asked| asked == name);
    let scenarios: Vec<_> = scenario::ALL
        .into_iter()
        .filter(|scenario| asked(scenario.name))
        .collect();
    ensure!(
        !scenarios.is_empty(),
        "There is no such scenario. There are: {}",
        scenario::ALL.map(|scenario| scenario.name).join(", ")
    );
    println!("| scenario | steps | syncs | what | points | visits | losses | s |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut losses = 0;
    for scenario in scenarios {
        let mut campaign = Campaign::new(scenario, cli.seed)?;
        let counted = campaign.count()?;
        for trial in Trial::ALL {
            if cli.cuts && trial != Trial::Cut {
                continue;
            }
            let begun = Instant::now();
            let (mut points, mut visits, mut lost) = (0, 0, Vec::new());
            for at in spread(trial.points(counted), cli.points) {
                points += 1;
                for (fault, way) in trial.faults(at) {
                    visits += 1;
                    if let Err(error) = campaign.visit(fault, way) {
                        lost.push(format!("{fault:?}, {way:?}: {error:#}"));
                    }
                }
            }
            println!(
                "| {} | {} | {} | {} | {points} | {visits} | {} | {:.0} |",
                scenario.name,
                counted.0,
                counted.1,
                trial.name(),
                lost.len(),
                begun.elapsed().as_secs_f64()
            );
            for loss in &lost {
                println!("  {loss}");
            }
            losses += lost.len() as u64;
        }
    }
    Ok(losses)
}

fn points(text: &str) -> Result<u64, String> {
    match text {
        "all" => Ok(u64::MAX),
        number => number.parse().map_err(|_| "a number or all".to_owned()),
    }
}
