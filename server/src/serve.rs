//! Running a home: listening, the minute's work, and an orderly end.

use std::net::SocketAddr;
use std::sync::Arc;

use img_net::{Server, TlsIdentity};
use img_types::limits::REMAINING_PERSIST_INTERVAL;
use tokio::task::JoinHandle;

use crate::calls;
use crate::connection::Connections;
use crate::home::{Home, Places, StartError};

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

    /// Ends all connections, finishes what was taken, and closes the database.
    pub async fn stop(self) {
        self.server.close().await;
        // A panic of a task has been reported by the runtime.
        let _ = self.accepting.await;
        self.tidying.abort();
        self.home.close().await;
        tracing::info!("the home has stopped");
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
