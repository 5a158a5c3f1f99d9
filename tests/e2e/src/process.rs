//! Child processes: started, watched, and never left behind.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; nothing if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Whether the program ended with 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit {:?}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

/// A program with its arguments, perhaps running.
#[derive(Debug)]
pub struct Program {
    command: Command,
    child: Option<Child>,
}

/// Finds one of the project's programs beside the running test or benchmark.
///
/// # Errors
/// It is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    // A test runs in target/PROFILE/deps, a program in target/PROFILE.
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built; run: cargo build --workspace --bins"))
}

impl Program {
    /// One of the project's programs.
    ///
    /// # Errors
    /// It is not built.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self::any(&binary(name)?))
    }

    /// Any program.
    pub fn any(path: &Path) -> Self {
        let mut command = Command::new(path);
        command.stdin(Stdio::null());
        Self {
            command,
            child: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &Path) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the folder it starts in.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sends its standard error to the end of a file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn log_to(mut self, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        self.command.stderr(file);
        Ok(self)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(self) -> Result<Outcome> {
        self.run_with("")
    }

    /// Runs it to its end with a short text on its standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_with(mut self, input: &str) -> Result<Outcome> {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{:?}", self.command))?;
        let mut stdin = child.stdin.take().context("standard input is piped")?;
        // A program that reads nothing may have ended already.
        drop(stdin.write_all(input.as_bytes()));
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(Outcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts it in the background.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        let child = self.command.stdout(Stdio::null()).spawn();
        self.child = Some(child.with_context(|| format!("{:?}", self.command))?);
        Ok(())
    }

    /// Starts it in the background and returns the first line that it prints.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_and_read_line(&mut self) -> Result<String> {
        let mut child = self.command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("standard output is piped")?;
        BufReader::new(stdout).read_line(&mut line)?;
        self.child = Some(child);
        Ok(line)
    }

    /// Its process id.
    ///
    /// # Errors
    /// It was not started.
    pub fn id(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("not started")?.id())
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// It was not started.
    pub fn has_ended(&mut self) -> Result<bool> {
        let child = self.child.as_mut().context("not started")?;
        Ok(child.try_wait()?.is_some())
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// It was not started.
    pub fn kill(mut self) -> Result<()> {
        let mut child = self.child.take().context("not started")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// It does not end soon, or ends badly.
    pub fn terminate(mut self) -> Result<()> {
        let mut child = self.child.take().context("not started")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id")?, Signal::TERM)?;
        let ended: Result<ExitStatus> = wait_for("the process to end", || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let status = ended?;
        ensure!(status.success(), "ended with {status}");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Detaches every mount below `dir`, so that a failed test leaves none behind.
pub fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let Some(target) = line.split(' ').nth(1) else {
            continue;
        };
        if Path::new(target).starts_with(dir) {
            // Not mounted any more is as good.
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Shows the end of a log after a failed test.
#[allow(clippy::print_stderr)]
pub fn show_log(path: &Path) {
    let log = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let tail = lines.len().saturating_sub(40);
    eprintln!("--- {}\n{}", path.display(), lines[tail..].join("\n"));
}
