//! Runs the three real programs as separate processes, over loopback QUIC, with real FUSE mounts.
//!
//! Nothing is mocked here: a [`World`] is a home and its devices in a temporary folder, driven
//! through `imgctl` as a person would, and everything is taken down when it goes out of scope.

pub mod process;
pub mod tree;

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub use process::{Outcome, Program, binary};

/// How long anything that should happen soon may take on a loaded machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A home, its devices and the folder they live in.
#[derive(Debug)]
pub struct World {
    dir: TempDir,
    /// The home server.
    pub home: Home,
}

impl World {
    /// Makes a home and starts it.
    ///
    /// # Errors
    /// The programs are not built or do not start.
    pub fn new() -> Result<Self> {
        let dir = TempDir::with_prefix("imgctl-e2e-")?;
        let home = Home::init(&dir.path().join("home"))?;
        Ok(Self { dir, home })
    }

    /// A path inside this world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a device that is not enrolled.
    ///
    /// # Errors
    /// The daemon does not start.
    pub fn stranger(&self, name: &str) -> Result<Device> {
        Device::start(&self.path(name), name)
    }

    /// Starts a device that founds the home.
    ///
    /// # Errors
    /// Founding fails.
    pub fn founder(&self, name: &str) -> Result<Device> {
        let device = self.stranger(name)?;
        device.json(&["join", &self.home.invite()?, "--name", name])?;
        Ok(device)
    }

    /// Starts a device and lets `member` invite it.
    ///
    /// # Errors
    /// The invite or the join fails.
    pub fn joined(&self, name: &str, member: &Device) -> Result<Device> {
        let device = self.stranger(name)?;
        let invite = member.json(&["device", "invite"])?;
        let line = invite["invite"].as_str().context("no invite line")?;
        device.json(&["join", line, "--name", name])?;
        Ok(device)
    }
}

/// A home server process and its folder.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    address: String,
    process: Option<Program>,
}

impl Home {
    fn init(dir: &Path) -> Result<Self> {
        // The port is free now and, because nothing else here binds fixed ports, also in a moment.
        let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
        Self::init_at(dir, &address)
    }

    fn init_at(dir: &Path, address: &str) -> Result<Self> {
        let init = Program::new("imghome")?
            .args(["init", path_text(dir)?, "--address", address])
            .run()?;
        ensure!(init.ok(), "imghome init: {init}");
        let mut home = Self {
            dir: dir.to_owned(),
            address: address.to_owned(),
            process: None,
        };
        home.start()?;
        Ok(home)
    }

    /// The home's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's process id.
    ///
    /// # Errors
    /// It is not running.
    pub fn process_id(&self) -> Result<u32> {
        self.process
            .as_ref()
            .context("the home is not running")?
            .id()
    }

    /// Moves a stopped home's folder, as one would to another disk.
    ///
    /// # Errors
    /// It is running, or the folder cannot be moved.
    pub fn move_to(&mut self, dir: &Path) -> Result<()> {
        ensure!(self.process.is_none(), "the home is running");
        let moved = Program::any(Path::new("mv"))
            .args([path_text(&self.dir)?, path_text(dir)?])
            .run()?;
        ensure!(moved.ok(), "{moved}");
        self.dir = dir.to_owned();
        Ok(())
    }

    /// Makes another home that answers at the address of this one, which must not run.
    ///
    /// # Errors
    /// The new home does not start.
    pub fn impostor(&self, dir: &Path) -> Result<Self> {
        ensure!(self.process.is_none(), "the home is running");
        Self::init_at(dir, &self.address)
    }

    /// Starts the server at another address of this machine.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_at(&mut self, address: &str) -> Result<()> {
        address.clone_into(&mut self.address);
        self.start()
    }

    /// Starts the server and waits until it listens.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&mut self) -> Result<()> {
        let dir = path_text(&self.dir)?.to_owned();
        let mut serve = Program::new("imghome")?
            .args(["serve", &dir, "--listen", &self.address, "--json"])
            .log_to(&self.dir.with_extension("log"))?;
        let line = serve.spawn_and_read_line()?;
        ensure!(line.contains(&self.address), "imghome serve said {line:?}");
        self.process = Some(serve);
        Ok(())
    }

    /// Whether the server has ended by itself, or does not run.
    ///
    /// # Errors
    /// The system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        self.process.as_mut().map_or(Ok(true), Program::has_ended)
    }

    /// Ends the server at once, as a power cut would.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the home is not running")?
            .kill()
    }

    /// Ends the server in good order.
    ///
    /// # Errors
    /// It is not running, or does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the home is not running")?
            .terminate()
    }

    /// A founding invite.
    ///
    /// # Errors
    /// The home has been founded.
    pub fn invite(&self) -> Result<String> {
        let invite = Program::new("imghome")?
            .args(["invite", path_text(&self.dir)?])
            .run()?;
        ensure!(invite.ok(), "imghome invite: {invite}");
        invite
            .stdout
            .split_whitespace()
            .find(|word| word.starts_with("imgctl-"))
            .map(str::to_owned)
            .with_context(|| format!("no invite in {invite}"))
    }
}

/// A device: a daemon with its own state, and the command line that talks to it.
#[derive(Debug)]
pub struct Device {
    dir: PathBuf,
    name: String,
    process: Option<Program>,
}

impl Device {
    fn start(dir: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(dir.join("work"))?;
        let mut device = Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            process: None,
        };
        // What a test looks at is not to change by itself.
        device.configure("[checkpoints]\ninterval = \"off\"\n")?;
        device.restart()?;
        Ok(device)
    }

    /// Writes the daemon's configuration, for its next start.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn configure(&self, config: &str) -> Result<()> {
        std::fs::create_dir_all(self.state())?;
        Ok(std::fs::write(self.state().join("config.toml"), config)?)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The daemon's state folder.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A folder to work in; relative paths given to [`Self::imgctl`] start here.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The daemon's process id.
    ///
    /// # Errors
    /// It is not running.
    pub fn process_id(&self) -> Result<u32> {
        self.process.as_ref().context("imgd is not running")?.id()
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("imgd.sock")
    }

    /// Starts the daemon again and waits until it answers.
    ///
    /// # Errors
    /// It does not answer.
    pub fn restart(&mut self) -> Result<()> {
        self.start_as(Program::new("imgd")?)
    }

    /// Starts the daemon again with these arguments too.
    ///
    /// # Errors
    /// It does not answer.
    pub fn restart_with(&mut self, arguments: &[&str]) -> Result<()> {
        let program = Program::new("imgd")?;
        self.start_as(program.args(arguments.iter().copied()))
    }

    /// Starts the daemon again as after a sleep of so many seconds: the clock that runs meanwhile has moved on.
    ///
    /// # Errors
    /// It does not answer.
    pub fn restart_later(&mut self, seconds: u64) -> Result<()> {
        let offset = format!("--boottime={seconds}");
        let daemon = binary("imgd")?;
        let unshare = Program::any(Path::new("unshare"));
        self.start_as(unshare.args(["--time", &offset, path_text(&daemon)?]))
    }

    fn start_as(&mut self, program: Program) -> Result<()> {
        let mut daemon = program
            .args(["--state", path_text(&self.state())?])
            .args(["--socket", path_text(&self.socket())?])
            .log_to(&self.dir.join("imgd.log"))?;
        daemon.spawn()?;
        let socket = self.socket();
        wait_for("the daemon's socket", || {
            ensure!(!daemon.has_ended()?, "imgd ended at once");
            Ok(std::os::unix::net::UnixStream::connect(&socket)
                .is_ok()
                .then_some(()))
        })?;
        self.process = Some(daemon);
        // The socket is there before the mounts are back; an answer comes after them, whatever it is.
        self.imgctl(&["status"])?;
        Ok(())
    }

    /// Whether the daemon has ended by itself, or does not run.
    ///
    /// # Errors
    /// The system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        self.process.as_mut().map_or(Ok(true), Program::has_ended)
    }

    /// Ends the daemon at once, as a power cut would.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("imgd is not running")?.kill()
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// It is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.process_id()?)?);
        Ok(kill_process(pid.context("a process id")?, signal)?)
    }

    /// Runs `imgctl`, ends the daemon at once so long after it began, and starts it again. What `imgctl` says depends
    /// on how far it got.
    ///
    /// # Errors
    /// The programs cannot be run.
    pub fn kill_during(&mut self, args: &[&str], after: Duration) -> Result<()> {
        let device = &*self;
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| device.imgctl(args));
            std::thread::sleep(after);
            device.signal(Signal::KILL)?;
            asking.join().expect("no panic").map(drop)
        })?;
        self.kill()?;
        self.restart()
    }

    /// Ends the daemon in good order.
    ///
    /// # Errors
    /// It is not running, or does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process
            .take()
            .context("imgd is not running")?
            .terminate()
    }

    /// Runs `imgctl` with these arguments, in the device's work folder.
    ///
    /// # Errors
    /// The program cannot be run; what it returns is in the outcome.
    pub fn imgctl(&self, args: &[&str]) -> Result<Outcome> {
        self.imgctl_reading("", args)
    }

    /// Runs `imgctl` with a text on its standard input.
    ///
    /// # Errors
    /// The program cannot be run; what it returns is in the outcome.
    pub fn imgctl_reading(&self, input: &str, args: &[&str]) -> Result<Outcome> {
        Program::new("imgctl")?
            .env("IMGD_SOCKET", &self.socket())
            .env("IMGD_STATE", &self.state())
            .current_dir(&self.work())
            .args(["--no-start"])
            .args(args.iter().copied())
            .run_with(input)
    }

    /// Runs `imgctl --json`, expects success and returns what it printed: one object, or an array
    /// of one object per line.
    ///
    /// # Errors
    /// It fails or prints no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let outcome = self.imgctl(&[args, &["--json"]].concat())?;
        ensure!(outcome.ok(), "imgctl {args:?} on {}: {outcome}", self.name);
        let mut values = outcome
            .stdout
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()
            .with_context(|| format!("imgctl {args:?}: {outcome}"))?;
        Ok(match values.len() {
            1 => values.remove(0),
            _ => Value::Array(values),
        })
    }

    /// Runs `imgctl --json` and expects this exit code; returns the error object.
    ///
    /// # Errors
    /// It ends with another code, or its error is incomplete.
    pub fn fails(&self, code: i32, args: &[&str]) -> Result<Value> {
        let outcome = self.imgctl(&[args, &["--json"]].concat())?;
        ensure!(
            outcome.code == Some(code),
            "imgctl {args:?} should end with {code}: {outcome}"
        );
        let error: Value = outcome
            .stdout
            .lines()
            .last()
            .map(serde_json::from_str)
            .with_context(|| format!("imgctl {args:?}: {outcome}"))??;
        for field in ["error", "message", "hint"] {
            ensure!(error.get(field).is_some(), "no {field} in {error}");
        }
        Ok(error)
    }

    /// Checks `image` out into the folder of its name and returns that folder.
    ///
    /// # Errors
    /// The checkout fails.
    pub fn checkout(&self, image: &str, options: &[&str]) -> Result<PathBuf> {
        self.json(&[&["checkout", image], options].concat())?;
        Ok(self.work().join(image))
    }

    /// The status of one checkout.
    ///
    /// # Errors
    /// There is no such checkout.
    pub fn status(&self, image: &str) -> Result<Value> {
        self.json(&["status", image])
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let stopped = self.process.take().map(Program::terminate);
        if !matches!(stopped, Some(Ok(()))) {
            process::unmount_below(&self.dir);
        }
        if std::thread::panicking() {
            process::show_log(&self.dir.join("imgd.log"));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.process.take().map(Program::terminate));
        if std::thread::panicking() {
            process::show_log(&self.dir.with_extension("log"));
        }
    }
}

/// Asks again until there is an answer.
///
/// # Errors
/// The question fails, or there is no answer within [`SOON`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("waited {SOON:?} for {what}")
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("test paths are UTF-8")
}
