//! `/v1/daemon`, `/v1/home` and `/v1/devices`: this device, its home and the others.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::body::{Answer, device_name, parse};
use super::stream::{self, HangUp};
use crate::daemon::{Daemon, Member};
use crate::enrol;
use crate::error::ApiError;
use crate::events::{Phase, Reporter, time};

pub(super) async fn daemon(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member().ok();
    let device = member.as_ref().map(|member| {
        let roster = member.home.roster();
        let device = member.home.device();
        let role = roster
            .member(&device)
            .map(|state| enrol::papers::role(state.member.role));
        json!({
            "device": device,
            "name": member.images.device_name(&device),
            "role": role,
        })
    });
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "state": daemon.state().dir().display().to_string(),
        "socket": daemon.socket().display().to_string(),
        "device": device,
        "home": member.as_deref().map(home_json),
    })))
}

pub(super) async fn home(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    let mut home = home_json(&member);
    let seen = member.home.seen();
    home["position"] = json!(seen.map(|seen| seen.position));
    home["incarnation"] = json!(seen.map(|seen| seen.incarnation));
    Ok(Json(home))
}

fn home_json(member: &Member) -> Value {
    let pin = member.home.pin();
    json!({
        "address": pin.address,
        "home": pin.home,
        "home_key": member.home.home_key(),
        "home_key_hash": data_encoding::HEXLOWER.encode(&pin.home_key_hash),
        "connected": member.home.connected(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinRequest {
    invite: String,
    name: Option<String>,
}

pub(super) async fn join(
    State(daemon): State<Arc<Daemon>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request: JoinRequest = parse(&body)?;
    let name = device_name(&request.name.unwrap_or_else(host_name))?;
    let reporter = Reporter::new(Phase::Wait);
    let (sender, lines) = mpsc::channel(1);
    let told = reporter.clone();
    let work = async move { daemon.join(&request.invite, &name, &told, sender).await };
    Ok(stream::answer(reporter, lines, HangUp::Ends, work))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecoverRequest {
    address: String,
    home_key_hash: String,
    words: String,
    name: Option<String>,
}

pub(super) async fn recover(
    State(daemon): State<Arc<Daemon>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request: RecoverRequest = parse(&body)?;
    let name = device_name(&request.name.unwrap_or_else(host_name))?;
    let hash = data_encoding::HEXLOWER_PERMISSIVE
        .decode(request.home_key_hash.as_bytes())
        .ok()
        .and_then(|hash| <[u8; 32]>::try_from(hash).ok())
        .ok_or_else(|| ApiError::usage("The home's key hash is 64 hexadecimal digits."))?;
    let words = zeroize::Zeroizing::new(request.words);
    let reporter = Reporter::new(Phase::Wait);
    let (sender, lines) = mpsc::channel(1);
    let told = reporter.clone();
    let work = async move {
        let recovered = daemon.recover(&request.address, hash, &words, &name, &told, sender);
        recovered.await
    };
    Ok(stream::answer(reporter, lines, HangUp::Ends, work))
}

pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    // As last seen, if the home is away.
    let _ = member.home.catch_up().await;
    let roster = member.home.roster();
    let mut devices: Vec<_> = roster.members().collect();
    devices.sort_by_key(|(_, state)| state.added);
    let this = member.home.device();
    let devices = devices.into_iter().map(|(device, state)| {
        let revoked = enrol::Revocation::of(&roster, device);
        json!({
            "device": device,
            "name": member.images.device_name(device),
            "role": enrol::papers::role(state.member.role),
            "this": *device == this,
            "revoked": !state.active(),
            "revoked_at": revoked.map(|revoked| time(revoked.time)),
            "revoked_by": revoked.map(|revoked| member.images.device_name(&revoked.by)),
            "added": state.added,
        })
    });
    Ok(Json(devices.collect()))
}

pub(super) async fn invite(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    let invite = member.invite().await?;
    Ok(Json(json!({
        "invite": invite.to_string(),
        "expires": time(invite.expires),
    })))
}

/// Takes a device off the roster, by its name or the beginning of its id.
pub(super) async fn revoke(State(daemon): State<Arc<Daemon>>, Path(name): Path<String>) -> Answer {
    let member = daemon.member()?;
    Ok(Json(enrol::revoke(&member.home, &name).await?))
}

/// The machine's name as far as it is a device name.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let allowed = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().filter(allowed).take(100).collect();
    let name = name.trim_start_matches(['-', '.']);
    if name.is_empty() {
        "device".into()
    } else {
        name.into()
    }
}
