//! The daemon's objects as the source of a tree.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use img_index::{Node, NodeSource};
use img_proto::Class;
use img_seal::Reference;
use img_store::{Keep, StoreError};
use img_types::CheckoutId;
use img_types::object::ObjectKind;
use rustix::io::Errno;

use super::source::{Fetching, MakingRoom, Source, SourceError, Wanted};
use crate::objects::{FetchError, Objects};

/// Reads a tree's nodes and blocks from memory, the disk cache and the home.
#[derive(Debug)]
pub struct ObjectSource {
    /// Where objects are.
    pub objects: Arc<Objects>,
    /// In whose outbox new ones are kept.
    pub checkout: CheckoutId,
}

impl NodeSource for ObjectSource {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.objects.node_at_hand(reference)
    }
}

impl Source for ObjectSource {
    fn block(&self, reference: &Reference) -> Option<Bytes> {
        self.objects.block_at_hand(reference)
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, class: Class) -> Fetching<'a> {
        Box::pin(async move {
            let blocks = wanted.blocks.iter();
            let blocks = blocks.map(|block| self.objects.block(block, class));
            let (nodes, blocks) = tokio::join!(
                self.objects.fetch_nodes(&wanted.nodes, class),
                try_join_all(blocks),
            );
            nodes?;
            blocks?;
            Ok(())
        })
    }

    fn keep(&self, value: &[u8]) -> Result<Reference, Errno> {
        let mut sealer = self.objects.keyring().sealer();
        let sealed = sealer.seal(ObjectKind::Block, value).map_err(|error| {
            tracing::error!(%error, "a value cannot be sealed");
            Errno::IO
        })?;
        let kept = self.objects.keep(&sealed, Keep::Outbox(self.checkout));
        kept.map_err(|error| errno(&error))?;
        let content = Bytes::copy_from_slice(value);
        self.objects.remember_block(sealed.reference, content);
        Ok(sealed.reference)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.objects.sync().map_err(|error| errno(&error))
    }

    fn make_room(&self, missing: u64) -> MakingRoom<'_> {
        Box::pin(async move {
            // What would not be enough stays.
            if missing > self.objects.evictable() {
                return false;
            }
            let given = self.objects.give_back(missing).await;
            given.is_ok_and(|bytes| bytes > 0)
        })
    }

    fn evictable(&self) -> u64 {
        self.objects.evictable()
    }
}

fn errno(error: &StoreError) -> Errno {
    match error {
        StoreError::NoRoom => Errno::NOSPC,
        error => {
            tracing::error!(%error, "a value cannot be kept");
            Errno::IO
        }
    }
}

impl From<FetchError> for SourceError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Away => Self::Away,
            other => Self::Failed(other.to_string()),
        }
    }
}
