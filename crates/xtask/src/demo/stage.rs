//! The temporary folder, the processes that run in it, and their end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::shell;

/// How long a program may take to end after it was asked to.
const END_MAX: Duration = Duration::from_secs(20);
/// How long a daemon may take to answer after its start.
const START_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Lines of a log that are shown when something failed.
const LOG_LINES: usize = 20;

/// Where the demo takes place.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: PathBuf,
    programs: PathBuf,
    /// Daemons in the order of their start.
    daemons: Mutex<Vec<Child>>,
    /// Commands that somebody waits for.
    commands: Mutex<BTreeSet<u32>>,
    closing: AtomicBool,
}

impl Stage {
    /// Makes the folder; `programs` is where the built programs are.
    pub(crate) fn new(programs: PathBuf) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("imgctl-demo-").tempdir()?;
        Ok(Self {
            folder: folder.keep(),
            programs,
            daemons: Mutex::default(),
            commands: Mutex::default(),
            closing: AtomicBool::new(false),
        })
    }

    /// A path in the stage's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// One of the project's programs.
    pub(crate) fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(name))
    }

    /// Starts a daemon that writes its log to `NAME.log`, and returns the first line that it prints.
    pub(crate) fn start(&self, name: &str, mut command: Command) -> Result<String> {
        let log = File::create(self.path(&format!("{name}.log")))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = self.spawn(&mut command)?;
        let stdout = child.stdout.take().context("the output is piped")?;
        lock(&self.daemons).push(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(
            !line.is_empty(),
            "{name} ended at once:\n{}",
            self.log(name)
        );
        Ok(line)
    }

    /// Starts a daemon that writes its log to `NAME.log`, and waits until it answers at its socket.
    pub(crate) fn start_at(&self, name: &str, mut command: Command, socket: &Path) -> Result<()> {
        let log = File::create(self.path(&format!("{name}.log")))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = self.spawn(&mut command)?;
        lock(&self.daemons).push(child);
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            let late = began.elapsed() > START_MAX;
            ensure!(!late, "{name} does not answer:\n{}", self.log(name));
            sleep(POLL);
        }
        Ok(())
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Output> {
        let child = self.spawn(command.stdin(Stdio::null()))?;
        let id = child.id();
        lock(&self.commands).insert(id);
        let output = child.wait_with_output();
        lock(&self.commands).remove(&id);
        Ok(output?)
    }

    /// Runs a command of the project and returns the last object that it printed. A command that failed
    /// after it did its work, because of files that it had to skip, counts as done.
    pub(crate) fn json(&self, command: &mut Command) -> Result<Value> {
        command
            .arg("--json")
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let output = self.run(command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok());
        let answer: Value = last.unwrap_or_default();
        if output.status.success() || answer.get("skipped").is_some_and(Value::is_array) {
            return Ok(answer);
        }
        let field = |name| answer.get(name).and_then(Value::as_str).unwrap_or_default();
        bail!(
            "failed ({}): {}\n{} {}",
            output.status,
            shell::line(command),
            field("message"),
            field("hint")
        )
    }

    /// The end of a daemon's log.
    pub(crate) fn log(&self, name: &str) -> String {
        let log = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Ends every process, unmounts what is still mounted and removes the folder.
    pub(crate) fn tear_down(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for id in std::mem::take(&mut *lock(&self.commands)) {
            signal(id, Signal::KILL);
        }
        // Devices before their home: they may have something to tell it.
        let daemons = std::mem::take(&mut *lock(&self.daemons));
        for mut daemon in daemons.into_iter().rev() {
            signal(daemon.id(), Signal::TERM);
            if !ended(&mut daemon) {
                signal(daemon.id(), Signal::KILL);
                ended(&mut daemon);
            }
        }
        for mount in self.mounts() {
            let unmounted = Command::new("umount").arg("-l").arg(&mount).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                let _ = Command::new("fusermount3")
                    .args(["-u", "-z"])
                    .arg(&mount)
                    .status();
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            shell::complain(&format!(
                "{} is left behind: {error}",
                self.folder.display()
            ));
        }
    }

    /// Starts a process in a group of its own, so that Ctrl-C reaches this one only.
    fn spawn(&self, command: &mut Command) -> Result<Child> {
        ensure!(
            !self.closing.load(Ordering::SeqCst),
            "the demo is being closed"
        );
        let shown = shell::line(command);
        let child = command.process_group(0).spawn();
        child.with_context(|| format!("cannot run: {shown}"))
    }

    /// What is mounted below the folder, the deepest first.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut mounts: Vec<_> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .map(PathBuf::from)
            .filter(|path| path.starts_with(&self.folder))
            .collect();
        mounts.sort();
        mounts.reverse();
        mounts
    }
}

fn ended(child: &mut Child) -> bool {
    let began = Instant::now();
    while began.elapsed() < END_MAX {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        sleep(POLL);
    }
    false
}

fn signal(id: u32, signal: Signal) {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    // A process that has ended needs no signal.
    let _ = id.map(|id| kill_process(id, signal));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
