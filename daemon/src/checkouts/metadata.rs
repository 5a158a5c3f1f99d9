//! Brings a checkout's metadata to this device's disk soon after it is mounted.
//!
//! It is small beside the data, and with it names can be looked up and made anywhere while the home is away.

use std::sync::{Arc, Weak};

use img_index::{Inode, Key, KeyRange, ReadError};
use img_proto::Class;
use img_seal::Reference;

use super::Checkout;
use crate::home::Home;
use crate::objects::{FetchError, Objects};

/// Fetches in the background until everything is there, the checkout has ended, or it is enough.
pub(super) fn start(checkout: &Arc<Checkout>) {
    let (home, weak) = (Arc::clone(&checkout.shared.home), Arc::downgrade(checkout));
    let Some(root) = checkout.tree.as_ref().and_then(|tree| tree.root()) else {
        return;
    };
    tokio::spawn(async move {
        match bring(&home, root, &weak).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "the metadata is not all here"),
        }
    });
}

async fn bring(home: &Home, root: Reference, checkout: &Weak<Checkout>) -> Result<(), FetchError> {
    let objects = home.objects();
    let mut from = Key::attributes(Inode(0));
    let mut entries = 0;
    while entries < ENTRIES_MAX && checkout.strong_count() > 0 {
        match page(objects, &root, &from) {
            Ok(Some((last, len))) => {
                from = last.successor();
                entries += len;
            }
            Ok(None) => return Ok(()),
            Err(ReadError::Absent(absent)) => {
                match objects.fetch_nodes(&absent.0, Class::Hydrate).await {
                    Err(FetchError::Away) => home.reachable().await,
                    fetched => fetched?,
                }
            }
            Err(ReadError::Misplaced(id)) => return Err(FetchError::Corrupt(id)),
        }
    }
    Ok(())
}

/// Reads some metadata: its last key and how many entries, or nothing at the end.
fn page(
    objects: &Objects,
    root: &Reference,
    from: &Key,
) -> Result<Option<(Key, usize)>, ReadError> {
    let metadata = KeyRange {
        start: from.clone(),
        end: Key::inline(Inode(0)),
    };
    let entries = img_index::range(objects, root, &metadata, PAGE_LEN)?;
    let len = entries.len();
    Ok(entries.into_iter().next_back().map(|(last, _)| (last, len)))
}

/// Entries that are read at a time: some 30 nodes.
const PAGE_LEN: usize = 8_192;
/// Entries after which the rest waits until it is used: some 200 MB of an image with a million files.
const ENTRIES_MAX: usize = 4_000_000;
