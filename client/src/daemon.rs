//! Finds the daemon's socket and starts the daemon when it is not running.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::failure::Failure;

/// How long a daemon may take to open its socket: it may have a long journal to read.
const START_MAX: Duration = Duration::from_secs(30);
/// How long an ended daemon's socket is still tried: another one may be about to open it.
const GONE_GRACE: Duration = Duration::from_secs(2);
/// How often the socket is tried meanwhile.
const START_POLL: Duration = Duration::from_millis(20);

/// Where the daemon is, and whether it may be started.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    /// Its socket.
    pub(crate) socket: PathBuf,
    /// Its state folder, if not the default one.
    pub(crate) state: Option<PathBuf>,
    /// Whether to start it.
    pub(crate) start: bool,
}

impl Daemon {
    /// Finds the socket: the given one, else in the runtime folder, else in the state folder.
    pub(crate) fn find(
        socket: Option<PathBuf>,
        state: Option<PathBuf>,
        start: bool,
    ) -> Result<Self, Failure> {
        let folder = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
        let socket = match (socket, &state) {
            (Some(socket), _) => socket,
            (None, Some(state)) => state.join("imgd.sock"),
            (None, None) => match folder("XDG_RUNTIME_DIR") {
                Some(runtime) => PathBuf::from(runtime).join("imgd.sock"),
                None => match (folder("XDG_DATA_HOME"), folder("HOME")) {
                    (Some(data), _) => PathBuf::from(data).join("imgd/imgd.sock"),
                    (None, Some(home)) => PathBuf::from(home).join(".local/share/imgd/imgd.sock"),
                    (None, None) => {
                        return Err(Failure::no_daemon(
                            "There is no HOME to look for the daemon's socket in; \
                             say where it is with --socket.",
                        ));
                    }
                },
            },
        };
        Ok(Self {
            socket,
            state,
            start,
        })
    }

    /// The same daemon, which is not started again if it has ended.
    pub(crate) fn without_start(&self) -> Self {
        Self {
            start: false,
            ..self.clone()
        }
    }

    /// Connects, and starts the daemon before if need be.
    pub(crate) async fn connect(&self) -> Result<UnixStream, Failure> {
        match UnixStream::connect(&self.socket).await {
            Ok(stream) => return Ok(stream),
            // Nobody listens: only then can starting a daemon help.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                return Err(Failure::no_daemon(format!(
                    "The daemon cannot be reached at {}: {error}.",
                    self.socket.display()
                )));
            }
        }
        if !self.start {
            return Err(Failure::no_daemon(format!(
                "The daemon does not answer at {}.",
                self.socket.display()
            )));
        }
        let mut daemon = self.spawn()?;
        let start = Instant::now();
        loop {
            let connected = UnixStream::connect(&self.socket).await;
            match connected {
                Ok(stream) => return Ok(stream),
                // Another command may have started one a moment earlier: then that one stays.
                Err(_) if start.elapsed() > GONE_GRACE && has_ended(&mut daemon) => {
                    return Err(Failure::no_daemon(format!(
                        "The daemon was started but ended at once; {} says why.",
                        self.log()
                    )));
                }
                Err(error) if start.elapsed() > START_MAX => {
                    return Err(Failure::no_daemon(format!(
                        "The daemon was started but does not answer at {}: {error}; {} says more.",
                        self.socket.display(),
                        self.log()
                    )));
                }
                Err(_) => sleep(START_POLL).await,
            }
        }
    }

    /// Where a daemon that was started from here writes its log.
    fn log(&self) -> String {
        match &self.state {
            Some(state) => state.join("imgd.log").display().to_string(),
            None => "imgd.log in the state folder".to_owned(),
        }
    }

    fn spawn(&self) -> Result<Child, Failure> {
        let beside = std::env::current_exe()
            .ok()
            .map(|own| own.with_file_name("imgd"))
            .filter(|imgd| imgd.exists());
        let program = beside.as_deref().unwrap_or(Path::new("imgd"));
        let mut command = Command::new(program);
        // Nobody reads what it would print.
        command.arg("--log").arg("--socket").arg(&self.socket);
        if let Some(state) = &self.state {
            command.arg("--state").arg(state);
        }
        // In a process group of its own, so that Ctrl-C in this terminal does not end it.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map_err(|error| {
            Failure::no_daemon(format!(
                "The daemon is not running and {} cannot be started: {error}.",
                program.display()
            ))
        })
    }
}

fn has_ended(daemon: &mut Child) -> bool {
    matches!(daemon.try_wait(), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_daemon_and_the_right_to_start_one_the_way_out_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::find(Some(folder.path().join("none.sock")), None, false).unwrap();
        let failure = daemon.connect().await.unwrap_err();
        assert_eq!(
            (failure.error.as_str(), failure.exit_code),
            ("no_daemon", 1)
        );
        assert_eq!(failure.hint, "Start it with: imgd");
    }

    #[test]
    fn the_socket_lies_in_a_given_state_folder() {
        let daemon = Daemon::find(None, Some("/x".into()), false).unwrap();
        assert_eq!(daemon.socket, Path::new("/x/imgd.sock"));
        let daemon = Daemon::find(Some("/s".into()), Some("/x".into()), false).unwrap();
        assert_eq!(daemon.socket, Path::new("/s"));
    }
}
