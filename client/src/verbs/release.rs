//! `imgctl release`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::show;
use crate::values::CheckoutRef;

/// Closes a checkout.
pub(super) async fn release(
    session: &Session,
    checkout: &CheckoutRef,
    discard: bool,
) -> Result<(), Failure> {
    let path = checkout.verb("release");
    let released = session.stream(&path, &json!({"discard": discard})).await?;
    session
        .output
        .answer(&released, |released| Ok(render(released)))
}

pub(super) fn render(released: &Value) -> String {
    let name = released["name"].as_str().unwrap_or("The checkout");
    let dir = released["dir"].as_str().unwrap_or_default();
    let already = if released["already"] == true {
        " already"
    } else {
        ""
    };
    let text = match released["commit"].as_str() {
        Some(commit) => format!(
            "{name} at {dir} is released{already}; its head is {}.",
            show::short(commit)
        ),
        None => format!("{name} at {dir} is released{already}."),
    };
    match show::Taken::deserialize(&released["taken"]) {
        Ok(taken) => format!("{taken}.\n{text}"),
        Err(_) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_home() {
        let id = "ab".repeat(32);
        assert_eq!(
            render(&json!({"name": "vm", "dir": "/x/vm", "commit": id})),
            "vm at /x/vm is released; its head is ababababab."
        );
        assert_eq!(
            render(&json!({"name": "vm", "dir": "/x/vm", "commit": null})),
            "vm at /x/vm is released."
        );
        assert_eq!(
            render(&json!({"name": "vm", "dir": "/x/vm", "commit": null, "already": true})),
            "vm at /x/vm is released already."
        );
    }
}
