//! `imgctl`: the command line of a device.
//!
//! It talks to `imgd` over its unix socket (`docs/control-api.md`) and owns nothing but the way things
//! are asked and shown: no store, no key and no network connection is opened here.

mod api;
mod args;
mod cgroup;
mod daemon;
mod failure;
mod progress;
mod show;
mod silence;
mod values;
mod verbs;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    let json = cli.json;
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))
        .and_then(|runtime| {
            // What is meant for an application that is run here does not end this program.
            let is_for_application = matches!(cli.command, Command::Run(_));
            let work = verbs::run(cli);
            let outcome = match is_for_application {
                true => runtime.block_on(work),
                false => runtime.block_on(until_interrupted(work)),
            };
            // A blocked read of the terminal must not keep the program.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            show::failure(&failure, json);
            ExitCode::from(failure.exit_code)
        }
    }
}

/// Works until the person presses Ctrl-C; where that has been switched off, to its end.
async fn until_interrupted<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    if verbs::is_ignored(rustix::process::Signal::INT) {
        return work.await;
    }
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
    }
}

fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !asked && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default();
        let failure = Failure::usage(message.trim_start_matches("error: "));
        show::failure(&failure, true);
        return ExitCode::from(failure.exit_code);
    }
    // Nobody is left to tell when the terminal is gone.
    let _ = error.print();
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    ExitCode::from(code)
}
