//! `imgctl branch`.

use img_types::ImageName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::{show, values};

#[derive(Debug, Deserialize)]
struct Branched {
    name: String,
    parent: String,
    #[serde(default)]
    checkpoint: bool,
}

/// Makes an image that starts from a commit of another.
pub(super) async fn branch(
    session: &Session,
    name: &ImageName,
    new: &ImageName,
    at: Option<String>,
) -> Result<(), Failure> {
    let path = format!("{}/branch", values::image_resource(name));
    let body = json!({"to": new.as_str(), "at": at});
    let branched = session.api.post(&path, &body).await?;
    session.output.answer(&branched, |branched| {
        render(name.as_str(), at.as_deref(), branched)
    })
}

fn render(from: &str, at: Option<&str>, branched: &Value) -> Result<String, serde_json::Error> {
    let branched = Branched::deserialize(branched)?;
    let (name, parent) = (branched.name, show::short(&branched.parent));
    let start = match at.filter(|_| branched.checkpoint) {
        Some(at) => format!("checkpoint {} (made over commit {parent})", show::short(at)),
        None => format!("commit {parent}"),
    };
    Ok(format!(
        "{name} starts from {start} of {from}. Work in it with: imgctl checkout {name}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_it_leaves() {
        let branched = json!({"name": "try", "parent": "ab".repeat(32)});
        assert_eq!(
            render("vm", None, &branched).unwrap(),
            "try starts from commit ababababab of vm. Work in it with: imgctl checkout try"
        );
        // What was asked for, not what it was made over.
        let branched = json!({"name": "try", "parent": "ab".repeat(32), "checkpoint": true});
        let text = render("vm", Some("3f2a77"), &branched).unwrap();
        assert!(
            text.starts_with(
                "try starts from checkpoint 3f2a77 (made over commit ababababab) of vm."
            ),
            "{text}"
        );
    }
}
