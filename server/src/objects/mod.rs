//! Reading stored objects: from a spool while they are young, from a pack afterwards.
//!
//! It knows where objects lie and nothing of what they mean; only the clear header of a node is read
//! to walk from a root to what it names.

mod expand;
mod prove;
mod run;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use img_store::{Packs, SpoolReader};
use img_types::ObjectId;

pub(crate) use expand::{Expansion, expand};
pub(crate) use prove::prove;
pub(crate) use run::Run;

use crate::db::objects::{self, Located, StoreNumber};
use crate::db::{Database, Stop};

/// Largest node as it is stored: its raw bytes, padded by an eighth at most, and a header with 1,000 ids.
const NODE_OBJECT_LEN_MAX: u32 = 128 * 1024;

/// The stored objects of a home; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    db: Database,
    packs: Packs,
    spools: Arc<RwLock<BTreeMap<StoreNumber, SpoolReader>>>,
}

impl Objects {
    pub(crate) fn new(db: Database, packs: Packs) -> Self {
        Self {
            db,
            packs,
            spools: Arc::default(),
        }
    }

    /// The packs.
    pub(crate) fn packs(&self) -> &Packs {
        &self.packs
    }

    /// Makes a spool readable.
    pub(crate) fn add_spool(&self, store: StoreNumber, reader: SpoolReader) {
        let mut spools = self.spools.write().unwrap_or_else(PoisonError::into_inner);
        spools.insert(store, reader);
    }

    /// Forgets a spool whose objects have moved into a pack.
    pub(crate) fn remove_spool(&self, store: StoreNumber) {
        let mut spools = self.spools.write().unwrap_or_else(PoisonError::into_inner);
        spools.remove(&store);
    }

    /// Finds objects; those that are not here are left out.
    pub(crate) async fn locate(
        &self,
        ids: &[ObjectId],
    ) -> Result<BTreeMap<ObjectId, Located>, Stop> {
        let mut connection = self.db.reads().acquire().await?;
        Ok(objects::locate(&mut connection, ids).await?)
    }

    /// Reads one object that was located before; nothing if it is not here (any more).
    pub(crate) async fn read(&self, id: ObjectId, located: Located) -> Result<Option<Bytes>, Stop> {
        if let Some(bytes) = self.read_at(located).await? {
            return Ok(Some(bytes));
        }
        // It moved into a pack between the look-up and the read.
        match self.locate(&[id]).await?.get(&id) {
            Some(moved) if *moved != located => self.read_at(*moved).await,
            _ => Ok(None),
        }
    }

    /// Finds and reads one object.
    pub(crate) async fn get(&self, id: ObjectId) -> Result<Option<Bytes>, Stop> {
        match self.locate(&[id]).await?.get(&id) {
            Some(located) => self.read(id, *located).await,
            None => Ok(None),
        }
    }

    /// Finds and reads an object that may be a node; nothing for one that is too large to be one.
    pub(crate) async fn get_node(&self, id: ObjectId) -> Result<Option<Bytes>, Stop> {
        match self.locate(&[id]).await?.get(&id) {
            Some(located) if located.place.len <= NODE_OBJECT_LEN_MAX => {
                self.read(id, *located).await
            }
            _ => Ok(None),
        }
    }

    async fn read_at(&self, located: Located) -> Result<Option<Bytes>, Stop> {
        if let Some(pack) = located.pack {
            let read = self.packs.read_object(pack, located.place).await;
            return read
                .map(Some)
                .map_err(|error| Stop::Broken(error.to_string()));
        }
        let reader = {
            let spools = self.spools.read().unwrap_or_else(PoisonError::into_inner);
            spools.get(&located.store).cloned()
        };
        let Some(reader) = reader else {
            return Ok(None);
        };
        let read = tokio::task::spawn_blocking(move || reader.read(located.place)).await;
        match read {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(error)) => Err(Stop::Broken(error.to_string())),
            Err(_) => Err(Stop::Closing),
        }
    }
}
