//! `/v1/cache`: the objects on this device's disk, and how many there may be.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use img_store::StoreError;
use serde::Deserialize;
use serde_json::json;

use super::body::{Answer, parse};
use crate::daemon::Daemon;
use crate::error::{ApiError, Kind};

pub(super) async fn show(State(daemon): State<Arc<Daemon>>) -> Answer {
    answer(&daemon, None).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    limit_bytes: u64,
}

pub(super) async fn set(State(daemon): State<Arc<Daemon>>, body: Bytes) -> Answer {
    let request: Set = parse(&body)?;
    answer(&daemon, Some(request.limit_bytes)).await
}

async fn answer(daemon: &Daemon, limit: Option<u64>) -> Answer {
    let member = daemon.member()?;
    let dir = daemon.state().objects_dir();
    let work = move || {
        let objects = member.home.objects();
        if let Some(limit) = limit {
            objects.set_limit(limit).map_err(|error| refused(&error))?;
        }
        let usage = objects.usage();
        let disk = rustix::fs::statvfs(&dir).map_err(ApiError::failed)?;
        Ok(Json(json!({
            "limit_bytes": usage.limit,
            "used_bytes": usage.bytes,
            "evictable_bytes": usage.evictable_bytes,
            "outbox_bytes": usage.kept_bytes,
            "free_bytes": disk.f_bavail.saturating_mul(disk.f_frsize),
        })))
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(ApiError::failed)?
}

fn refused(error: &StoreError) -> ApiError {
    match error {
        StoreError::NoRoom => ApiError::new(
            Kind::NoRoom,
            "The disk is full, so that the limit cannot be kept for the next start.",
            "Make room on this device.",
        ),
        error => ApiError::failed(error),
    }
}
