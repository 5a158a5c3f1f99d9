//! The daemon's objects as the source of a tree.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use img_index::{Node, NodeSource};
use img_proto::Class;
use img_seal::Reference;

use super::source::{Fetching, Source, SourceError, Wanted};
use crate::objects::{FetchError, Objects};

/// Reads a tree's nodes and blocks from memory, the disk cache and the home.
#[derive(Debug)]
pub struct ObjectSource(pub Arc<Objects>);

impl NodeSource for ObjectSource {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        self.0.node_at_hand(reference)
    }
}

impl Source for ObjectSource {
    fn block(&self, reference: &Reference) -> Option<Bytes> {
        self.0.block_at_hand(reference)
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, class: Class) -> Fetching<'a> {
        Box::pin(async move {
            let blocks = wanted.blocks.iter().map(|block| self.0.block(block, class));
            let (nodes, blocks) = tokio::join!(
                self.0.fetch_nodes(&wanted.nodes, class),
                try_join_all(blocks),
            );
            nodes?;
            blocks?;
            Ok(())
        })
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
