//! A home that is open: its parts, how it starts and how it stops.

use std::sync::Arc;

use img_records::{Roster, SigningSecret};
use img_store::Packs;

use crate::audit::Audit;
use crate::calls;
use crate::db::images::Moment;
use crate::db::{Database, OpenError, Published, SharedRoster, Stop};
use crate::folder::{Folder, FolderError, FolderLock};
use crate::ingest::Ingest;
use crate::objects::Objects;
use img_proto::{Refusal, Standing};
use tokio::sync::watch;

/// Where a home keeps what it is given.
#[derive(Debug, Clone)]
pub struct Places {
    /// The home's folder.
    pub folder: Folder,
    /// The database.
    pub database: crate::db::Address,
    /// The folder of the object store.
    pub objects: std::path::PathBuf,
    /// How many bytes of objects it may hold; no limit but the disk's if there is none.
    pub max_stored: Option<u64>,
}

/// Why a home does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its database cannot be used.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// Its object store cannot be used.
    #[error("the object store: {0}")]
    Objects(#[from] img_store::PackError),
    /// Its spools cannot be used.
    #[error("the spool: {0}")]
    Spool(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// An open home. Everything in it may be used from any task.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) db: Database,
    pub(crate) objects: Objects,
    pub(crate) ingest: Ingest,
    pub(crate) key: Arc<SigningSecret>,
    pub(crate) room: calls::Room,
    pub(crate) audit: Audit,
    pub(crate) greeted: Arc<calls::Greeted>,
    published: watch::Receiver<Published>,
    roster: watch::Receiver<SharedRoster>,
    _lock: FolderLock,
}

impl Home {
    /// Opens a home, checks its database and recovers its spools.
    pub(crate) async fn open(places: &Places) -> Result<Self, StartError> {
        let lock = places.folder.lock()?;
        let key = places.folder.key()?;
        let db = Database::open(&places.database).await?;
        let packs = Packs::local(&places.objects)?;
        let objects = Objects::new(db.clone(), packs);
        let ingest = Ingest::start(
            db.clone(),
            objects.clone(),
            places.folder.spool(),
            places.max_stored,
        )
        .await
        .map_err(|error| StartError::Spool(error.to_string()))?;
        Ok(Self {
            published: db.writer().published(),
            roster: db.writer().roster(),
            db,
            objects,
            ingest,
            key: Arc::new(key),
            room: calls::all_room(),
            audit: Audit::default(),
            greeted: Arc::default(),
            _lock: lock,
        })
    }

    /// Syncs what was taken in, finishes what is queued and closes the database.
    pub(crate) async fn close(&self) {
        self.ingest.stop().await;
        if let Err(error) = self.audit.flush(self.db.writer()).await {
            tracing::error!(%error, "refusals were not written down");
        }
        self.db.close().await;
    }

    /// The end of the log, as far as it is durable.
    pub(crate) fn standing(&self) -> Standing {
        self.published.borrow().standing
    }

    /// The roster, as far as it is durable.
    ///
    /// # Errors
    /// [`Refusal::NotFounded`].
    pub(crate) fn roster(&self) -> Result<Arc<Roster>, Refusal> {
        self.roster.borrow().clone().ok_or(Refusal::NotFounded)
    }

    /// Tells of every change of the roster.
    pub(crate) fn roster_changes(&self) -> watch::Receiver<SharedRoster> {
        self.roster.clone()
    }

    /// Tells of every durable transaction.
    pub(crate) fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    /// When and where rows are looked at outside of transactions.
    pub(crate) fn moment(&self) -> Result<Moment, Stop> {
        Ok(Moment {
            now: self.db.writer().now(),
            started: self.db.writer().started(),
            incarnation: self.standing().incarnation,
            home: self.roster()?.home(),
        })
    }
}
