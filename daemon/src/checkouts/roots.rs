//! States of this device's checkouts that can be read: those of checkpoints, and the one that is now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use img_seal::Reference;
use img_types::{CheckoutId, CommitId, ImageId, ImageName};

use super::{Checkout, Checkouts, Which, ending};
use crate::error::{ApiError, Kind};
use crate::images::{Local, LocalCheckpoint, NamedRoot};
use crate::state::{CheckpointRow, Database, StateError};

/// What the state folder knows of an image's checkouts.
#[derive(Default)]
struct Rows {
    roots: BTreeMap<[u8; 32], Reference>,
    past: BTreeMap<CheckoutId, Vec<CheckpointRow>>,
    signed: Vec<Vec<u8>>,
    bases: Vec<Vec<u8>>,
}

impl Checkouts {
    /// What is known here of an image beside its history at home.
    pub async fn local_of(&self, image: ImageId) -> Local {
        let of_image = self.shared.of_image(image);
        let ids: Vec<_> = of_image.iter().map(|checkout| checkout.id).collect();
        let rows = self
            .shared
            .state
            .with(move |db| rows(db, image, &ids))
            .await;
        let rows = rows.unwrap_or_else(|error| {
            tracing::warn!(%error, "what is known of checkouts cannot be read");
            Rows::default()
        });
        let checkpoints = of_image.iter().flat_map(|checkout| {
            let view = checkout.view.borrow();
            let (base, dir, roots) = (view.base, checkout.dir.clone(), &rows.roots);
            let base = base.map(|base| base.id);
            // The newest may be sealed and its root not written down yet.
            let sealed = checkout
                .tree
                .as_ref()
                .map(|tree| (tree.sealed_upto(), tree.root()));
            let sealed = sealed.unwrap_or_default();
            let past = rows.past.get(&checkout.id).into_iter().flatten();
            // One that becomes the past just now may be in both.
            let past = past.filter(|row| !view.checkpoints.contains(row));
            let past = past.map(|row| (row.clone(), None));
            let now = view.checkpoints.clone().into_iter();
            let all: Vec<_> = past.chain(now.map(|row| (row, base))).collect();
            all.into_iter().map(move |(row, base)| {
                let newest = sealed.1.filter(|_| sealed.0 == row.generation);
                LocalCheckpoint {
                    base,
                    dir: dir.clone(),
                    root: roots.get(&row.checkpoint).copied().or(newest),
                    row,
                }
            })
        });
        Local {
            checkpoints: checkpoints.collect(),
            signed: rows.signed,
            bases: rows.bases,
        }
    }

    /// The same for the image of a name, if it is checked out here. Checkpoints that are just being sealed are waited
    /// for.
    pub async fn local_named(&self, name: &ImageName) -> Local {
        let open = self.shared.list();
        let of_name = open
            .iter()
            .filter(|checkout| checkout.name() == name.as_str());
        let of_name: Vec<_> = of_name.collect();
        let Some(image) = of_name.first().map(|checkout| checkout.image()) else {
            return Local::default();
        };
        for checkout in of_name {
            // Whoever names one that is not sealed hears of it then.
            let _ = checkout.sealed().await;
        }
        self.local_of(image).await
    }

    /// The state of a checkout as it is now, sealed on this device, and the image's name; nothing if there is none.
    ///
    /// # Errors
    /// More than one is meant, the disk is full, or changes cannot be sealed.
    pub async fn now(&self, which: &Which) -> Result<Option<(Arc<Checkout>, NamedRoot)>, ApiError> {
        let checkout = match self.find(which) {
            Ok(checkout) => checkout,
            Err(error) if error.kind == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let cut = checkout.checkpoint(String::new()).await?;
        checkout.sealed().await?;
        let root = checkout.tree.as_ref().and_then(|tree| tree.root());
        let id = cut["checkpoint"].as_str().and_then(parse_id);
        let (Some(root), Some(id)) = (root, id) else {
            return Ok(None);
        };
        Ok(Some((checkout, NamedRoot::new(id, root))))
    }
}

impl Checkout {
    /// The image's name, and the commit that the checkout stands on.
    pub fn standing(&self) -> (String, Option<NamedRoot>) {
        (self.name(), self.view.borrow().base)
    }

    /// Waits until everything that was cut before has been sealed. What failed before may succeed now: it is tried once
    /// more.
    pub(super) async fn sealed(&self) -> Result<(), ApiError> {
        let Some(tree) = &self.tree else {
            return Ok(());
        };
        let (upto, mut view) = (tree.closed_upto(), self.view.clone());
        let failures = view.borrow().seal_failures;
        while tree.sealed_upto() < upto {
            {
                let shown = view.borrow_and_update();
                if shown.discarding {
                    return Err(ending());
                }
                if let Some(told) = shown.unsealed.clone()
                    && shown.seal_failures > failures
                {
                    return Err(told);
                }
            }
            // The tree is ahead of its worker's view by a moment.
            let changed = tokio::time::timeout(LOOK_AGAIN, view.changed()).await;
            if let Ok(Err(_)) = changed {
                return Err(ending());
            }
        }
        Ok(())
    }
}

fn rows(db: &mut Database, image: ImageId, ids: &[CheckoutId]) -> Result<Rows, StateError> {
    let mut rows = Rows::default();
    for id in ids {
        let roots = db.checkpoint_roots(*id)?.into_iter();
        rows.roots
            .extend(roots.map(|kept| (kept.checkpoint, kept.root)));
        rows.past.insert(*id, db.past_checkpoints(*id)?);
        rows.signed
            .extend(db.pending_commit(*id)?.map(|pending| pending.record));
    }
    let of_image = db.checkouts()?.into_iter().filter(|row| row.image == image);
    rows.bases.extend(of_image.filter_map(|row| row.base));
    Ok(rows)
}

fn parse_id(text: &str) -> Option<CommitId> {
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
    Some(CommitId::from_bytes(bytes.try_into().ok()?))
}

/// How long a change of the view is waited for before the tree is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
