//! Runs the full explorations and all mutants, and prints what they came to.

use std::io::Write;
use std::process::ExitCode;

use model::configs::{FULL, MUTANTS, SHORT};
use model::{Config, Explored};

fn main() -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted: Vec<_> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    let mut good = true;
    say("| exploration | states | time |\n|---|---|---|");
    for config in SHORT.iter().chain(FULL) {
        if is_wanted(config.name) {
            let explored = config.explore(threads);
            good &= explored.breach.is_none() && explored.unreached.is_empty();
            tell(config, &explored);
        }
    }
    say("\n| mutant | caught by | states until then | steps |\n|---|---|---|---|");
    for (mutant, config) in MUTANTS {
        let name = format!("{mutant:?}");
        if !is_wanted(&name) {
            continue;
        }
        let config = Config {
            mutant: Some(*mutant),
            ..*config
        };
        let explored = config.explore(1);
        match explored.breach {
            Some((breach, way)) => {
                say(&format!(
                    "| {name} | {} | {} | {} |",
                    breach.name(),
                    explored.states,
                    way.len()
                ));
            }
            None => {
                good = false;
                say(&format!("| {name} | nothing | {} | |", explored.states));
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tell(config: &Config, explored: &Explored) {
    let seconds = explored.took.as_secs_f64();
    let (name, states) = (config.name, explored.states);
    say(&format!("| {name} | {states} | {seconds:.1} s |"));
    if let Some((breach, way)) = &explored.breach {
        say(&format!(
            "{} does not hold:\n  {}",
            breach.name(),
            way.join("\n  ")
        ));
    }
    for unreached in &explored.unreached {
        say(&format!("never reached: {unreached}"));
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
