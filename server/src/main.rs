//! The command `imghome`: makes, runs and looks after a home.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use img_records::FoundingInvite;
use imghome::{
    Address, BackupError, Folder, FolderError, InitError, OpenError, Places, Running, StartError,
    show_size as size,
};
use qrcode::render::unicode::Dense1x2;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Makes and runs a home: the server that keeps images, their history and their leases.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a home in a new folder and print the invite for the device that founds it.
    Init {
        #[command(flatten)]
        place: Place,
        /// What the home is called.
        #[arg(long, default_value = "home")]
        name: String,
        /// Where devices reach it, HOST:PORT [default: this machine's address, port 4460].
        #[arg(long)]
        address: Option<String>,
    },
    /// Run a home until it is told to stop.
    Serve {
        #[command(flatten)]
        place: Place,
        /// Where to listen, UDP.
        #[arg(long, default_value = "[::]:4460")]
        listen: SocketAddr,
        /// Where packs of objects are kept [default: DIR/objects].
        #[arg(long, value_name = "DIR")]
        objects: Option<PathBuf>,
        /// How much devices may store here, such as 500G [default: what the disk has].
        #[arg(long, value_name = "SIZE", value_parser = img_types::parse_size)]
        max_stored: Option<u64>,
    },
    /// Print a new founding invite, while nobody has joined.
    Invite {
        #[command(flatten)]
        place: Place,
        /// Where devices reach the home, HOST:PORT [default: as at init].
        #[arg(long)]
        address: Option<String>,
    },
    /// Show what a home holds; it may be running.
    Usage {
        #[command(flatten)]
        place: Place,
    },
    /// Copy a home, running or not, into a folder; again into the same folder copies what is new.
    Backup {
        #[command(flatten)]
        place: Place,
        /// The folder of the backup: new, empty, or with this home's earlier backup.
        to: PathBuf,
        /// Where packs of objects are kept [default: DIR/objects].
        #[arg(long, value_name = "DIR")]
        objects: Option<PathBuf>,
    },
    /// Make a home in a new folder from a backup. All leases are void in it.
    Restore {
        /// The folder of the backup.
        from: PathBuf,
        /// The folder of the home: new or empty.
        dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Verify everything a home holds; it must not be running. Damaged objects count as absent
    /// afterwards, so that a device that has them sends them again.
    Check {
        #[command(flatten)]
        place: Place,
        /// Where packs of objects are kept [default: DIR/objects].
        #[arg(long, value_name = "DIR")]
        objects: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// The home's folder.
    dir: PathBuf,
    /// The database, sqlite:PATH [default: DIR/home.sqlite].
    #[arg(long, value_name = "ADDRESS")]
    db: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Place {
    fn database(&self) -> Result<Option<Address>, OpenError> {
        self.db.as_deref().map(Address::parse).transpose()
    }

    fn places(&self, objects: Option<PathBuf>) -> anyhow::Result<Places> {
        let folder = Folder::open(&self.dir)?;
        let database = self.database()?;
        Ok(Places {
            database: database.unwrap_or_else(|| Address::file(&folder.database())),
            objects: objects.unwrap_or_else(|| folder.objects()),
            max_stored: None,
            folder,
        })
    }
}

/// Exit codes are the same in all programs of the project.
const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const NOT_VERIFIED: u8 = 7;
const NOT_ALLOWED: u8 = 8;
const NO_ROOM: u8 = 9;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("IMGCTL_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,quinn=warn")),
        )
        .init();
    let json = cli.command.json();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            let code = exit_code(&error);
            report(&format!("{error:#}"), code, json);
            ExitCode::from(code)
        }
    }
}

impl Command {
    fn json(&self) -> bool {
        match self {
            Self::Init { place, .. }
            | Self::Serve { place, .. }
            | Self::Invite { place, .. }
            | Self::Usage { place }
            | Self::Backup { place, .. }
            | Self::Check { place, .. } => place.json,
            Self::Restore { json, .. } => *json,
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no async runtime")?;
    let done = runtime.block_on(async {
        match command {
            Command::Init {
                place,
                name,
                address,
            } => {
                let address = address.unwrap_or_else(imghome::default_address);
                let made = imghome::init(&place.dir, place.database()?, &name, &address);
                show_invite(&place, &made.await?)
            }
            Command::Invite { place, address } => {
                let made = imghome::invite(&place.dir, place.database()?, address.as_deref());
                show_invite(&place, &made.await?)
            }
            Command::Serve {
                place,
                listen,
                objects,
                max_stored,
            } => {
                let places = Places {
                    max_stored,
                    ..place.places(objects)?
                };
                serve(&place, &places, listen).await
            }
            Command::Usage { place } => usage(&place).await,
            Command::Backup { place, to, objects } => {
                let copied = imghome::backup(&place.places(objects)?, &to).await?;
                show_copied(&copied, place.json, &format!("Backed up to {}", to.display()))
            }
            Command::Restore { from, dir, json } => {
                let copied = imghome::restore(&from, &dir).await?;
                let done = format!("Restored to {}", dir.display());
                let code = show_copied(&copied, json, &done)?;
                if !json {
                    print(&format!(
                        "All leases are void: devices take them anew. Run the home with: imghome serve {}",
                        dir.display()
                    ))?;
                }
                Ok(code)
            }
            Command::Check { place, objects } => check(&place, objects).await,
        }
    });
    // A read of a disk that hangs does not keep the process.
    runtime.shutdown_background();
    done
}

async fn serve(place: &Place, places: &Places, listen: SocketAddr) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("no signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    let running = Running::start(places, listen).await?;
    let address = running.address();
    if place.json {
        print(&json!({ "address": address }).to_string())?;
    } else {
        print(&format!(
            "Serving {} on {address} (UDP).",
            place.dir.display()
        ))?;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn usage(place: &Place) -> anyhow::Result<ExitCode> {
    let usage = imghome::usage(&place.places(None)?).await?;
    if place.json {
        print(
            &json!({
                "images": usage.images,
                "objects": usage.objects,
                "object_bytes": usage.object_bytes,
                "packs": usage.packs,
                "free_bytes": usage.free_bytes,
                "pins": usage.pins,
                "first_pins": usage.first_pins.iter().map(pinned).collect::<Vec<_>>(),
                "collection_off": usage.restored,
            })
            .to_string(),
        )?;
    } else {
        print(&format!(
            "{} images, {} objects with {}, {} packs; {} are free for more. \
             {} commits are kept for read-only checkouts.",
            usage.images,
            usage.objects,
            size(usage.object_bytes),
            usage.packs,
            size(usage.free_bytes),
            usage.pins
        ))?;
        if usage.restored {
            print("This home was restored from a backup: nothing may be collected in it.")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_copied(copied: &imghome::Copied, json: bool, done: &str) -> anyhow::Result<ExitCode> {
    if json {
        print(
            &json!({
                "files": copied.files,
                "bytes": copied.bytes,
                "kept": copied.kept,
                "problems": copied.problems,
            })
            .to_string(),
        )?;
    } else {
        for problem in &copied.problems {
            print(problem)?;
        }
        print(&format!(
            "{done}: {} files with {} were copied, {} packs were there already, {} problems.",
            copied.files,
            size(copied.bytes),
            copied.kept,
            copied.problems.len()
        ))?;
    }
    Ok(match copied.problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(NOT_VERIFIED),
    })
}

async fn check(place: &Place, objects: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let findings = imghome::check(&place.places(objects)?).await?;
    if place.json {
        print(
            &json!({
                "objects": findings.objects,
                "object_bytes": findings.object_bytes,
                "commits": findings.commits,
                "log_entries": findings.log_entries,
                "problems": findings.problems,
                "problems_not_told": findings.untold,
            })
            .to_string(),
        )?;
    } else {
        for problem in &findings.problems {
            print(problem)?;
        }
        print(&format!(
            "{} objects with {}, {} commits and {} log entries are sound; {} problems{}",
            findings.objects,
            size(findings.object_bytes),
            findings.commits,
            findings.log_entries,
            findings.problems.len() as u64 + findings.untold,
            match findings.untold {
                0 => String::new(),
                untold => format!(", of which {untold} are not told above"),
            }
        ))?;
    }
    if findings.problems.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(NOT_VERIFIED))
    }
}

fn pinned(pin: &imghome::Pinned) -> serde_json::Value {
    json!({
        "commit": pin.commit.to_string(),
        "device": pin.device.to_string(),
        "remaining_ms": pin.remaining_ms,
    })
}

fn show_invite(place: &Place, invite: &FoundingInvite) -> anyhow::Result<ExitCode> {
    if place.json {
        let line = json!({
            "invite": invite.to_string(),
            "address": invite.address,
        });
        print(&line.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&invite.to_string())?;
    if std::io::stdout().is_terminal() {
        let code = qrcode::QrCode::new(invite.to_string()).context("no QR code")?;
        print(&code.render::<Dense1x2>().build())?;
        print(&format!(
            "Found the home from the first device with: imgctl join INVITE\n\
             The invite names {}; run the home with: imghome serve {}",
            invite.address,
            place.dir.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()?;
    Ok(())
}

/// Says what is wrong with the command line, in the form that was asked for.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let message = text.lines().next().unwrap_or_default();
        report(message.trim_start_matches("error: "), WRONG_USAGE, true);
        return ExitCode::from(WRONG_USAGE);
    }
    // Nobody is left to tell when the terminal is gone.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED))
}

/// Tells of a failure: a sentence with its way out for people, the fields that imgctl has for scripts.
fn report(message: &str, code: u8, json: bool) {
    if json {
        let (word, hint) = kind(code);
        let line = json!({ "error": word, "message": message, "hint": hint, "exit_code": code });
        // Nobody reads what cannot be written.
        let _ = print(&line.to_string());
    } else {
        let _ = writeln!(std::io::stderr(), "imghome: {message}");
    }
}

/// The stable word for an exit code, and what to do next.
fn kind(code: u8) -> (&'static str, &'static str) {
    match code {
        WRONG_USAGE => ("usage", "imghome --help lists the commands and options."),
        NOT_VERIFIED => (
            "corrupt",
            "`imghome check DIR` says what is damaged; `imghome restore` makes a home from a backup.",
        ),
        NOT_ALLOWED => (
            "not_allowed",
            "Devices that are enrolled invite others: imgctl device invite",
        ),
        NO_ROOM => ("no_room", "Make room on the disk and ask again."),
        _ => ("failed", "Nothing is lost; mend it and ask again."),
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<FolderError>() {
        return WRONG_USAGE;
    }
    match error.downcast_ref() {
        Some(BackupError::Folder(_)) => return WRONG_USAGE,
        Some(BackupError::NotABackup(_) | BackupError::OtherHome(_) | BackupError::NoBackup(_)) => {
            return WRONG_USAGE;
        }
        Some(full) if full.is_full() => return NO_ROOM,
        _ => {}
    }
    match error.downcast_ref() {
        Some(InitError::Founded) => return NOT_ALLOWED,
        Some(InitError::Address(_) | InitError::Folder(_)) => return WRONG_USAGE,
        _ => {}
    }
    let backed_up = match error.downcast_ref() {
        Some(BackupError::Database(error)) => Some(error),
        _ => None,
    };
    let opened = match error.downcast_ref() {
        Some(StartError::Database(error)) => Some(error),
        Some(StartError::Folder(_)) => return WRONG_USAGE,
        _ => error.downcast_ref(),
    };
    match backed_up.or(opened) {
        Some(OpenError::Damaged(_) | OpenError::Roster(_)) => NOT_VERIFIED,
        Some(OpenError::UnknownAddress(_)) => WRONG_USAGE,
        _ => FAILED,
    }
}
