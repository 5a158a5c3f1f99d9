//! `/v1/checkouts/{checkout}/diff`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::body::parse;
use super::checkouts::Address;
use super::stream::{self, HangUp};
use crate::checkouts::Which;
use crate::daemon::Daemon;
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::images::{CommitSpec, DiffRequest};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Diff {
    from: Option<String>,
    to: Option<String>,
}

pub(super) async fn diff(
    State(daemon): State<Arc<Daemon>>,
    Address(which): Address,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Diff = parse(&body)?;
    let from = request.from.as_deref().map(CommitSpec::parse).transpose()?;
    let to = request.to.as_deref().map(CommitSpec::parse).transpose()?;
    if from.is_none() && to.is_some() {
        return Err(ApiError::usage("What is compared with that is not said."));
    }
    let reporter = Reporter::new(Phase::Fetch);
    let (sender, lines) = mpsc::channel(LINES_MAX);
    let work = async move {
        // With two states named nothing is cut.
        let now = match to {
            Some(_) => None,
            None => member.checkouts.now(&which).await?,
        };
        let standing = now.as_ref().map(|(checkout, _)| checkout.standing());
        let name = match (&standing, which) {
            (Some((name, _)), _) => super::body::image_name(name)?,
            (None, Which::Name(name) | Which::NameOrDir(name, _)) => name,
            (None, Which::Dir(dir)) => {
                return Err(ApiError::new(
                    Kind::NotFound,
                    format!("Nothing is checked out at {}.", dir.display()),
                    "`imgctl status` lists the checkouts of this device.",
                ));
            }
        };
        let local = member.checkouts.local_named(&name).await;
        let request = DiffRequest {
            name,
            from,
            to,
            now: now.map(|(_, now)| now),
            base: standing.and_then(|(_, base)| base),
            local,
        };
        member.images.diff(request, sender).await
    };
    Ok(stream::answer(reporter, lines, HangUp::Ends, work))
}

/// Lines that a comparison may be ahead of its reader.
const LINES_MAX: usize = 256;
