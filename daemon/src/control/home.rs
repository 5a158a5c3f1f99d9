//! `/v1/home/…`: the home's address, and the ways on after it went back in time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;

use super::body::{Answer, parse};
use super::stream::{self, HangUp};
use crate::daemon::{Daemon, Member};
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::home::{CallError, Forwarded};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    address: String,
}

pub(super) async fn address(State(daemon): State<Arc<Daemon>>, body: Bytes) -> Answer {
    let member = daemon.member()?;
    let Address { address } = parse(&body)?;
    let port = address
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    if !matches!(port, Some((host, Ok(1..))) if !host.is_empty()) {
        return Err(ApiError::usage(format!(
            "{address:?} is no address: it looks like home.example:4460."
        )));
    }
    match member.home.move_to(&address).await {
        Ok(()) => super::device::home(State(daemon)).await,
        Err(CallError::Away) => Err(ApiError::new(
            Kind::HomeAway,
            format!(
                "The home does not answer at {address}; it was waited for 3 seconds. Its address is what it was."
            ),
            "Check the address and whether the home runs there.",
        )),
        Err(error) => Err(member.home.explain(&error, "the home")),
    }
}

pub(super) async fn forward(State(daemon): State<Arc<Daemon>>) -> Result<Response, ApiError> {
    let member = daemon.member()?;
    let reporter = Reporter::new(Phase::Wait);
    let told = reporter.clone();
    let work = async move {
        if !is_back_in_time(&member).await? {
            return Ok(Forwarded::default().to_json());
        }
        let done = member.home.forward(&told).await;
        let done = done.map_err(|error| explain(&member, &error))?;
        if done.lost.is_empty() {
            return Ok(done.to_json());
        }
        let lost = done
            .lost
            .iter()
            .map(|lost| format!("{}: {}", lost.loss.sentence(), lost.why));
        let lost: Vec<_> = lost.collect();
        let answer = done.to_json();
        Err(ApiError::new(
            Kind::WentBack,
            format!(
                "{}Not everything that this device knows of is at the home again: {}.",
                done.sentences(),
                lost.join("; ")
            ),
            done.hint(&member.home.device()),
        )
        .with("given", answer["given"].clone())
        .with("lost", answer["lost"].clone()))
    };
    Ok(stream::answer(
        reporter,
        stream::no_lines(),
        HangUp::Ends,
        work,
    ))
}

pub(super) async fn accept_restore(State(daemon): State<Arc<Daemon>>) -> Answer {
    let member = daemon.member()?;
    if !is_back_in_time(&member).await? {
        return Ok(Json(Forwarded::default().to_json()));
    }
    let done = member.home.accept_restore().await;
    let done = done.map_err(|error| explain(&member, &error))?;
    Ok(Json(done.to_json()))
}

async fn is_back_in_time(member: &Member) -> Result<bool, ApiError> {
    let back = member.home.is_back_in_time().await;
    back.map_err(|error| explain(member, &error))
}

fn explain(member: &Member, error: &CallError) -> ApiError {
    member.home.explain(error, "the home")
}
