//! Answers of long operations: one line of JSON after the other, the last one with the outcome.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::error::ApiError;
use crate::events::Reporter;

/// What becomes of the work when its caller hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HangUp {
    /// It ends; asked again it goes on where it was.
    Ends,
    /// It finishes by itself.
    GoesOn,
}

/// Runs an operation and answers with its progress, with `lines` that it sends itself, and its outcome.
pub(super) fn answer(
    reporter: Reporter,
    lines: mpsc::Receiver<Value>,
    hang_up: HangUp,
    work: impl Future<Output = Result<Value, ApiError>> + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    tokio::spawn(drive(reporter, lines, hang_up, work, sender));
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async {
        let line: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(line), receiver))
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}

/// An operation that sends no lines of its own.
pub(super) fn no_lines() -> mpsc::Receiver<Value> {
    mpsc::channel(1).1
}

async fn drive(
    reporter: Reporter,
    mut lines: mpsc::Receiver<Value>,
    hang_up: HangUp,
    work: impl Future<Output = Result<Value, ApiError>> + Send + 'static,
    sender: mpsc::Sender<Bytes>,
) {
    let mut progress = reporter.subscribe();
    progress.mark_changed();
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut work = std::pin::pin!(work);
    let outcome = loop {
        tokio::select! {
            biased;
            // A reader that has left is noticed below.
            Some(own) = lines.recv() => drop(sender.send(line(&own)).await),
            outcome = &mut work => break outcome,
            () = sender.closed() => {
                if hang_up == HangUp::GoesOn && let Err(error) = work.await {
                    tracing::warn!(%error, "an operation failed after its caller had left");
                }
                return;
            }
            _ = tick.tick() => {
                if progress.has_changed().unwrap_or(false) {
                    let now = json!(*progress.borrow_and_update());
                    drop(sender.send(line(&now)).await);
                }
            }
        }
    };
    // What it sent before it ended comes before its end.
    while let Ok(own) = lines.try_recv() {
        drop(sender.send(line(&own)).await);
    }
    let last = match outcome {
        Ok(done) => json!({ "done": done }),
        Err(error) => error.to_json(),
    };
    drop(sender.send(line(&last)).await);
}

fn line(value: &Value) -> Bytes {
    let mut line = value.to_string();
    line.push('\n');
    line.into()
}

/// Lines that wait for a slow reader.
const LINES_MAX: usize = 16;
/// How often progress is told at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::events::Phase;
    use axum::body::to_bytes;

    async fn read(response: Response) -> Vec<Value> {
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn progress_then_own_lines_then_one_outcome() {
        let reporter = Reporter::new(Phase::Push);
        let (sender, lines) = mpsc::channel(1);
        let told = reporter.clone();
        let work = async move {
            sender.send(json!({"words": "once"})).await.unwrap();
            told.set(5, Some(9));
            tokio::time::sleep(2 * PROGRESS_INTERVAL).await;
            Ok(json!({"commit": 1}))
        };
        let found = read(answer(reporter, lines, HangUp::Ends, work)).await;
        assert!(found.contains(&json!({"words": "once"})));
        assert!(found.iter().any(|line| line["done_bytes"] == 5));
        assert_eq!(found.last().unwrap(), &json!({"done": {"commit": 1}}));
    }

    #[tokio::test]
    async fn own_lines_of_the_last_moment_come_before_the_end() {
        let (sender, lines) = mpsc::channel(3);
        let work = async move {
            for number in 0..3 {
                sender.try_send(json!({ "number": number })).unwrap();
            }
            Ok(Value::Null)
        };
        let reporter = Reporter::new(Phase::Fetch);
        let found = read(answer(reporter, lines, HangUp::Ends, work)).await;
        let numbers = found.iter().filter_map(|line| line["number"].as_u64());
        assert_eq!(numbers.collect::<Vec<_>>(), [0, 1, 2]);
        assert!(found.last().unwrap().get("done").is_some());
    }

    #[tokio::test]
    async fn an_error_is_the_last_line() {
        let work = async { Err(ApiError::new(Kind::HomeAway, "away", "")) };
        let reporter = Reporter::new(Phase::Push);
        let found = read(answer(reporter, no_lines(), HangUp::Ends, work)).await;
        assert_eq!(found.last().unwrap()["exit_code"], 6);
    }

    #[tokio::test]
    async fn work_ends_with_its_caller_or_goes_on() {
        for (hang_up, finishes) in [(HangUp::Ends, false), (HangUp::GoesOn, true)] {
            let (go, wait) = tokio::sync::oneshot::channel::<()>();
            let (finished, mut outcome) = mpsc::channel::<()>(1);
            let work = async move {
                let _ = wait.await;
                let _ = finished.send(()).await;
                Ok(Value::Null)
            };
            drop(answer(
                Reporter::new(Phase::Push),
                no_lines(),
                hang_up,
                work,
            ));
            if finishes {
                go.send(()).unwrap();
            }
            assert_eq!(outcome.recv().await.is_some(), finishes);
        }
    }
}
