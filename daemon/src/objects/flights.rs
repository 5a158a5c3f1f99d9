//! Fetches from the home, shared by all who wait for the same object.
//!
//! A fixed number of fetches runs at a time. What is asked for meanwhile queues up by class and goes out in
//! batches, the most urgent class first, so that a lone fault costs one round trip and a crowd of them shares
//! few. It knows neither keys nor the disk.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use img_proto::Class;
use img_types::ObjectId;
use img_types::limits::DEMAND_TIMEOUT;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// Where objects come from: the home, or a fake in tests.
pub trait Remote: Send + Sync + 'static {
    /// Asks for objects; each is verified by its id, `None` says that the home lacks it.
    fn fetch(&self, ids: Vec<ObjectId>, class: Class) -> BoxStream<'static, Arrival>;
    /// Resolves once the home can be reached.
    fn reachable(&self) -> BoxFuture<'static, ()>;
    /// Resolves once it is known that waiting is in vain: who answers is another, or turns this device away.
    fn hopeless(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// One object of an answer, or what went wrong.
pub type Arrival = Result<(ObjectId, Option<Bytes>), Trouble>;

/// What can go wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The home sent other bytes than this object's; the answer goes on.
    Corrupt(ObjectId),
    /// The connection broke; the answer has ended.
    Disconnected,
}

/// Why an object did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The home could not be reached in time.
    Away,
    /// The home will not answer until a person does something.
    Never,
    /// The home has no such object.
    Missing,
    /// The home has other bytes under its id.
    Corrupt,
}

/// Takes what arrived, to keep it; called outside of every lock, on the fetching task.
pub(super) type OnArrival = Box<dyn Fn(Vec<(ObjectId, Bytes)>) + Send + Sync>;

/// All fetches under way.
pub(super) struct Flights {
    remote: Arc<dyn Remote>,
    on_arrival: OnArrival,
    table: Mutex<Table>,
    fetched_objects: AtomicU64,
    fetched_bytes: AtomicU64,
}

#[derive(Default)]
struct Table {
    flights: HashMap<ObjectId, Flight>,
    queues: BTreeMap<Class, VecDeque<ObjectId>>,
    running: usize,
    running_background: usize,
}

struct Flight {
    outcome: watch::Sender<Option<Result<Bytes, Lost>>>,
    class: Class,
}

impl Flights {
    /// Starts without fetches.
    pub(super) fn new(remote: Arc<dyn Remote>, on_arrival: OnArrival) -> Arc<Self> {
        Arc::new(Self {
            remote,
            on_arrival,
            table: Mutex::default(),
            fetched_objects: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
        })
    }

    /// Gets an object; joins a fetch that is under way, and raises its class where this one is more urgent.
    pub(super) async fn get(self: &Arc<Self>, id: ObjectId, class: Class) -> Result<Bytes, Lost> {
        let mut outcome = self.board(id, class);
        let arrived = timeout(patience(class), outcome.wait_for(Option::is_some)).await;
        match arrived {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(Lost::Away)),
            Ok(Err(_)) | Err(_) => Err(Lost::Away),
        }
    }

    /// Whether anything is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.lock().flights.is_empty()
    }

    /// Objects and bytes that came from the home since the daemon started.
    pub(super) fn fetched(&self) -> (u64, u64) {
        (
            self.fetched_objects.load(Ordering::Relaxed),
            self.fetched_bytes.load(Ordering::Relaxed),
        )
    }

    fn board(
        self: &Arc<Self>,
        id: ObjectId,
        class: Class,
    ) -> watch::Receiver<Option<Result<Bytes, Lost>>> {
        let mut table = self.lock();
        let (outcome, urgent) = match table.flights.get_mut(&id) {
            Some(flight) => {
                let raised = class > flight.class;
                flight.class = flight.class.max(class);
                (flight.outcome.subscribe(), raised)
            }
            None => {
                let flight = Flight {
                    outcome: watch::Sender::new(None),
                    class,
                };
                let outcome = flight.outcome.subscribe();
                table.flights.insert(id, flight);
                (outcome, true)
            }
        };
        if urgent {
            table.queues.entry(class).or_default().push_back(id);
        }
        if table.may_start(class) {
            table.started(class);
            let flights = Arc::clone(self);
            tokio::spawn(async move { flights.run(class).await });
        }
        outcome
    }

    /// Fetches batches in a slot until nothing waits for it.
    async fn run(self: Arc<Self>, slot: Class) {
        loop {
            let batch = self.lock().next_batch(slot);
            match batch {
                Some((ids, class)) => self.fetch(ids, class).await,
                None => return,
            }
        }
    }

    async fn fetch(&self, mut ids: Vec<ObjectId>, class: Class) {
        let deadline = Instant::now() + DEMAND_TIMEOUT;
        while !ids.is_empty() {
            tokio::select! {
                reached = timeout_at(deadline, self.remote.reachable()) => if reached.is_err() {
                    break;
                },
                () = self.remote.hopeless() => {
                    for id in ids {
                        self.land(&id, Err(Lost::Never));
                    }
                    return;
                }
            }
            let mut arrivals = self.remote.fetch(ids.clone(), class);
            let mut kept = Vec::new();
            let mut kept_bytes = 0;
            let mut progressed = false;
            while let Ok(Some(arrival)) = timeout(DEMAND_TIMEOUT, arrivals.next()).await {
                let (id, object) = match arrival {
                    Ok(arrived) => arrived,
                    Err(Trouble::Corrupt(id)) => {
                        ids.retain(|waiting| *waiting != id);
                        self.land(&id, Err(Lost::Corrupt));
                        continue;
                    }
                    Err(Trouble::Disconnected) => break,
                };
                progressed = true;
                ids.retain(|waiting| *waiting != id);
                if let Some(bytes) = &object {
                    self.fetched_objects.fetch_add(1, Ordering::Relaxed);
                    self.fetched_bytes
                        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    kept_bytes += bytes.len();
                    kept.push((id, bytes.clone()));
                }
                self.land(&id, object.ok_or(Lost::Missing));
                if kept_bytes >= KEEP_AT_ONCE_BYTES {
                    (self.on_arrival)(std::mem::take(&mut kept));
                    kept_bytes = 0;
                }
            }
            (self.on_arrival)(kept);
            if Instant::now() >= deadline && !progressed {
                break;
            }
            if !ids.is_empty() {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        for id in ids {
            self.land(&id, Err(Lost::Away));
        }
    }

    fn land(&self, id: &ObjectId, outcome: Result<Bytes, Lost>) {
        let flight = self.lock().flights.remove(id);
        if let Some(flight) = flight {
            flight.outcome.send_replace(Some(outcome));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Flights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl Table {
    fn may_start(&self, class: Class) -> bool {
        self.running < SLOTS
            && (class >= Class::Demand || self.running_background < SLOTS_BACKGROUND)
    }

    fn started(&mut self, slot: Class) {
        self.running += 1;
        self.running_background += usize::from(slot < Class::Demand);
    }

    /// The next batch for a slot, or nothing: then the slot is given up. A slot for background work never
    /// takes itself beyond that, so that faults always find a free one.
    fn next_batch(&mut self, slot: Class) -> Option<(Vec<ObjectId>, Class)> {
        loop {
            let waiting = self.queues.iter().rev().find(|(class, queue)| {
                !queue.is_empty()
                    && (**class >= Class::Demand
                        || slot < Class::Demand
                        || self.running_background < SLOTS_BACKGROUND)
            });
            let Some((&class, _)) = waiting else {
                self.running -= 1;
                self.running_background -= usize::from(slot < Class::Demand);
                return None;
            };
            let queue = self.queues.entry(class).or_default();
            let taken: Vec<_> = queue.drain(..queue.len().min(BATCH_OBJECTS_MAX)).collect();
            // Skips what has arrived meanwhile and what a more urgent queue has taken over.
            let ids: Vec<_> = taken
                .into_iter()
                .filter(|id| {
                    self.flights
                        .get(id)
                        .is_some_and(|flight| flight.class == class)
                })
                .collect();
            if !ids.is_empty() {
                return Some((ids, class));
            }
        }
    }
}

fn patience(class: Class) -> Duration {
    match class {
        Class::Demand | Class::Control => DEMAND_TIMEOUT,
        Class::Trace | Class::Hydrate | Class::Upload => BACKGROUND_TIMEOUT,
    }
}

/// Fetches under way at a time: a quarter of a connection's streams.
const SLOTS: usize = 16;
/// Fetches of background work at a time: the other slots stay free for faults.
const SLOTS_BACKGROUND: usize = 8;
/// Objects of one fetch: two megabytes of blocks, so that a batch never keeps a slot for long.
const BATCH_OBJECTS_MAX: usize = 32;
/// Bytes that are handed to the cache together.
const KEEP_AT_ONCE_BYTES: usize = 512 * 1024;
/// Pause after a broken connection, so that a home that answers and hangs up is not hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long background work waits for one object: on a slow link a queue of thousands is before it.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, stream};

    /// Answers after a permit, counts what it is asked.
    struct Fake {
        asked: Mutex<Vec<(Vec<ObjectId>, Class)>>,
        gate: Arc<tokio::sync::Semaphore>,
        reachable: bool,
        hopeless: bool,
        breaks: AtomicU64,
    }

    impl Fake {
        fn new(permits: usize, reachable: bool) -> Arc<Self> {
            Arc::new(Self {
                asked: Mutex::default(),
                gate: Arc::new(tokio::sync::Semaphore::new(permits)),
                reachable,
                hopeless: false,
                breaks: AtomicU64::new(0),
            })
        }

        /// Another machine answers at the home's address.
        fn of_another() -> Arc<Self> {
            let fake = Self {
                asked: Mutex::default(),
                gate: Arc::new(tokio::sync::Semaphore::new(0)),
                reachable: false,
                hopeless: true,
                breaks: AtomicU64::new(0),
            };
            Arc::new(fake)
        }

        fn asked(&self) -> Vec<(Vec<ObjectId>, Class)> {
            self.asked.lock().unwrap().clone()
        }
    }

    impl Remote for Fake {
        fn fetch(&self, ids: Vec<ObjectId>, class: Class) -> BoxStream<'static, Arrival> {
            self.asked.lock().unwrap().push((ids.clone(), class));
            let gate = Arc::clone(&self.gate);
            let breaks = self
                .breaks
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
            let first = async move { gate.acquire().await.unwrap().forget() };
            let answers = ids.into_iter().map(move |id| {
                if breaks {
                    return Err(Trouble::Disconnected);
                }
                let known = id.as_bytes()[0] != 0;
                Ok((id, known.then(|| Bytes::copy_from_slice(id.as_bytes()))))
            });
            first
                .map(|()| stream::iter(answers))
                .flatten_stream()
                .boxed()
        }

        fn reachable(&self) -> BoxFuture<'static, ()> {
            if self.reachable {
                std::future::ready(()).boxed()
            } else {
                std::future::pending().boxed()
            }
        }

        fn hopeless(&self) -> BoxFuture<'static, ()> {
            if self.hopeless {
                std::future::ready(()).boxed()
            } else {
                std::future::pending().boxed()
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_never_come_is_not_waited_for() {
        let flights = flights(&Fake::of_another());
        let began = Instant::now();
        let outcome = flights.get(id(1, 1), Class::Demand).await;
        assert_eq!(outcome, Err(Lost::Never));
        assert_eq!(Instant::now(), began);
        // And asked for again it is tried again.
        let outcome = flights.get(id(1, 1), Class::Hydrate).await;
        assert_eq!(outcome, Err(Lost::Never));
    }

    fn id(first: u8, rest: u8) -> ObjectId {
        let mut bytes = [rest; 32];
        bytes[0] = first;
        ObjectId::from_bytes(bytes)
    }

    fn flights(fake: &Arc<Fake>) -> Arc<Flights> {
        Flights::new(Arc::clone(fake) as Arc<dyn Remote>, Box::new(|_| ()))
    }

    #[tokio::test]
    async fn all_who_wait_share_one_fetch() {
        let fake = Fake::new(0, true);
        let flights = flights(&fake);
        let waiters = (0..10).map(|_| flights.get(id(1, 1), Class::Demand));
        let all = futures_util::future::join_all(waiters);
        let open = async {
            tokio::task::yield_now().await;
            fake.gate.add_permits(1);
        };
        let (outcomes, ()) = tokio::join!(all, open);
        assert!(outcomes.iter().all(Result::is_ok));
        assert_eq!(fake.asked().len(), 1);
        assert_eq!(flights.fetched(), (1, 32));
    }

    #[tokio::test]
    async fn what_queues_up_goes_out_together_and_urgent_first() {
        let fake = Fake::new(0, true);
        let flights = flights(&fake);
        let mut busy = Vec::new();
        for n in 0..SLOTS as u8 {
            busy.push(flights.board(id(1, n), Class::Demand));
            tokio::task::yield_now().await;
        }
        let slow: Vec<_> = (0..5)
            .map(|n| flights.board(id(2, n), Class::Hydrate))
            .collect();
        let fast: Vec<_> = (0..5)
            .map(|n| flights.board(id(3, n), Class::Demand))
            .collect();
        fake.gate.add_permits(1_000);
        for mut outcome in busy.into_iter().chain(slow).chain(fast) {
            outcome.wait_for(Option::is_some).await.unwrap();
        }
        let batches: Vec<_> = fake.asked().into_iter().skip(SLOTS).collect();
        assert_eq!(batches.len(), 2);
        assert_eq!((batches[0].0.len(), batches[0].1), (5, Class::Demand));
        assert_eq!((batches[1].0.len(), batches[1].1), (5, Class::Hydrate));
    }

    #[tokio::test]
    async fn a_fault_overtakes_the_same_object_in_the_background() {
        let fake = Fake::new(0, true);
        let flights = flights(&fake);
        let mut background = flights.board(id(1, 1), Class::Hydrate);
        tokio::task::yield_now().await;
        let mut urgent = flights.board(id(1, 1), Class::Demand);
        tokio::task::yield_now().await;
        assert_eq!(fake.asked().len(), 2);
        assert_eq!(fake.asked()[1].1, Class::Demand);
        fake.gate.add_permits(2);
        assert!(
            background
                .wait_for(Option::is_some)
                .await
                .unwrap()
                .is_some()
        );
        assert!(urgent.wait_for(Option::is_some).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn absent_objects_are_missing() {
        let fake = Fake::new(9, true);
        let outcome = flights(&fake).get(id(0, 1), Class::Demand).await;
        assert_eq!(outcome, Err(Lost::Missing));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_is_tried_again_and_a_home_away_is_an_error_in_time() {
        let fake = Fake::new(9, true);
        fake.breaks.store(2, Ordering::Relaxed);
        assert!(flights(&fake).get(id(1, 1), Class::Demand).await.is_ok());
        assert_eq!(fake.asked().len(), 3);

        let fake = Fake::new(9, false);
        let start = Instant::now();
        let outcome = flights(&fake).get(id(1, 1), Class::Demand).await;
        assert_eq!(outcome, Err(Lost::Away));
        assert!(start.elapsed() <= DEMAND_TIMEOUT + Duration::from_secs(1));
    }
}
