//! Runs many seeds; started by `cargo xtask sim`.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use img_testkit::home::Mutant;
use sim::trace::Keep;
use sim::{Options, run};

/// Runs seeds of the simulation until one fails.
#[derive(Debug, Parser)]
struct Cli {
    /// How many seeds
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// A fault of the home, by its name in testkit, or of the devices
    #[arg(long)]
    mutant: Option<String>,
    /// Lines of a failing run that are shown
    #[arg(long, default_value_t = 80)]
    lines: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (mutant, fault) = match cli.mutant.as_deref().map(named).transpose() {
        Ok(found) => found.unwrap_or_default(),
        Err(names) => {
            println!("There is no such mutant. There are: {names}");
            return ExitCode::from(2);
        }
    };
    let begun = Instant::now();
    let (mut steps, mut writes, mut commits) = (0, 0, 0);
    for seed in cli.from..cli.from + cli.seeds {
        let options = Options {
            mutant,
            fault,
            ..Options::seed(seed)
        };
        let report = run(options);
        steps += report.steps;
        writes += report.durable_writes;
        commits += report.commits;
        if let Some(failure) = report.failure {
            let keep = Keep::Last(cli.lines);
            let again = run(Options { keep, ..options });
            println!("{}seed {seed} fails: {failure}", again.trace);
            return ExitCode::FAILURE;
        }
        let done = seed - cli.from + 1;
        if done.is_multiple_of(10_000) {
            println!("{done} seeds in {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{} seeds from {} in {took:.1} s ({:.0} seeds/s): {steps} events, {writes} durable writes, {commits} commits; everything holds.",
        cli.seeds,
        cli.from,
        cli.seeds as f64 / took
    );
    ExitCode::SUCCESS
}

type Found = (Option<Mutant>, Option<sim::device::Fault>);

fn named(name: &str) -> Result<Found, String> {
    use sim::device::Fault;
    let mutant = Mutant::ALL.into_iter().find(|it| format!("{it:?}") == name);
    let fault = Fault::ALL.into_iter().find(|it| format!("{it:?}") == name);
    if mutant.is_none() && fault.is_none() {
        let names = Mutant::ALL.iter().map(|it| format!("{it:?}"));
        let names = names.chain(Fault::ALL.iter().map(|it| format!("{it:?}")));
        return Err(names.collect::<Vec<_>>().join(", "));
    }
    Ok((mutant, fault))
}
