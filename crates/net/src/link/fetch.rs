//! Fetching many objects: in requests of bounded size, with the next one under way while one is read, and
//! over a new connection where one was lost.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use img_proto::Class;
use img_types::ObjectId;
use img_types::limits::DEMAND_TIMEOUT;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::Instant;

use super::Link;
use crate::client::{Connection, Fetched, LinkError};

/// Objects of one request: at 64 KiB each they fill a stream's window.
const IDS_PER_REQUEST: usize = 64;
/// Requests under way at once for one fetch.
const REQUESTS_AHEAD: usize = 2;
/// Objects that wait for whoever reads the stream.
const OBJECTS_AHEAD: usize = 16;

type Item = Result<(ObjectId, Option<Bytes>), LinkError>;

/// What a fetch still wants, and to whom it hands what it gets.
struct Delivery {
    rest: VecDeque<ObjectId>,
    class: Class,
    sender: mpsc::Sender<Item>,
}

/// Why a fetch stops early.
enum Stop {
    /// Nobody listens any more.
    Unwanted,
    Failed(LinkError),
}

impl From<LinkError> for Stop {
    fn from(error: LinkError) -> Self {
        Self::Failed(error)
    }
}

impl Link {
    /// Fetches objects in the order asked. Each is checked against its id before it is handed on; one that
    /// the home does not have comes as nothing, and a damaged one as [`LinkError::Corrupt`] without ending
    /// the stream. Any other error ends it. Must be called within a tokio runtime.
    pub fn fetch(&self, ids: Vec<ObjectId>, class: Class) -> BoxStream<'static, Item> {
        let (sender, receiver) = mpsc::channel(OBJECTS_AHEAD);
        let delivery = Delivery {
            rest: ids.into(),
            class,
            sender,
        };
        tokio::spawn(deliver(self.clone(), delivery));
        let next = async |mut receiver: mpsc::Receiver<Item>| {
            let item = receiver.recv().await?;
            Some((item, receiver))
        };
        stream::unfold(receiver, next).boxed()
    }
}

async fn deliver(link: Link, mut delivery: Delivery) {
    let unwanted = delivery.sender.clone();
    let delivered = async {
        match deliver_all(&link, &mut delivery).await {
            // A reader that has left does not hear it.
            Err(Stop::Failed(error)) => drop(delivery.sender.send(Err(error)).await),
            Err(Stop::Unwanted) | Ok(()) => {}
        }
    };
    tokio::select! {
        () = delivered => {}
        () = unwanted.closed() => {}
    }
}

async fn deliver_all(link: &Link, delivery: &mut Delivery) -> Result<(), Stop> {
    let streams = if delivery.class >= Class::Demand {
        &link.shared.demand
    } else {
        &link.shared.bulk
    };
    let mut deadline = Instant::now() + DEMAND_TIMEOUT;
    while !delivery.rest.is_empty() {
        let wanted = delivery.rest.len();
        let connection = link.connected(deadline).await?;
        match delivery.over(&connection, streams).await {
            Err(Stop::Failed(LinkError::Away)) if !connection.is_open() => {}
            outcome => return outcome,
        }
        if delivery.rest.len() < wanted {
            deadline = Instant::now() + DEMAND_TIMEOUT;
        } else if Instant::now() >= deadline {
            return Err(LinkError::Away.into());
        }
    }
    Ok(())
}

impl Delivery {
    /// Fetches what is left over one connection.
    async fn over(&mut self, connection: &Connection, streams: &Semaphore) -> Result<(), Stop> {
        let mut unasked: VecDeque<_> = self.rest.iter().copied().collect();
        let mut requests: VecDeque<(Fetched, SemaphorePermit<'_>)> = VecDeque::new();
        loop {
            while !unasked.is_empty() && requests.len() < REQUESTS_AHEAD {
                let turn = if requests.is_empty() {
                    streams.acquire().await.map_err(|_| LinkError::Away)?
                } else if let Ok(turn) = streams.try_acquire() {
                    turn
                } else {
                    break;
                };
                let ids = unasked
                    .drain(..unasked.len().min(IDS_PER_REQUEST))
                    .collect();
                requests.push_back((connection.fetch(ids, self.class).await?, turn));
            }
            let Some((request, _)) = requests.front_mut() else {
                return Ok(());
            };
            let Some((id, object)) = request.next().await else {
                requests.pop_front();
                continue;
            };
            let item = match object {
                Ok(object) => Ok((id, object)),
                Err(LinkError::Corrupt(id)) => Err(LinkError::Corrupt(id)),
                Err(error) => return Err(error.into()),
            };
            self.rest.pop_front();
            self.sender.send(item).await.map_err(|_| Stop::Unwanted)?;
        }
    }
}
