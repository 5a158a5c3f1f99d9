//! One upload session against the home: drives a plan until everything is there.
//!
//! Two halves of one future work on the plan: one asks what is absent, one pushes it. Neither holds the plan
//! across an await. A lost connection is waited out for as long as it takes, a session that ended is opened
//! anew; what is not acknowledged then is asked for again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream;
use img_proto::{Answer, Call, Refusal};
use img_types::{CheckoutId, ObjectId, UploadId};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::plan::{Next, Unfitting, UploadPlan};
use super::{Lost, Sent, UploadError};
use crate::events::Reporter;
use crate::home::{CallError, Home};
use crate::uplink::Hurry;

/// Where an upload's objects are.
pub(super) trait Source: Send + Sync {
    /// The stored bytes of an object that the plan names; nothing if they are gone.
    fn bytes(&self, id: ObjectId) -> BoxFuture<'_, Option<Bytes>>;
    /// These objects are durable at the home.
    fn done(&self, ids: &[ObjectId]);
    /// So many bytes more have been sent and are durable.
    fn sent(&self, bytes: u64);
}

/// A plan, and those who wait for it to change.
#[derive(Debug, Default)]
pub(super) struct SharedPlan {
    plan: Mutex<UploadPlan>,
    asker: Notify,
    pusher: Notify,
}

impl SharedPlan {
    pub(super) fn new(plan: UploadPlan) -> Self {
        Self {
            plan: Mutex::new(plan),
            ..Self::default()
        }
    }

    /// Works on the plan, then wakes whoever waits for it.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut UploadPlan) -> T) -> T {
        let outcome = self.look(work);
        self.asker.notify_one();
        self.pusher.notify_one();
        outcome
    }

    fn look<T>(&self, work: impl FnOnce(&mut UploadPlan) -> T) -> T {
        work(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One upload under way.
pub(super) struct Session<'a> {
    home: &'a Home,
    checkout: CheckoutId,
    plan: &'a SharedPlan,
    source: &'a dyn Source,
    /// Told only what the upload waits for.
    reporter: &'a Reporter,
    /// Set where nobody waits for it.
    hurry: Option<&'a Hurry>,
    objects: AtomicU64,
    bytes: AtomicU64,
    busy_us: AtomicU64,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        home: &'a Home,
        checkout: CheckoutId,
        plan: &'a SharedPlan,
        source: &'a dyn Source,
        reporter: &'a Reporter,
    ) -> Self {
        Self {
            home,
            checkout,
            plan,
            source,
            reporter,
            hurry: None,
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
        }
    }

    /// Waits for a better connection where that is wanted, until somebody is in a hurry.
    pub(super) fn patiently(mut self, hurry: Option<&'a Hurry>) -> Self {
        self.hurry = hurry;
        self
    }

    /// Runs until the plan is closed and done, however often the connection is lost meanwhile. May be
    /// dropped at any time: what was acknowledged is found present by the next one.
    pub(super) async fn run(self) -> Result<Sent, UploadError> {
        let mut pause = PAUSE_MIN;
        loop {
            let before = self.sent();
            let trouble = match self.attempt().await {
                Ok(()) => return Ok(self.sent()),
                Err(trouble) => trouble,
            };
            match trouble {
                UploadError::Call(
                    CallError::Away
                    | CallError::WentBack
                    | CallError::Refused(Refusal::Busy | Refusal::SessionClosed),
                ) => self.plan.change(UploadPlan::broken),
                other => return Err(other),
            }
            if self.sent() != before {
                pause = PAUSE_MIN;
            }
            self.reporter.waits_for(Some("the home"));
            sleep(pause).await;
            self.home.reachable().await;
            self.reporter.waits_for(None);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self) -> Result<(), UploadError> {
        let open = Call::OpenUpload {
            checkout: self.checkout,
        };
        let Answer::Upload { upload } = self.home.ask(open).await? else {
            return Err(CallError::Protocol("no upload session").into());
        };
        tokio::try_join!(self.ask(upload), self.push(upload))?;
        Ok(())
    }

    /// Asks for everything that is added, until the plan is closed.
    async fn ask(&self, upload: UploadId) -> Result<(), UploadError> {
        loop {
            let (question, over) = self.plan.look(|plan| (plan.question(), plan.all_asked()));
            let Some(ids) = question else {
                if over {
                    self.plan.pusher.notify_one();
                    return Ok(());
                }
                self.plan.asker.notified().await;
                continue;
            };
            let call = Call::Missing { upload, ids };
            let Answer::Missing { positions } = self.home.ask(call).await? else {
                return Err(CallError::Protocol("no positions").into());
            };
            let present = self.plan.look(|plan| plan.answer(&positions))?;
            self.source.done(&present);
            self.plan.pusher.notify_one();
        }
    }

    /// Pushes whatever is absent: one push while objects keep coming, another after a lull.
    async fn push(&self, upload: UploadId) -> Result<(), UploadError> {
        loop {
            let (absent, over) = self.plan.look(|plan| (plan.has_absent(), plan.all_asked()));
            if absent {
                let uplink = self.home.uplink();
                uplink.wait_while_held(self.hurry, self.reporter).await;
                let begun = Instant::now();
                let pushed = self.push_once(upload).await;
                let busy_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.busy_us.fetch_add(busy_us, Ordering::Relaxed);
                pushed?;
            } else if over {
                return Ok(());
            } else {
                self.plan.pusher.notified().await;
            }
        }
    }

    async fn push_once(&self, upload: UploadId) -> Result<(), UploadError> {
        let lost = Mutex::new(None);
        let mut unfitting = None;
        let mut acknowledged_bytes = 0;
        let pushed = self
            .home
            .link()
            .push(upload, self.objects(&lost), |pushed| {
                match self.plan.look(|plan| plan.acknowledge(pushed.objects)) {
                    Ok(done) => {
                        let new_bytes = pushed.bytes.saturating_sub(acknowledged_bytes);
                        acknowledged_bytes = pushed.bytes.max(acknowledged_bytes);
                        self.objects.fetch_add(done.len() as u64, Ordering::Relaxed);
                        self.bytes.fetch_add(new_bytes, Ordering::Relaxed);
                        self.source.sent(new_bytes);
                        self.source.done(&done);
                    }
                    Err(error) => unfitting = Some(error),
                }
            })
            .await;
        if let Some(id) = *lost.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(Lost(id).into());
        }
        if let Some(error) = unfitting {
            return Err(error.into());
        }
        pushed.map_err(CallError::from)?;
        self.plan.look(UploadPlan::push_ended);
        Ok(())
    }

    /// What one push sends; ends when nothing is absent for a while, so that the home need not wait.
    fn objects<'s>(
        &'s self,
        lost: &'s Mutex<Option<ObjectId>>,
    ) -> impl Stream<Item = Bytes> + Send + 's {
        stream::unfold((), move |()| async move {
            let uplink = self.home.uplink();
            // The home need not wait for what is held; another push goes on.
            if uplink.holds_back(self.hurry).await {
                return None;
            }
            loop {
                match self.plan.look(UploadPlan::take_next) {
                    Next::Send(id) => {
                        let bytes = self.source.bytes(id).await;
                        if let Some(bytes) = &bytes {
                            uplink.let_through(bytes.len() as u64).await;
                        } else {
                            *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
                        }
                        return bytes.map(|bytes| (bytes, ()));
                    }
                    Next::End => return None,
                    Next::Wait => {
                        let changed = timeout(LULL, self.plan.pusher.notified()).await;
                        changed.ok()?;
                    }
                }
            }
        })
    }

    fn sent(&self) -> Sent {
        Sent {
            objects: self.objects.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            busy: Duration::from_micros(self.busy_us.load(Ordering::Relaxed)),
        }
    }
}

impl From<Unfitting> for UploadError {
    fn from(_: Unfitting) -> Self {
        CallError::Protocol("an answer that does not fit what was sent").into()
    }
}

/// First pause after trouble, doubled each time without progress.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause: work that waits for the home is noticed to be possible within this time.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A push without an object to send for this long ends: the home would take it for a slow sender.
const LULL: Duration = Duration::from_secs(2);
