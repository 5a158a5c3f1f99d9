use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// Answers one request on a socket with the given pieces, and returns what was asked.
async fn answered(pieces: Vec<String>) -> (TempDir, Api, tokio::task::JoinHandle<String>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("imgd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let len = stream.read(&mut asked).await.unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
        asked.truncate(len);
        String::from_utf8(asked).unwrap()
    });
    let daemon = Daemon::find(Some(socket), None, false).unwrap();
    (folder, Api::new(daemon), asked)
}

fn head(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_long_operation_reports_lines_and_ends_with_what_was_done() {
    let pieces = vec![
        head("200 OK") + "{\"phase\": \"push\", \"done_",
        "bytes\": 1}\n\n{\"phase\": \"commit\"}\n{\"done\"".to_owned(),
        ": {\"seq\": 4}}\n".to_owned(),
    ];
    let (_folder, api, asked) = answered(pieces).await;
    let mut lines = Vec::new();
    let done = api
        .stream("/v1/x", &json!({"wait": true}), |line| {
            lines.push(line.clone())
        })
        .await
        .unwrap();
    assert_eq!(done, json!({"seq": 4}));
    assert_eq!(
        lines,
        [
            json!({"phase": "push", "done_bytes": 1}),
            json!({"phase": "commit"})
        ]
    );
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("POST /v1/x HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("content-type: application/json"), "{asked}");
}

#[tokio::test]
async fn refusals_keep_their_word_their_exit_code_and_their_further_fields() {
    let leased = json!({"error": "leased", "message": "vm is leased by laptop.", "hint": "Wait.",
        "exit_code": 4, "holder": "laptop"});
    for pieces in [
        vec![head("409 Conflict"), leased.to_string()],
        vec![
            head("200 OK"),
            format!("{{\"phase\": \"wait\"}}\n{leased}\n"),
        ],
    ] {
        let (_folder, api, _asked) = answered(pieces).await;
        let failure = api.stream("/v1/x", &json!({}), |_| {}).await.unwrap_err();
        assert_eq!((failure.error.as_str(), failure.exit_code), ("leased", 4));
        assert_eq!(failure.more["holder"], "laptop");
    }
}

#[tokio::test]
async fn a_daemon_that_ends_or_babbles_is_a_failure() {
    for body in [
        "",
        "{\"phase\": \"push\"}\n",
        "{\"phase\": \"pu",
        "babble\n",
    ] {
        let (_folder, api, _asked) = answered(vec![head("200 OK"), body.to_owned()]).await;
        let failure = api.stream("/v1/x", &json!({}), |_| {}).await.unwrap_err();
        assert_eq!(
            (failure.error.as_str(), failure.exit_code),
            ("failed", 1),
            "{body}"
        );
    }
    let (_folder, api, _asked) = answered(vec![head("500 Oops"), "no JSON".to_owned()]).await;
    let failure = api.get("/v1/x").await.unwrap_err();
    assert!(failure.message.contains("could not be understood"));
}
