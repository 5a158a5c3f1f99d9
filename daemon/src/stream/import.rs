//! Pushes what an import seals straight home, while it runs.
//!
//! An import's source is its own outbox: nothing is kept on the device's disk, and in memory only what is
//! under way, up to [`IN_FLIGHT_BYTES`]. After a lost connection what was not acknowledged is sent again. An
//! import that was interrupted starts anew and finds present what had arrived.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use img_seal::Sealed;
use img_types::{CheckoutId, ObjectId};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::session::{Session, SharedPlan, Source};
use super::{Sent, UploadError};
use crate::events::Reporter;
use crate::home::Home;

/// The upload of one import; ended by [`ImportUpload::finish`], given up when dropped.
#[derive(Debug)]
pub struct ImportUpload {
    flight: Arc<Flight>,
    task: JoinHandle<Result<Sent, UploadError>>,
    runtime: Handle,
}

/// The upload has failed; [`ImportUpload::finish`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the upload has failed")]
pub struct UploadStopped;

impl ImportUpload {
    /// Begins the upload of a checkout's import; `reporter` is told when it waits for the home. Must be
    /// called within a tokio runtime.
    pub fn begin(home: Arc<Home>, checkout: CheckoutId, reporter: Reporter) -> Self {
        let flight = Arc::new(Flight::default());
        let task = {
            let flight = Arc::clone(&flight);
            tokio::spawn(async move {
                let session = Session::new(&home, checkout, &flight.plan, &*flight, &reporter);
                let outcome = session.run().await;
                // Whoever waits for room learns that none will come.
                flight.room.close();
                outcome
            })
        };
        Self {
            flight,
            task,
            runtime: Handle::current(),
        }
    }

    /// Takes an object; waits while too much is under way. Blocks: for threads that may.
    ///
    /// # Errors
    /// The upload has failed.
    pub fn put(&self, sealed: Sealed) -> Result<(), UploadStopped> {
        self.runtime.block_on(self.put_async(sealed))
    }

    /// Takes an object; waits while too much is under way.
    ///
    /// # Errors
    /// The upload has failed.
    pub async fn put_async(&self, sealed: Sealed) -> Result<(), UploadStopped> {
        let id = sealed.reference.id;
        if self.flight.lock().contains_key(&id) {
            return Ok(());
        }
        let len = sealed.bytes.len().min(IN_FLIGHT_BYTES) as u32;
        let room = Arc::clone(&self.flight.room)
            .acquire_many_owned(len)
            .await
            .map_err(|_| UploadStopped)?;
        self.flight.take(id, sealed.bytes.into(), room);
        Ok(())
    }

    /// Waits until everything is durable at the home.
    ///
    /// # Errors
    /// The home refused for good, or broke the protocol.
    pub async fn finish(mut self) -> Result<Sent, UploadError> {
        self.flight.plan.change(|plan| plan.close());
        match (&mut self.task).await {
            Ok(outcome) => outcome,
            Err(_) => Err(UploadError::Interrupted),
        }
    }
}

impl Drop for ImportUpload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is under way.
#[derive(Debug)]
struct Flight {
    plan: SharedPlan,
    objects: Mutex<HashMap<ObjectId, (Bytes, OwnedSemaphorePermit)>>,
    room: Arc<Semaphore>,
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            plan: SharedPlan::default(),
            objects: Mutex::default(),
            room: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
        }
    }
}

impl Flight {
    fn take(&self, id: ObjectId, bytes: Bytes, room: OwnedSemaphorePermit) {
        let before = self.lock().insert(id, (bytes, room));
        // Taken twice at the same moment: the plan has it already.
        if before.is_none() {
            self.plan.change(|plan| plan.add(id));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectId, (Bytes, OwnedSemaphorePermit)>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Flight {
    fn bytes(&self, id: ObjectId) -> BoxFuture<'_, Option<Bytes>> {
        let bytes = self.lock().get(&id).map(|(bytes, _)| bytes.clone());
        ready(bytes).boxed()
    }

    fn done(&self, ids: &[ObjectId]) {
        let mut objects = self.lock();
        for id in ids {
            objects.remove(id);
        }
    }

    fn sent(&self, _: u64) {
        // The import itself says how far it is, by what it has read.
    }
}

/// Bytes that an import may have sealed and not acknowledged: two of the home's acknowledgements.
pub const IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes([n; 32])
    }

    fn room(flight: &Flight, len: u32) -> OwnedSemaphorePermit {
        Arc::clone(&flight.room)
            .try_acquire_many_owned(len)
            .unwrap()
    }

    #[tokio::test]
    async fn what_is_under_way_is_bounded_until_it_is_acknowledged() {
        let flight = Flight::default();
        let all = IN_FLIGHT_BYTES as u32;
        flight.take(id(1), Bytes::from_static(b"one"), room(&flight, all - 10));
        flight.take(id(2), Bytes::from_static(b"two"), room(&flight, 10));
        assert_eq!(flight.room.available_permits(), 0);
        assert_eq!(flight.bytes(id(1)).await, Some(Bytes::from_static(b"one")));
        flight.done(&[id(1)]);
        assert_eq!(flight.room.available_permits(), IN_FLIGHT_BYTES - 10);
        assert_eq!(flight.bytes(id(1)).await, None);
    }

    #[test]
    fn an_object_that_is_taken_twice_keeps_one_place() {
        let flight = Flight::default();
        flight.take(id(1), Bytes::from_static(b"one"), room(&flight, 3));
        flight.take(id(1), Bytes::from_static(b"one"), room(&flight, 3));
        assert_eq!(flight.room.available_permits(), IN_FLIGHT_BYTES - 3);
        let question = flight.plan.change(|plan| plan.question());
        assert_eq!(question, Some(vec![id(1)]));
    }
}
