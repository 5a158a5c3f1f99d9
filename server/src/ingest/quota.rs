//! How much a home may hold, as its operator says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use img_proto::Refusal;

use crate::db::{Database, Stop, objects};
use crate::show_size;

/// Bytes of objects that are here and that may be. Objects take the room, so that they are refused and nothing
/// else is: a commit whose objects are all here, a branch or a release needs none.
#[derive(Debug, Clone)]
pub(super) struct Quota {
    max: Option<u64>,
    held: Arc<AtomicU64>,
}

impl Quota {
    /// Counts what is here, if anybody wants to know.
    pub(super) async fn of(db: &Database, max: Option<u64>) -> Result<Self, Stop> {
        let held = match max {
            Some(_) => objects::bytes(&mut *db.reads().acquire().await?).await?,
            None => 0,
        };
        Ok(Self {
            max,
            held: Arc::new(AtomicU64::new(held)),
        })
    }

    /// Takes room for objects of so many bytes. Some may be here already, which shows when they get rows.
    pub(super) fn take(&self, bytes: u64) -> Result<(), Refusal> {
        let Some(max) = self.max else { return Ok(()) };
        let taken = |held: u64| held.checked_add(bytes).filter(|held| *held <= max);
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        taken.map(drop).map_err(|_| {
            let max = show_size(max);
            Refusal::NoRoom(format!(
                "what it may store, {max}, is used up (its operator can raise `imghome serve --max-stored`)"
            ))
        })
    }

    /// Gives room back that was not needed.
    pub(super) fn give_back(&self, bytes: u64) {
        if self.max.is_some() {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}
