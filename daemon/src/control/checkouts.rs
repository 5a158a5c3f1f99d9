//! `/v1/checkouts`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use img_proto::LeaseTerms;
use img_types::LeaseMode;
use img_types::limits::LEASE_TTL_DEFAULT;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Answer, absolute, image_name, parse};
use super::stream::{self, HangUp};
use crate::checkouts::{CommitRequest, OpenRequest, OwnerChoice, Which};
use crate::daemon::Daemon;
use crate::error::ApiError;
use crate::events::{Phase, Reporter};
use crate::images::CommitSpec;

pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    Ok(Json(Value::Array(member.checkouts.list_json())))
}

pub(super) async fn status(
    State(daemon): State<Arc<Daemon>>,
    Path(checkout): Path<String>,
) -> Answer {
    let member = daemon.member()?;
    let checkout = member.checkouts.find(&which(&checkout)?)?;
    Ok(Json(checkout.to_json()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    name: String,
    dir: PathBuf,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    lease_ms: Option<u64>,
    #[serde(default)]
    offline_ms: Option<u64>,
    #[serde(default)]
    hydrate: bool,
    #[serde(default)]
    take_over: bool,
    #[serde(default)]
    owner: Option<OwnerChoice>,
}

pub(super) async fn open(
    State(daemon): State<Arc<Daemon>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Open = parse(&body)?;
    let terms = terms(request.lease_ms, request.offline_ms)?;
    if request.at.is_some() && !request.read_only {
        return Err(ApiError::usage(
            "An older commit can only be checked out read-only: add --read-only.",
        ));
    }
    let request = OpenRequest {
        name: image_name(&request.name)?,
        dir: absolute(request.dir)?,
        read_only: request.read_only,
        at: request.at.as_deref().map(CommitSpec::parse).transpose()?,
        terms,
        hydrate: request.hydrate,
        take_over: request.take_over,
        owner: request.owner,
    };
    let reporter = Reporter::new(Phase::Mount);
    let told = reporter.clone();
    let work = async move {
        let checkout = member.checkouts.open(request, &told).await?;
        Ok(checkout.to_json())
    };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::GoesOn,
        work,
    ))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Checkpoint {
    message: String,
}

pub(super) async fn checkpoint(
    State(daemon): State<Arc<Daemon>>,
    Path(checkout): Path<String>,
    body: Bytes,
) -> Answer {
    let member = daemon.member()?;
    let request: Checkpoint = parse(&body)?;
    let checkout = member.checkouts.find(&which(&checkout)?)?;
    Ok(Json(checkout.checkpoint(request.message).await?))
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Commit {
    message: String,
    adopt_orphan: bool,
    take_over: bool,
    keep: bool,
    wait: bool,
}

impl Default for Commit {
    fn default() -> Self {
        Self {
            message: String::new(),
            adopt_orphan: false,
            take_over: false,
            keep: false,
            wait: true,
        }
    }
}

pub(super) async fn commit(
    State(daemon): State<Arc<Daemon>>,
    Path(checkout): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Commit = parse(&body)?;
    let checkout = member.checkouts.find(&which(&checkout)?)?;
    let reporter = checkout.reporter().clone();
    let work = async move {
        let wait = request.wait;
        let request = CommitRequest {
            message: request.message,
            adopt_orphan: request.adopt_orphan,
            take_over: request.take_over,
            keep: request.keep,
        };
        checkout.commit(request, wait).await
    };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::GoesOn,
        work,
    ))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Release {
    discard: bool,
}

pub(super) async fn release(
    State(daemon): State<Arc<Daemon>>,
    Path(checkout): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Release = parse(&body)?;
    let checkout = member.checkouts.find(&which(&checkout)?)?;
    let reporter = checkout.reporter().clone();
    let work = async move { checkout.release(request.discard).await };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::GoesOn,
        work,
    ))
}

pub(super) async fn hydrate(
    State(daemon): State<Arc<Daemon>>,
    Path(checkout): Path<String>,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let checkout = member.checkouts.find(&which(&checkout)?)?;
    let reporter = Reporter::new(Phase::Fetch);
    let told = reporter.clone();
    let work = async move {
        let (objects, bytes) = checkout.hydrate(&told).await?;
        Ok(json!({ "fetched_objects": objects, "fetched_bytes": bytes }))
    };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::Ends,
        work,
    ))
}

/// An absolute path is a folder, everything else a name.
fn which(text: &str) -> Result<Which, ApiError> {
    if text.starts_with('/') {
        Ok(Which::Dir(PathBuf::from(text)))
    } else {
        Ok(Which::Name(image_name(text)?))
    }
}

fn terms(lease_ms: Option<u64>, offline_ms: Option<u64>) -> Result<LeaseTerms, ApiError> {
    match (lease_ms, offline_ms) {
        (Some(_), Some(_)) => Err(ApiError::usage(
            "A lease is either online (--lease) or offline (--offline).",
        )),
        (None, Some(ttl_ms)) => Ok(LeaseTerms {
            ttl_ms,
            mode: LeaseMode::Offline,
        }),
        (ttl_ms, None) => Ok(LeaseTerms {
            ttl_ms: ttl_ms.unwrap_or(millis_default()),
            mode: LeaseMode::Online,
        }),
    }
}

fn millis_default() -> u64 {
    u64::try_from(LEASE_TTL_DEFAULT.as_millis()).unwrap_or(u64::MAX)
}
