//! `imgctl restore`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::show;
use crate::values::CheckoutRef;

#[derive(Debug, Deserialize)]
struct Restored {
    restored_to: String,
    #[serde(default)]
    saved: Option<String>,
    #[serde(default)]
    replaced: Option<String>,
    unchanged: bool,
    ms: u64,
}

/// Sets a checkout to an older state.
pub(super) async fn restore(
    session: &Session,
    checkout: &CheckoutRef,
    to: Option<&String>,
    force: bool,
) -> Result<(), Failure> {
    let body = json!({ "to": to, "force": force });
    let restored = session.stream(&checkout.verb("restore"), &body).await?;
    session.output.answer(&restored, render)
}

fn render(restored: &Value) -> Result<String, serde_json::Error> {
    let restored = Restored::deserialize(restored)?;
    let to = show::short(&restored.restored_to);
    if restored.unchanged {
        return Ok(format!("Nothing differs from {to}."));
    }
    let mut text = format!("Restored to {to} in {} ms.", restored.ms);
    if let Some(saved) = &restored.saved {
        let id = show::short(saved);
        text.push_str(&format!(
            "\nWhat was there is checkpoint {id}: --to {id} brings it back."
        ));
    } else if let Some(replaced) = &restored.replaced {
        let id = show::short(replaced);
        text.push_str(&format!(
            "\nWhat was there is {id}: --to {id} brings it back."
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_the_checkout_stands_and_how_to_get_back() {
        let (to, from) = ("ab".repeat(32), "cd".repeat(32));
        let line = |saved: Value, unchanged: bool| {
            let line = json!({"restored_to": to, "saved": saved, "replaced": from, "unchanged": unchanged, "ms": 12});
            render(&line).unwrap()
        };
        assert_eq!(
            line(json!(from), false),
            "Restored to ababababab in 12 ms.\nWhat was there is checkpoint cdcdcdcdcd: --to cdcdcdcdcd brings it back."
        );
        assert_eq!(
            line(json!(null), false),
            "Restored to ababababab in 12 ms.\nWhat was there is cdcdcdcdcd: --to cdcdcdcdcd brings it back."
        );
        assert_eq!(line(json!(null), true), "Nothing differs from ababababab.");
    }
}
