//! The objects of one home: memory, the disk cache, and the home behind them.
//!
//! Owns which of the three an object comes from and that nothing unverified leaves this module. It knows
//! nothing of checkouts beyond the outbox's labels. `docs/architecture.md` describes the read path.

mod flights;
mod lru;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use img_index::{Node, NodeSource, open_node};
use img_proto::Class;
use img_seal::{KeyRing, Reference, Sealed};
use img_store::{Cache, Keep, StoreError, Usage};
use img_types::{CheckoutId, ObjectId};

use crate::identity::Keys;

pub use flights::{Arrival, Remote, Trouble};

use flights::{Flights, Lost};
use lru::ByteLru;

/// Why an object is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The home cannot be reached.
    #[error("the home cannot be reached")]
    Away,
    /// Waiting for the home is in vain: another machine answers in its place, or it turns this device away.
    #[error("the home does not answer this device; `imgctl doctor` says why")]
    Never,
    /// The home lacks it.
    #[error("object {0} is missing at the home")]
    Missing(ObjectId),
    /// Its content does not verify, although it was fetched anew.
    #[error("object {0} does not verify")]
    Corrupt(ObjectId),
    /// The disk cache failed.
    #[error("the object cache failed: {0}")]
    Store(#[from] StoreError),
}

/// The objects of one home; shared by all checkouts.
#[derive(Debug)]
pub struct Objects {
    cache: Arc<Cache>,
    flights: Arc<Flights>,
    keys: Keys,
    nodes: Mutex<ByteLru<Reference, Arc<Node>>>,
    blocks: Mutex<ByteLru<Reference, Bytes>>,
}

impl Objects {
    /// Joins a disk cache with a home and the keys of its contents.
    pub fn new(cache: Cache, remote: Arc<dyn Remote>, keys: Keys) -> Arc<Self> {
        let cache = Arc::new(cache);
        let keeper = Arc::clone(&cache);
        let on_arrival = move |arrived: Vec<(ObjectId, Bytes)>| {
            let keeper = Arc::clone(&keeper);
            tokio::task::spawn_blocking(move || keep_fetched(&keeper, &arrived));
        };
        Arc::new(Self {
            cache,
            flights: Flights::new(remote, Box::new(on_arrival)),
            keys,
            nodes: Mutex::new(ByteLru::new(NODES_LEN_MAX)),
            blocks: Mutex::new(ByteLru::new(BLOCKS_LEN_MAX)),
        })
    }

    /// Whether somebody waits for an object of the home.
    pub fn waits_for_home(&self) -> bool {
        self.flights.is_busy()
    }

    /// The keys known now.
    pub fn keyring(&self) -> KeyRing {
        KeyRing::clone(&self.keys.now())
    }

    /// A node from memory; never waits.
    pub fn node_at_hand(&self, reference: &Reference) -> Option<Arc<Node>> {
        lock(&self.nodes).get(reference)
    }

    /// A block's or patch's content from memory; never waits.
    pub fn block_at_hand(&self, reference: &Reference) -> Option<Bytes> {
        lock(&self.blocks).get(reference)
    }

    /// Puts a node that was just made into memory.
    pub fn remember_node(&self, reference: Reference, node: Arc<Node>) {
        let len_bytes = node.memory_len() + ENTRY_LEN;
        lock(&self.nodes).insert(reference, node, len_bytes);
    }

    /// Puts the content of a block or patch that was just made or opened into memory.
    pub fn remember_block(&self, reference: Reference, content: Bytes) {
        let len_bytes = content.len() + ENTRY_LEN;
        lock(&self.blocks).insert(reference, content, len_bytes);
    }

    /// Brings nodes into memory, from the disk or the home.
    ///
    /// # Errors
    /// One of them could not be had.
    pub async fn fetch_nodes(
        self: &Arc<Self>,
        references: &[Reference],
        class: Class,
    ) -> Result<(), FetchError> {
        let wanted = self.nodes_absent(references);
        if wanted.is_empty() {
            return Ok(());
        }
        let objects = Arc::clone(self);
        let absent = blocking(move || Ok(objects.load_nodes(wanted))).await?;
        let fetches = absent.into_iter().map(|reference| async move {
            let sealed = self.fetch(&reference.id, class).await?;
            let objects = Arc::clone(self);
            blocking(move || objects.open_fetched_node(&reference, &sealed)).await
        });
        futures_util::future::try_join_all(fetches).await?;
        Ok(())
    }

    /// The content of a block or patch, from memory, the disk or the home.
    ///
    /// # Errors
    /// It could not be had.
    pub async fn block(
        self: &Arc<Self>,
        reference: &Reference,
        class: Class,
    ) -> Result<Bytes, FetchError> {
        if let Some(content) = self.block_local(reference).await? {
            return Ok(content);
        }
        let sealed = self.fetch(&reference.id, class).await?;
        let (objects, reference) = (Arc::clone(self), *reference);
        blocking(move || {
            let content = objects
                .open_block(&reference, &sealed)
                .ok_or(FetchError::Corrupt(reference.id))?;
            objects.remember_block(reference, content.clone());
            Ok(content)
        })
        .await
    }

    /// The content of a block or patch if this device has it; never asks the home.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn block_local(
        self: &Arc<Self>,
        reference: &Reference,
    ) -> Result<Option<Bytes>, FetchError> {
        if let Some(content) = self.block_at_hand(reference) {
            return Ok(Some(content));
        }
        let (objects, reference) = (Arc::clone(self), *reference);
        blocking(move || Ok(objects.load_block(&reference))).await
    }

    /// The content of a block or patch if this device has it; blocks on the disk.
    pub fn load_block(&self, reference: &Reference) -> Option<Bytes> {
        if let Some(content) = self.block_at_hand(reference) {
            return Some(content);
        }
        let sealed = self.cache.get(&reference.id)?;
        let content = self.open_block(reference, &sealed);
        match &content {
            Some(content) => self.remember_block(*reference, content.clone()),
            None => self.forget(&reference.id),
        }
        content
    }

    /// Brings nodes into memory that the disk has, and returns the others; blocks on the disk.
    pub fn load_nodes(&self, references: Vec<Reference>) -> Vec<Reference> {
        let keys = self.keys.now();
        let mut absent = Vec::new();
        for reference in references {
            let Some(sealed) = self.cache.get(&reference.id) else {
                absent.push(reference);
                continue;
            };
            match open_node(&keys, &reference, &sealed) {
                Ok(node) => self.remember_node(reference, Arc::new(node)),
                Err(_) => {
                    self.forget(&reference.id);
                    absent.push(reference);
                }
            }
        }
        absent
    }

    /// The stored bytes of objects that are read once, in order, from the disk or the home; all that are
    /// absent are asked for together. Blocks on the disk.
    ///
    /// # Errors
    /// One of them could not be had.
    pub async fn sealed(
        &self,
        references: &[Reference],
        class: Class,
    ) -> Result<Vec<Bytes>, FetchError> {
        let all = references.iter().map(|reference| async move {
            match self.cache.get(&reference.id) {
                Some(sealed) => Ok(sealed),
                None => self.fetch(&reference.id, class).await,
            }
        });
        futures_util::future::try_join_all(all).await
    }

    /// Whether the disk has an object.
    pub fn is_local(&self, id: &ObjectId) -> bool {
        self.cache.contains(id)
    }

    /// Brings an object to the disk without opening it. Returns its length if it had to be fetched.
    ///
    /// # Errors
    /// It could not be had, or there is no room for it.
    pub async fn bring(
        self: &Arc<Self>,
        id: &ObjectId,
        class: Class,
    ) -> Result<Option<u64>, FetchError> {
        if self.is_local(id) {
            return Ok(None);
        }
        let sealed = self.fetch(id, class).await?;
        let (objects, id) = (Arc::clone(self), *id);
        blocking(move || {
            // What arrives is put into the cache anyway, but nobody knows when.
            synced(objects.cache.put(&id, &sealed, Keep::Evictable))?;
            match objects.cache.contains(&id) {
                true => Ok(Some(sealed.len() as u64)),
                false => Err(StoreError::NoRoom.into()),
            }
        })
        .await
    }

    /// Keeps a sealed object on the disk; blocks on it.
    ///
    /// # Errors
    /// The disk cache failed.
    pub fn keep(&self, sealed: &Sealed, keep: Keep) -> Result<(), StoreError> {
        synced(self.cache.put(&sealed.reference.id, &sealed.bytes, keep))
    }

    /// Returns when everything kept so far survives a power loss; blocks on the disk.
    ///
    /// # Errors
    /// The disk cache failed.
    pub fn sync(&self) -> Result<(), StoreError> {
        synced(self.cache.sync())
    }

    /// The objects that a checkout has not brought home yet.
    pub fn outbox(&self, checkout: CheckoutId) -> Vec<ObjectId> {
        self.cache.outbox(checkout)
    }

    /// The stored bytes of an object on the disk; blocks on it.
    pub fn object_bytes(&self, id: &ObjectId) -> Option<Bytes> {
        self.cache.get_verified(id)
    }

    /// Lets objects of a checkout's outbox be evicted: a commit that contains them is at the home.
    ///
    /// # Errors
    /// The disk cache failed.
    pub fn release(&self, checkout: CheckoutId, ids: &[ObjectId]) -> Result<(), StoreError> {
        synced(self.cache.release(checkout, ids))
    }

    /// Bytes of objects on this device's disk.
    pub fn cached_bytes(&self) -> u64 {
        self.usage().bytes
    }

    /// What this device has on its disk.
    pub fn usage(&self) -> Usage {
        self.cache.usage()
    }

    /// Bytes that what can be fetched again may take on the disk now.
    pub fn allowance(&self) -> u64 {
        let allowance = self.cache.allowance();
        allowance.saturating_sub(self.cache.usage().kept_bytes)
    }

    /// Bytes that the disk cache could give back; never blocks.
    pub fn evictable(&self) -> u64 {
        self.cache.evictable()
    }

    /// Makes the disk cache give back room, `missing` bytes if it can. Returns how many it gave.
    ///
    /// # Errors
    /// The disk cache failed.
    pub async fn give_back(self: &Arc<Self>, missing: u64) -> Result<u64, FetchError> {
        let objects = Arc::clone(self);
        let given = blocking(move || Ok(synced(objects.cache.give_back(missing))?)).await;
        match &given {
            Ok(bytes) => tracing::debug!(missing, bytes, "the object cache gave back room"),
            Err(error) => tracing::warn!(%error, "the object cache cannot give back room"),
        }
        given
    }

    /// Sets the limit of the disk cache, also for later starts, and evicts what is over it; blocks on the disk.
    ///
    /// # Errors
    /// The disk cache failed; the limit is what it was.
    pub fn set_limit(&self, limit: u64) -> Result<(), StoreError> {
        synced(self.cache.set_limit(limit))
    }

    /// Objects and bytes that came from the home since the daemon started.
    pub fn fetched(&self) -> (u64, u64) {
        self.flights.fetched()
    }

    async fn fetch(&self, id: &ObjectId, class: Class) -> Result<Bytes, FetchError> {
        self.flights
            .get(*id, class)
            .await
            .map_err(|lost| match lost {
                Lost::Away => FetchError::Away,
                Lost::Never => FetchError::Never,
                Lost::Missing => FetchError::Missing(*id),
                Lost::Corrupt => FetchError::Corrupt(*id),
            })
    }

    fn nodes_absent(&self, references: &[Reference]) -> Vec<Reference> {
        let mut nodes = lock(&self.nodes);
        references
            .iter()
            .filter(|reference| nodes.get(reference).is_none())
            .copied()
            .collect()
    }

    fn open_fetched_node(&self, reference: &Reference, sealed: &[u8]) -> Result<(), FetchError> {
        let node = open_node(&self.keys.now(), reference, sealed)
            .map_err(|_| FetchError::Corrupt(reference.id))?;
        self.remember_node(*reference, Arc::new(node));
        Ok(())
    }

    /// Opens a block or patch; nothing if it does not verify.
    pub fn open_block(&self, reference: &Reference, sealed: &[u8]) -> Option<Bytes> {
        let opened = img_seal::open(&self.keys.now(), reference, sealed).ok()?;
        Some(Bytes::from(opened.raw))
    }

    /// Drops what turned out to be damaged on the disk, so that it is fetched anew.
    fn forget(&self, id: &ObjectId) {
        tracing::warn!(object = %id.short(), "a cached object does not verify; it will be fetched again");
        self.cache.forget(id);
    }
}

impl NodeSource for Objects {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.node_at_hand(reference)
    }
}

/// Ends the process if a sync failed: the kernel may have dropped the pages, and the next sync would say that
/// all is well.
fn synced<T>(outcome: Result<T, StoreError>) -> Result<T, StoreError> {
    if let Err(StoreError::Sync(error)) = &outcome {
        tracing::error!(%error, "the object cache cannot be synced; ending before data is lost");
        std::process::abort();
    }
    outcome
}

fn keep_fetched(cache: &Cache, arrived: &[(ObjectId, Bytes)]) {
    for (id, bytes) in arrived {
        // The reader has its bytes already; without the cache it is fetched again next time.
        if let Err(error) = synced(cache.put(id, bytes, Keep::Evictable)) {
            tracing::warn!(%error, "the object cache takes nothing");
            return;
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        // Only a panic or the end of the daemon gets here; either way nothing will come.
        Err(_) => Err(FetchError::Away),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for opened nodes: the metadata of some 500,000 files.
const NODES_LEN_MAX: usize = 64 * 1024 * 1024;
/// Memory for opened blocks; the kernel's page cache is the larger one in front of it.
const BLOCKS_LEN_MAX: usize = 64 * 1024 * 1024;
/// What an entry of a memory cache costs beside its value.
const ENTRY_LEN: usize = 256;
