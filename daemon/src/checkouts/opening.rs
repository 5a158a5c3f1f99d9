//! Checking an image out: the lease, the tree, the mount.
//!
//! Order: the row is written down → the lease is asked for → base and lease are durable → the tree is made → it
//! is mounted. A failure anywhere undoes what came before; a crash leaves a row that recovery completes or drops.

use std::io;
use std::path::Path;
use std::sync::Arc;

use img_lease::Terms;
use img_lease::holder::{Granted, Holder};
use img_proto::{Answer, Call, Refusal};
use img_types::{CheckoutId, RequestId};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::hydrate::Hydration;
use super::stealing::Theft;
use super::worker::{Beginning, Worker};
use super::{
    Checkout, Checkouts, OpenRequest, Opening, OwnerChoice, Shared, lock, metadata, recovery,
    resolve, work,
};
use crate::commits::OpenCommit;
use crate::error::{ApiError, Kind};
use crate::events::{self, Phase, Reporter};
use crate::home::CallError;
use crate::images::Image;
use crate::keeper::{self, KeeperError, Label, luck};
use crate::random::random;
use crate::state::{CheckoutRow, Stage};
use crate::tree::{ObjectSource, OwnerMapping, Tree, TreeConfig};

impl Checkouts {
    /// Checks an image out; answers the checkout that is there if it is asked for again.
    ///
    /// # Errors
    /// The folder is in use, somebody else holds the lease, or the home is away.
    pub async fn open(
        &self,
        request: OpenRequest,
        reporter: &Reporter,
    ) -> Result<Arc<Checkout>, ApiError> {
        self.open_by(request, None, reporter).await
    }

    /// Checks an image out, by a theft if that is how its lease is to be had.
    pub(super) async fn open_by(
        &self,
        mut request: OpenRequest,
        theft: Option<&Theft>,
        reporter: &Reporter,
    ) -> Result<Arc<Checkout>, ApiError> {
        request.dir = resolve(&request.dir);
        let dir = Opening::Dir(request.dir.clone());
        let _claim = Claim::new(&self.shared, dir).ok_or_else(|| {
            ApiError::usage(format!(
                "Something is being checked out at {} already.",
                request.dir.display()
            ))
        })?;
        if let Some(there) = self.there(&request, theft.is_some()).await? {
            if request.hydrate {
                hydrate_later(&there).await;
            }
            return Ok(there);
        }
        let made_dir = prepare_dir(&request.dir)?;
        let opened = self.open_in(&request, theft, reporter).await;
        match &opened {
            Ok(checkout) if request.hydrate => hydrate_later(checkout).await,
            Ok(_) => {}
            Err(_) if made_dir => drop(std::fs::remove_dir(&request.dir)),
            Err(_) => {}
        }
        opened
    }

    /// The checkout that is open in the folder already.
    async fn there(
        &self,
        request: &OpenRequest,
        anew: bool,
    ) -> Result<Option<Arc<Checkout>>, ApiError> {
        let open = self.shared.list();
        let Some(there) = open
            .into_iter()
            .find(|checkout| checkout.dir == request.dir)
        else {
            return Ok(None);
        };
        let other =
            there.name() != request.name.as_str() || there.is_read_only() != request.read_only;
        if anew || other {
            return Err(not_empty(
                &request.dir,
                &format!("{} is checked out there", there.name()),
            ));
        }
        if there.is_lost() {
            self.refuse_namesake(&there, request).await?;
        }
        there.mount_again().await?;
        if request.renews && there.has_token() {
            self.renew(&there, request).await?;
        }
        Ok(Some(there))
    }

    /// An orphan of a deleted image is no checkout of the new one of that name.
    async fn refuse_namesake(
        &self,
        there: &Checkout,
        request: &OpenRequest,
    ) -> Result<(), ApiError> {
        let of_name = self.shared.images.find_seen(&request.name).await;
        if of_name.is_ok_and(|image| image.row.image != there.image()) {
            let why = format!(
                "a checkout of another image called {}, which was deleted, is there",
                request.name
            );
            return Err(not_empty(&request.dir, &why));
        }
        Ok(())
    }

    /// Gives an open checkout's lease the terms that are asked for.
    async fn renew(&self, there: &Checkout, request: &OpenRequest) -> Result<(), ApiError> {
        let terms = Terms {
            ttl_ms: request.terms.ttl_ms,
            mode: request.terms.mode,
        };
        match self.shared.keeper.renew(there.id, terms).await {
            Ok(()) => Ok(()),
            Err(KeeperError::Call(CallError::Away)) => Err(ApiError::away(
                "The checkout goes on with the lease that it has; ask again for another time.",
            )),
            Err(KeeperError::Call(error)) => {
                Err(self.shared.home.explain(&error, request.name.as_str()))
            }
            Err(error) => Err(ApiError::failed(error)),
        }
    }

    async fn open_in(
        &self,
        request: &OpenRequest,
        theft: Option<&Theft>,
        reporter: &Reporter,
    ) -> Result<Arc<Checkout>, ApiError> {
        let shared = &self.shared;
        reporter.phase(Phase::Fetch, None);
        let image = shared.images.find(&request.name).await?;
        if !request.read_only {
            self.refuse_second(&image)?;
        }
        let checkout = CheckoutId::from_bytes(random());
        let _claim = Claim::checkout(shared, checkout);
        let mut row = CheckoutRow {
            checkout,
            image: image.row.image,
            name: request.name.to_string(),
            descriptor: image.row.descriptor.to_vec(),
            dir: request.dir.clone(),
            stage: Stage::Opening,
            read_only: request.read_only,
            owner_map: match request.owner {
                Some(choice) => choice == OwnerChoice::Map,
                None => !rustix::process::geteuid().is_root(),
            },
            terms: request.terms,
            opened: events::now(),
            base: None,
            holder: None,
            sealed_bytes: 0,
            sent_bytes: 0,
        };
        let added = row.clone();
        shared
            .state
            .with(move |db| db.add_checkout(&added))
            .await
            .map_err(ApiError::failed)?;
        let standing = if request.read_only {
            self.stand_still(&image, request, checkout).await
        } else {
            self.acquire(&image, request, theft, checkout).await
        };
        let (base, holder, grant) = match standing {
            Ok(standing) => standing,
            Err(error) => {
                self.undo(&row, None).await;
                return Err(error);
            }
        };
        row.stage = Stage::Open;
        row.base = base.as_ref().map(|base| base.signed.to_bytes());
        row.holder = Some(keeper::encode(&holder));
        let opened = self
            .begin(row.clone(), image, base, &holder, grant, reporter)
            .await;
        if opened.is_err() {
            self.undo(&row, Some(&holder)).await;
        }
        opened
    }

    /// One leased checkout of an image is enough.
    pub(super) fn refuse_second(&self, image: &Image) -> Result<(), ApiError> {
        let of_image = self.shared.of_image(image.row.image);
        let Some(first) = of_image.into_iter().find(|checkout| checkout.has_token()) else {
            return Ok(());
        };
        let (name, dir) = (image.name(), first.dir.display());
        Err(ApiError::new(
            Kind::Leased,
            format!("{name} is checked out on this device already, at {dir}."),
            format!("Use it there, or close it with `imgctl release {name}`; read-only checkouts may be anywhere."),
        )
        .with("dir", dir.to_string()))
    }

    /// A read-only checkout stands on the commit that is asked for.
    async fn stand_still(
        &self,
        image: &Image,
        request: &OpenRequest,
        checkout: CheckoutId,
    ) -> Result<(Option<OpenCommit>, Holder, Option<RequestId>), ApiError> {
        let base = match &request.at {
            Some(spec) => {
                let local = self.local_of(image.row.image).await;
                let named = self.shared.images.at_home(image, spec, &local).await?;
                Some(named.0)
            }
            None => image.head.clone(),
        };
        let id = base.as_ref().map(|base| base.id);
        Ok((base, Holder::read_only(image.row.image, checkout, id), None))
    }

    /// A leased checkout stands on the head of the same transaction that granted the lease.
    async fn acquire(
        &self,
        image: &Image,
        request: &OpenRequest,
        theft: Option<&Theft>,
        checkout: CheckoutId,
    ) -> Result<(Option<OpenCommit>, Holder, Option<RequestId>), ApiError> {
        let shared = &self.shared;
        let name = request.name.as_str();
        let explain = |error: &CallError| shared.home.explain(error, name);
        let sent = shared.clock.now();
        let call = match theft {
            Some(theft) => theft.call(image.row.image, checkout, request),
            None => Call::Acquire {
                image: image.row.image,
                checkout,
                terms: request.terms,
                expect_head: None,
                take_over: request.take_over,
            },
        };
        let mut asked = shared.home.mutate(call.clone()).await;
        if let (Err(CallError::Refused(Refusal::Leased(lease))), None) = (&asked, theft)
            && shared.leave_stray(image, lease).await
        {
            asked = shared.home.mutate(call).await;
        }
        let mutated = match (asked, theft) {
            (Ok(mutated), _) => mutated,
            (Err(error), Some(theft)) => {
                return Err(self.explain_theft(error, &request.name, theft).await);
            }
            (Err(error), None) => return Err(explain(&error)),
        };
        let Answer::Granted {
            token,
            ttl_ms,
            head,
            current,
            ..
        } = mutated.answer
        else {
            return Err(explain(&CallError::Protocol("no grant")));
        };
        if !current {
            let settled = shared.home.settle(mutated.request).await;
            settled.map_err(ApiError::failed)?;
            return Err(explain(&CallError::Protocol("a grant that is over")));
        }
        let mut row = image.row.clone();
        row.head = head;
        // The head may have moved since the image was listed; its number is what it says itself.
        let verified = shared.images.verify_head(row).await;
        let terms = Terms {
            ttl_ms,
            mode: request.terms.mode,
        };
        let head = match verified {
            Ok(head) => head,
            Err(error) => {
                let gave_back = work::give_back(shared, image.row.image, checkout, token).await;
                gave_back.map_err(|error| explain(&error))?;
                shared
                    .home
                    .settle(mutated.request)
                    .await
                    .map_err(ApiError::failed)?;
                return Err(error);
            }
        };
        let granted = Granted {
            token,
            terms,
            head: head.as_ref().map(|head| head.id),
            sent,
            luck: luck(),
        };
        let holder = Holder::leased(image.row.image, checkout, &granted);
        Ok((head, holder, Some(mutated.request)))
    }

    /// Makes grant, tree and mount, in this order.
    async fn begin(
        &self,
        row: CheckoutRow,
        image: Image,
        base: Option<OpenCommit>,
        holder: &Holder,
        grant: Option<RequestId>,
        reporter: &Reporter,
    ) -> Result<Arc<Checkout>, ApiError> {
        let shared = &self.shared;
        let granted = row.clone();
        shared
            .state
            .with(move |db| {
                let (base, holder) = (granted.base.as_deref(), granted.holder.as_deref());
                db.checkout_granted(granted.checkout, base, holder, grant)
            })
            .await
            .map_err(ApiError::failed)?;
        let label = label(&row);
        shared
            .keeper
            .keep(label, holder.clone())
            .await
            .map_err(ApiError::failed)?;
        reporter.phase(Phase::Mount, None);
        let config = tree_config(&row, &image.descriptor.boundary, base.as_ref());
        let dir = shared.state.checkout_dir(row.checkout);
        let source = Arc::new(ObjectSource {
            objects: Arc::clone(shared.home.objects()),
            checkout: row.checkout,
        });
        let tree = tokio::task::spawn_blocking(move || {
            recovery::private_dir(&dir)?;
            let tree = Tree::create(&dir, config, source, &Handle::current())?;
            Ok::<_, anyhow::Error>(tree)
        });
        let tree = tree
            .await
            .map_err(ApiError::failed)?
            .map_err(ApiError::failed)?;
        tree.warm_up().await;
        let beginning = Beginning {
            shared: Arc::clone(shared),
            row,
            descriptor: image.descriptor,
            tree: Some(tree),
            base,
            checkpoints: Vec::new(),
            wishes: Vec::new(),
            taken: None,
            reporter: Reporter::new(Phase::Mount),
            pending: false,
            application: None,
        };
        let checkout = begin(beginning, true)?;
        if checkout.has_token() {
            metadata::start(&checkout);
        }
        if let Err(error) = shared.run_ids.renew(checkout.id) {
            tracing::warn!(%error, "a run id is not written");
        }
        shared.tell_state(&checkout, keeper::word(holder.kind()));
        tracing::info!(checkout = %checkout.id.short(), name = checkout.name, "checked out");
        Ok(checkout)
    }

    /// Takes back what an opening that failed has left.
    async fn undo(&self, row: &CheckoutRow, holder: Option<&Holder>) {
        let shared = Arc::clone(&self.shared);
        let (image, checkout) = (row.image, row.checkout);
        if let Some(token) = holder.and_then(|holder| holder.token())
            && let Err(error) = work::give_back(&shared, image, checkout, token).await
        {
            tracing::warn!(%error, "a lease of a checkout that failed lasts until it lapses");
        }
        if shared.keeper.forget(checkout).await.is_err() {
            tracing::debug!("the daemon is ending");
        }
        let removed = tokio::task::spawn_blocking(move || {
            recovery::remove(&shared.state, &shared.home, checkout)
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, "a checkout that failed is removed at the next start");
        }
    }
}

/// Starts the worker of a checkout, mounts it if `mounts`, and lists it.
pub(super) fn begin(beginning: Beginning, mounts: bool) -> Result<Arc<Checkout>, ApiError> {
    let shared = Arc::clone(&beginning.shared);
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let row = &beginning.row;
    let (id, image, name, dir, opened) = (
        row.checkout,
        row.image,
        row.name.clone(),
        row.dir.clone(),
        row.opened,
    );
    let (tree, reporter) = (beginning.tree.clone(), beginning.reporter.clone());
    let (mut worker, view) = Worker::new(beginning);
    if mounts {
        worker.mount()?;
    }
    let checkout = Arc::new(Checkout {
        fetched_before: shared.home.objects().fetched(),
        shared: Arc::clone(&shared),
        id,
        image,
        name,
        dir,
        opened,
        tree,
        reporter,
        commands,
        view,
        hydration: Hydration::default(),
    });
    lock(&shared.open).insert(id, Arc::clone(&checkout));
    tokio::spawn(worker.run(inbox));
    tokio::spawn(tell_progress(Arc::downgrade(&checkout)));
    Ok(checkout)
}

/// Tells everybody how far a checkout's operations are, as long as it is listed.
async fn tell_progress(checkout: std::sync::Weak<Checkout>) {
    let Some(mut progress) = checkout
        .upgrade()
        .map(|checkout| checkout.reporter.subscribe())
    else {
        return;
    };
    while progress.changed().await.is_ok() {
        let Some(checkout) = checkout.upgrade() else {
            return;
        };
        checkout.shared.events.send(events::Event::Progress {
            checkout: checkout.id,
            name: checkout.name(),
            progress: progress.borrow_and_update().clone(),
        });
        drop(checkout);
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

/// Everything is fetched in the background, from now on and after a restart.
async fn hydrate_later(checkout: &Arc<Checkout>) {
    if let Err(error) = checkout.want_hydration().await {
        tracing::warn!(%error, name = checkout.name, "a hydration ends with the daemon");
    }
    checkout.go_on_hydrating();
}

/// How a person knows the checkout of a row.
pub(super) fn label(row: &CheckoutRow) -> Label {
    Label {
        name: row.name.clone(),
        dir: row.dir.display().to_string(),
    }
}

/// What a row's tree is made over.
pub(super) fn tree_config(
    row: &CheckoutRow,
    boundary: &img_index::Boundary,
    base: Option<&OpenCommit>,
) -> TreeConfig {
    let owner = if row.owner_map {
        OwnerMapping::Map {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    } else {
        OwnerMapping::Keep
    };
    TreeConfig {
        root: base.map(OpenCommit::root),
        boundary: *boundary,
        owner,
    }
}

/// Makes the folder to mount on, or checks that it is empty. Returns whether it was made.
fn prepare_dir(dir: &Path) -> Result<bool, ApiError> {
    crate::mount::detach_dead(dir).map_err(ApiError::failed)?;
    match std::fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => Err(not_empty(dir, "the folder is not empty")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir(dir).map_err(|error| {
                ApiError::usage(format!("{} cannot be made: {error}.", dir.display()))
            })?;
            Ok(true)
        }
        Err(error) => Err(ApiError::usage(format!(
            "{} cannot be mounted on: {error}.",
            dir.display()
        ))),
    }
}

fn not_empty(dir: &Path, why: &str) -> ApiError {
    ApiError::new(
        Kind::NotEmpty,
        format!("Nothing can be checked out at {}: {why}.", dir.display()),
        "Choose a folder that is empty or does not exist.",
    )
}

/// Marks a folder or a checkout as being opened, or as waiting for a grant, while it lives.
pub(super) struct Claim<'a> {
    shared: &'a Shared,
    what: Opening,
}

impl<'a> Claim<'a> {
    fn new(shared: &'a Shared, what: Opening) -> Option<Self> {
        let new = lock(&shared.opening).insert(what.clone());
        new.then_some(Self { shared, what })
    }

    /// Claims a checkout, so that a grant to it is not given back.
    pub(super) fn checkout(shared: &'a Shared, checkout: CheckoutId) -> Option<Self> {
        Self::new(shared, Opening::Checkout(checkout))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.shared.opening).remove(&self.what);
    }
}

/// Commands that wait for a checkout's worker.
const COMMANDS_MAX: usize = 64;
/// How often everybody is told of progress at most.
const PROGRESS_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);
