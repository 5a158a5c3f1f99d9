//! Notices a daemon that takes a connection and says nothing: one that somebody has stopped, or whose disk hangs.
//!
//! A daemon that is at work, or waits for its home, answers others meanwhile; so it is asked for nothing in
//! particular over a connection of its own, and only one that does not answer that either is called silent.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::failure::Failure;

/// Waits for an answer of the daemon, and says so on standard error when it is silent. A `quick` one is given up.
///
/// # Errors
/// The daemon has been silent for too long.
pub(crate) async fn noticed<T>(
    socket: &Path,
    quick: bool,
    answer: impl Future<Output = T>,
) -> Result<T, Failure> {
    let mut answer = pin!(answer);
    let mut silent_since = None;
    loop {
        let probe = async {
            sleep(SILENCE).await;
            probe(socket).await
        };
        let probed = tokio::select! {
            biased;
            answer = &mut answer => return Ok(answer),
            probed = probe => probed,
        };
        let Probed::Silent(pid) = probed else {
            silent_since = None;
            continue;
        };
        let failure = Failure::silent(socket, pid);
        let since = *silent_since.get_or_insert_with(|| {
            eprintln!("{} {}", failure.message, failure.hint);
            Instant::now()
        });
        if quick && since.elapsed() >= GIVEN_UP_AFTER {
            return Err(failure);
        }
    }
}

enum Probed {
    /// It answers, or nobody listens: then there is something else to say.
    Well,
    /// It took the connection and said nothing; its process.
    Silent(Option<i32>),
}

async fn probe(socket: &Path) -> Probed {
    let mut pid = None;
    let answered = timeout(PATIENCE, async {
        let mut stream = UnixStream::connect(socket).await?;
        pid = stream.peer_cred()?.pid();
        stream.write_all(QUESTION).await?;
        stream.read(&mut [0]).await
    });
    match answered.await {
        Ok(_) => Probed::Well,
        Err(_) => Probed::Silent(pid),
    }
}

/// Any answer is one, also that there is no such thing.
const QUESTION: &[u8] = b"GET /v1/nothing HTTP/1.1\r\nhost: imgd\r\nconnection: close\r\n\r\n";
/// How long nothing is thought of a daemon that has not answered.
const SILENCE: Duration = Duration::from_secs(2);
/// How long it may take to say anything at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a silent daemon is waited for by who only wants to know something.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(27);

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::net::UnixListener;

    #[tokio::test(start_paused = true)]
    async fn a_silent_daemon_is_given_up_and_one_that_answers_others_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("imgd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let began = Instant::now();
        let given_up = noticed(&socket, true, pending::<()>()).await.unwrap_err();
        assert_eq!(given_up.exit_code, 1);
        let pid = std::process::id().to_string();
        assert!(
            given_up.message.contains(&pid) && given_up.hint.contains("kill -CONT"),
            "{given_up:?}"
        );
        let waited = began.elapsed().as_secs();
        assert!((29..35).contains(&waited), "{waited}");
        // Who wants something done goes on waiting.
        let patient = noticed(&socket, false, pending::<()>());
        assert!(timeout(Duration::from_secs(100), patient).await.is_err());
        drop(listener);

        // Nobody listens: that is said by others.
        let gone = noticed(&socket, true, pending::<()>());
        assert!(timeout(Duration::from_secs(100), gone).await.is_err());
    }
}
