//! `/v1/images/{name}/steal` and `branch`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use img_types::limits::MESSAGE_LEN_MAX;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::body::{Answer, absolute, image_name, parse};
use super::checkouts::terms;
use super::stream::{self, HangUp};
use crate::checkouts::{BranchChoice, OpenRequest, StealRequest};
use crate::daemon::Daemon;
use crate::error::ApiError;
use crate::events::{Phase, Reporter};
use crate::images::CommitSpec;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Steal {
    dir: PathBuf,
    /// A name, or an empty one for a free one.
    #[serde(default)]
    branch: Option<String>,
    #[serde(default)]
    reason: String,
}

pub(super) async fn steal(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Steal = parse(&body)?;
    if request.reason.len() > REASON_LEN_MAX {
        return Err(ApiError::usage(format!(
            "A reason has at most {REASON_LEN_MAX} bytes."
        )));
    }
    let branch = match request.branch.as_deref() {
        None => None,
        Some("") => Some(BranchChoice::Free),
        Some(name) => Some(BranchChoice::Named(image_name(name)?)),
    };
    let request = StealRequest {
        open: OpenRequest {
            name: image_name(&name)?,
            dir: absolute(request.dir)?,
            read_only: false,
            at: None,
            terms: terms(None, None)?,
            renews: false,
            hydrate: false,
            take_over: false,
            owner: None,
        },
        branch,
        reason: request.reason,
    };
    let reporter = Reporter::new(Phase::Mount);
    let told = reporter.clone();
    let (sender, lines) = mpsc::channel(LINES_MAX);
    let work = async move { member.checkouts.steal(request, &told, &sender).await };
    Ok(stream::answer(reporter, lines, HangUp::GoesOn, work))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Branch {
    to: String,
    #[serde(default)]
    at: Option<String>,
}

pub(super) async fn branch(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    let member = daemon.member()?;
    let request: Branch = parse(&body)?;
    let at = CommitSpec::parse(request.at.as_deref().unwrap_or("head"))?;
    let (name, to) = (image_name(&name)?, image_name(&request.to)?);
    let local = member.checkouts.local_named(&name).await;
    let branched = member.images.branch(&name, &to, &at, &local).await?;
    Ok(Json(branched))
}

/// Longest reason: it goes into the message of a branch's first commit, after a few words.
const REASON_LEN_MAX: usize = MESSAGE_LEN_MAX / 2;
/// Lines of its own that a steal may be ahead of its reader.
const LINES_MAX: usize = 4;
