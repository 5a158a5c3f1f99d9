//! The unix socket: where it is, who may use it, and who already does.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// Accepts connections of this user and of root only.
#[derive(Debug)]
pub struct PeerListener {
    listener: UnixListener,
    uid: u32,
}

/// The socket's path where nothing else is said: in the runtime folder, else in the state folder. A state folder
/// that was named has its socket inside.
pub fn default_path(state: &Path, state_was_named: bool) -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match runtime {
        Some(runtime) if !state_was_named => PathBuf::from(runtime).join("imgd.sock"),
        _ => state.join("imgd.sock"),
    }
}

/// Listens on the socket. A stale one is replaced; one that a daemon answers on is not.
///
/// # Errors
/// Another daemon answers there, or the path cannot be used.
pub async fn bind(path: &Path) -> io::Result<PeerListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another imgd answers on this socket",
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Bound under another name, so that nobody can connect before the permissions are right.
    let unready = path.with_extension(format!("{}", std::process::id()));
    let listener = UnixListener::bind(&unready)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unready, path)?;
    Ok(PeerListener {
        listener,
        uid: rustix::process::geteuid().as_raw(),
    })
}

impl Listener for PeerListener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == self.uid || peer.uid() == 0 => return (stream, address),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "another user's connection was closed")
                }
                Err(error) => tracing::warn!(%error, "a connection without credentials was closed"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imgd.sock");
        let first = bind(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            bind(&path).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        assert!(path.exists());
        bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn this_user_is_let_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imgd.sock");
        let mut listener = bind(&path).await.unwrap();
        let (_, client) = tokio::join!(Listener::accept(&mut listener), UnixStream::connect(&path));
        client.unwrap();
    }

    #[test]
    fn a_named_state_folder_has_its_socket_inside() {
        assert_eq!(
            default_path(Path::new("/s"), true),
            Path::new("/s/imgd.sock")
        );
    }
}
