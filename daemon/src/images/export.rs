//! Writing a commit of an image somewhere else on this device.

use std::path::PathBuf;
use std::sync::Arc;

use img_index::Boundary;
use img_seal::Reference;
use img_types::ImageName;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::paths::with_path;
use super::{CommitSpec, Images, Local};
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::export::{Export, ExportError, ExportKind};
use crate::home::CallError;
use crate::import::Cancel;
use crate::objects::FetchError;

/// An export that is wanted.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// Of which image.
    pub name: ImageName,
    /// Where to; absolute.
    pub dest: PathBuf,
    /// Of which state; the head where nothing is said.
    pub at: Option<CommitSpec>,
    /// What is known here beside the history.
    pub local: Local,
    /// Which part of it.
    pub path: Option<PathBuf>,
    /// As what; by destination and content where nothing is said.
    pub form: Option<ExportKind>,
}

/// The state of a checkout, sealed on this device.
#[derive(Debug, Clone, Copy)]
pub struct LocalState {
    /// Its root.
    pub root: Reference,
    /// Where its index nodes end.
    pub boundary: Boundary,
}

impl Images {
    /// Writes a commit, or the state of a checkout that is given, to a folder, a raw file or a tar.
    ///
    /// # Errors
    /// There is no such commit or path, the destination cannot be written, or the home is away.
    pub async fn export(
        &self,
        request: ExportRequest,
        local: Option<LocalState>,
        reporter: &Reporter,
    ) -> Result<Value, ApiError> {
        reporter.phase(Phase::Export, None);
        let (state, commit) = match local {
            Some(state) => (state, None),
            None => {
                // What is here already can be written while the home is away.
                let image = self.find_seen(&request.name).await?;
                let head = CommitSpec::Head { before: 0 };
                let commit = self
                    .readable(&image, request.at.as_ref().unwrap_or(&head), &request.local)
                    .await?;
                let state = LocalState {
                    root: commit.root(),
                    boundary: image.descriptor.boundary,
                };
                (state, Some(commit.id))
            }
        };
        let export = Export {
            objects: Arc::clone(self.home.objects()),
            root: state.root,
            boundary: state.boundary,
            path: request.path,
            kind: request.form,
            dest: request.dest,
            // A revoked device gets no more than it has.
            partial: self.home.revocation().is_some(),
        };
        let cancel = CancelOnDrop(Cancel::default());
        let (told, cancelled) = (reporter.clone(), cancel.0.clone());
        let exported =
            tokio::task::spawn_blocking(move || export.run(&Handle::current(), &told, &cancelled));
        let exported = exported
            .await
            .map_err(ApiError::failed)?
            .map_err(|error| self.explain_export(&error, request.name.as_str()))?;
        let skipped = exported
            .skipped
            .iter()
            .map(|skipped| with_path(json!({ "reason": skipped.reason }), &skipped.path));
        Ok(json!({
            "commit": commit,
            "files": exported.files,
            "bytes": exported.bytes,
            "skipped": skipped.collect::<Vec<_>>(),
        }))
    }

    fn explain_export(&self, error: &ExportError, name: &str) -> ApiError {
        match error {
            ExportError::NoSuchPath => {
                ApiError::not_found(format!("There is nothing at that path in {name}."), "")
            }
            ExportError::NotEmpty => ApiError::new(
                Kind::NotEmpty,
                "Something stands at the destination already. Nothing was written.",
                "Choose a folder that is empty, or a path that does not exist.",
            ),
            ExportError::NotADisk => ApiError::usage(format!(
                "{name} is no single file; export it to a folder or a .tar, or name a file with --path."
            )),
            ExportError::Dest(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                ApiError::new(
                    Kind::NoRoom,
                    "There is no room at the destination.",
                    "Make room and export to a fresh place.",
                )
            }
            ExportError::Dest(error) if error.kind() == std::io::ErrorKind::NotFound => {
                ApiError::not_found(
                    format!("The destination cannot be written: {error}."),
                    "The folder around it has to exist.",
                )
            }
            ExportError::Fetch(FetchError::Away) => self.explain(&CallError::Away, name),
            ExportError::Fetch(FetchError::Never) => self.explain(&self.home.absence(), name),
            ExportError::Fetch(FetchError::Missing(_) | FetchError::Corrupt(_))
            | ExportError::Misplaced(_)
            | ExportError::Malformed(_) => ApiError::new(
                Kind::Corrupt,
                format!(
                    "A part of {name} cannot be had: {error}. What was written so far is sound, but not whole."
                ),
                "Ask whoever runs the home; `imgctl doctor` checks this device.",
            ),
            error => ApiError::failed(error),
        }
    }
}

/// Ends an export when its caller has gone.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
