//! `imgctl cache`.

use img_types::limits::CACHE_FREE_MIN;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::show;

#[derive(Debug, Deserialize)]
struct Cache {
    limit_bytes: u64,
    used_bytes: u64,
    evictable_bytes: u64,
    outbox_bytes: u64,
    free_bytes: u64,
}

/// Shows the cache of this device, after setting its limit if there is one to set.
pub(super) async fn cache(session: &Session, limit: Option<u64>) -> Result<(), Failure> {
    let cache = match limit {
        Some(limit) => {
            let body = json!({ "limit_bytes": limit });
            session.api.post("/v1/cache", &body).await?
        }
        None => session.api.get("/v1/cache").await?,
    };
    session.output.answer(&cache, render)
}

fn render(cache: &Value) -> Result<String, serde_json::Error> {
    let cache = Cache::deserialize(cache)?;
    let mut text = format!(
        "limit      {}\nused       {}\nevictable  {}\noutbox     {}\nfree disk  {}",
        show::bytes(cache.limit_bytes),
        show::bytes(cache.used_bytes),
        show::bytes(cache.evictable_bytes),
        show::bytes(cache.outbox_bytes),
        show::bytes(cache.free_bytes),
    );
    if cache.used_bytes > cache.limit_bytes {
        text.push_str(&format!(
            "\nThe cache is over its limit: {} are not at home yet and stay until they are.",
            show::bytes(cache.outbox_bytes)
        ));
    }
    if cache.free_bytes < CACHE_FREE_MIN {
        text.push_str(&format!(
            "\nThe disk is short of room: the cache takes nothing more until {} are free.",
            show::bytes(CACHE_FREE_MIN)
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_to_is_said() {
        let roomy = json!({"limit_bytes": 20u64 << 30, "used_bytes": 1, "evictable_bytes": 1,
            "outbox_bytes": 0, "free_bytes": 1u64 << 40});
        let text = render(&roomy).unwrap();
        assert!(text.starts_with("limit      20.00 GiB\n"), "{text}");
        assert_eq!(text.lines().count(), 5);
        let tight = json!({"limit_bytes": 1 << 20, "used_bytes": 3 << 20, "evictable_bytes": 0,
            "outbox_bytes": 3 << 20, "free_bytes": 300 << 20});
        let text = render(&tight).unwrap();
        assert!(
            text.contains("over its limit: 3.00 MiB are not at home yet"),
            "{text}"
        );
        assert!(text.contains("short of room"), "{text}");
    }
}
