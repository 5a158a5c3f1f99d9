//! A tree mounted through FUSE.
//!
//! This module owns the kernel's side of a checkout: the mount, the translation of requests and
//! replies, and who waits. A request is tried at once on the thread that received it; what must be
//! fetched first is finished by a task that completes the reply. It knows nothing of what a tree
//! does with an operation. `docs/architecture.md`, "The paths" and "Files, exactly", describes both.

mod adapter;
mod convert;
mod forget;
mod gate;
mod maps;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use img_index::Inode;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::tree::Tree;
use adapter::Adapter;
pub use forget::Forget;
use gate::Gate;
use maps::Maps;

/// How a tree is mounted.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// The empty directory to mount on.
    pub dir: PathBuf,
    /// Set-id bits count in the mount.
    pub suid: bool,
    /// Device nodes work in the mount.
    pub dev: bool,
    /// Other users than the one who mounts may enter, as far as the permissions allow.
    pub shared: bool,
}

/// A mounted tree. Dropping it unmounts, lazily if files are open.
#[derive(Debug)]
pub struct Mounted {
    tree: Arc<Tree>,
    dir: PathBuf,
    notifier: Notifier,
    maps: Maps,
    gate: Arc<Gate>,
    session: Option<BackgroundSession>,
    ended: watch::Receiver<bool>,
}

impl Mounted {
    /// Mounts a tree; when it returns the mount answers.
    ///
    /// # Errors
    /// The directory cannot be mounted on, or FUSE is not available.
    pub fn new(tree: Arc<Tree>, config: &MountConfig, runtime: &Handle) -> io::Result<Self> {
        let (ending, ended) = watch::channel(false);
        let written = Arc::default();
        let gate = Arc::new(Gate::default());
        let adapter = Adapter::new(
            Arc::clone(&tree),
            runtime.clone(),
            Arc::clone(&gate),
            ending,
            Arc::clone(&written),
        );
        let session = Session::new(adapter, &config.dir, &session_config(config))?;
        let notifier = session.notifier();
        Ok(Self {
            maps: Maps::new(Arc::clone(&tree), notifier.clone(), written),
            tree,
            dir: config.dir.clone(),
            notifier,
            gate,
            session: Some(session.spawn()?),
            ended,
        })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tree behind the mount.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Returns when the mount is gone, whoever unmounted it.
    pub async fn ended(&self) {
        // An error says that the adapter is gone without a word, which is an end as well.
        self.ended.clone().wait_for(|ended| *ended).await.ok();
    }

    /// Has the kernel write back what shared maps have changed, and waits for it as long as something is written;
    /// blocks. Returns the bytes that were written, nothing if it was given up.
    ///
    /// A checkpoint calls this before its cut. Never call it from a thread that answers requests:
    /// the kernel sends the pages as writes and waits for the answers.
    pub fn flush_maps(&self) -> Option<u64> {
        self.maps.flush()
    }

    /// As [`Self::flush_maps`], but gives up at a moment.
    pub fn flush_maps_until(&self, until: Instant) -> Option<u64> {
        self.maps.flush_until(until)
    }

    /// Has the kernel forget a name that was removed by another way than the mount; blocks. Never call it from a
    /// thread that answers requests.
    pub fn forget_entry(&self, parent: Inode, name: &[u8]) {
        let name = OsStr::from_bytes(name);
        // What the kernel does not know it need not forget.
        if let Err(error) = self.notifier.inval_entry(INodeNo(parent.0), name) {
            tracing::debug!(%error, "the kernel had forgotten a name");
        }
    }

    /// Unmounts; blocks until every request is answered.
    ///
    /// # Errors
    /// EBUSY: files are open or a program stands in the directory; the mount goes on then.
    pub fn unmount(&mut self) -> io::Result<()> {
        if !*self.ended.borrow() {
            unmount(&self.dir, UnmountFlags::empty())?;
        }
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        let ended = match self.session.take() {
            Some(session) => session.join(),
            None => return Ok(()),
        };
        self.tree.release_all();
        ended
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.session.is_none() {
            return;
        }
        let ended = *self.ended.borrow();
        let gone = match ended {
            true => self.join(),
            // With files open it lives on until the last is closed; nobody waits for that.
            false => unmount(&self.dir, UnmountFlags::DETACH),
        };
        if let Err(error) = gone {
            tracing::warn!(%error, "a mount did not end well");
        }
    }
}

/// Detaches a mount whose daemon has died, so that the directory can be mounted on again. Programs
/// that have files open there see ENOTCONN until they reopen them.
///
/// Returns whether there was one.
///
/// # Errors
/// The dead mount cannot be detached.
pub fn detach_dead(dir: &Path) -> io::Result<bool> {
    let mut found = false;
    // The kernel may still answer for the directory's attributes itself; statfs always asks the daemon.
    while rustix::fs::statfs(dir).is_err_and(|error| error == Errno::NOTCONN) {
        unmount(dir, UnmountFlags::DETACH)?;
        found = true;
    }
    Ok(found)
}

/// Unmounts as root, or through FUSE's helper as anybody else.
fn unmount(dir: &Path, flags: UnmountFlags) -> io::Result<()> {
    match rustix::mount::unmount(dir, flags) {
        Err(Errno::PERM) => {}
        outcome => return Ok(outcome?),
    }
    let lazily = flags.contains(UnmountFlags::DETACH);
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazily.then_some("-z"));
    let output = command.arg("--").arg(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match said.contains("busy") {
        true => Err(Errno::BUSY.into()),
        false => Err(io::Error::other(said)),
    }
}

fn session_config(config: &MountConfig) -> Config {
    let mut session = Config::default();
    session.mount_options = vec![
        MountOption::FSName(NAME.to_owned()),
        MountOption::Subtype(NAME.to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        match config.suid {
            true => MountOption::Suid,
            false => MountOption::NoSuid,
        },
        match config.dev {
            true => MountOption::Dev,
            false => MountOption::NoDev,
        },
    ];
    session.acl = match config.shared {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    session.n_threads = Some(THREADS);
    session.clone_fd = true;
    session
}

/// What the mount table shows as source and type.
const NAME: &str = "imgctl";
/// Threads that answer requests: one would halve the operations per second, more than four gain
/// nothing on two cores.
const THREADS: usize = 4;
