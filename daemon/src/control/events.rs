//! `GET /v1/events`: what happens, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures_util::Stream;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::daemon::Daemon;

pub(super) async fn events(
    State(daemon): State<Arc<Daemon>>,
) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let receiver = daemon.events().subscribe();
    let events = futures_util::stream::unfold(receiver, |mut receiver| async {
        let event = match receiver.recv().await {
            Ok(event) => SseEvent::default()
                .event(event.name())
                .data(json!(event).to_string()),
            Err(RecvError::Lagged(lost)) => SseEvent::default()
                .event("lagged")
                .data(json!({ "lost": lost }).to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), receiver))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}
