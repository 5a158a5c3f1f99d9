//! The control API: HTTP/1.1 and JSON on a unix socket, as `docs/control-api.md` describes it.
//!
//! One file per resource. Handlers parse, call and render; what happens is decided elsewhere.

mod body;
mod cache;
mod checkouts;
mod device;
mod diff;
mod doctor;
mod events;
mod home;
mod images;
mod restore;
mod socket;
mod steal;
mod stream;
mod waiting;

use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};

use crate::daemon::Daemon;

pub use socket::{PeerListener, bind, default_path};

/// All routes.
pub fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/v1/daemon", get(device::daemon))
        .route("/v1/home", get(device::home))
        .route("/v1/home/address", post(home::address))
        .route("/v1/home/forward", post(home::forward))
        .route("/v1/home/accept-restore", post(home::accept_restore))
        .route("/v1/home/join", post(device::join))
        .route("/v1/home/recover", post(device::recover))
        .route("/v1/devices", get(device::list))
        .route("/v1/devices/invite", post(device::invite))
        .route("/v1/devices/{name}/revoke", post(device::revoke))
        .route("/v1/images", get(images::list).post(images::create))
        .route("/v1/images/{name}", delete(images::delete))
        .route("/v1/images/{name}/rename", post(images::rename))
        .route("/v1/images/{name}/log", get(images::log))
        .route("/v1/images/{name}/audit", get(images::audit))
        .route("/v1/images/{name}/export", post(images::export))
        .route("/v1/images/{name}/branch", post(steal::branch))
        .route("/v1/images/{name}/steal", post(steal::steal))
        .route("/v1/leases", get(images::leases))
        .route("/v1/checkouts", get(checkouts::list).post(checkouts::open))
        .route("/v1/checkouts/{checkout}", get(checkouts::status))
        .route(
            "/v1/checkouts/{checkout}/checkpoint",
            post(checkouts::checkpoint),
        )
        .route("/v1/checkouts/{checkout}/commit", post(checkouts::commit))
        .route("/v1/checkouts/{checkout}/run", post(checkouts::run))
        .route("/v1/checkouts/{checkout}/release", post(checkouts::release))
        .route("/v1/checkouts/{checkout}/hydrate", post(checkouts::hydrate))
        .route("/v1/checkouts/{checkout}/diff", post(diff::diff))
        .route("/v1/checkouts/{checkout}/restore", post(restore::restore))
        .route("/v1/cache", get(cache::show).post(cache::set))
        .route("/v1/doctor", get(doctor::doctor))
        .route("/v1/events", get(events::events))
        .fallback(body::no_route)
        .with_state(daemon)
}
