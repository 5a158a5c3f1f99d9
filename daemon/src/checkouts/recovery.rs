//! Brings every checkout back after a restart, whatever ended the daemon.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use img_types::CheckoutId;
use tokio::runtime::Handle;

use super::opening::{begin, label, tree_config};
use super::run_id::RunIds;
use super::worker::Beginning;
use super::{Checkouts, Shared, deletion, metadata};
use crate::cgroup::Cgroup;
use crate::commits::{OpenCommit, OpenDescriptor};
use crate::config::Checkpoints;
use crate::events::{Events, Phase, Reporter};
use crate::home::Home;
use crate::images::Images;
use crate::keeper::{self, Clock, Keeper};
use crate::state::{CheckoutRow, Stage, State};
use crate::tree::{ObjectSource, Tree, TreeError};

pub(super) use super::worker::remove;

impl Checkouts {
    /// Goes on with every checkout of the state folder: trees are recovered, dead mounts detached and mounted
    /// anew, commits and releases that were under way resumed.
    ///
    /// # Errors
    /// The state folder fails. A checkout that does not come back is left out, with its work, and logged.
    pub async fn recover(
        home: Arc<Home>,
        images: Images,
        state: State,
        pace: Checkpoints,
        events: Events,
        socket: &Path,
    ) -> anyhow::Result<Arc<Self>> {
        let applications = thaw_all(&state).await?;
        let rows = state.with(|db| db.checkouts()).await?;
        let (unfinished, rows): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|row| row.stage == Stage::Opening);
        for row in unfinished {
            // A grant that comes for it still is given back by whoever repeats the call.
            let (state, home) = (state.clone(), Arc::clone(&home));
            tokio::task::spawn_blocking(move || remove(&state, &home, row.checkout)).await??;
        }
        let mut kept = Vec::new();
        for row in &rows {
            if let Some(holder) = &row.holder {
                kept.push((label(row), keeper::decode(holder)?));
            }
        }
        let gone = Mutex::new(deletion::gone(&rows, &kept, &state).await);
        let keeper = Keeper::start(Arc::clone(&home), state.clone(), events.clone(), kept);
        let shared = Arc::new(Shared {
            home,
            images,
            state,
            pace,
            events,
            keeper,
            clock: Clock::new(),
            run_ids: RunIds::beside(socket),
            open: Mutex::default(),
            opening: Mutex::default(),
            seen: Mutex::new(BTreeMap::new()),
            gone,
            searched: Mutex::default(),
            looks_later: AtomicBool::new(false),
        });
        for row in rows {
            let (checkout, dir) = (row.checkout, row.dir.clone());
            let application = applications.get(&checkout).cloned();
            if let Err(error) = recover_one(&shared, row, application).await {
                tracing::error!(
                    checkout = %checkout.short(), dir = %dir.display(), "a checkout does not come back: {error:#}"
                );
            }
        }
        Ok(Arc::new(Self { shared }))
    }
}

/// Lets all applications go on, first of all: the daemon may have died while one was stopped.
async fn thaw_all(state: &State) -> anyhow::Result<BTreeMap<CheckoutId, Cgroup>> {
    let rows = state.with(|db| db.applications()).await?;
    let cgroups = rows.into_iter().map(|(checkout, dir)| {
        let cgroup = Cgroup::at(dir);
        cgroup.thaw();
        (checkout, cgroup)
    });
    Ok(cgroups.collect())
}

async fn recover_one(
    shared: &Arc<Shared>,
    row: CheckoutRow,
    application: Option<Cgroup>,
) -> anyhow::Result<()> {
    let checkout = row.checkout;
    let descriptor = shared
        .images
        .trusted(|trust| trust.open_descriptor(row.image, &row.descriptor))?;
    let base = open_base(shared, &row)?;
    let (checkpoints, wishes, pending, hydration, taken) = shared
        .state
        .with(move |db| {
            let wishes = db.wishes(checkout)?;
            Ok((
                db.checkpoints(checkout)?,
                wishes,
                db.pending_commit(checkout)?,
                db.hydration(checkout)?,
                db.taken(checkout)?,
            ))
        })
        .await?;
    let dir = row.dir.clone();
    tokio::task::spawn_blocking(move || crate::mount::detach_dead(&dir)).await??;
    let tree = match row.stage {
        Stage::Discarding => None,
        _ => Some(recover_tree(shared, &row, &descriptor, base.as_ref()).await?),
    };
    let mounts = row.stage == Stage::Open;
    let holder = shared.keeper.holder(checkout);
    let has_late_lease = row.read_only && holder.is_some_and(|holder| holder.token().is_some());
    let beginning = Beginning {
        shared: Arc::clone(shared),
        row,
        descriptor,
        tree,
        base,
        checkpoints,
        wishes,
        taken,
        reporter: Reporter::new(Phase::Mount),
        pending: pending.is_some() || has_late_lease,
        application,
    };
    let checkout = begin(beginning, false)?;
    if mounts && let Some(hydration) = hydration {
        checkout.hydrate_again(hydration);
    }
    if mounts && checkout.has_token() {
        metadata::start(&checkout);
    }
    if mounts && let Err(error) = checkout.mount_again().await {
        tracing::error!(dir = %checkout.dir.display(), %error, "a checkout is not mounted");
    }
    Ok(())
}

fn open_base(shared: &Shared, row: &CheckoutRow) -> anyhow::Result<Option<OpenCommit>> {
    let Some(base) = &row.base else {
        return Ok(None);
    };
    // It was verified when it became the base; a revocation since then does not change that.
    let base = shared
        .images
        .trusted(|trust| trust.reopen_commit(row.image, base))?;
    Ok(Some(base))
}

async fn recover_tree(
    shared: &Shared,
    row: &CheckoutRow,
    descriptor: &OpenDescriptor,
    base: Option<&OpenCommit>,
) -> anyhow::Result<Arc<Tree>> {
    let config = tree_config(row, &descriptor.boundary, base);
    let dir = shared.state.checkout_dir(row.checkout);
    let source = Arc::new(ObjectSource {
        objects: Arc::clone(shared.home.objects()),
        checkout: row.checkout,
    });
    let recovered = tokio::task::spawn_blocking(move || {
        private_dir(&dir)?;
        match Tree::recover(&dir, config.clone(), source.clone(), &Handle::current()) {
            // The daemon ended between the grant and the tree: nothing was written yet.
            Err(TreeError::Exists { exists: false }) => {
                Tree::create(&dir, config, source, &Handle::current())
            }
            recovered => recovered,
        }
    });
    Ok(recovered.await??)
}

/// Makes a folder that only its owner enters; its name is durable when this returns.
pub(super) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    match dir.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
