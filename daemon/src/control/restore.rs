//! `/v1/checkouts/{checkout}/restore`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;

use super::body::parse;
use super::checkouts::Address;
use super::stream::{self, HangUp};
use crate::checkouts::RestoreRequest;
use crate::daemon::Daemon;
use crate::error::ApiError;
use crate::events::{Phase, Reporter};
use crate::images::CommitSpec;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Restore {
    to: Option<String>,
    force: bool,
}

pub(super) async fn restore(
    State(daemon): State<Arc<Daemon>>,
    Address(which): Address,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Restore = parse(&body)?;
    let request = RestoreRequest {
        to: request.to.as_deref().map(CommitSpec::parse).transpose()?,
        force: request.force,
    };
    let work = async move { member.checkouts.restore(&which, request).await };
    Ok(stream::answer(
        Reporter::new(Phase::Fetch),
        stream::no_lines(),
        HangUp::GoesOn,
        work,
    ))
}
