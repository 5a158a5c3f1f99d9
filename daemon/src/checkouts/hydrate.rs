//! Brings everything below a root to this device's disk.

use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, TryStreamExt, stream};
use img_index::NodeSource;
use img_proto::Class;
use img_seal::Reference;
use img_store::StoreError;

use super::lock;
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::objects::{FetchError, Objects};

/// How far a checkout's hydration is, while one runs.
#[derive(Debug, Default)]
pub(super) struct Hydration {
    running: Mutex<Option<u64>>,
    problem: Mutex<Option<String>>,
}

impl Hydration {
    /// Bytes fetched by the one that runs.
    pub(super) fn now(&self) -> Option<u64> {
        *lock(&self.running)
    }

    /// Why the last one did not bring everything.
    pub(super) fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// Notes how the last one ended. What is told later holds also when the home is back.
    pub(super) fn ended(&self, error: Option<&ApiError>) {
        *lock(&self.problem) = error.map(|error| match error.kind {
            Kind::HomeAway => {
                "Not everything was fetched: the home could not be reached. `imgctl hydrate` goes on."
                    .to_owned()
            }
            _ => error.message.clone(),
        });
    }

    /// Brings everything below a root to the disk. Returns the objects that were fetched, and their bytes.
    ///
    /// The cache gives up its oldest objects for new ones, and these may be the root's own. So the index is
    /// walked again until nothing was given up on the way. What is fetched is the newest, so as long as all of it
    /// fits, nothing is fetched twice; once more was fetched than the cache may hold, the root does not fit.
    ///
    /// # Errors
    /// Something cannot be had, or does not fit ([`StoreError::NoRoom`]).
    pub(super) async fn run(
        &self,
        objects: &Arc<Objects>,
        root: Reference,
        reporter: &Reporter,
    ) -> Result<(u64, u64), FetchError> {
        reporter.phase(Phase::Fetch, None);
        let _running = Running::new(self);
        let mut fetched = Fetched::default();
        loop {
            let (before, evictions) = (fetched.objects, objects.usage().evictions);
            self.walk(objects, root, reporter, &mut fetched).await?;
            if fetched.objects == before || objects.usage().evictions == evictions {
                return Ok((fetched.objects, fetched.bytes));
            }
        }
    }

    /// Walks the index depth first, with the objects of each leaf at once.
    async fn walk(
        &self,
        objects: &Arc<Objects>,
        root: Reference,
        reporter: &Reporter,
        fetched: &mut Fetched,
    ) -> Result<(), FetchError> {
        let mut nodes = vec![root];
        while let Some(reference) = nodes.pop() {
            let len = objects.bring(&reference.id, Class::Hydrate).await?;
            fetched.objects += u64::from(len.is_some());
            fetched.bytes += len.unwrap_or(0);
            let node = loop {
                if let Some(node) = objects.node(&reference) {
                    break node;
                }
                objects.fetch_nodes(&[reference], Class::Hydrate).await?;
            };
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
                    fetched.objects += 1;
                    fetched.bytes += len;
                    reporter.advance(len);
                    self.add(len);
                }
            }
            if fetched.bytes > objects.allowance() {
                return Err(StoreError::NoRoom.into());
            }
        }
        Ok(())
    }

    fn add(&self, bytes: u64) {
        let mut now = lock(&self.running);
        *now = now.map(|before| before + bytes);
    }

    fn set(&self, value: Option<u64>) {
        *lock(&self.running) = value;
    }
}

/// What came from the home so far.
#[derive(Debug, Default)]
struct Fetched {
    objects: u64,
    bytes: u64,
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
        FetchError::Never => ApiError::new(
            Kind::HomeAway,
            format!("{name} cannot be fetched: {error}."),
            "What has been fetched stays.",
        ),
        FetchError::Missing(_) | FetchError::Corrupt(_) => ApiError::new(
            Kind::Corrupt,
            format!("A part of {name} cannot be had: {error}."),
            "Ask whoever runs the home; `imgctl doctor` checks this device.",
        ),
        FetchError::Store(StoreError::NoRoom) => ApiError::new(
            Kind::NoRoom,
            format!(
                "{name} does not fit on this device: its cache is full, or its disk. What is here goes on \
                 working; the rest is fetched when it is read."
            ),
            "`imgctl cache` shows the limit and what is free; make room, or set a higher one with --limit.",
        ),
        FetchError::Store(_) => ApiError::failed(error),
    }
}

/// Objects asked for at once: enough for a long link, in a few batches.
const FETCHES_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests;
