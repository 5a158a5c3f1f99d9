//! Brings everything below a root to this device's disk.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use img_index::NodeSource;
use img_proto::Class;
use img_seal::Reference;

use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::objects::{FetchError, Objects};

/// How far a checkout's hydration is, while one runs.
#[derive(Debug, Default)]
pub(super) struct Hydration(Mutex<Option<u64>>);

impl Hydration {
    /// Bytes fetched by the one that runs.
    pub(super) fn now(&self) -> Option<u64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Walks the index depth first, with the objects of each leaf at once. Returns the objects that were
    /// fetched, and their bytes.
    pub(super) async fn run(
        &self,
        objects: &Arc<Objects>,
        root: Reference,
        reporter: &Reporter,
    ) -> Result<(u64, u64), FetchError> {
        reporter.phase(Phase::Fetch, None);
        let _running = Running::new(self);
        let (mut fetched, mut bytes) = (0, 0);
        let mut nodes = vec![root];
        while let Some(reference) = nodes.pop() {
            let local = objects.is_local(&reference.id);
            let node = loop {
                if let Some(node) = objects.node(&reference) {
                    break node;
                }
                objects.fetch_nodes(&[reference], Class::Hydrate).await?;
            };
            if !local {
                fetched += 1;
            }
            if node.level() > 0 {
                // The leftmost child is visited first.
                nodes.extend((0..node.len()).rev().map(|position| node.child(position)));
                continue;
            }
            let values = (0..node.len()).map(|position| node.entry(position).1);
            let below: Vec<_> = values
                .flat_map(|value| value.references().map(|found| found.id).collect::<Vec<_>>())
                .collect();
            let mut arrivals = stream::iter(below)
                .map(|id| async move { objects.bring(&id, Class::Hydrate).await })
                .buffer_unordered(FETCHES_AT_ONCE);
            while let Some(arrived) = arrivals.try_next().await? {
                if let Some(len) = arrived {
                    fetched += 1;
                    bytes += len;
                    reporter.advance(len);
                    self.add(len);
                }
            }
        }
        Ok((fetched, bytes))
    }

    fn add(&self, bytes: u64) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.map(|before| before + bytes);
    }

    fn set(&self, value: Option<u64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// Shows a hydration while it lives.
struct Running<'a>(&'a Hydration);

impl<'a> Running<'a> {
    fn new(hydration: &'a Hydration) -> Self {
        hydration.set(Some(0));
        Self(hydration)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

pub(super) fn explain(error: &FetchError, name: &str) -> ApiError {
    match error {
        FetchError::Away => ApiError::away("What has been fetched stays; ask again to go on."),
        FetchError::Missing(_) | FetchError::Corrupt(_) => ApiError::new(
            Kind::Corrupt,
            format!("A part of {name} cannot be had: {error}."),
            "Ask whoever runs the home; `imgctl doctor` checks this device.",
        ),
        FetchError::Store(_) => ApiError::failed(error),
    }
}

/// Objects asked for at once: enough for a long link, in a few batches.
const FETCHES_AT_ONCE: usize = 256;
