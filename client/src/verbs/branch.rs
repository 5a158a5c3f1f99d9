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
    session
        .output
        .answer(&branched, |branched| render(name.as_str(), branched))
}

fn render(from: &str, branched: &Value) -> Result<String, serde_json::Error> {
    let Branched { name, parent } = Branched::deserialize(branched)?;
    let parent = show::short(&parent);
    Ok(format!(
        "{name} starts from commit {parent} of {from}. Work in it with: imgctl checkout {name}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_it_leaves() {
        let branched = json!({"name": "try", "parent": "ab".repeat(32)});
        assert_eq!(
            render("vm", &branched).unwrap(),
            "try starts from commit ababababab of vm. Work in it with: imgctl checkout try"
        );
    }
}
