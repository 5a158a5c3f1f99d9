//! Brings a checkout's sealed work home and makes it a commit.
//!
//! Owns the upload of an outbox ([`Uploader`]) and of an import that runs ([`ImportUpload`]): asking what the
//! home lacks, pushing it, going on after a lost connection, a restart of either side or an ended session;
//! and the last step, the signed commit that is written down before it is first sent. It knows nothing of
//! trees and seals. `docs/protocol.md` describes upload sessions and the rule of a commit.
//!
//! ```text
//!  root durable here ──▶ push what the home lacks ──▶ sign, write down ──▶ send ──▶ receipt ──▶ base moves up,
//!          ▲                        ▲                       │                │                 outbox trimmed
//!          │                        └─ incomplete, session ended ────────────┤
//!          └── restart: the record that was written down goes on here        └─▶ superseded: orphan
//! ```

mod commit;
#[cfg(test)]
pub(crate) mod fake;
mod import;
pub mod mend;
mod plan;
mod reach;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use img_lease::holder;
use img_proto::{Answer, Call, Refusal};
use img_records::SignedReceipt;
use img_store::StoreError;
use img_types::{CheckoutId, ImageId, ObjectId, Token, UploadId};

use crate::background;
use crate::commits::{OpenCommit, RecordError};
use crate::events::{Phase, Reporter};
use crate::home::{CallError, Home};
use crate::keeper::{Keeper, KeeperError};
use crate::objects::Objects;
use crate::state::{PendingCommit, State, StateError};
use crate::uplink::Hurry;

pub use commit::{Draft, deliver};
pub use import::{IN_FLIGHT_BYTES, ImportUpload, UploadStopped};
pub use plan::{Next, Unfitting, UploadPlan};
pub use reach::{Lost, below};

use session::{Session, SharedPlan, Source};

/// What an upload sent; objects that the home had are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Objects.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// How long the connection was used for them.
    pub busy: Duration,
}

/// Why sealed work is not at the home, or is no commit.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The home refuses or does not behave; never [`CallError::Away`], which is waited out.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The checkout's token has been superseded: it is an orphan now, and its work is as it was.
    #[error("the lease has been taken over")]
    Superseded,
    /// The home was restored, and the checkout has taken its lease anew: it may commit under that.
    #[error("the lease has been taken anew")]
    TakenAnew,
    /// The outbox lacks an object.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The object cache failed.
    #[error("the object cache failed: {0}")]
    Store(#[from] StoreError),
    /// The record cannot be made, or the one that was written down does not open.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lease could not be brought up to date.
    #[error(transparent)]
    Lease(#[from] KeeperError),
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Interrupted,
}

impl From<StateError> for UploadError {
    fn from(error: StateError) -> Self {
        Self::Call(error.into())
    }
}

/// A commit that is in history.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The commit, which is the checkout's base now.
    pub commit: OpenCommit,
    /// The home's word for it.
    pub receipt: SignedReceipt,
    /// What had to be sent for it by this daemon.
    pub sent: Sent,
}

/// Streams one checkout's sealed work home.
#[derive(Debug, Clone)]
pub struct Uploader {
    home: Arc<Home>,
    state: State,
    keeper: Keeper,
    checkout: CheckoutId,
    hurry: Option<Hurry>,
}

impl Uploader {
    /// Works for one checkout.
    pub fn new(home: Arc<Home>, state: State, keeper: Keeper, checkout: CheckoutId) -> Self {
        Self {
            home,
            state,
            keeper,
            checkout,
            hurry: None,
        }
    }

    /// Uploads what nobody waits for, until somebody is in a hurry; nothing changes nothing.
    #[must_use]
    pub fn patiently(mut self, hurry: Option<Hurry>) -> Self {
        self.hurry = hurry;
        self
    }

    /// Brings home what the outbox holds of a root. Waits out an absent home; can be dropped and begun
    /// again at any time.
    ///
    /// # Errors
    /// The home refuses for good, or the outbox is damaged.
    pub async fn stream(&self, root: ObjectId, reporter: &Reporter) -> Result<Sent, UploadError> {
        let ids = self.below(root).await?;
        self.upload(ids, reporter).await
    }

    /// Makes a commit of a sealed root: brings it home, signs the record, writes it down, sends it, and
    /// once the home has signed for it moves the base up and trims the outbox. `generation_max` is the
    /// newest generation that the root contains: the checkpoints up to it are history then, and the wishes of the
    /// numbers `fulfils` have come true.
    ///
    /// # Errors
    /// As [`Uploader::stream`]; [`UploadError::Superseded`] if the lease is somebody else's. A record that
    /// was written down before an error other than that one goes on with [`Uploader::resume`].
    pub async fn commit(
        &self,
        draft: &Draft,
        generation_max: u64,
        fulfils: Vec<u64>,
        reporter: &Reporter,
    ) -> Result<Settled, UploadError> {
        reporter.phase(Phase::Push, Some(draft.sealed_bytes));
        let sent = self.stream(draft.root.id, reporter).await?;
        let commit = draft.sign(&self.home)?;
        let pending = PendingCommit {
            checkout: self.checkout,
            record: commit.signed.to_bytes(),
            generation: generation_max,
        };
        self.state
            .with(move |db| db.set_pending_commit(&pending, &fulfils))
            .await?;
        self.finish(commit, generation_max, sent, reporter).await
    }

    /// Goes on with a commit that was written down before. Returns it with the newest generation that its
    /// root contains; nothing if there is none, or if it was made under a token that this checkout has no
    /// more and never became the head.
    ///
    /// # Errors
    /// As [`Uploader::commit`].
    pub async fn resume(&self, reporter: &Reporter) -> Result<Option<(u64, Settled)>, UploadError> {
        let checkout = self.checkout;
        let pending = self
            .state
            .with(move |db| Ok((db.pending_commit(checkout)?, db.checkout(checkout)?)))
            .await?;
        let (Some(pending), Some(row)) = pending else {
            return Ok(None);
        };
        // This device signed it; only the home decides whether it still may.
        let commit = self
            .home
            .trusted(|trust| trust.reopen_commit(row.image, &pending.record))?;
        let holder = self.keeper.holder(checkout);
        let token = holder.and_then(|holder| holder.token());
        let is_current = commit.record().token == token;
        reporter.phase(Phase::Push, Some(commit.private.sealed_bytes));
        let sent = self.stream(commit.record().root, reporter).await?;
        match self
            .finish(commit, pending.generation, sent, reporter)
            .await
        {
            Ok(settled) => Ok(Some((pending.generation, settled))),
            Err(UploadError::Superseded) if !is_current => Ok(None),
            Err(UploadError::TakenAnew) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Brings home whatever it lacks of a root, also of what it once had: from all that is on this device.
    ///
    /// # Errors
    /// As [`Uploader::stream`]; [`UploadError::Lost`] if neither side has an object.
    pub async fn mend(&self, root: ObjectId, reporter: &Reporter) -> Result<Sent, UploadError> {
        let lacking = self.lacking(root).await?;
        if let Some(lost) = lacking.nowhere.first() {
            return Err(Lost(*lost).into());
        }
        self.upload(lacking.here, reporter).await
    }

    /// Asks the home what it lacks of a root.
    ///
    /// # Errors
    /// The home is away or refuses.
    pub async fn lacking(&self, root: ObjectId) -> Result<mend::Lacking, CallError> {
        let open = Call::OpenUpload {
            checkout: self.checkout,
        };
        let Answer::Upload { upload } = self.home.ask(open).await? else {
            return Err(CallError::Protocol("no upload session"));
        };
        let asker = HomeAsker {
            home: &self.home,
            upload,
        };
        mend::lacking(&asker, self.home.objects(), root).await
    }

    /// What the outbox holds that none of `roots` needs: most of it belongs to intermediate roots that were
    /// never committed. Only to be called while nothing is being sealed for this checkout and no signed
    /// commit waits.
    ///
    /// # Errors
    /// The outbox is damaged.
    pub async fn unneeded(&self, roots: Vec<ObjectId>) -> Result<Vec<ObjectId>, UploadError> {
        let (objects, checkout) = (Arc::clone(self.home.objects()), self.checkout);
        blocking(move || {
            let outbox = objects.outbox(checkout);
            let needed = below(&roots, &outbox, |id| objects.object_bytes(id))?;
            let needed: BTreeSet<_> = needed.into_iter().collect();
            let unneeded = outbox.into_iter().filter(|id| !needed.contains(id));
            Ok(unneeded.collect())
        })
        .await
    }

    /// Sends a record that is written down until it is settled one way or the other.
    async fn finish(
        &self,
        commit: OpenCommit,
        generation_max: u64,
        mut sent: Sent,
        reporter: &Reporter,
    ) -> Result<Settled, UploadError> {
        let root = commit.record().root;
        for _ in 0..ROUNDS_MAX {
            reporter.phase(Phase::Commit, None);
            let refusal = match deliver(&self.home, &commit, reporter).await {
                Ok(receipt) => {
                    self.settle(&commit, generation_max, sent).await?;
                    return Ok(Settled {
                        commit,
                        receipt,
                        sent,
                    });
                }
                Err(CallError::Refused(refusal)) => refusal,
                Err(error) => return Err(error.into()),
            };
            match refusal {
                Refusal::Incomplete { .. } => {
                    reporter.phase(Phase::Push, None);
                    let mended = self.mend(root, reporter).await;
                    if matches!(mended, Err(UploadError::Lost(_))) {
                        // It can never be complete: another may be made without what is lost.
                        let checkout = self.checkout;
                        let dropped = self.state.with(move |db| db.drop_pending_commit(checkout));
                        dropped.await?;
                    }
                    sent.add(mended?);
                }
                Refusal::SessionClosed => {
                    reporter.phase(Phase::Push, None);
                    sent.add(self.stream(root, reporter).await?);
                }
                Refusal::TokenStale { .. } if self.is_void(&commit) => {
                    return Err(self.taken_anew(&commit).await);
                }
                Refusal::TokenStale { holder, .. } => {
                    return Err(self
                        .superseded(&commit, |image, token| holder::Event::TokenStale {
                            image,
                            token,
                            rival: holder,
                        })
                        .await);
                }
                Refusal::HeadMoved { head } => {
                    return Err(self
                        .superseded(&commit, |image, token| holder::Event::HeadMoved {
                            image,
                            token,
                            head,
                        })
                        .await);
                }
                Refusal::UnknownImage => {
                    // A deleted image has no tokens any more.
                    let rival = None;
                    let stale = |image, token| holder::Event::TokenStale {
                        image,
                        token,
                        rival,
                    };
                    return Err(match self.superseded(&commit, stale).await {
                        UploadError::Superseded => CallError::Refused(refusal).into(),
                        error => error,
                    });
                }
                refusal => {
                    if is_of_the_record(&refusal) {
                        // A later one must not wait for it, and it must not come true after its refusal was told.
                        let checkout = self.checkout;
                        let dropped = self.state.with(move |db| db.drop_pending_commit(checkout));
                        dropped.await?;
                    }
                    return Err(CallError::Refused(refusal).into());
                }
            }
        }
        Err(CallError::Protocol("a commit that stays incomplete").into())
    }

    /// The home signed for the commit. A daemon that dies before base and record stand in the database sends
    /// the record again and gets the same receipt; what it leaves in the outbox after that is
    /// [`Uploader::unneeded`] later.
    async fn settle(
        &self,
        commit: &OpenCommit,
        generation_max: u64,
        sent: Sent,
    ) -> Result<(), UploadError> {
        let event = holder::Event::Committed {
            commit: commit.id,
            parent: commit.record().parent.map(|parent| parent.commit),
        };
        self.keeper.apply(self.checkout, event).await?;
        let (base, sealed_bytes) = (commit.signed.to_bytes(), commit.private.sealed_bytes);
        let (checkout, root) = (self.checkout, commit.record().root);
        self.state
            .with(move |db| db.committed(checkout, &base, generation_max, sealed_bytes, sent.bytes))
            .await?;
        // It is history whatever becomes of this.
        if let Err(error) = self.release_below(root).await {
            tracing::warn!(%error, "the outbox keeps what is at home");
        }
        Ok(())
    }

    async fn release_below(&self, root: ObjectId) -> Result<(), UploadError> {
        let ids = self.below(root).await?;
        let (objects, checkout) = (Arc::clone(self.home.objects()), self.checkout);
        blocking(move || Ok(objects.release(checkout, &ids)?)).await
    }

    /// The record can never become the head: the checkout is an orphan, its roots and checkpoints stay.
    async fn superseded(
        &self,
        commit: &OpenCommit,
        event: impl FnOnce(ImageId, Token) -> holder::Event,
    ) -> UploadError {
        let checkout = self.checkout;
        if let Some(token) = commit.record().token
            && let Err(error) = self
                .keeper
                .apply(checkout, event(commit.record().image, token))
                .await
        {
            return error.into();
        }
        match self
            .state
            .with(move |db| db.drop_pending_commit(checkout))
            .await
        {
            Ok(()) => UploadError::Superseded,
            Err(error) => error.into(),
        }
    }

    /// Whether a commit was signed under a lease that ended with the home's database.
    fn is_void(&self, commit: &OpenCommit) -> bool {
        let token = commit.record().token;
        token.is_some_and(|token| self.home.is_void(&token))
    }

    /// The record can never become the head, but the lease may be taken anew: waits until that is decided.
    async fn taken_anew(&self, commit: &OpenCommit) -> UploadError {
        let checkout = self.checkout;
        let void = commit.record().token;
        let mut leases = self.keeper.watch();
        let decided = leases.wait_for(|leases| {
            let token = leases.get(&checkout).and_then(|holder| holder.token());
            token.is_none() || token != void
        });
        let has_token = match decided.await {
            Ok(leases) => leases
                .get(&checkout)
                .is_some_and(|holder| holder.token().is_some()),
            Err(_) => return UploadError::Interrupted,
        };
        match self
            .state
            .with(move |db| db.drop_pending_commit(checkout))
            .await
        {
            Ok(()) if has_token => UploadError::TakenAnew,
            Ok(()) => UploadError::Superseded,
            Err(error) => error.into(),
        }
    }

    async fn upload(&self, ids: Vec<ObjectId>, reporter: &Reporter) -> Result<Sent, UploadError> {
        if ids.is_empty() {
            return Ok(Sent::default());
        }
        let plan = SharedPlan::new(UploadPlan::of(ids));
        let outbox = Outbox {
            objects: Arc::clone(self.home.objects()),
            reporter,
        };
        Session::new(&self.home, self.checkout, &plan, &outbox, reporter)
            .patiently(self.hurry.as_ref())
            .run()
            .await
    }

    /// What the outbox holds of a root, children first.
    async fn below(&self, root: ObjectId) -> Result<Vec<ObjectId>, UploadError> {
        let (objects, checkout) = (Arc::clone(self.home.objects()), self.checkout);
        blocking(move || {
            let outbox = objects.outbox(checkout);
            Ok(below(&[root], &outbox, |id| objects.object_bytes(id))?)
        })
        .await
    }
}

impl Sent {
    /// Adds what was sent for the same thing.
    pub fn add(&mut self, more: Self) {
        self.objects += more.objects;
        self.bytes += more.bytes;
        self.busy += more.busy;
    }
}

/// The home, asked within an upload session.
struct HomeAsker<'a> {
    home: &'a Home,
    upload: UploadId,
}

impl mend::Asker for HomeAsker<'_> {
    fn missing(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<u32>, CallError>> {
        let upload = self.upload;
        async move {
            match self.home.ask(Call::Missing { upload, ids }).await? {
                Answer::Missing { positions } => Ok(positions),
                _ => Err(CallError::Protocol("no positions")),
            }
        }
        .boxed()
    }
}

/// The outboxes of this device as the place where objects are.
struct Outbox<'a> {
    objects: Arc<Objects>,
    reporter: &'a Reporter,
}

impl Source for Outbox<'_> {
    fn bytes(&self, id: ObjectId) -> BoxFuture<'_, Option<Bytes>> {
        let objects = Arc::clone(&self.objects);
        async move {
            let read = background::run(move || objects.object_bytes(&id));
            read.await.ok().flatten()
        }
        .boxed()
    }

    fn done(&self, _: &[ObjectId]) {
        // They stay until a receipt says that a commit contains them.
    }

    fn sent(&self, bytes: u64) {
        self.reporter.advance(bytes);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UploadError> + Send + 'static,
) -> Result<T, UploadError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(UploadError::Interrupted))
}

/// Whether a home that refuses so refuses the same record every time, and so never took it: who is no member or
/// fenced off may have sent it before.
fn is_of_the_record(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Malformed(_)
            | Refusal::BadRecord(_)
            | Refusal::BadObject
            | Refusal::OverLimit(_)
            | Refusal::UnknownCommit
    )
}

/// How often a commit is sent again after what was missing has been pushed: more means that the home and
/// this device do not agree on what the root names.
const ROUNDS_MAX: usize = 5;
