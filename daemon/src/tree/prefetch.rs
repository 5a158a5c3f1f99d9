//! Brings the leaves that a later seal needs into memory and cache, without anybody waiting.

use std::sync::Arc;

use img_index::{Absent, Key, ReadError};
use img_proto::Class;
use img_seal::Reference;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Tree;
use super::source::{Source, Wanted};

/// Sends keys to the task that fetches their leaves.
#[derive(Debug)]
pub(super) struct Prefetch(mpsc::Sender<(Reference, Key)>);

impl Prefetch {
    /// Starts the task; it ends with the tree.
    pub(super) fn start(source: Arc<dyn Source>, runtime: &Handle) -> Self {
        let (sender, mut keys) = mpsc::channel::<(Reference, Key)>(QUEUE_MAX);
        runtime.spawn(async move {
            while let Some((root, key)) = keys.recv().await {
                while let Err(ReadError::Absent(Absent(nodes))) =
                    img_index::get(&*source, &root, &key)
                {
                    let wanted = Wanted {
                        nodes,
                        blocks: Vec::new(),
                    };
                    // The seal asks again for what cannot be had now.
                    if source.fetch(&wanted, Class::Trace).await.is_err() {
                        break;
                    }
                }
            }
        });
        Self(sender)
    }
}

impl Tree {
    /// Sees to it that the leaf of a key that was just edited comes into memory.
    ///
    /// Too many at once are left to the seal, which fetches what is still absent.
    pub(super) fn prefetch(&self, root: &Reference, key: Key) {
        if let Err(ReadError::Absent(_)) = img_index::get(&*self.source, root, &key) {
            self.prefetch.0.try_send((*root, key)).ok();
        }
    }
}

/// Keys that wait for their leaves.
const QUEUE_MAX: usize = 1_024;
