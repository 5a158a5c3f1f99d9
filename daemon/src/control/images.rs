//! `/v1/images` and `/v1/leases`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Answer, absolute, image_name, parse};
use super::stream::{self, HangUp};
use super::waiting;
use crate::daemon::Daemon;
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::export::ExportKind;
use crate::images::{CommitSpec, CreateRequest, ExportRequest};
use crate::import::SourceKind;

pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    let listing = member.images.list().await?;
    let rows = listing.images.iter().map(|image| {
        let here = member.checkouts.dir_of(image.row.image);
        let mut row = member.images.to_json(image, here, listing.stale);
        // This device knows its own lease better than a list of before; both say the same time of it.
        let at_home = image.row.lease.as_ref();
        let own = at_home.is_some_and(|lease| lease.device == member.home.device());
        if (own || listing.stale)
            && let Some(lease) = member.checkouts.lease_of(image.row.image)
        {
            row["lease"] = lease;
        }
        row
    });
    Ok(Json(rows.collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    name: String,
    #[serde(default)]
    from: Option<PathBuf>,
    #[serde(default, rename = "as")]
    form: Option<SourceKind>,
    #[serde(default)]
    strict: bool,
}

pub(super) async fn create(
    State(daemon): State<Arc<Daemon>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Create = parse(&body)?;
    let request = CreateRequest {
        name: image_name(&request.name)?,
        from: request.from.map(absolute).transpose()?,
        form: request.form,
        strict: request.strict,
    };
    let reporter = Reporter::new(Phase::Import);
    let told = reporter.clone();
    let work = async move { member.images.create(request, &told).await };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::Ends,
        work,
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rename {
    to: String,
}

pub(super) async fn rename(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    let member = daemon.member()?;
    let request: Rename = parse(&body)?;
    let (name, to) = (image_name(&name)?, image_name(&request.to)?);
    let image = member.images.rename(&name, &to).await?;
    Ok(Json(
        json!({ "image": image.row.image, "name": to.as_str() }),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    #[serde(default)]
    force: bool,
}

pub(super) async fn delete(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    Query(query): Query<Delete>,
) -> Answer {
    let member = daemon.member()?;
    let image = member.images.find(&image_name(&name)?).await?;
    if !query.force {
        member.checkouts.refuse_deletion(&image)?;
    }
    member.images.delete(&image, query.force).await?;
    member.checkouts.image_deleted(image.row.image).await;
    Ok(Json(json!({ "image": image.row.image })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    #[serde(default)]
    limit: Option<usize>,
}

pub(super) async fn audit(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    Query(query): Query<Log>,
) -> Answer {
    let member = daemon.member()?;
    let image = member.images.find(&image_name(&name)?).await?;
    let limit = query.limit.unwrap_or(LOG_LIMIT_DEFAULT);
    let rows = member.images.audit(&image, limit).await?;
    Ok(Json(Value::Array(rows)))
}

pub(super) async fn log(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    Query(query): Query<Log>,
) -> Answer {
    let member = daemon.member()?;
    let listing = member.images.list().await?;
    let mut stale = listing.stale;
    let listed = listing.images.clone();
    let image = member.images.pick(listing, &image_name(&name)?)?;
    let limit = query.limit.unwrap_or(LOG_LIMIT_DEFAULT);
    let local = member.checkouts.local_of(image.row.image).await;
    let mut history = Vec::new();
    if !stale {
        match member.images.history(&image, limit).await {
            Ok(found) => history = found,
            Err(error) if error.kind == Kind::HomeAway => stale = true,
            Err(error) => return Err(error),
        }
    }
    if stale {
        history = member
            .images
            .history_seen(&image, local.bases.clone())
            .await?;
        history.truncate(limit);
    }
    let mut rows = member.images.log(&image, &history, &local, stale).await;
    if !stale {
        member
            .images
            .draw_branches(&image, &listed, &mut rows)
            .await;
    }
    Ok(Json(Value::Array(rows)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    dest: PathBuf,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    path: Option<PathBuf>,
    #[serde(default, rename = "as")]
    form: Option<ExportKind>,
}

pub(super) async fn export(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let request: Export = parse(&body)?;
    let name = image_name(&name)?;
    let request = ExportRequest {
        local: member.checkouts.local_named(&name).await,
        name,
        dest: absolute(request.dest)?,
        at: request.at.as_deref().map(CommitSpec::parse).transpose()?,
        path: request.path,
        form: request.form,
    };
    let reporter = Reporter::new(Phase::Export);
    let told = reporter.clone();
    let work = async move {
        // The work of a revoked device can go nowhere else.
        let local = match (&request.at, member.home.revocation()) {
            (None, Some(_)) => member.checkouts.sealed_state(&request.name).await?,
            _ => None,
        };
        let exported = member.images.export(request, local, &told);
        let stays = "What was written so far is sound, but not whole.";
        waiting::for_home(&member.home, &told, stays, exported).await
    };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::Ends,
        work,
    ))
}

pub(super) async fn leases(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    let here = |image: &crate::images::Image| member.checkouts.dir_of(image.row.image);
    let rows = member.images.leases(here).await?;
    Ok(Json(Value::Array(rows)))
}

/// Commits that `log` shows where nothing is said.
const LOG_LIMIT_DEFAULT: usize = 100;
