//! What a home lacks of a root that it once had complete: a home that went back in time, or lost objects.
//!
//! The walk goes down from the root, through what the home says it has not got, and reads the objects from
//! whatever this device has on its disk, own or fetched.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use img_types::ObjectId;
use img_types::limits::IDS_PER_REQUEST_MAX;
use img_types::object::{ObjectKind, Parsed};

use crate::home::CallError;
use crate::objects::Objects;

/// Asks a home what it lacks.
pub trait Asker: Sync {
    /// Positions, in `ids`, of objects that the home lacks or does not have complete.
    fn missing(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<u32>, CallError>>;
}

/// What a home lacks of a root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Objects that this device has, children before their parents.
    pub here: Vec<ObjectId>,
    /// Objects that it has not: what lies below them is not known.
    pub nowhere: Vec<ObjectId>,
}

/// Finds what the home lacks of a root.
///
/// # Errors
/// The home does not answer, or not to the question.
pub async fn lacking(
    home: &dyn Asker,
    objects: &Arc<Objects>,
    root: ObjectId,
) -> Result<Lacking, CallError> {
    let mut found = Lacking::default();
    let mut met = BTreeSet::from([root]);
    let mut level = vec![root];
    while !level.is_empty() {
        let mut below = Vec::new();
        for ids in level.chunks(IDS_PER_REQUEST_MAX) {
            let positions = home.missing(ids.to_vec()).await?;
            let absent = positions.iter().map(|at| ids.get(*at as usize).copied());
            let absent: Option<Vec<_>> = absent.collect();
            let absent = absent.ok_or(CallError::Protocol("no positions"))?;
            let objects = Arc::clone(objects);
            let read = tokio::task::spawn_blocking(move || {
                let children = |id: &ObjectId| children(&objects.object_bytes(id)?);
                let read = absent.into_iter().map(|id| (id, children(&id)));
                read.collect::<Vec<_>>()
            });
            for (id, children) in read.await.map_err(|_| CallError::Away)? {
                let Some(children) = children else {
                    found.nowhere.push(id);
                    continue;
                };
                found.here.push(id);
                below.extend(children.into_iter().filter(|child| met.insert(*child)));
            }
        }
        level = below;
    }
    found.here.reverse();
    Ok(found)
}

/// The children of an object; nothing if it does not parse.
fn children(bytes: &[u8]) -> Option<Vec<ObjectId>> {
    let header = Parsed::decode(bytes).ok()?.header;
    Some(match header.kind {
        ObjectKind::Node => header.children,
        ObjectKind::Block | ObjectKind::Patch | ObjectKind::Trace => Vec::new(),
    })
}
