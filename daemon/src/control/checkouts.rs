//! `/v1/checkouts`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use img_proto::LeaseTerms;
use img_types::LeaseMode;
use img_types::limits::{
    LEASE_OFFLINE_TTL_MAX, LEASE_OFFLINE_TTL_MIN, LEASE_ONLINE_TTL_MAX, LEASE_TTL_DEFAULT,
    LEASE_TTL_MIN,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Answer, absolute, image_name, parse};
use super::stream::{self, HangUp};
use super::waiting;
use crate::checkouts::{CommitRequest, HYDRATION_STAYS, OpenRequest, OwnerChoice, Which};
use crate::daemon::Daemon;
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::images::CommitSpec;

pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    member.home.look().await;
    Ok(Json(Value::Array(member.checkouts.list_json())))
}

pub(super) async fn status(State(daemon): State<Arc<Daemon>>, Address(which): Address) -> Answer {
    let member = daemon.member()?;
    let checkout = member.checkouts.find(&which)?;
    member.home.look().await;
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
    let leases = request.lease_ms.or(request.offline_ms).is_some() || request.take_over;
    if request.read_only && leases {
        return Err(ApiError::usage(
            "A read-only checkout takes no lease: leave out --lease, --offline and --take-over, or --read-only.",
        ));
    }
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
        renews: request.lease_ms.or(request.offline_ms).is_some(),
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
    Address(which): Address,
    body: Bytes,
) -> Answer {
    let member = daemon.member()?;
    let request: Checkpoint = parse(&body)?;
    let checkout = member.checkouts.find(&which)?;
    Ok(Json(checkout.checkpoint(request.message).await?))
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Commit {
    message: String,
    adopt_orphan: bool,
    take_over: bool,
    keep: bool,
    branch: Option<String>,
    partial: bool,
    wait: bool,
}

impl Default for Commit {
    fn default() -> Self {
        Self {
            message: String::new(),
            adopt_orphan: false,
            take_over: false,
            keep: false,
            branch: None,
            partial: false,
            wait: true,
        }
    }
}

pub(super) async fn commit(
    State(daemon): State<Arc<Daemon>>,
    Address(which): Address,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Commit = parse(&body)?;
    let branch = request.branch.as_deref().map(image_name).transpose()?;
    if request.partial && branch.is_none() {
        return Err(ApiError::usage(
            "Only a branch can leave something out: name it with --branch.",
        ));
    }
    let checkout = if request.adopt_orphan {
        member.checkouts.find_orphan(&which)?
    } else {
        member.checkouts.find(&which)?
    };
    let reporter = checkout.reporter().clone();
    let work = async move {
        let wait = request.wait;
        let request = CommitRequest {
            message: request.message,
            adopt_orphan: request.adopt_orphan,
            take_over: request.take_over,
            keep: request.keep,
            branch: branch.map(|name| name.to_string()),
            partial: request.partial,
            automatic: false,
            onto: None,
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
struct Run {
    cgroup: Option<PathBuf>,
}

pub(super) async fn run(
    State(daemon): State<Arc<Daemon>>,
    Address(which): Address,
    body: Bytes,
) -> Answer {
    let member = daemon.member()?;
    let request: Run = parse(&body)?;
    let cgroup = request.cgroup.map(absolute).transpose()?;
    let checkout = member.checkouts.find(&which)?;
    Ok(Json(checkout.run(cgroup).await?))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Release {
    discard: bool,
}

pub(super) async fn release(
    State(daemon): State<Arc<Daemon>>,
    Address(which): Address,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Release = parse(&body)?;
    let found = if request.discard {
        member.checkouts.find_to_discard(&which)
    } else {
        member.checkouts.find(&which)
    };
    let checkout = match found {
        Ok(checkout) => checkout,
        Err(error) if error.kind != Kind::NotFound => return Err(error),
        Err(error) => {
            // Asked again after it had been done, it is done.
            let closed = member.checkouts.closed(&which).await.ok_or(error)?;
            let done = json!({
                "name": closed.name,
                "dir": closed.dir.display().to_string(),
                "commit": closed.head,
                "already": true,
            });
            return Ok(stream::answer(
                Reporter::new(Phase::Release),
                stream::no_lines(),
                HangUp::Ends,
                async move { Ok(done) },
            ));
        }
    };
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
    Address(which): Address,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let checkout = member.checkouts.find(&which)?;
    let reporter = checkout.hydration_reporter().clone();
    let told = reporter.clone();
    let work = async move {
        let hydrated = checkout.hydrate();
        let (objects, bytes) =
            waiting::for_home(&member.home, &told, HYDRATION_STAYS, hydrated).await?;
        Ok(json!({ "fetched_objects": objects, "fetched_bytes": bytes }))
    };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::GoesOn,
        work,
    ))
}

/// The checkout that a request's path and query mean.
pub(super) struct Address(pub(super) Which);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Folder {
    #[serde(default)]
    dir: Option<PathBuf>,
}

impl<S: Send + Sync> FromRequestParts<S> for Address {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refused = |error: &dyn std::fmt::Display| {
            ApiError::usage(format!("The request does not parse: {error}."))
        };
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| refused(&error))?;
        let query = Query::<Folder>::from_request_parts(parts, state).await;
        let Query(folder) = query.map_err(|error| refused(&error))?;
        Ok(Self(which(&text, folder.dir)?))
    }
}

/// An absolute path is a folder, everything else a name; a folder beside it is where the word would lie as a path.
fn which(text: &str, dir: Option<PathBuf>) -> Result<Which, ApiError> {
    if text.starts_with('/') {
        return Ok(Which::Dir(PathBuf::from(text)));
    }
    let name = image_name(text)?;
    Ok(match dir {
        Some(dir) => Which::NameOrDir(name, absolute(dir)?),
        None => Which::Name(name),
    })
}

/// Terms of a lease. The home would bring others within its limits without a word.
pub(super) fn terms(
    lease_ms: Option<u64>,
    offline_ms: Option<u64>,
) -> Result<LeaseTerms, ApiError> {
    let (ttl_ms, mode) = match (lease_ms, offline_ms) {
        (Some(_), Some(_)) => {
            return Err(ApiError::usage(
                "A lease is either online (--lease) or offline (--offline).",
            ));
        }
        (None, Some(ttl_ms)) => (ttl_ms, LeaseMode::Offline),
        (ttl_ms, None) => (
            ttl_ms.unwrap_or(millis(LEASE_TTL_DEFAULT)),
            LeaseMode::Online,
        ),
    };
    let (min, max) = match mode {
        LeaseMode::Online => (LEASE_TTL_MIN, LEASE_ONLINE_TTL_MAX),
        LeaseMode::Offline => (LEASE_OFFLINE_TTL_MIN, LEASE_OFFLINE_TTL_MAX),
    };
    if (millis(min)..=millis(max)).contains(&ttl_ms) {
        return Ok(LeaseTerms { ttl_ms, mode });
    }
    Err(ApiError::usage(match mode {
        LeaseMode::Online => {
            "A lease lasts from 10 seconds to 24 hours; --offline takes one for 1 to 180 days."
        }
        LeaseMode::Offline => {
            "An offline lease lasts from 1 to 180 days; --lease takes a shorter one."
        }
    }))
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_within_the_homes_limits_or_refused() {
        let usual = terms(None, None).unwrap();
        assert_eq!((usual.ttl_ms, usual.mode), (10_800_000, LeaseMode::Online));
        assert_eq!(terms(Some(10_000), None).unwrap().ttl_ms, 10_000);
        assert_eq!(
            terms(None, Some(86_400_000)).unwrap().mode,
            LeaseMode::Offline
        );
        for (lease_ms, offline_ms) in [
            (Some(9_999), None),
            (Some(90_000_000), None),
            (None, Some(3_600_000)),
            (None, Some(u64::MAX)),
            (Some(10_000), Some(86_400_000)),
        ] {
            let refused = terms(lease_ms, offline_ms).unwrap_err();
            assert_eq!(refused.kind.codes().1, 2);
        }
    }

    #[test]
    fn a_checkout_is_addressed_by_name_or_folder() {
        let name = image_name("vm").unwrap();
        assert_eq!(which("vm", None).unwrap(), Which::Name(name.clone()));
        assert_eq!(which("/x/vm", None).unwrap(), Which::Dir("/x/vm".into()));
        assert_eq!(
            which("vm", Some("/x/vm".into())).unwrap(),
            Which::NameOrDir(name, "/x/vm".into())
        );
        assert!(which("vm", Some("x/vm".into())).is_err());
    }
}
