//! Brings what will be needed into memory and cache: the leaves of a later seal, without anybody waiting,
//! and at a checkout what a first new file needs.

use std::sync::Arc;
use std::time::Duration;

use img_index::{Absent, Inode, Key, ReadError};
use img_proto::Class;
use img_seal::Reference;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::source::{Source, Wanted};
use super::view::Failure;
use super::xattrs::acl;
use super::{COOKIE_FIRST, Tree};
use crate::acl::DEFAULT;

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
                        ..Wanted::default()
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
    /// Brings what a new file in the root directory needs into memory and cache, so that one can be made
    /// when the home goes away right after the checkout. Gives up after a while.
    pub async fn warm_up(self: &Arc<Self>) {
        let Err(Failure::Absent(wanted)) = self.look_around() else {
            return;
        };
        let warming = Arc::clone(self).repeat(wanted, Self::look_around);
        match tokio::time::timeout(WARM_UP_PATIENCE, warming).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => tracing::info!("the root directory is read when it is needed"),
        }
    }

    /// Reads the beginning of the root directory, and where the next inode's keys will be.
    fn look_around(&self) -> Result<(), Failure> {
        let mut wanted = Wanted::default();
        let listed = self.list(Inode::ROOT, COOKIE_FIRST, ROOT_ENTRIES_MAX);
        let next = self.read(|view| view.value(&Key::attributes(view.next_inode()?)));
        let inherited = self.read(|view| acl(view, Inode::ROOT, DEFAULT));
        for read in [listed.map(drop), next.map(drop), inherited.map(drop)] {
            if let Err(failure) = read {
                wanted.add(failure)?;
            }
        }
        if wanted.is_empty() {
            Ok(())
        } else {
            Err(Failure::Absent(wanted))
        }
    }

    /// Sees to it that the leaf of a key that was just edited comes into memory.
    ///
    /// Too many at once are left to the seal, which fetches what is still absent.
    pub(super) fn prefetch(&self, root: &Reference, key: Key) {
        if let Err(ReadError::Absent(_)) = img_index::get(&*self.source, root, &key) {
            self.prefetch.0.try_send((*root, key)).ok();
        }
    }
}

/// Entries of the root directory that a checkout reads at once: some 250 KB of nodes at most.
const ROOT_ENTRIES_MAX: usize = 4_096;
/// How long a checkout waits for them: a few round trips of a slow link.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(3);
/// Keys that wait for their leaves.
const QUEUE_MAX: usize = 1_024;
