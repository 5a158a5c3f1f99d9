//! Which state a person means by what they wrote: one rule for all verbs.

use img_records::Parent;
use img_seal::Reference;
use img_types::CommitId;

use super::{CommitSpec, Image, Images, Local, LocalCheckpoint};
use crate::commits::OpenCommit;
use crate::error::{ApiError, Kind};

/// A state that a person has named.
#[derive(Debug, Clone)]
pub enum Named {
    /// A commit of the image's history.
    Commit(Box<OpenCommit>),
    /// A record that is staged beside the head.
    Staged(Box<OpenCommit>),
    /// A checkpoint that is only on this device.
    Local(Box<LocalCheckpoint>),
}

/// A state that can be read here: the root of its index.
#[derive(Debug, Clone, Copy)]
pub struct NamedRoot {
    /// What it is called in the log.
    pub id: CommitId,
    root: Reference,
}

impl NamedRoot {
    /// A state by its id and its root.
    pub fn new(id: CommitId, root: Reference) -> Self {
        Self { id, root }
    }

    /// The root of its index.
    pub fn root(&self) -> Reference {
        self.root
    }
}

impl Named {
    /// What it is called in the log.
    pub fn id(&self) -> CommitId {
        match self {
            Self::Commit(commit) | Self::Staged(commit) => commit.id,
            Self::Local(checkpoint) => CommitId::from_bytes(checkpoint.row.checkpoint),
        }
    }
}

impl Images {
    /// Finds a state of an image: a commit, a staged record, or a checkpoint of this device. A checkpoint that is
    /// staged is found by either of its two ids.
    ///
    /// # Errors
    /// There is none, or more than one begins so; or the home is away and it is not known here.
    pub async fn named(
        &self,
        image: &Image,
        spec: &CommitSpec,
        local: &Local,
    ) -> Result<Named, ApiError> {
        let name = image.name();
        let CommitSpec::Prefix(prefix) = spec else {
            let commit = self.in_history(image, spec, local).await?.pop();
            let commit = commit.ok_or_else(|| self.unknown(image))?;
            return Ok(Named::Commit(Box::new(commit)));
        };
        let mut found = Vec::new();
        for checkpoint in &local.checkpoints {
            let id = CommitId::from_bytes(checkpoint.row.checkpoint);
            if id.to_string().starts_with(prefix) {
                found.push(Named::Local(Box::new(checkpoint.clone())));
            }
        }
        for staged in &image.row.staged {
            if staged.commit.to_string().starts_with(prefix) {
                let opened = self.open_staged(image, staged).await?;
                found.push(Named::Staged(Box::new(opened)));
            }
        }
        let is_whole = prefix.len() == 2 * CommitId::LEN;
        let mut missing = None;
        if found.is_empty() || !is_whole {
            match self.in_history(image, spec, local).await {
                Ok(commits) => {
                    let commits = commits.into_iter().map(Box::new).map(Named::Commit);
                    found.extend(commits);
                }
                Err(error) => missing = Some(error),
            }
        }
        match (found.pop(), found.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(_), false) => Err(ApiError::usage(format!(
                "More than one commit or checkpoint of {name} begins with {prefix}; write more digits."
            ))),
            (None, _) => Err(missing.unwrap_or_else(|| self.unknown(image))),
        }
    }

    /// Finds a state that the home knows, as what needs its record does: branching, and checking out.
    ///
    /// # Errors
    /// As [`Self::named`]; or it is only on this device.
    pub async fn at_home(
        &self,
        image: &Image,
        spec: &CommitSpec,
        local: &Local,
    ) -> Result<(OpenCommit, Parent), ApiError> {
        let state = match self.named(image, spec, local).await? {
            Named::Commit(commit) => {
                let parent = Parent {
                    image: image.row.image,
                    commit: commit.id,
                };
                return Ok((*commit, parent));
            }
            Named::Staged(staged) => *staged,
            Named::Local(checkpoint) => match self.staged_of(image, &checkpoint).await {
                Some(staged) => staged,
                None => return Err(only_here(image, &checkpoint)),
            },
        };
        let parent = Self::leaving(image, &state)?;
        Ok((state, parent))
    }

    /// Finds a state to be read on this device.
    ///
    /// # Errors
    /// As [`Self::named`]; or the checkpoint is not kept by itself any more.
    pub async fn readable(
        &self,
        image: &Image,
        spec: &CommitSpec,
        local: &Local,
    ) -> Result<NamedRoot, ApiError> {
        let named = self.named(image, spec, local).await?;
        let id = named.id();
        let root = match named {
            Named::Commit(commit) | Named::Staged(commit) => commit.root(),
            Named::Local(checkpoint) => match checkpoint.root {
                Some(root) => root,
                None => return Err(not_apart(image, &checkpoint)),
            },
        };
        Ok(NamedRoot { id, root })
    }

    /// Finds a state that a checkout of an image can go back to: as [`Self::readable`], or a commit of an image that it
    /// was branched from.
    ///
    /// # Errors
    /// As there.
    pub async fn restorable(
        &self,
        image: &Image,
        spec: &CommitSpec,
        local: &Local,
    ) -> Result<NamedRoot, ApiError> {
        let missing = match self.readable(image, spec, local).await {
            Err(error) if error.kind == Kind::NotFound => error,
            found => return found,
        };
        let (mut of, mut spec) = (image.clone(), spec.clone());
        if let CommitSpec::Head { before } = &mut spec {
            let own = image
                .head
                .as_ref()
                .map_or(0, |head| head.record().seq.0 + 1);
            *before = before.saturating_sub(own);
        }
        for _ in 0..ORIGINS_MAX {
            let Some(left) = self.first_parent(&of).await else {
                break;
            };
            let listing = self.list().await?.images.into_iter();
            let mut listing = listing.filter(|other| other.row.image == left.image);
            let Some(origin) = listing.next() else { break };
            let history = self.history(&origin, usize::MAX).await?;
            let found: Vec<_> = match &mut spec {
                CommitSpec::Head { before } => {
                    let below = history.iter().skip_while(|commit| commit.id != left.commit);
                    let below: Vec<_> = below.collect();
                    let at = usize::try_from(*before).unwrap_or(usize::MAX);
                    *before = before.saturating_sub(below.len() as u64);
                    below.get(at).copied().into_iter().collect()
                }
                CommitSpec::Prefix(prefix) => {
                    let begins = |commit: &&OpenCommit| commit.id.to_string().starts_with(&*prefix);
                    history.iter().filter(begins).collect()
                }
            };
            match found[..] {
                [] => of = origin,
                [commit] => return Ok(NamedRoot::new(commit.id, commit.root())),
                [..] => {
                    return Err(ApiError::usage(format!(
                        "More than one commit of {} begins so; write more digits.",
                        origin.name()
                    )));
                }
            }
        }
        Err(missing)
    }

    /// What is staged at home of a checkpoint: the record of its checkout that has its root.
    pub(super) async fn staged_of(
        &self,
        image: &Image,
        checkpoint: &LocalCheckpoint,
    ) -> Option<OpenCommit> {
        let root = checkpoint.root?;
        let mut staged = image.row.staged.iter();
        let staged = staged.find(|staged| staged.checkout == checkpoint.row.checkout)?;
        let opened = self.open_staged(image, staged).await.ok()?;
        (opened.root() == root).then_some(opened)
    }

    /// Finds commits of the history; while the home is away the one that is known here.
    async fn in_history(
        &self,
        image: &Image,
        spec: &CommitSpec,
        local: &Local,
    ) -> Result<Vec<OpenCommit>, ApiError> {
        let away = match self.resolve(image, spec).await {
            Err(error) if error.kind == Kind::HomeAway => error,
            other => return other,
        };
        let seen = self.history_seen(image, local.bases.clone()).await?;
        let found: Vec<_> = match spec {
            CommitSpec::Head { before } => {
                let mut at = image.head_id();
                for _ in 0..*before {
                    let commit = seen.iter().find(|commit| Some(commit.id) == at);
                    let Some(commit) = commit else { break };
                    at = commit.record().parent.map(|parent| parent.commit);
                }
                seen.into_iter()
                    .filter(|commit| Some(commit.id) == at)
                    .collect()
            }
            CommitSpec::Prefix(prefix) => {
                let begins = |commit: &OpenCommit| commit.id.to_string().starts_with(prefix);
                seen.into_iter().filter(begins).collect()
            }
        };
        match found.len() {
            1 => Ok(found),
            _ => Err(away),
        }
    }

    fn unknown(&self, image: &Image) -> ApiError {
        let name = image.name();
        ApiError::not_found(
            format!("{name} has no such commit or checkpoint."),
            format!("`imgctl log {name}` lists them."),
        )
    }
}

fn only_here(image: &Image, checkpoint: &LocalCheckpoint) -> ApiError {
    let (name, dir) = (image.name(), checkpoint.dir.display());
    let id = CommitId::from_bytes(checkpoint.row.checkpoint);
    ApiError::not_found(
        format!(
            "Checkpoint {} of {name} is not at home: it is only on this device.",
            id.short()
        ),
        format!(
            "`imgctl commit {dir}` brings what is there home as a commit; `imgctl log {name}` shows which checkpoints are staged at home. `imgctl diff` and `imgctl export` take it as it is."
        ),
    )
}

fn not_apart(image: &Image, checkpoint: &LocalCheckpoint) -> ApiError {
    let name = image.name();
    let id = CommitId::from_bytes(checkpoint.row.checkpoint);
    ApiError::not_found(
        format!(
            "Checkpoint {} of {name} is not kept by itself any more: what was changed up to it is in the newer ones.",
            id.short()
        ),
        format!("`imgctl log {name}` lists the newer ones."),
    )
}

/// Branches of branches that are looked through for a commit.
const ORIGINS_MAX: usize = 16;
