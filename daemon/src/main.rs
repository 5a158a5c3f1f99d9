//! The device daemon's program: arguments, logging, signals.

mod log;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use imgd::config::Config;
use imgd::control;
use imgd::daemon::Daemon;
use imgd::state::State;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves the checkouts of one user: mounts images, keeps changes, streams them home.
#[derive(Debug, Parser)]
#[command(name = "imgd", version)]
struct Arguments {
    /// State folder [default: $XDG_DATA_HOME/imgd]
    #[arg(long, env = "IMGD_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// Socket of the control API [default: in the named state folder, else $XDG_RUNTIME_DIR/imgd.sock]
    #[arg(long, env = "IMGD_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Upload at most so many bytes per second, such as 2M; overrides config.toml
    #[arg(long, value_name = "RATE", value_parser = imgd::config::parse_rate)]
    up: Option<u64>,
    /// Write the log to imgd.log in the state folder instead of standard error
    #[arg(long)]
    log: bool,
}

fn main() -> ExitCode {
    imgd::memory::use_few_arenas();
    let arguments = Arguments::parse();
    let logged = if arguments.log {
        arguments.state_dir().and_then(|dir| log::to_folder(&dir))
    } else {
        Ok(())
    };
    let filter = EnvFilter::try_from_env("IMGCTL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match logged.and_then(|()| start(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(run(arguments));
    // An import or a seal in the middle of its work ends here, as it would in a crash.
    runtime.shutdown_background();
    outcome
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let named = arguments.state.is_some();
    let state_dir = arguments.state_dir()?;
    let state = State::open(&state_dir)
        .with_context(|| format!("the state folder {}", state_dir.display()))?;
    let mut config = Config::read(&state_dir)?;
    config.link.up = arguments.up.or(config.link.up);
    let socket = arguments
        .socket
        .unwrap_or_else(|| control::default_path(&state_dir, named));
    let listener = control::bind(&socket)
        .await
        .with_context(|| format!("the socket {}", socket.display()))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let daemon = Daemon::start(state, config.clone(), socket.clone()).await?;
    tracing::info!(state = %state_dir.display(), socket = %socket.display(), "imgd serves");
    let (checkpoints, link) = (&config.checkpoints, &config.link);
    tracing::info!(
        interval = %checkpoints.interval,
        commit = %checkpoints.commit,
        up = link.up,
        pause_on_metered = link.pause_on_metered,
        "as configured"
    );
    let serving = axum::serve(listener, control::router(daemon.clone()));
    tokio::select! {
        served = serving => served?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("imgd ends; checkouts are synced and unmounted, leases are kept");
    // A socket that is gone tells imgctl at once.
    std::fs::remove_file(&socket).ok();
    daemon.stop().await;
    Ok(())
}

impl Arguments {
    fn state_dir(&self) -> anyhow::Result<PathBuf> {
        match &self.state {
            Some(dir) => Ok(std::path::absolute(dir)?),
            None => default_state(),
        }
    }
}

fn default_state() -> anyhow::Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(data) = folder("XDG_DATA_HOME") {
        return Ok(PathBuf::from(data).join("imgd"));
    }
    let home = folder("HOME").context("there is no HOME to keep the state in; use --state")?;
    Ok(PathBuf::from(home).join(".local/share/imgd"))
}
