//! Streams: one request each, and the objects that follow it in either direction.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use img_net::{Replies, RequestStream, StreamError, Uploads};
use img_proto::frame::{self, REQUEST_LEN_MAX};
use img_proto::{Answer, Call, Class, Refusal};
use img_types::limits::{FRAME_LEN_MAX, IDS_PER_REQUEST_MAX, JOIN_FRAME_LEN_MAX};
use img_types::{ObjectId, UploadId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::{Session, answer, note, refusal, reply};
use crate::audit::Subject;
use crate::db::{Stop, uploads};
use crate::home::Home;
use crate::ingest::{BATCH_BYTES_MAX, BATCH_MAX, Verified};
use crate::objects::{Expansion, Run, expand};

/// Reads of one fetch, or nodes of one expansion, ahead of the network.
const READ_AHEAD: usize = 4;
/// Bytes of objects that have been read and not handed to their connection, over all devices.
const READ_MAX: usize = 128 * 1024 * 1024;
/// The same for one connection, so that one that does not read holds up nobody else; two of the largest
/// objects fit.
const READ_PER_CONNECTION_MAX: usize = 8 * 1024 * 1024;
/// What an expansion reads ahead: its nodes are small.
const EXPANSION_LEN: u64 = 1024 * 1024;
/// Semaphores count in these.
const UNIT: usize = 1024;
/// Replies with lists, of up to 4 MiB, at a time.
const LISTS_MAX: usize = 16;
/// How long a device may take to read a list: nothing overtakes it.
const LIST_TIME_MAX: Duration = Duration::from_secs(60);

/// The room of a home for what its replies read.
#[derive(Debug)]
pub(crate) struct Room {
    objects: Arc<Semaphore>,
    lists: Semaphore,
}

impl Room {
    /// What objects may take.
    #[cfg(test)]
    pub(crate) fn objects(&self) -> &Arc<Semaphore> {
        &self.objects
    }
}

/// All of a home's room.
pub(crate) fn all_room() -> Room {
    Room {
        objects: Arc::new(Semaphore::new(READ_MAX / UNIT)),
        lists: Semaphore::new(LISTS_MAX),
    }
}

/// One connection's share.
pub(super) fn own_room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(READ_PER_CONNECTION_MAX / UNIT))
}

/// Room for bytes that are read for a reply: the connection's own, and of all.
struct Reading {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Reading {
    /// Waits for room. Only who holds none may wait: so whoever holds some has what it needs to go on.
    async fn begin(home: &Home, session: &Session, len: u64) -> Result<Self, Stop> {
        let own = Arc::clone(&session.reading).acquire_many_owned(units(len));
        let own = own.await.map_err(|_| Stop::Closing)?;
        let all = Arc::clone(&home.room.objects).acquire_many_owned(units(len));
        let all = all.await.map_err(|_| Stop::Closing)?;
        Ok(Self {
            _own: own,
            _all: all,
        })
    }

    /// Takes more room if there is some.
    fn ahead(home: &Home, session: &Session, len: u64) -> Option<Self> {
        let own = Arc::clone(&session.reading).try_acquire_many_owned(units(len));
        let all = Arc::clone(&home.room.objects).try_acquire_many_owned(units(len));
        Some(Self {
            _own: own.ok()?,
            _all: all.ok()?,
        })
    }
}

fn units(len: u64) -> u32 {
    let units = usize::try_from(len).unwrap_or(usize::MAX).div_ceil(UNIT);
    u32::try_from(units.min(READ_PER_CONNECTION_MAX / UNIT)).unwrap_or(u32::MAX)
}

/// Reads one request, answers it, and moves the objects that belong to it.
///
/// # Errors
/// The peer is gone or does not keep to the protocol.
pub(crate) async fn serve(
    home: Arc<Home>,
    session: Arc<Session>,
    mut stream: RequestStream,
) -> Result<(), StreamError> {
    let member = session.device(&home).is_ok();
    let len_max = match member {
        true => REQUEST_LEN_MAX,
        false if session.recovering() => FRAME_LEN_MAX,
        false if session.invited() => JOIN_FRAME_LEN_MAX,
        false => JOIN_FRAME_LEN_MAX.saturating_sub(session.taken.load(Ordering::Relaxed)),
    };
    let request = stream.read_request(len_max).await?;
    if !member {
        let len = frame::encode(&request, REQUEST_LEN_MAX).map_or(0, |frame| frame.len());
        session.taken.fetch_add(len, Ordering::Relaxed);
    }
    stream.set_class(Class::Control);
    match request.call {
        Call::Fetch { ids, class } => fetch(&home, &session, stream, ids, class).await,
        Call::Expand {
            root,
            minus,
            left_edge,
            budget,
        } => {
            let wanted = Expansion {
                root,
                minus,
                left_edge,
                budget,
            };
            send_expansion(&home, &session, stream, wanted).await
        }
        Call::Push { upload } => push(&home, &session, stream, upload).await,
        Call::Images { .. }
        | Call::Leases { .. }
        | Call::Log { .. }
        | Call::Roster { .. }
        | Call::Prove { .. }
        | Call::Admin { .. }
            if member =>
        {
            // Nobody closes it.
            let _turn = home.room.lists.acquire().await;
            let reply = answer(&home, &session, request).await;
            let sent = timeout(LIST_TIME_MAX, stream.reply(&reply)).await;
            sent.unwrap_or(Err(StreamError::TooSlow))?;
            stream.finish();
            Ok(())
        }
        _ => {
            let reply = answer(&home, &session, request).await;
            stream.reply(&reply).await?;
            stream.finish();
            Ok(())
        }
    }
}

async fn fetch(
    home: &Home,
    session: &Session,
    mut stream: RequestStream,
    ids: Vec<ObjectId>,
    class: Class,
) -> Result<(), StreamError> {
    stream.set_class(class.min(Class::Demand));
    let at = home.standing();
    let located = async {
        session.daemon(home)?;
        if ids.len() > IDS_PER_REQUEST_MAX {
            return Err(Refusal::OverLimit("ids in one fetch".to_owned()).into());
        }
        home.objects.locate(&ids).await
    };
    let located = match located.await {
        Ok(located) => located,
        Err(stop) => return last_word(home, session, stream, stop).await,
    };
    stream
        .reply(&reply(home, session, at, Ok(Answer::Objects)))
        .await?;
    let places = ids.into_iter().map(|id| (id, located.get(&id).copied()));
    let mut runs = Run::cut(places).into_iter().peekable();
    let mut reads = FuturesOrdered::new();
    loop {
        while reads.len() < READ_AHEAD
            && let Some(next) = runs.peek()
        {
            let room = if reads.is_empty() {
                Reading::begin(home, session, next.len()).await.ok()
            } else {
                Reading::ahead(home, session, next.len())
            };
            let Some(room) = room else { break };
            let Some(run) = runs.next() else { break };
            reads.push_back(async move { (run.read(&home.objects).await, room) });
        }
        let Some((run, _room)) = reads.next().await else {
            break;
        };
        for object in run {
            if !send(&mut stream, object).await? {
                return Ok(());
            }
        }
    }
    stream.finish();
    Ok(())
}

/// Sends what a read brought; `false` if the stream is to be cut off, which is no answer: the device
/// asks again.
async fn send(
    stream: &mut RequestStream,
    object: Result<Option<Bytes>, Stop>,
) -> Result<bool, StreamError> {
    let object = match object {
        Ok(object) => object,
        // What cannot be read is lost until somebody repairs the store: saying so at once is better
        // than letting the device wait.
        Err(stop @ Stop::Broken(_)) => {
            refusal(stop);
            None
        }
        Err(stop) => {
            refusal(stop);
            return Ok(false);
        }
    };
    stream.send_object(object).await?;
    Ok(true)
}

async fn send_expansion(
    home: &Home,
    session: &Session,
    mut stream: RequestStream,
    wanted: Expansion,
) -> Result<(), StreamError> {
    stream.set_class(Class::Trace);
    if let Err(refused) = session.daemon(home) {
        return last_word(home, session, stream, refused.into()).await;
    }
    let _room = match Reading::begin(home, session, EXPANSION_LEN).await {
        Ok(room) => room,
        Err(stop) => return last_word(home, session, stream, stop).await,
    };
    let at = home.standing();
    stream
        .reply(&reply(home, session, at, Ok(Answer::Objects)))
        .await?;
    let (sender, mut nodes) = mpsc::channel(READ_AHEAD);
    let walk = async move {
        let walked = expand(&home.objects, &wanted, &sender).await;
        drop(sender);
        walked
    };
    let send = async {
        while let Some(node) = nodes.recv().await {
            stream.send_object(Some(node)).await?;
        }
        Ok::<_, StreamError>(stream)
    };
    let (walked, sent) = tokio::join!(walk, send);
    match walked {
        Ok(()) => sent?.finish(),
        Err(stop) => {
            refusal(stop);
        }
    }
    Ok(())
}

async fn last_word(
    home: &Home,
    session: &Session,
    mut stream: RequestStream,
    stop: Stop,
) -> Result<(), StreamError> {
    let (at, result) = (home.standing(), Err(stop));
    note(home, session, &Subject::objects(), &result);
    stream.reply(&reply(home, session, at, result)).await?;
    stream.finish();
    Ok(())
}

/// An object of a push with the room that it takes.
type Arrived = (Bytes, OwnedSemaphorePermit);

/// A batch on its way to the disk: its size, and what tells that it is durable.
struct Pending {
    objects: u64,
    bytes: u64,
    durable: Result<oneshot::Receiver<Result<(), Refusal>>, Stop>,
}

/// Takes objects in: one side reads, one verifies and queues, one acknowledges, all at once.
async fn push(
    home: &Home,
    session: &Session,
    stream: RequestStream,
    upload: UploadId,
) -> Result<(), StreamError> {
    // Nobody closes it.
    let _turn = session.pushes.acquire().await;
    let open = async {
        let device = session.daemon(home)?.device;
        let now = home.db.writer().now();
        let mut connection = home.db.reads().acquire().await?;
        match uploads::is_open(&mut connection, now, upload, device).await? {
            true => Ok(()),
            false => Err(Stop::from(Refusal::SessionClosed)),
        }
    };
    if let Err(stop) = open.await {
        return last_word(home, session, stream, stop).await;
    }
    let (uploads, replies) = stream.split();
    let (arrive, arrived) = mpsc::channel(BATCH_MAX);
    let (queue, queued) = mpsc::channel(BATCH_MAX);
    let (read, (), acknowledged) = tokio::join!(
        read_objects(home, uploads, arrive),
        verify_objects(home, upload, arrived, queue),
        acknowledge(home, session, replies, queued),
    );
    acknowledged.and(read)
}

/// Reads objects until the push or everybody's interest in it ends.
async fn read_objects(
    home: &Home,
    mut uploads: Uploads,
    arrive: mpsc::Sender<Arrived>,
) -> Result<(), StreamError> {
    loop {
        let object = tokio::select! {
            object = uploads.next() => object?,
            () = arrive.closed() => return Ok(()),
        };
        let Some(object) = object else { return Ok(()) };
        let Ok(room) = home.ingest.room(object.len()).await else {
            return Ok(());
        };
        if arrive.send((object, room)).await.is_err() {
            return Ok(());
        }
    }
}

/// Verifies what has arrived in batches as large as the disk is slow, and queues them.
async fn verify_objects(
    home: &Home,
    upload: UploadId,
    mut arrived: mpsc::Receiver<Arrived>,
    queue: mpsc::Sender<Pending>,
) {
    loop {
        let batch = next_batch(&mut arrived).await;
        // The empty batch after the last object asks for the sync that acknowledges the rest.
        let last = batch.is_empty();
        let count = batch.len();
        let bytes = batch.iter().map(|(object, _)| object.len() as u64).sum();
        let verified = tokio::task::spawn_blocking(move || {
            let (objects, room): (Vec<Bytes>, Vec<_>) = batch.into_iter().unzip();
            let objects = objects.into_iter().map(Verified::check);
            Ok::<_, Refusal>((objects.collect::<Result<Vec<_>, _>>()?, room))
        });
        let durable = match verified.await {
            Ok(Ok((objects, room))) => home.ingest.add(upload, objects, room, last),
            Ok(Err(refusal)) => Err(refusal.into()),
            Err(_) => Err(Stop::Closing),
        };
        let stops = last || durable.is_err();
        let pending = Pending {
            objects: count as u64,
            bytes,
            durable,
        };
        if queue.send(pending).await.is_err() || stops {
            return;
        }
    }
}

/// Waits for an object and takes those that have arrived behind it; nothing after the last.
async fn next_batch(arrived: &mut mpsc::Receiver<Arrived>) -> Vec<Arrived> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut next = arrived.recv().await;
    while let Some((object, room)) = next {
        bytes += object.len();
        batch.push((object, room));
        if batch.len() >= BATCH_MAX || bytes >= BATCH_BYTES_MAX {
            break;
        }
        next = arrived.try_recv().ok();
    }
    batch
}

/// Tells the device what is durable, in order; the first failure is the last word.
async fn acknowledge(
    home: &Home,
    session: &Session,
    mut replies: Replies,
    mut queued: mpsc::Receiver<Pending>,
) -> Result<(), StreamError> {
    let (mut objects, mut bytes) = (0, 0);
    while let Some(pending) = queued.recv().await {
        let durable = match pending.durable {
            Ok(durable) => match durable.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(refusal)) => Err(refusal.into()),
                Err(_) => Err(Stop::Closing),
            },
            Err(stop) => Err(stop),
        };
        objects += pending.objects;
        bytes += pending.bytes;
        let failed = durable.is_err();
        let result = durable.map(|()| Answer::Pushed { objects, bytes });
        let reply = reply(home, session, home.standing(), result);
        replies.reply(&reply).await?;
        if failed {
            break;
        }
    }
    replies.finish();
    Ok(())
}
