//! `imgctl ls`, `rename` and `delete`.

use img_types::ImageName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::{show, values};

#[derive(Debug, Deserialize)]
struct Image {
    name: String,
    seq: Option<u64>,
    logical_bytes: u64,
    time: Option<String>,
    lease: Option<Lease>,
    checked_out: Option<String>,
    #[serde(default)]
    stale: bool,
}

#[derive(Debug, Deserialize)]
struct Lease {
    device: String,
    /// Nothing where only an earlier start of the daemon has heard of it.
    until: Option<String>,
    #[serde(default)]
    lapsed: bool,
}

/// Lists images.
pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let images = session.api.get("/v1/images").await?;
    session.output.answer(&images, render)
}

/// Gives an image another name.
pub(super) async fn rename(
    session: &Session,
    name: &ImageName,
    new: &ImageName,
) -> Result<(), Failure> {
    let path = format!("{}/rename", values::image_resource(name));
    let renamed = session
        .api
        .post(&path, &json!({"to": new.as_str()}))
        .await?;
    let word = if name == new { "already" } else { "now" };
    session
        .output
        .answer(&renamed, |_| Ok(format!("{name} is {word} called {new}.")))
}

/// Deletes an image.
pub(super) async fn delete(
    session: &Session,
    name: &ImageName,
    force: bool,
) -> Result<(), Failure> {
    let mut path = values::image_resource(name);
    if force {
        path.push_str("?force=true");
    }
    let deleted = session.api.delete(&path).await?;
    session
        .output
        .answer(&deleted, |_| Ok(format!("{name} is deleted.")))
}

fn render(images: &Value) -> Result<String, serde_json::Error> {
    let images = Vec::<Image>::deserialize(images)?;
    if images.is_empty() {
        return Ok(
            "There are no images yet. Make one with: imgctl create NAME --from PATH".to_owned(),
        );
    }
    let stale = images.iter().any(|image| image.stale);
    let rows = images.into_iter().map(|image| {
        let lease = match image.lease {
            None => "free".to_owned(),
            Some(lease) if lease.lapsed => format!("{}, lapsed", lease.device),
            Some(Lease {
                device,
                until: Some(until),
                ..
            }) => format!("{device} until {}", show::time(&until)),
            Some(lease) => format!("{}, as last seen", lease.device),
        };
        [
            image.name,
            image.seq.map_or("-".to_owned(), |seq| seq.to_string()),
            show::bytes(image.logical_bytes),
            image.time.as_deref().map_or("-".to_owned(), show::time),
            lease,
            image.checked_out.unwrap_or_default(),
        ]
    });
    let mut text = show::table(["NAME", "SEQ", "SIZE", "COMMITTED", "LEASE", "HERE"], rows);
    if stale {
        text.push_str("\nThe home cannot be reached: this is what was last seen of it.");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_says_who_holds_what_until_when() {
        let images = json!([
            {"name": "vm", "seq": 3, "logical_bytes": 1_048_576, "time": "2026-11-21T12:00:00Z",
             "lease": {"device": "laptop", "until": "2026-11-21T14:05:00Z", "lapsed": false},
             "checked_out": "/home/x/vm"},
            {"name": "new", "seq": null, "logical_bytes": 0, "time": null, "lease": null,
             "checked_out": null, "stale": true},
            {"name": "old", "seq": 1, "logical_bytes": 0, "time": null, "checked_out": null, "stale": true,
             "lease": {"device": "desktop", "until": null, "lapsed": false}},
        ]);
        let text = render(&images).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].contains("vm") && lines[1].contains("laptop until 2026-11-21 14:05:00 UTC")
        );
        assert!(lines[1].ends_with("/home/x/vm"));
        assert!(lines[2].contains("free"));
        assert!(lines[3].contains("desktop, as last seen"));
        assert!(lines[4].contains("The home cannot be reached"));
        assert!(render(&json!([])).unwrap().contains("imgctl create"));
    }
}
