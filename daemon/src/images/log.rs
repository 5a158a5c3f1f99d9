//! The history of an image as a person sees it: its commits, and beside them what is not in the head's history yet.

use std::cmp::Reverse;
use std::path::PathBuf;

use img_records::CommitKind;
use img_seal::Reference;
use img_types::{CommitId, ImageId, Seq, WallMillis};
use serde_json::{Value, json};

use super::{CommitSpec, Image, Images, NamedRoot};
use crate::commits::OpenCommit;
use crate::events::time;
use crate::state::CheckpointRow;

/// A checkpoint that a checkout of this device took and that is no commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCheckpoint {
    /// The cut.
    pub row: CheckpointRow,
    /// The commit that the checkout stands on; nothing where the checkout has gone on to a later one.
    pub base: Option<CommitId>,
    /// The checkout's folder.
    pub dir: PathBuf,
    /// The root that it was sealed into, as long as that is kept.
    pub root: Option<Reference>,
}

/// What is known on this device of an image beside its history at home.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// Checkpoints of its checkouts.
    pub checkpoints: Vec<LocalCheckpoint>,
    /// Signed commits that the home has not acknowledged yet.
    pub signed: Vec<Vec<u8>>,
    /// The signed commits on which its checkouts stand.
    pub bases: Vec<Vec<u8>>,
}

impl Local {
    /// A checkpoint that can be found without asking anybody, if only one is meant.
    pub fn only_here(&self, spec: &CommitSpec) -> Option<NamedRoot> {
        if let CommitSpec::Head { .. } = spec {
            return None;
        }
        let ids = self.checkpoints.iter();
        let ids = ids.map(|own| (CommitId::from_bytes(own.row.checkpoint), own.root));
        let mut found = ids.filter(|(id, _)| spec.may_mean(id));
        match (found.next(), found.next()) {
            (Some((id, Some(root))), None) => Some(NamedRoot::new(id, root)),
            _ => None,
        }
    }
}

impl Images {
    /// The history as `log` shows it, with what is not in it yet in front: what exists only here, and what is staged
    /// at home; and checkpoints of the past between its commits, by their time. `stale` says that the home was not asked, so that only a part of it is known.
    pub async fn log(
        &self,
        image: &Image,
        history: &[OpenCommit],
        local: &Local,
        stale: bool,
    ) -> Vec<Value> {
        let mut beside: Vec<(WallMillis, Value)> = Vec::new();
        let mut past = Vec::new();
        for checkpoint in &local.checkpoints {
            let mut row = self.checkpoint_json(checkpoint);
            let staged = self.staged_of(image, checkpoint).await;
            row["staged"] = json!(staged.map(|staged| staged.id));
            let rows = match checkpoint.base {
                Some(_) => &mut beside,
                None => &mut past,
            };
            rows.push((checkpoint.row.time, row));
        }
        for signed in &local.signed {
            let opened = self.trusted(|trust| trust.reopen_commit(image.row.image, signed));
            // Its receipt may have come since it was looked up.
            let opened = opened.ok().filter(|signed| {
                let mut known = history.iter();
                known.all(|commit| commit.id != signed.id)
            });
            let row =
                opened.map(|commit| (commit.record().clock, self.commit_json(&commit, false)));
            beside.extend(row);
        }
        for staged in &image.row.staged {
            match self.open_staged(image, staged).await {
                Ok(staged) => {
                    let mut row = self.commit_json(&staged, true);
                    // It has none before it is the head.
                    row["seq"] = Value::Null;
                    row["kind"] = json!(kind(CommitKind::Checkpoint));
                    // A person's is staged in the same way.
                    row["automatic"] = Value::Null;
                    beside.push((staged.record().clock, row));
                }
                // Nobody takes it for history, and the rest of the log is as good without it.
                Err(error) => tracing::warn!(%error, "a staged record is not shown"),
            }
        }
        beside.sort_by_key(|(time, _)| Reverse(*time));
        past.sort_by_key(|(time, _)| *time);
        let mut rows: Vec<_> = beside.into_iter().map(|(_, row)| row).collect();
        for commit in history {
            let clock = commit.record().clock;
            while let Some((_, row)) = past.pop_if(|(time, _)| *time > clock) {
                rows.push(row);
            }
            rows.push(self.commit_json(commit, true));
        }
        rows.extend(past.into_iter().rev().map(|(_, row)| row));
        for row in &mut rows {
            row["stale"] = json!(stale);
        }
        rows
    }

    fn checkpoint_json(&self, checkpoint: &LocalCheckpoint) -> Value {
        let (device, row) = (self.home.device(), &checkpoint.row);
        json!({
            "commit": data_encoding::HEXLOWER.encode(&row.checkpoint),
            "seq": null,
            "parent": checkpoint.base,
            "parent_image": null,
            "device": self.device_name(&device),
            "device_id": device,
            "time": time(row.time),
            "message": row.message,
            "kind": kind(CommitKind::Checkpoint),
            "home": false,
            "dir": checkpoint.dir.display().to_string(),
            "dirty_bytes": row.dirty_bytes,
            "automatic": row.automatic,
            "maps": row.maps.word(),
        })
    }

    fn commit_json(&self, commit: &OpenCommit, home: bool) -> Value {
        let record = commit.record();
        let elsewhere = record.parent.filter(|parent| parent.image != record.image);
        json!({
            "commit": commit.id,
            "seq": record.seq,
            "parent": record.parent.map(|parent| parent.commit),
            "parent_image": elsewhere.map(|parent| {
                json!({ "image": parent.image, "name": self.name_seen(parent.image) })
            }),
            "device": self.device_name(&record.device),
            "device_id": record.device,
            "time": time(record.clock),
            "message": commit.private.message,
            "kind": kind(commit.private.kind),
            "automatic": commit.private.kind == CommitKind::Checkpoint,
            "home": home,
            "logical_bytes": commit.private.logical_bytes,
            "files": commit.private.files,
            "sealed_bytes": commit.private.sealed_bytes,
            "maps": commit.private.maps.word(),
        })
    }

    /// Says of each commit in `rows` which of the other images left it as branches. Where a first commit cannot
    /// be had now its branch is not drawn.
    pub async fn draw_branches(&self, image: &Image, others: &[Image], rows: &mut [Value]) {
        let mut left: Vec<(String, Value)> = Vec::new();
        for other in others
            .iter()
            .filter(|other| other.row.image != image.row.image)
        {
            let first = self.first_parent(other).await;
            if let Some(parent) = first.filter(|parent| parent.image == image.row.image) {
                let branch = json!({ "name": other.name().as_str(), "image": other.row.image });
                left.push((parent.commit.to_string(), branch));
            }
        }
        for row in rows {
            let commit = row["commit"].as_str().unwrap_or_default().to_owned();
            let branches = left.iter().filter(|(at, _)| *at == commit);
            row["branches"] = branches.map(|(_, branch)| branch.clone()).collect();
        }
    }

    /// What an image's first commit comes from. It is asked for once: with its receipt it is kept.
    pub(super) async fn first_parent(&self, image: &Image) -> Option<img_records::Parent> {
        let id = image.row.image;
        let kept = self.state.with(move |db| db.acknowledged(id)).await.ok()?;
        let first = kept.first().filter(|first| first.seq == Seq(0));
        match first {
            Some(first) => {
                let signed = img_records::SignedCommit::decode(&first.record).ok()?;
                signed.record.parent
            }
            None => self.first_commit(image).await.ok()?.record().parent,
        }
    }

    /// The name under which an image was last seen; nothing if it is not known here any more.
    fn name_seen(&self, image: ImageId) -> Option<String> {
        let row = tokio::task::block_in_place(|| self.state.now(|db| db.image(image))).ok()??;
        let descriptor = self.trusted(|trust| trust.open_descriptor(image, &row.descriptor));
        Some(descriptor.ok()?.name.to_string())
    }
}

fn kind(kind: CommitKind) -> &'static str {
    match kind {
        CommitKind::Commit => "commit",
        CommitKind::Checkpoint => "checkpoint",
        CommitKind::Branch => "branch",
        CommitKind::Import => "import",
    }
}
