//! `imgctl status`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Session;
use crate::failure::Failure;
use crate::show;
use crate::values::{self, CheckoutRef};

/// How often a watched status is asked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
struct Status {
    name: String,
    dir: String,
    state: String,
    mounted: bool,
    base: Option<String>,
    head: Option<String>,
    lease: Option<Lease>,
    #[serde(default)]
    rival: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    taken: Option<show::Taken>,
    #[serde(default)]
    image_deleted: bool,
    dirty_bytes: u64,
    checkpoints_local: u64,
    #[serde(default)]
    checkpoints: Option<Checkpoints>,
    durable_local: Option<String>,
    durable_home: Option<String>,
    fetched_bytes: u64,
    cached_bytes: u64,
    streaming: Option<Moving>,
    hydrating: Option<Moving>,
    releasing: bool,
    problem: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

/// Checkpoints that nobody asks for.
#[derive(Debug, Deserialize)]
struct Checkpoints {
    interval_s: Option<u64>,
    next_in_s: Option<u64>,
    policy: Option<String>,
    waits_for: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Lease {
    until: String,
    mode: String,
}

#[derive(Debug, Deserialize)]
struct Moving {
    done_bytes: u64,
    total_bytes: Option<u64>,
    #[serde(default)]
    waits_for: Option<String>,
}

/// Shows one checkout or all, once or whenever something changes.
pub(super) async fn status(
    session: &Session,
    checkout: Option<&CheckoutRef>,
    watch: bool,
) -> Result<(), Failure> {
    let mut path = checkout.map_or("/v1/checkouts".to_owned(), CheckoutRef::resource);
    let mut shown = None;
    loop {
        let status = session.api.get(&path).await?;
        // Its name may change: somebody renames the image, or takes it over and leaves a branch.
        if let Some(dir) = status["dir"].as_str() {
            path = values::folder_resource(dir);
        }
        let lasting = without_countdown(status.clone());
        if shown.as_ref() != Some(&lasting) {
            session.output.answer(&status, render)?;
            shown = Some(lasting);
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// A status without what changes although nothing happens.
fn without_countdown(mut status: Value) -> Value {
    let rows = match &mut status {
        Value::Array(rows) => rows.as_mut_slice(),
        row => std::slice::from_mut(row),
    };
    for row in rows {
        if let Some(automatic) = row["checkpoints"].as_object_mut() {
            automatic.remove("next_in_s");
        }
    }
    status
}

fn render(answer: &Value) -> Result<String, serde_json::Error> {
    let all = match answer {
        Value::Array(_) => Vec::<Status>::deserialize(answer)?,
        _ => vec![Status::deserialize(answer)?],
    };
    if all.is_empty() {
        return Ok("Nothing is checked out here. See the images with: imgctl ls".to_owned());
    }
    let texts: Vec<_> = all.iter().map(render_one).collect();
    Ok(texts.join("\n\n"))
}

fn render_one(status: &Status) -> String {
    let mut text = format!("{} at {}\n", status.name, status.dir);
    let mut line = |label: &str, value: String| text.push_str(&format!("  {label:<14}{value}\n"));
    let state = match &status.lease {
        Some(lease) => format!(
            "{} until {}{}",
            status.state,
            show::time(&lease.until),
            if lease.mode == "offline" {
                ", offline"
            } else {
                ""
            }
        ),
        None => match &status.rival {
            Some(rival) => {
                let said = status.reason.as_ref();
                let said = said.map_or(String::new(), |reason| format!(": \"{reason}\""));
                format!("{}, {rival} has taken it over{said}", status.state)
            }
            None if status.image_deleted => format!("{}, its image has been deleted", status.state),
            None => status.state.clone(),
        },
    };
    line("state", state);
    if let Some(taken) = &status.taken {
        line("taken over", taken.to_string());
    }
    if !status.mounted {
        line("mounted", "no".to_owned());
    }
    line("base", show::short_or_dash(status.base.as_deref()));
    if status.head != status.base {
        line("head", show::short_or_dash(status.head.as_deref()));
    }
    line(
        "changed",
        format!(
            "{} since the last checkpoint",
            show::bytes(status.dirty_bytes)
        ),
    );
    if status.checkpoints_local > 0 {
        line(
            "checkpoints",
            format!("{} not home yet", status.checkpoints_local),
        );
    }
    if let Some(automatic) = &status.checkpoints
        && let Some(said) = automatic.say()
    {
        line("automatic", said);
    }
    line(
        "durable local",
        show::short_or_dash(status.durable_local.as_deref()),
    );
    line(
        "durable home",
        show::short_or_dash(status.durable_home.as_deref()),
    );
    line(
        "cache",
        format!(
            "{}, {} fetched",
            show::bytes(status.cached_bytes),
            show::bytes(status.fetched_bytes)
        ),
    );
    for (label, moving) in [
        ("streaming", &status.streaming),
        ("hydrating", &status.hydrating),
    ] {
        if let Some(moving) = moving {
            let total = moving
                .total_bytes
                .map_or(String::new(), |total| format!(" of {}", show::bytes(total)));
            let waits = moving.waits_for.as_ref();
            let waits = waits.map_or(String::new(), |what| format!(", waiting for {what}"));
            line(
                label,
                format!("{}{total}{waits}", show::bytes(moving.done_bytes)),
            );
        }
    }
    let automatic = status.checkpoints.as_ref();
    if let Some(what) = automatic.and_then(|automatic| automatic.waits_for.as_ref()) {
        line("waits for", what.clone());
    }
    if status.releasing {
        line("releasing", "as soon as the home can be reached".to_owned());
    }
    if let Some(problem) = &status.problem {
        line("problem", problem.clone());
    }
    if let Some(hint) = &status.hint {
        line("", hint.clone());
    }
    text.trim_end().to_owned()
}

impl Checkpoints {
    /// When they are taken and what becomes of them; nothing where none are.
    fn say(&self) -> Option<String> {
        let (interval, next) = (self.interval_s?, self.next_in_s?);
        let becomes = match self.policy.as_deref() {
            Some("every") => "committed".to_owned(),
            Some("hand") => "committed by hand".to_owned(),
            Some(time) => format!("committed every {time}"),
            None => "taken".to_owned(),
        };
        Some(format!(
            "a checkpoint every {}, the next in {}, {becomes}",
            show::seconds(interval),
            show::seconds(next)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_matters_is_said_and_the_rest_left_out() {
        let status = json!({
            "name": "vm", "dir": "/x/vm", "state": "leased", "mounted": true,
            "base": "aa".repeat(32), "head": "aa".repeat(32),
            "lease": {"until": "2026-11-21T14:05:00Z", "mode": "online"},
            "dirty_bytes": 4096, "checkpoints_local": 1,
            "durable_local": "bb".repeat(32), "durable_home": "aa".repeat(32),
            "fetched_bytes": 0, "cached_bytes": 1024,
            "streaming": {"done_bytes": 1024, "total_bytes": 2048}, "hydrating": null,
            "releasing": false, "problem": null,
        });
        let text = render(&status).unwrap();
        assert!(
            text.starts_with("vm at /x/vm\n  state         leased until 2026-11-21 14:05:00 UTC\n")
        );
        assert!(text.contains("  durable local bbbbbbbbbb\n"));
        assert!(text.contains("streaming     1.00 KiB of 2.00 KiB"));
        assert!(!text.contains("problem") && !text.contains("head  "));
        assert!(!text.contains("automatic") && !text.contains("waits for"));
        let mut paced = status.clone();
        paced["checkpoints"] = json!({"interval_s": 300, "next_in_s": 42, "last": null, "policy": "every", "waits_for": "the home"});
        let text = render(&paced).unwrap();
        assert!(
            text.contains("  automatic     a checkpoint every 5m, the next in 42s, committed\n")
                && text.contains("  waits for     the home"),
            "{text}"
        );
        let mut later = paced.clone();
        later["checkpoints"]["next_in_s"] = json!(41);
        assert_eq!(without_countdown(later), without_countdown(paced));
        let mut taken = status.clone();
        taken["taken"] = json!({"device": "desktop", "reason": "the talk is today", "name": "vm", "branch": "vm-laptop"});
        let text = render(&taken).unwrap();
        assert!(
            text.contains("  taken over    desktop took vm over: \"the talk is today\"; this checkout goes on as vm-laptop\n"),
            "{text}"
        );
        let mut lost = status.clone();
        lost["state"] = json!("orphan");
        lost["lease"] = Value::Null;
        lost["rival"] = json!("desktop");
        let text = render(&lost).unwrap();
        assert!(
            text.contains("state         orphan, desktop has taken it over\n"),
            "{text}"
        );
        lost["reason"] = json!("the talk is today");
        lost["problem"] = json!("It is orphaned.");
        lost["hint"] = json!("Save it.");
        let text = render(&lost).unwrap();
        assert!(
            text.contains("has taken it over: \"the talk is today\"\n"),
            "{text}"
        );
        assert!(
            text.ends_with("  problem       It is orphaned.\n                Save it."),
            "{text}"
        );
        assert!(
            render(&json!([]))
                .unwrap()
                .contains("Nothing is checked out")
        );
    }
}
