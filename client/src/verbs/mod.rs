//! One module per verb, or per few that belong together.

mod branch;
mod cache;
mod checkout;
mod checkpoint;
mod create;
mod device;
mod diff;
mod doctor;
mod export;
mod home;
mod images;
mod join;
mod leases;
mod log;
mod release;
mod restore;
mod run;
mod status;
mod steal;

pub(crate) use run::is_ignored;

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::api::Api;
use crate::args::{Cli, Command, DeviceCommand};
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::show::{self, Output};

/// What every verb works with.
#[derive(Debug)]
struct Session {
    api: Api,
    output: Output,
}

impl Session {
    /// Runs a long operation under a progress bar.
    async fn stream(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut progress = Progress::new();
        self.api
            .stream(path, body, |line| progress.update(line))
            .await
    }
}

/// Runs the command that was typed.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Completions { shell } = cli.command {
        // Into memory first: the generator panics when its output is closed.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "imgctl", &mut script);
        return show::print(String::from_utf8_lossy(&script).trim_end());
    }
    let daemon = Daemon::find(cli.socket, cli.state, !cli.no_start)?;
    let session = Session {
        api: Api::new(daemon),
        output: Output::new(cli.json),
    };
    match cli.command {
        Command::Join { invite, name } => join::join(&session, &invite, name).await,
        Command::Recover {
            address,
            home_key_hash,
            name,
        } => join::recover(&session, &address, &home_key_hash, name).await,
        Command::Device { command } => match command {
            DeviceCommand::Invite => device::invite(&session).await,
            DeviceCommand::List => device::list(&session).await,
            DeviceCommand::Revoke { name, yes } => device::revoke(&session, &name, yes).await,
        },
        Command::Create(args) => create::create(&session, args).await,
        Command::Ls => images::list(&session).await,
        Command::Rename { name, new } => images::rename(&session, &name, &new).await,
        Command::Delete { name, force } => images::delete(&session, &name, force).await,
        Command::Checkout(args) => checkout::checkout(&session, args).await,
        Command::Run(args) => run::run(&session, args).await,
        Command::Branch { name, new, at } => branch::branch(&session, &name, &new, at).await,
        Command::Steal(args) => steal::steal(&session, args).await,
        Command::Hydrate { checkout } => checkout::hydrate(&session, &checkout).await,
        Command::Status { checkout, watch } => {
            status::status(&session, checkout.as_ref(), watch).await
        }
        Command::Checkpoint { checkout, message } => {
            checkpoint::checkpoint(&session, &checkout, message).await
        }
        Command::Commit {
            checkout,
            message,
            adopt_orphan,
            take_over,
            keep,
            branch,
            partial,
            no_wait,
        } => {
            let body = json!({
                "message": message.unwrap_or_default(),
                "adopt_orphan": adopt_orphan,
                "take_over": take_over,
                "keep": keep,
                "branch": branch.map(|name| name.to_string()),
                "partial": partial,
                "wait": !no_wait,
            });
            checkpoint::commit(&session, &checkout, &body, no_wait).await
        }
        Command::Release { checkout, discard } => {
            release::release(&session, &checkout, discard).await
        }
        Command::Cache { limit } => cache::cache(&session, limit).await,
        Command::Log {
            name,
            limit,
            audit: true,
        } => log::audit(&session, &name, limit).await,
        Command::Log { name, limit, .. } => log::log(&session, &name, limit).await,
        Command::Diff { checkout, from, to } => {
            diff::diff(&session, &checkout, from.as_ref(), to.as_ref()).await
        }
        Command::Restore {
            checkout,
            to,
            force,
        } => restore::restore(&session, &checkout, to.as_ref(), force).await,
        Command::Export(args) => export::export(&session, args).await,
        Command::Leases => leases::leases(&session).await,
        Command::Doctor => doctor::doctor(&session).await,
        Command::Home { command } => home::run(&session, command).await,
        Command::Completions { .. } => Ok(()),
    }
}
