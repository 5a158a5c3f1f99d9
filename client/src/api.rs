//! HTTP with the daemon over its unix socket.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::silence;

/// The longest answer that is not a stream: a list of 10,000 images fits.
const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;
/// The longest line of a stream: an import that skipped 10,000 paths fits.
const LINE_LEN_MAX: usize = 16 * 1024 * 1024;

/// The daemon's API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    daemon: Daemon,
}

impl Api {
    pub(crate) fn new(daemon: Daemon) -> Self {
        Self { daemon }
    }

    /// The same API, of a daemon that is not started again if it has ended.
    pub(crate) fn without_start(&self) -> Self {
        Self::new(self.daemon.without_start())
    }

    /// Asks for a resource.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// Deletes a resource.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, None).await
    }

    /// Posts to a resource.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Posts to a resource that answers with progress lines, and returns what the last one says;
    /// `on_line` sees every other line.
    pub(crate) async fn stream(
        &self,
        path: &str,
        body: &Value,
        mut on_line: impl FnMut(&Value),
    ) -> Result<Value, Failure> {
        let sent = self.send(Method::POST, path, Some(body));
        let response = self.noticed(false, sent).await?;
        if !response.status().is_success() {
            return Err(refused(collect(response.into_body()).await?));
        }
        let mut lines = Lines::new(response.into_body());
        while let Some(line) = self.noticed(false, lines.next()).await? {
            if let Some(done) = line.get("done") {
                return Ok(done.clone());
            }
            if line.get("error").is_some() {
                return Err(refused(line));
            }
            on_line(&line);
        }
        Err(Failure::failed(
            "The daemon ended while it was at work; `imgctl status` shows where things stand.",
        ))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let quick = method == Method::GET;
        let answered = async {
            let response = self.send(method, path, body).await?;
            let success = response.status().is_success();
            let answer = collect(response.into_body()).await?;
            if success {
                Ok(answer)
            } else {
                Err(refused(answer))
            }
        };
        self.noticed(quick, answered).await
    }

    /// Waits for an answer, and says so where the daemon gives none to anybody.
    async fn noticed<T>(
        &self,
        quick: bool,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        silence::noticed(&self.daemon.socket, quick, answer).await?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = self.daemon.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "imgd");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    }
}

async fn collect(mut body: Incoming) -> Result<Value, Failure> {
    let mut answer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            if answer.len() + data.len() > ANSWER_LEN_MAX {
                return Err(broken("its answer is too long"));
            }
            answer.extend_from_slice(&data);
        }
    }
    serde_json::from_slice(&answer).map_err(broken)
}

fn refused(answer: Value) -> Failure {
    serde_json::from_value(answer).unwrap_or_else(broken)
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("The daemon could not be understood: {error}."))
}

/// Reads one JSON object per line from an answer's body.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<Value>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                if line.is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(broken);
            }
            if self.buffer.len() > LINE_LEN_MAX {
                return Err(broken("a line of its answer is too long"));
            }
            // A connection that breaks says the same as one that ends: the daemon is gone.
            let Some(Ok(frame)) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

#[cfg(test)]
mod tests;
