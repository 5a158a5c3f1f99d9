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
use img_types::{ObjectId, object};

pub(crate) use expand::{Expansion, expand};
pub(crate) use prove::prove;
pub(crate) use run::Run;

use crate::db::objects::{self, Located, StoreNumber};
use crate::db::{Database, Stop};

/// What reading an object brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// Its bytes, which match its id.
    Sound(Bytes),
    /// It is not where its row says, if it has one.
    Absent,
    /// Its bytes do not match its id; it has no row any more.
    Damaged,
}

impl Read {
    /// The bytes, if there are any to be used.
    pub(crate) fn sound(self) -> Option<Bytes> {
        match self {
            Self::Sound(bytes) => Some(bytes),
            Self::Absent | Self::Damaged => None,
        }
    }
}

/// Leaves those objects whose bytes match their ids. Hashing takes its time, so it has a thread of its own.
async fn sound(read: Vec<(ObjectId, Bytes)>) -> Result<Vec<Option<Bytes>>, Stop> {
    let check = move || {
        let sound = read.into_iter().map(|(id, bytes)| {
            let sound = object::verify(id, &bytes).is_ok();
            sound.then_some(bytes)
        });
        sound.collect()
    };
    tokio::task::spawn_blocking(check)
        .await
        .map_err(|_| Stop::Closing)
}

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

    /// Reads one object that was located before, and checks it. One that is damaged loses its row, so that it
    /// counts as absent and a device that has it sends it again.
    pub(crate) async fn read(&self, id: ObjectId, located: Located) -> Result<Read, Stop> {
        if let Some(bytes) = self.read_at(located).await?
            && let [Some(bytes)] = &sound(vec![(id, bytes)]).await?[..]
        {
            return Ok(Read::Sound(bytes.clone()));
        }
        // It moved into a pack between the look-up and the read, or this machine erred: look again.
        let Some(located) = self.locate(&[id]).await?.get(&id).copied() else {
            return Ok(Read::Absent);
        };
        let Some(bytes) = self.read_at(located).await? else {
            return Ok(Read::Absent);
        };
        if let [Some(bytes)] = &sound(vec![(id, bytes)]).await?[..] {
            return Ok(Read::Sound(bytes.clone()));
        }
        tracing::error!(object = %id, "an object is damaged and counts as absent");
        let lose = self
            .db
            .writer()
            .call(move |tx| Box::pin(async move { objects::lose(tx, id, located).await }));
        lose.await?;
        Ok(Read::Damaged)
    }

    /// Finds and reads one object.
    pub(crate) async fn get(&self, id: ObjectId) -> Result<Option<Bytes>, Stop> {
        match self.locate(&[id]).await?.get(&id) {
            Some(located) => Ok(self.read(id, *located).await?.sound()),
            None => Ok(None),
        }
    }

    /// Finds and reads an object that may be a node; nothing for one that is too large to be one.
    pub(crate) async fn get_node(&self, id: ObjectId) -> Result<Option<Bytes>, Stop> {
        match self.locate(&[id]).await?.get(&id) {
            Some(located) if located.place.len <= NODE_OBJECT_LEN_MAX => {
                Ok(self.read(id, *located).await?.sound())
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
