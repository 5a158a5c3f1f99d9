//! Running a home: listening, the minute's work, and an orderly end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use img_net::{Server, TlsIdentity};
use img_types::limits::REMAINING_PERSIST_INTERVAL;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::calls;
use crate::connection::Connections;
use crate::home::{Home, Places, StartError};

/// How long connections, and then their tasks, may take to end.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long what was taken may take to become durable: service managers kill after ten seconds and more.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// A home that serves its devices.
#[derive(Debug)]
pub struct Running {
    pub(crate) home: Arc<Home>,
    server: Arc<Server>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
    tidying: JoinHandle<()>,
}

impl Running {
    /// Opens a home and listens on `listen`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The folder, the database, the objects or the address cannot be used.
    pub async fn start(places: &Places, listen: SocketAddr) -> Result<Self, StartError> {
        let home = Arc::new(Home::open(places).await?);
        let listening = |source| StartError::Listen {
            address: listen,
            source,
        };
        let identity = TlsIdentity::from_seed(&home.key.to_bytes());
        let server = Arc::new(Server::bind(listen, &identity).map_err(listening)?);
        let address = server.local_address().map_err(listening)?;
        let connections = Connections::new(Arc::clone(&home));
        let accepting = tokio::spawn({
            let server = Arc::clone(&server);
            async move { connections.accept(&server).await }
        });
        let tidying = tokio::spawn(tidy_for_ever(Arc::clone(&home)));
        tracing::info!(%address, "the home serves");
        Ok(Self {
            home,
            server,
            address,
            accepting,
            tidying,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, finishes what was taken, and closes the database, all within five seconds. What
    /// is not finished by then is left as by a crash, which loses nothing that was acknowledged.
    pub async fn stop(mut self) {
        // Whoever is there hears it at once; nobody waits for a device that sleeps.
        let _ = timeout(FAREWELL_MAX, self.server.close()).await;
        // A panic of a task has been reported by the runtime.
        if timeout(FAREWELL_MAX, &mut self.accepting).await.is_err() {
            self.accepting.abort();
        }
        self.tidying.abort();
        match timeout(CLOSE_MAX, self.home.close()).await {
            Ok(()) => tracing::info!("the home has stopped"),
            Err(_) => tracing::warn!(
                "the home stops without having finished: its disk is too slow; \
                 the next start goes on from what is durable"
            ),
        }
    }
}

async fn tidy_for_ever(home: Arc<Home>) {
    let mut minutes = tokio::time::interval(REMAINING_PERSIST_INTERVAL);
    minutes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        minutes.tick().await;
        if let Err(error) = calls::tidy(&home).await {
            tracing::error!(%error, "the minute's work failed");
        }
    }
}
