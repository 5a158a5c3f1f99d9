//! A seal that needs what is lost: it ends with what a person can act on, or goes on without it.

use std::path::PathBuf;
use std::sync::Arc;

use img_index::{Boundary, Inode};
use img_overlay::GenerationId;
use img_types::CheckoutId;

use super::names::Names;
use super::{Files, Parts, around, files_are_lost, index_is_lost, named, take_out};
use crate::checkouts::Shared;
use crate::checkouts::work::{self, SealingError};
use crate::objects::Objects;
use crate::seal::{SealError, SealedRoot};
use crate::tree::{Closed, Tree};

/// What a seal is of.
pub(in crate::checkouts) struct Place {
    pub(in crate::checkouts) shared: Arc<Shared>,
    pub(in crate::checkouts) checkout: CheckoutId,
    pub(in crate::checkouts) boundary: Boundary,
    pub(in crate::checkouts) name: String,
    pub(in crate::checkouts) dir: PathBuf,
    /// Whether a person wants what is lost to be left out.
    pub(in crate::checkouts) leaves_out: bool,
}

/// Seals the oldest closed generation of a tree, if there is one. Files that have been removed since do not hold it
/// up if parts of them are lost.
///
/// # Errors
/// [`SealingError::Lost`] names files of which something is lost, and [`SealingError::LeftOut`] those that have been
/// removed for it: sealed again, the generation is without them.
pub(in crate::checkouts) async fn seal_oldest(
    place: Place,
    tree: Arc<Tree>,
) -> Result<Option<(GenerationId, SealedRoot)>, SealingError> {
    let Some(closed) = tree.closed_oldest() else {
        return Ok(None);
    };
    match place.seal(&tree, closed).await {
        Err(SealingError::Seal(SealError::Lost(_) | SealError::LostIndex(_))) => {}
        sealed => return sealed.map(Some),
    }
    let Some(closed) = tree.closed_oldest_without_removed() else {
        return Ok(None);
    };
    let base = closed.base;
    match place.seal(&tree, closed).await {
        Err(SealingError::Seal(SealError::Lost(files))) => Err(place.lost(&tree, files).await),
        Err(SealingError::Seal(SealError::LostIndex(gap))) => {
            let around = match base {
                Some(root) => around(place.objects(), root, gap.as_deref()).await,
                None => Vec::new(),
            };
            let told = index_is_lost(&place.name, &place.dir, &around);
            Err(SealingError::Lost(Box::new(told)))
        }
        sealed => sealed.map(Some),
    }
}

impl Place {
    fn objects(&self) -> &Arc<Objects> {
        self.shared.home.objects()
    }

    async fn seal(
        &self,
        tree: &Arc<Tree>,
        closed: Closed,
    ) -> Result<(GenerationId, SealedRoot), SealingError> {
        let (objects, tree) = (Arc::clone(self.objects()), Arc::clone(tree));
        work::seal(objects, tree, closed, self.boundary, self.checkout).await
    }

    /// Takes files out of the tree, or says which they are.
    async fn lost(&self, tree: &Arc<Tree>, files: Vec<Inode>) -> SealingError {
        let whole = Parts {
            contents: vec![(0, u64::MAX)],
            xattrs: Vec::new(),
        };
        let files: Files = files
            .into_iter()
            .map(|file| (file, whole.clone()))
            .collect();
        if self.leaves_out {
            match take_out(tree, files.clone()).await {
                Ok(taken) if taken.any => return SealingError::LeftOut(taken.names),
                // They were written anew since, whole: only an earlier checkpoint lacks something.
                Ok(_) => {}
                Err(error) => return SealingError::Lost(Box::new(error)),
            }
        }
        let names = Names::Tree(tree).of(files.keys().copied().collect()).await;
        let names = named(&files, &names.unwrap_or_default());
        let mut told = files_are_lost(&self.name, &self.dir, &names);
        told.hint = format!(
            "{} A file of which a whole copy is here: copy it to another name and delete it.",
            told.hint
        );
        SealingError::Lost(Box::new(told))
    }
}
