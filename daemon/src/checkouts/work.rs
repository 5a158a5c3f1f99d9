//! What a checkout's worker has done in the background: one seal, one commit, the end of a lease.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_index::{Boundary, Fact, Key, ReadError, Value};
use img_lease::holder::{Before, Event as LeaseEvent, Granted, Kind as LeaseKind};
use img_overlay::GenerationId;
use img_proto::{Answer, Call, Class, LeaseTerms, Refusal};
use img_records::{CommitKind, Maps, SignedCommit, commit_id};
use img_seal::Reference;
use img_store::StoreError;
use img_types::{CheckoutId, CommitId, ImageId, ObjectId, Token};

use super::lost::LeftOut;
use super::opening::Claim;
use super::{CommitRequest, Shared};
use crate::commits::{OpenCommit, RecordError};
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::home::{CallError, Home};
use crate::journal::JournalError;
use crate::keeper::{KeeperError, luck, rival};
use crate::objects::{FetchError, Objects};
use crate::seal::{SealError, SealedRoot, seal_generation};
use crate::stream::{Draft, Sent, Settled, UploadError};
use crate::tree::{Closed, Tree};
use crate::uplink::Hurry;

/// Why a generation is not a root yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealingError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It needs what is lost; said for a person.
    #[error("{}", .0.message)]
    Lost(Box<ApiError>),
    /// Lost files have been removed for it; sealed again, it is without them.
    #[error("lost files have been left out")]
    LeftOut(Vec<LeftOut>),
}

/// Why a root is no commit.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Lease(#[from] KeeperError),
    /// The checkout may not commit as it is asked to.
    #[error("{}", .0.message)]
    Forbidden(Box<ApiError>),
}

/// Seals a closed generation of a tree, its oldest one.
pub(super) async fn seal(
    objects: Arc<Objects>,
    tree: Arc<Tree>,
    closed: Closed,
    boundary: Boundary,
    checkout: CheckoutId,
) -> Result<(GenerationId, SealedRoot), SealingError> {
    let generation = closed.generation.id();
    let sealed = seal_generation(&objects, &closed, &boundary, checkout).await?;
    let swapped = tokio::task::spawn_blocking(move || tree.sealed(generation, sealed.root)).await;
    match swapped {
        Ok(swapped) => swapped?,
        Err(_) => return Err(SealError::Ending.into()),
    }
    Ok((generation, sealed))
}

/// A root that is to become a commit.
#[derive(Debug)]
pub(super) struct CommitJob {
    pub(super) shared: Arc<Shared>,
    pub(super) checkout: CheckoutId,
    pub(super) image: ImageId,
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) terms: LeaseTerms,
    pub(super) base: Option<OpenCommit>,
    pub(super) root: Reference,
    pub(super) generation_max: u64,
    /// Numbers of the wishes that it fulfils.
    pub(super) wishes: Vec<u64>,
    pub(super) maps: Maps,
    pub(super) sealed_bytes: u64,
    /// Set where nobody waits for it.
    pub(super) hurry: Option<Hurry>,
    pub(super) request: CommitRequest,
    pub(super) reporter: Reporter,
}

impl CommitJob {
    /// Brings the root home and makes it a commit.
    pub(super) async fn run(self) -> Result<Settled, CommitError> {
        let shared = Arc::clone(&self.shared);
        let uploader = shared.uploader(self.checkout);
        let uploader = uploader.patiently(self.hurry.clone());
        let (files, logical_bytes) = totals(&shared.home, self.root).await?;
        let late = self.is_late().map_err(CommitError::Forbidden)?;
        if late.is_some() && self.request.automatic {
            // Only a person takes a lease.
            let told = ApiError::new(
                Kind::Failed,
                format!(
                    "The lease of {} has ended; its checkpoints stay here.",
                    self.name
                ),
                "",
            );
            return Err(CommitError::Forbidden(Box::new(told)));
        }
        let _claim = late.and_then(|_| Claim::checkout(&shared, self.checkout));
        let mut sent_before = Sent::default();
        let token = match shared
            .keeper
            .holder(self.checkout)
            .and_then(|holder| holder.token())
        {
            Some(token) => token,
            None => {
                // Uploaded first: the lease is taken for a moment only.
                sent_before = uploader.stream(self.root.id, &self.reporter).await?;
                self.acquire().await?
            }
        };
        let draft = Draft {
            image: self.image,
            checkout: self.checkout,
            token,
            base: self.base.clone(),
            root: self.root,
            message: self.request.message.clone(),
            kind: match self.request.automatic {
                true => CommitKind::Checkpoint,
                false => CommitKind::Commit,
            },
            maps: self.maps,
            logical_bytes,
            files,
            sealed_bytes: self.sealed_bytes,
        };
        let outcome = uploader
            .commit(
                &draft,
                self.generation_max,
                self.wishes.clone(),
                &self.reporter,
            )
            .await;
        let gives_back = match late {
            Some(LeaseKind::ReadOnly) => outcome.is_err() || !self.request.keep,
            Some(_) => outcome.is_err(),
            None => false,
        };
        if gives_back
            && !matches!(outcome, Err(UploadError::Superseded))
            && let Err(error) = self.leave(token).await
        {
            // What became of the commit matters more.
            tracing::warn!(%error, "a lease that was taken for one commit is kept");
        }
        if let Err(UploadError::Superseded) = &outcome {
            // Who waits for the commit hears it with the refusal.
            shared.keeper.explained(self.checkout).await;
        }
        let mut settled = outcome?;
        if late == Some(LeaseKind::ReadOnly) && self.request.keep {
            let checkout = self.checkout;
            let kept = shared.state.with(move |db| db.keep_lease(checkout)).await;
            if let Err(error) = kept {
                tracing::warn!(%error, "a lease is given back after a restart");
            }
        }
        settled.sent.add(sent_before);
        Ok(settled)
    }

    /// Takes the lease of an orphan that has nothing to commit.
    pub(super) async fn adopt(self) -> Result<(), CommitError> {
        let shared = Arc::clone(&self.shared);
        let _claim = Claim::checkout(&shared, self.checkout);
        self.acquire().await.map(drop)
    }

    /// Gives back the lease that was taken for this commit.
    async fn leave(&self, token: Token) -> Result<(), CommitError> {
        give_back(&self.shared, self.image, self.checkout, token).await?;
        let event = LeaseEvent::GivenBack;
        self.shared.keeper.apply(self.checkout, event).await?;
        Ok(())
    }

    /// What the checkout is if it has to take the lease for this commit.
    fn is_late(&self) -> Result<Option<LeaseKind>, Box<ApiError>> {
        let holder = self.shared.keeper.holder(self.checkout);
        match holder.map(|holder| holder.kind()) {
            Some(LeaseKind::Leased | LeaseKind::Lapsed) => Ok(None),
            Some(LeaseKind::Orphan) if !self.request.adopt_orphan => {
                let error = orphan(&self.shared, self.image, &self.name, &self.dir);
                Err(Box::new(error))
            }
            Some(kind) => Ok(Some(kind)),
            None => Err(Box::new(ApiError::failed(KeeperError::Unknown))),
        }
    }

    /// Takes the lease, which succeeds exactly while nothing was committed since and nobody holds it.
    async fn acquire(&self) -> Result<Token, CommitError> {
        let shared = &self.shared;
        let sent = shared.clock.now();
        let call = Call::Acquire {
            image: self.image,
            checkout: self.checkout,
            terms: self.terms,
            expect_head: self.base.as_ref().map(|base| base.id),
            take_over: self.request.take_over,
        };
        let granted = loop {
            match shared.home.acquire(call.clone()).await {
                // What was promised to finish by itself does, as the upload before it did.
                Err(CallError::Away) => shared.home.reachable().await,
                asked => break asked?,
            }
        };
        let Answer::Granted {
            token,
            ttl_ms,
            head,
            current,
            ..
        } = granted.answer
        else {
            return Err(CallError::Protocol("no grant").into());
        };
        let taken = match head_id(&shared.home, head.as_deref()) {
            _ if !current => Err(CallError::Protocol("a grant that is over").into()),
            Err(error) => Err(error.into()),
            Ok(head) => {
                let event = LeaseEvent::Granted(Granted {
                    token,
                    terms: img_lease::Terms {
                        ttl_ms,
                        mode: self.terms.mode,
                    },
                    head,
                    sent,
                    luck: luck(),
                });
                let applied = shared.keeper.apply(self.checkout, event).await;
                applied.map_err(CommitError::from)
            }
        };
        if taken.is_err() && current {
            give_back(shared, self.image, self.checkout, token).await?;
        }
        let settled = shared.home.settle(granted.request).await;
        settled.map_err(CallError::from)?;
        taken.map(|_| token)
    }
}

/// The id of the head that came with a grant. Whether it verifies does not matter to who only compares it.
fn head_id(home: &Home, head: Option<&[u8]>) -> Result<Option<CommitId>, CallError> {
    let signed = head.map(SignedCommit::decode).transpose();
    let signed = signed.map_err(|_| CallError::Protocol("a head that is no commit"))?;
    Ok(signed.map(|signed| commit_id(&signed, &home.id())))
}

/// Gives back a lease that a read-only checkout took for one commit before the daemon ended.
pub(super) async fn end_late_lease(
    shared: &Shared,
    image: ImageId,
    checkout: CheckoutId,
) -> Result<(), CommitError> {
    let row = shared.state.with(move |db| db.checkout(checkout)).await;
    let keeps_none = row
        .map_err(CallError::from)?
        .is_some_and(|row| row.read_only);
    let holder = shared.keeper.holder(checkout);
    let Some(tenure) = holder.as_ref().and_then(|holder| holder.tenure()) else {
        return Ok(());
    };
    if keeps_none && tenure.before == Some(Before::ReadOnly) {
        give_back(shared, image, checkout, tenure.token).await?;
        let event = LeaseEvent::GivenBack;
        shared.keeper.apply(checkout, event).await?;
    }
    Ok(())
}

/// Lets go of what the outbox holds and neither `roots` nor changes that are not sealed need.
pub(super) async fn trim(
    shared: &Shared,
    checkout: CheckoutId,
    tree: Arc<Tree>,
    roots: Vec<ObjectId>,
) -> Result<(), UploadError> {
    let unneeded = shared.uploader(checkout).unneeded(roots).await?;
    let objects = Arc::clone(shared.home.objects());
    let released = tokio::task::spawn_blocking(move || {
        // No change may come to need one of them between the look and the release.
        tree.with_values_kept(|values| {
            let unneeded: Vec<_> = unneeded
                .into_iter()
                .filter(|id| !values.contains(id))
                .collect();
            objects.release(checkout, &unneeded)
        })
    });
    match released.await {
        Ok(released) => Ok(released?),
        Err(_) => Err(UploadError::Interrupted),
    }
}

/// Gives a lease back; waits out an absent home. A lease that is gone already is given back.
pub(super) async fn give_back(
    shared: &Shared,
    image: ImageId,
    checkout: CheckoutId,
    token: Token,
) -> Result<(), CallError> {
    end_one(
        shared,
        Call::Release {
            image,
            checkout,
            token,
        },
    )
    .await
}

/// Ends something at home; waits out an absent home. What the home does not have has ended; a home that is in
/// trouble still has it.
async fn end_one(shared: &Shared, call: Call) -> Result<(), CallError> {
    loop {
        match shared.home.mutate(call.clone()).await {
            Ok(ended) => return Ok(shared.home.settle(ended.request).await?),
            Err(CallError::Refused(refusal)) if says_gone(&refusal) => {
                tracing::debug!(%refusal, "something was gone before it was given back");
                return Ok(());
            }
            Err(CallError::Away) => shared.home.reachable().await,
            Err(error) => return Err(error),
        }
    }
}

/// Whether a refusal says that there is nothing left to be ended, or nothing that this daemon may end.
fn says_gone(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::TokenStale { .. }
            | Refusal::UnknownImage
            | Refusal::UnknownCommit
            | Refusal::NotMember
            | Refusal::InstanceFenced
    )
}

/// Ends what the home keeps for a checkout: its lease, or the pin of what it read; and what is staged of it, where
/// that is dropped.
pub(super) async fn end_at_home(
    shared: Arc<Shared>,
    image: ImageId,
    checkout: CheckoutId,
    base: Option<CommitId>,
    unstages: bool,
    reporter: Reporter,
) -> Result<(), CallError> {
    reporter.phase(Phase::Release, None);
    if unstages {
        // Nobody else is to be asked whether it may be passed over.
        end_one(&shared, Call::Unstage { image, checkout }).await?;
    }
    let holder = shared.keeper.holder(checkout);
    if let Some(token) = holder.as_ref().and_then(|holder| holder.token()) {
        return give_back(&shared, image, checkout, token).await;
    }
    let pinned = holder.is_some_and(|holder| holder.kind() == LeaseKind::ReadOnly);
    if let Some(commit) = base.filter(|_| pinned) {
        // A pin that stays ends by itself.
        let unpinned = shared.home.mutate(Call::Unpin { commit, checkout }).await;
        if let Ok(unpinned) = unpinned {
            shared.home.settle(unpinned.request).await?;
        }
    }
    Ok(())
}

/// Files of an image and the sum of their sizes, as its index says.
pub(super) async fn totals(home: &Home, root: Reference) -> Result<(u64, u64), FetchError> {
    let objects = home.objects();
    let key = Key::fact(Fact::Totals);
    loop {
        match img_index::get(&**objects, &root, &key) {
            Ok(Some(Value::Totals {
                files,
                logical_bytes,
            })) => return Ok((files, logical_bytes)),
            Ok(_) => return Ok((0, 0)),
            Err(ReadError::Absent(absent)) => {
                match objects.fetch_nodes(&absent.0, Class::Control).await {
                    Err(FetchError::Away) => home.reachable().await,
                    fetched => fetched?,
                }
            }
            Err(ReadError::Misplaced(id)) => return Err(FetchError::Corrupt(id)),
        }
    }
}

/// The checkout's token has been superseded. The way out names the folder: the name may be another checkout's.
pub(super) fn orphan(shared: &Shared, image: ImageId, name: &str, dir: &Path) -> ApiError {
    if let Some(told) = revoked(shared, dir) {
        return told;
    }
    let listed = shared.list();
    let checkout = listed.iter().find(|checkout| checkout.dir == dir);
    let checkout = checkout.map(|checkout| checkout.id);
    let holder = checkout.and_then(|checkout| shared.keeper.holder(checkout));
    let newest = holder.as_ref().and_then(|holder| holder.newest());
    let restored = newest.is_some_and(|token| shared.home.is_void(&token));
    let rival = holder.and_then(|holder| rival(&shared.home, &holder));
    let reason = checkout.and_then(|checkout| shared.keeper.reason(checkout));
    let why = match (rival, shared.is_gone(image)) {
        (Some(rival), _) => match reason {
            Some(reason) => format!("{rival} has taken {name} over: \"{reason}\""),
            None => format!("{rival} has taken {name} over"),
        },
        (None, true) if restored => {
            format!("the home was restored from a backup and does not have {name} any more")
        }
        (None, true) => return deleted(name, dir),
        (None, false) if restored => format!(
            "the home was restored from a backup, and the commit that this checkout stands on is not the newest of {name} there"
        ),
        (None, false) => "its lease went to somebody else".to_owned(),
    };
    let hint = if restored {
        save_or_drop(dir)
    } else {
        let dir = dir.display();
        format!(
            "Save it as a new image and go on there: `imgctl commit {dir} --branch NEW`. Go on as before, if nothing was committed since: `imgctl commit {dir} --adopt-orphan`. Drop it: `imgctl release {dir} --discard`."
        )
    };
    ApiError::new(
        Kind::Orphan,
        format!(
            "The checkout of {name} at {} is orphaned: {why}. Its work is kept here.",
            dir.display()
        ),
        hint,
    )
}

/// This device has been revoked: a checkout's work can only be exported. Nothing where it is a member.
pub(super) fn revoked(shared: &Shared, dir: &Path) -> Option<ApiError> {
    let mut told = shared.home.revoked()?;
    told.hint = format!(
        "Save the work that is here with `imgctl export NAME DEST`; then `imgctl release {} --discard` drops it.",
        dir.display()
    );
    Some(told)
}

/// The image is gone, and the checkout's work with nowhere to go.
fn deleted(name: &str, dir: &Path) -> ApiError {
    ApiError::new(
        Kind::Orphan,
        format!(
            "{name} has been deleted at the home. What is checked out at {} is kept.",
            dir.display()
        ),
        save_or_drop(dir),
    )
}

fn save_or_drop(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "Save it as a new image and go on there: `imgctl commit {dir} --branch NEW`, or drop it with `imgctl release {dir} --discard`."
    )
}

/// Whether a commit failed because its image has been deleted.
pub(super) fn says_deleted(error: &CommitError) -> bool {
    matches!(
        error,
        CommitError::Upload(UploadError::Call(CallError::Refused(Refusal::UnknownImage)))
            | CommitError::Call(CallError::Refused(Refusal::UnknownImage))
    )
}

/// Why changes are not sealed, for a person.
pub(super) fn explain_sealing(error: &SealingError) -> ApiError {
    let message =
        format!("Changes are not sealed yet: {error}. They are kept, and it is tried again.");
    match error {
        SealingError::Lost(told) => ApiError::clone(told),
        SealingError::Seal(SealError::Fetch(FetchError::Away)) => ApiError::away(&message),
        SealingError::Seal(SealError::Store(StoreError::NoRoom)) => {
            ApiError::new(Kind::NoRoom, message, "Make room on this device.")
        }
        _ => ApiError::new(Kind::Failed, message, "`imgctl doctor` checks this device."),
    }
}
/// Whether asking again cannot help: a person has to choose another way, or to repair something, and what was asked
/// must not stand in the way of that. Everything else passes, and what was asked is tried again.
pub(super) fn is_final(error: &CommitError) -> bool {
    match error {
        CommitError::Forbidden(_) => true,
        CommitError::Upload(error) => match error {
            UploadError::Call(error) => is_final_call(error),
            // Somebody else's image by now, or damage here.
            UploadError::Superseded | UploadError::Lost(_) => true,
            UploadError::Record(error) => is_final_record(error),
            UploadError::Lease(error) => is_final_lease(error),
            // A full or failing disk here, or a daemon that ends.
            UploadError::Store(_) | UploadError::TakenAnew | UploadError::Interrupted => false,
        },
        CommitError::Call(error) => is_final_call(error),
        CommitError::Fetch(error) => match error {
            FetchError::Missing(_) | FetchError::Corrupt(_) => true,
            FetchError::Away | FetchError::Never | FetchError::Store(_) => false,
        },
        CommitError::Lease(error) => is_final_lease(error),
    }
}

fn is_final_record(error: &RecordError) -> bool {
    match error {
        // A roster entry, and the key in it, may be on its way here.
        RecordError::RosterUnknown => false,
        RecordError::Malformed
        | RecordError::Signature
        | RecordError::Misplaced
        | RecordError::Sealed => true,
    }
}

fn is_final_lease(error: &KeeperError) -> bool {
    match error {
        KeeperError::Unknown => true,
        KeeperError::Call(error) => is_final_call(error),
        // What moved meanwhile is looked at anew the next time.
        KeeperError::Forbidden(_) | KeeperError::State(_) | KeeperError::Ended => false,
    }
}

fn is_final_call(error: &CallError) -> bool {
    match error {
        CallError::Refused(refusal) => is_final_refusal(refusal),
        // The right home may come back, and be put right; this device's disk may get room.
        CallError::Away
        | CallError::WentBack
        | CallError::WrongHome
        | CallError::Protocol(_)
        | CallError::State(_) => false,
    }
}

fn is_final_refusal(refusal: &Refusal) -> bool {
    match refusal {
        // The home is in trouble, or does not know this connection, session or roster entry yet.
        Refusal::Busy
        | Refusal::Internal(_)
        | Refusal::NoRoom(_)
        | Refusal::HelloFirst
        | Refusal::SessionClosed
        | Refusal::Incomplete { .. }
        | Refusal::RosterMoved { .. }
        | Refusal::WentBack { .. } => false,
        // Somebody else has the image, or its name.
        Refusal::Leased(_)
        | Refusal::StagedWork { .. }
        | Refusal::TokenStale { .. }
        | Refusal::HeadMoved { .. }
        | Refusal::UnknownImage
        | Refusal::UnknownCommit
        | Refusal::NameTaken => true,
        // This device may not, or not any more.
        Refusal::NotMember | Refusal::NotAdmin | Refusal::InstanceFenced => true,
        // The same bytes are refused every time.
        Refusal::Malformed(_)
        | Refusal::BadRecord(_)
        | Refusal::BadObject
        | Refusal::RequestReused
        | Refusal::OverLimit(_) => true,
        // Answers to other calls.
        Refusal::NotFounded
        | Refusal::AlreadyFounded
        | Refusal::WrongFounding
        | Refusal::InviteUnknown
        | Refusal::DescriptorMoved
        | Refusal::Changed
        | Refusal::NobodyHolds
        | Refusal::LogMoved { .. } => true,
    }
}

/// The error for a person.
pub(super) fn explain(
    shared: &Shared,
    error: &CommitError,
    image: ImageId,
    name: &str,
    dir: &Path,
) -> ApiError {
    match error {
        CommitError::Forbidden(error) => ApiError::clone(error),
        CommitError::Upload(UploadError::Superseded) => orphan(shared, image, name, dir),
        deletion if says_deleted(deletion) => deleted(name, dir),
        CommitError::Upload(UploadError::Call(error)) | CommitError::Call(error) => {
            let mut told = shared.home.explain(error, name);
            if told.kind == Kind::Orphan {
                // The name may be a newer image's, or another checkout's.
                told.hint = save_or_drop(dir);
            }
            if matches!(told.kind, Kind::Leased | Kind::StagedWork) {
                let dir = dir.display();
                told.hint = format!(
                    "Save it as a new image and go on there: `imgctl commit {dir} --branch NEW`. Or: {}",
                    told.hint
                );
            }
            told
        }
        CommitError::Fetch(FetchError::Away | FetchError::Never) => {
            shared.home.explain(&shared.home.absence(), name)
        }
        CommitError::Fetch(FetchError::Missing(_) | FetchError::Corrupt(_))
        | CommitError::Upload(UploadError::Lost(_) | UploadError::Record(_)) => ApiError::new(
            Kind::Corrupt,
            format!("{name} cannot be committed: {error}. What is here is kept."),
            "`imgctl doctor` checks this device.",
        ),
        CommitError::Lease(_) | CommitError::Upload(_) | CommitError::Fetch(_) => {
            ApiError::failed(error)
        }
    }
}
