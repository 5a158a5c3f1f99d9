//! The commands and their options.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use img_types::{DeviceName, ImageName};

use crate::values::{self, CheckoutRef};

/// Lets a running application move to whatever computer is at hand.
#[derive(Debug, Parser)]
#[command(
    name = "imgctl",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Print JSON: one object, or one object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Talk to the daemon at this socket
    #[arg(long, global = true, env = "IMGD_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Keep a daemon that is started in this folder
    #[arg(long, global = true, env = "IMGD_STATE", value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Fail when the daemon is not running instead of starting it
    #[arg(long, global = true)]
    pub(crate) no_start: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enrol this device with an invite; the first device founds the home
    Join {
        /// The line that `imghome init` or `imgctl device invite` printed
        invite: String,
        /// This device's name; the machine's name by default
        #[arg(long, value_parser = values::device)]
        name: Option<DeviceName>,
    },
    /// Enrol this device with the recovery words, read from the terminal or standard input
    Recover {
        /// The home's address
        address: String,
        /// The hash of the home's key, printed with the words
        home_key_hash: String,
        /// This device's name; the machine's name by default
        #[arg(long, value_parser = values::device)]
        name: Option<DeviceName>,
    },
    /// Invite a device, list those on the roster, or revoke one
    Device {
        #[command(subcommand)]
        command: DeviceCommand,
    },
    /// Make an image, empty or from a folder, a raw disk or a tar
    Create(CreateArgs),
    /// List images
    Ls,
    /// Mount an image here, with its lease or read-only
    Checkout(CheckoutArgs),
    /// Start an application in an image: check out, run, and when it has ended commit and release
    ///
    /// Checkpoints while it runs are exact also for shared memory maps, if a cgroup can be made for it. It is committed
    /// and released when all its processes have ended; if it crashes it stays checked out. Exits with the code of
    /// COMMAND, or with that of what went wrong in the end.
    Run(RunArgs),
    /// Show the state of checkouts
    Status {
        /// One checkout, by name or folder; all by default
        #[arg(value_parser = CheckoutRef::parse)]
        checkout: Option<CheckoutRef>,
        /// Show it again whenever it changes
        #[arg(long)]
        watch: bool,
    },
    /// Cut a checkpoint now
    Checkpoint {
        /// The checkout, by name or folder
        #[arg(value_parser = CheckoutRef::parse, value_name = "NAME")]
        checkout: CheckoutRef,
        /// What this state is
        #[arg(short, long)]
        message: Option<String>,
    },
    /// Bring the checkout's state home as the image's new head
    Commit {
        /// The checkout, by name or folder
        #[arg(value_parser = CheckoutRef::parse, value_name = "NAME")]
        checkout: CheckoutRef,
        /// What this state is
        #[arg(short, long)]
        message: Option<String>,
        /// Commit the state of an orphaned checkout, if nothing was committed since
        #[arg(long)]
        adopt_orphan: bool,
        /// Commit over newer work that the last holder has staged at home
        #[arg(long)]
        take_over: bool,
        /// Keep the lease that a late commit took
        #[arg(long)]
        keep: bool,
        /// Save this state as a new image, on which the checkout goes on
        #[arg(long, value_name = "NEW", value_parser = values::image,
            conflicts_with_all = ["adopt_orphan", "take_over", "keep"])]
        branch: Option<ImageName>,
        /// Leave out files of which parts exist neither here nor at home, and list them
        #[arg(long, requires = "branch")]
        partial: bool,
        /// Return after the checkpoint; the rest goes on by itself
        #[arg(long)]
        no_wait: bool,
    },
    /// Close a checkout: last commit, unmount, give the lease back
    Release {
        /// The checkout, by name or folder
        #[arg(value_parser = CheckoutRef::parse, value_name = "NAME")]
        checkout: CheckoutRef,
        /// Drop what changed since the last commit
        #[arg(long)]
        discard: bool,
    },
    /// Make a new image that starts from a commit of another; nothing is copied
    Branch {
        /// The image
        #[arg(value_parser = values::image)]
        name: ImageName,
        /// The new image's name
        #[arg(value_parser = values::image)]
        new: ImageName,
        /// Start from this commit or checkpoint instead of the head
        #[arg(long, value_name = "COMMIT", value_parser = values::commit)]
        at: Option<String>,
    },
    /// Take an image over from whoever holds it, and mount it here
    Steal(StealArgs),
    /// Fetch all of a checkout, to work where there is no network
    Hydrate {
        /// The checkout, by name or folder
        #[arg(value_parser = CheckoutRef::parse, value_name = "NAME")]
        checkout: CheckoutRef,
    },
    /// Show what this device has on its disk, and set how much that may be
    Cache {
        /// Keep at most this much, from now on; evicts what is over it
        #[arg(long, value_name = "SIZE", value_parser = values::size)]
        limit: Option<u64>,
    },
    /// Show an image's history
    Log {
        /// The image
        #[arg(value_parser = values::image)]
        name: ImageName,
        /// Show at most this many commits
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Show who had the image, who took it and why, and what was refused; for admins
        #[arg(long)]
        audit: bool,
    },
    /// Show which files differ between two states of an image
    ///
    /// Prints a letter and a path for each: A is only in the second state, D only in the first, M is in both and not
    /// alike, R has another path. Without A and B: what has changed here since the commit that the checkout stands on.
    /// With A: since then. What is here now is a checkpoint that is cut for this; where the image is not checked out,
    /// it is the head.
    Diff {
        /// The image, or a checkout's folder
        #[arg(value_parser = CheckoutRef::parse, value_name = "NAME")]
        checkout: CheckoutRef,
        /// The first state: a commit or checkpoint, as `imgctl log` shows it
        #[arg(value_name = "A", value_parser = values::commit)]
        from: Option<String>,
        /// The second state
        #[arg(value_name = "B", value_parser = values::commit)]
        to: Option<String>,
    },
    /// Go back to an older state, in the folder as it is mounted
    ///
    /// What is there now is saved as a checkpoint first, so that `--to` with its id brings it back. Programs go on with
    /// the older files. Nothing is committed: the next commit has the head as its parent, and the older contents.
    Restore {
        /// The checkout, by name or folder
        #[arg(value_parser = CheckoutRef::parse, value_name = "NAME")]
        checkout: CheckoutRef,
        /// A commit or checkpoint, as `imgctl log` shows it; the commit that the checkout stands on by default
        #[arg(long, value_name = "COMMIT", value_parser = values::commit)]
        to: Option<String>,
        /// Also while files are open for writing: programs that have them open get errors when they write
        #[arg(long)]
        force: bool,
    },
    /// Write an image to a folder, a raw disk file or a tar
    Export(ExportArgs),
    /// Give an image another name
    Rename {
        /// The image
        #[arg(value_parser = values::image)]
        name: ImageName,
        /// Its new name
        #[arg(value_parser = values::image)]
        new: ImageName,
    },
    /// Delete an image
    Delete {
        /// The image
        #[arg(value_parser = values::image)]
        name: ImageName,
        /// Also while another device holds it
        #[arg(long)]
        force: bool,
    },
    /// List who holds which image until when
    Leases,
    /// Check this machine and the way home
    Doctor,
    /// Show this device's home, or go on after it went back in time
    Home {
        #[command(subcommand)]
        command: HomeCommand,
    },
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Print an invite, good for one device and 15 minutes
    Invite,
    /// List the devices of this home
    List,
    /// Take a device off the roster, for good: its leases end, and it may save nothing at the home any more
    Revoke {
        /// The device's name, or the beginning of its id
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HomeCommand {
    /// Show where the home is, or look for it somewhere else from now on
    Address {
        /// Where it is now, as HOST:PORT
        new: Option<String>,
    },
    /// Give a restored home back what this device has of what it lost
    Forward,
    /// Go on with a restored home as it is
    AcceptRestore,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The image's name
    #[arg(value_parser = values::image)]
    pub(crate) name: ImageName,
    /// A folder, a raw disk file or a tar; empty by default
    #[arg(long, value_name = "PATH")]
    pub(crate) from: Option<PathBuf>,
    /// Take PATH as this, whatever its content looks like
    #[arg(long = "as", value_name = "KIND")]
    pub(crate) kind: Option<Form>,
    /// Fail instead of leaving out what cannot be read
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckoutArgs {
    /// The image
    #[arg(value_parser = values::image)]
    pub(crate) name: ImageName,
    /// Where to mount it; a folder of the image's name here by default
    pub(crate) dir: Option<PathBuf>,
    /// Take no lease; what is written stays here
    #[arg(long, conflicts_with_all = ["lease", "offline", "take_over"])]
    pub(crate) read_only: bool,
    /// Mount this commit or checkpoint instead of the head
    #[arg(long, value_name = "COMMIT", value_parser = values::commit, requires = "read_only")]
    pub(crate) at: Option<String>,
    /// How long the lease lasts without contact
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) lease: Option<Duration>,
    /// Take an offline lease, for 1 to 180 days
    #[arg(long, value_name = "TIME", value_parser = values::duration, conflicts_with = "lease")]
    pub(crate) offline: Option<Duration>,
    /// Fetch everything in the background
    #[arg(long)]
    pub(crate) hydrate: bool,
    /// Take a lapsed lease although its holder has newer work at home
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Show the image owner's files as yours, or keep all owners as they are
    #[arg(long)]
    pub(crate) owner: Option<Owner>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The image
    #[arg(value_parser = values::image)]
    pub(crate) name: ImageName,
    /// Where to mount it; where it is checked out already, else a folder of the image's name here by default
    pub(crate) dir: Option<PathBuf>,
    /// What to start there, with its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct StealArgs {
    /// The image
    #[arg(value_parser = values::image)]
    pub(crate) name: ImageName,
    /// Where to mount it; a folder of the image's name here by default
    pub(crate) dir: Option<PathBuf>,
    /// Keep what the holder has as a new image, on which it goes on; named after the holder by default
    #[arg(long, value_name = "NEW", num_args = 0..=1, require_equals = true, default_missing_value = "",
        value_parser = values::new_branch)]
    pub(crate) branch: Option<String>,
    /// Why, for the holder to read
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The image
    #[arg(value_parser = values::image)]
    pub(crate) name: ImageName,
    /// A new folder, or a file
    pub(crate) dest: PathBuf,
    /// Export this commit or checkpoint instead of the head
    #[arg(long, value_name = "COMMIT", value_parser = values::commit)]
    pub(crate) at: Option<String>,
    /// Export only this path of the image
    #[arg(long)]
    pub(crate) path: Option<String>,
    /// Write this, whatever DEST looks like
    #[arg(long = "as", value_name = "KIND")]
    pub(crate) kind: Option<Form>,
}

/// Forms of an image outside of a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A folder
    Tree,
    /// A raw disk file
    Disk,
    /// A tar archive
    Tar,
}

impl Form {
    /// The word that the daemon knows.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Disk => "disk",
            Self::Tar => "tar",
        }
    }
}

/// How owners of files are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Owner {
    /// The image's owner is shown as you
    Map,
    /// Every owner is shown as stored
    Keep,
}

impl Owner {
    /// The word that the daemon knows.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Keep => "keep",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_values_are_refused_before_the_daemon_is_asked() {
        for bad in [
            &["imgctl", "create", "a/b"][..],
            &["imgctl", "checkout", "vm", "--lease", "soon"],
            &["imgctl", "checkout", "vm", "--at", "head"],
            &[
                "imgctl",
                "checkout",
                "vm",
                "--lease",
                "1h",
                "--offline",
                "30d",
            ],
            &["imgctl", "checkout", "vm", "--read-only", "--lease", "1h"],
            &["imgctl", "checkout", "vm", "--read-only", "--offline", "3d"],
            &["imgctl", "checkout", "vm", "--read-only", "--take-over"],
            &["imgctl", "rename", "vm", ""],
            &["imgctl", "cache", "--limit", "20 apples"],
            &["imgctl", "join", "imgctl-invite-x", "--name", "my laptop"],
            &["imgctl", "steal", "vm", "--branch=a/b"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
        let cli = Cli::try_parse_from(["imgctl", "checkout", "vm", "--lease", "10m", "--json"]);
        let Command::Checkout(args) = cli.unwrap().command else {
            panic!("a checkout");
        };
        assert_eq!(args.lease, Some(Duration::from_secs(600)));
        for (word, branch) in [("--branch", ""), ("--branch=mine", "mine")] {
            let cli = Cli::try_parse_from(["imgctl", "steal", "vm", word, "dir"]);
            let Command::Steal(args) = cli.unwrap().command else {
                panic!("a steal");
            };
            assert_eq!(args.branch.as_deref(), Some(branch));
            assert_eq!(args.dir.as_deref(), Some(std::path::Path::new("dir")));
        }
    }
}
