//! What differs between two states of an image, as a person asks for it.

use std::sync::Arc;

use img_index::FileKind;
use img_types::ImageName;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::paths::with_path;
use super::{CommitSpec, Images, Local, NamedRoot};
use crate::diff::{Change, DiffError, How, diff};
use crate::error::{ApiError, Kind};
use crate::home::CallError;
use crate::import::Cancel;
use crate::objects::FetchError;

/// A comparison that is wanted.
#[derive(Debug, Clone)]
pub struct DiffRequest {
    /// Of which image.
    pub name: ImageName,
    /// What it was; the commit that the checkout stands on where nothing is said.
    pub from: Option<CommitSpec>,
    /// What it is, where `from` is said; `now` where nothing is said, else the head.
    pub to: Option<CommitSpec>,
    /// What the checkout is now.
    pub now: Option<NamedRoot>,
    /// What the checkout stands on.
    pub base: Option<NamedRoot>,
    /// What is known here beside the history.
    pub local: Local,
}

/// How many paths differ.
#[derive(Debug, Default)]
struct Counts {
    added: u64,
    removed: u64,
    modified: u64,
    renamed: u64,
}

impl Images {
    /// Compares two states: one line for each path that differs goes to `lines`.
    ///
    /// # Errors
    /// There is no such state, or a part of one cannot be had.
    pub async fn diff(
        &self,
        request: DiffRequest,
        lines: mpsc::Sender<Value>,
    ) -> Result<Value, ApiError> {
        let name = request.name.as_str();
        let (from, to) = match (request.from, request.base, request.now) {
            // Both are known here, whatever the home has of the image.
            (None, Some(base), Some(now)) => (base, now),
            (None, ..) => {
                return Err(ApiError::usage(format!(
                    "{name} is not checked out on this device: say which commits are to be compared, as in `imgctl diff {name} head~1 head`."
                )));
            }
            (Some(from), _, now) => {
                // What is here already can be compared while the home is away.
                let image = self.find_seen(&request.name).await?;
                let from = self.readable(&image, &from, &request.local).await?;
                let to = match (request.to, now) {
                    (None, Some(now)) => now,
                    (to, _) => {
                        let to = to.unwrap_or(CommitSpec::Head { before: 0 });
                        self.readable(&image, &to, &request.local).await?
                    }
                };
                (from, to)
            }
        };
        let objects = Arc::clone(self.home.objects());
        let cancel = CancelOnDrop(Cancel::default());
        let cancelled = cancel.0.clone();
        let compared = tokio::task::spawn_blocking(move || {
            let mut counts = Counts::default();
            let mut tell = |change: Change| {
                counts.add(&change);
                let told = lines.blocking_send(to_json(&change));
                told.map_err(|_| DiffError::Cancelled)
            };
            let (runtime, before, after) = (Handle::current(), from.root(), to.root());
            diff(&objects, &runtime, before, after, &cancelled, &mut tell)?;
            Ok(counts)
        });
        let compared = compared.await.map_err(ApiError::failed)?;
        let counts = compared.map_err(|error| self.explain_diff(&error, name))?;
        Ok(json!({
            "from": from.id,
            "to": to.id,
            "added": counts.added,
            "removed": counts.removed,
            "modified": counts.modified,
            "renamed": counts.renamed,
        }))
    }

    fn explain_diff(&self, error: &DiffError, name: &str) -> ApiError {
        match error {
            DiffError::Fetch(FetchError::Away) => self.explain(&CallError::Away, name),
            DiffError::Fetch(FetchError::Never) => self.explain(&self.home.absence(), name),
            DiffError::Fetch(FetchError::Missing(_) | FetchError::Corrupt(_))
            | DiffError::Misplaced(_)
            | DiffError::Nameless(_) => ApiError::new(
                Kind::Corrupt,
                format!("A part of {name} cannot be had: {error}."),
                "If it was a checkpoint that newer ones replace meanwhile, ask again; else ask whoever runs the home. `imgctl doctor` checks this device.",
            ),
            DiffError::Fetch(FetchError::Store(_)) | DiffError::Cancelled => {
                ApiError::failed(error)
            }
        }
    }
}

impl Counts {
    fn add(&mut self, change: &Change) {
        let count = match change.how {
            How::Added => &mut self.added,
            How::Removed => &mut self.removed,
            How::Modified(_) => &mut self.modified,
            How::Renamed(..) => &mut self.renamed,
        };
        *count += 1;
    }
}

fn to_json(change: &Change) -> Value {
    let (word, what) = match &change.how {
        How::Added => ("added", None),
        How::Removed => ("removed", None),
        How::Modified(what) => ("modified", Some(what)),
        How::Renamed(_, what) => ("renamed", Some(what)),
    };
    let what: Vec<_> = what.into_iter().flat_map(|what| what.words()).collect();
    let line = json!({ "change": word, "kind": kind(change.kind), "what": what });
    let mut line = with_path(line, &change.path);
    if let How::Renamed(from, _) = &change.how {
        let from = with_path(json!({}), from);
        line["from"] = from["path"].clone();
        if let Some(bytes) = from.get("path_b64") {
            line["from_b64"] = bytes.clone();
        }
    }
    line
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
        FileKind::Socket => "socket",
    }
}

/// Ends a comparison when its caller has gone.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkouts::scene::Scene;

    #[tokio::test]
    async fn what_a_checkout_stands_on_is_compared_also_where_the_home_has_no_such_image() {
        let scene = Scene::new().await;
        let head = scene.stolen().head.unwrap();
        let base = NamedRoot::new(head.id, head.root());
        let request = DiffRequest {
            name: ImageName::parse("gone").unwrap(),
            from: None,
            to: None,
            now: Some(base),
            base: Some(base),
            local: Local::default(),
        };
        let (lines, _told) = mpsc::channel(1);
        let compared = scene.images().diff(request, lines).await.unwrap();
        assert_eq!(compared["from"], json!(head.id));
        assert_eq!(compared["modified"], 0);
        let calls = scene.fake.lock().calls.clone();
        assert!(!calls.contains(&"images") && !calls.contains(&"log"));
    }
}
