//! What uploads may take of the connection to the home.
//!
//! Owns the upload limit, which all uploads of this device share, and knows whether the connection is metered: then
//! uploads that nobody waits for can be held. Knows no home and no objects.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::{Link, Metered};
use crate::events::Reporter;

/// Whether somebody waits for an upload that began without anybody.
pub type Hurry = watch::Receiver<bool>;

/// The way up.
#[derive(Debug)]
pub struct Uplink {
    settings: Link,
    /// When what has been let through so far has gone, at the limit.
    free_at: Mutex<Instant>,
    /// Whether the connection was metered when that was asked last, and when.
    asked: Mutex<Option<(Instant, bool)>>,
    held: AtomicUsize,
}

impl Uplink {
    /// With these limits.
    pub fn new(settings: Link) -> Self {
        Self {
            settings,
            free_at: Mutex::new(Instant::now()),
            asked: Mutex::default(),
            held: AtomicUsize::new(0),
        }
    }

    /// Waits until so many bytes may be sent. Small bursts are let through, so that a limit above what the timer can
    /// tell apart is reached.
    pub async fn let_through(&self, bytes: u64) {
        let Some(rate) = self.settings.up else {
            return;
        };
        let at = {
            let now = Instant::now();
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*free_at).max(now.checked_sub(BURST).unwrap_or(now));
            *free_at = begin + Duration::from_secs_f64(bytes as f64 / rate as f64);
            begin
        };
        sleep_until(at).await;
    }

    /// Waits while this upload is to be held, and says so; goes on at once when somebody is in a hurry.
    pub async fn wait_while_held(&self, hurry: Option<&Hurry>, reporter: &Reporter) {
        let Some(hurry) = hurry else {
            return;
        };
        let mut held = None;
        while self.holds_back(Some(hurry)).await {
            held.get_or_insert_with(|| Held::new(&self.held, reporter));
            let mut hurry = hurry.clone();
            tokio::select! {
                () = sleep(ASK_AGAIN) => {}
                // Without whom it was for there is no hurry, and soon no upload.
                Ok(_) = hurry.wait_for(|hurry| *hurry) => {}
            }
        }
    }

    /// Whether an upload is to wait for another connection.
    pub async fn holds_back(&self, hurry: Option<&Hurry>) -> bool {
        let waits = hurry.is_some_and(|hurry| !*hurry.borrow());
        waits && self.settings.pause_on_metered && self.is_metered().await
    }

    /// Whether an upload is being held.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    async fn is_metered(&self) -> bool {
        match self.settings.metered {
            Metered::Yes => return true,
            Metered::No => return false,
            Metered::Ask => {}
        }
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, metered)) = asked
            && at.elapsed() < ASK_AGAIN
        {
            return metered;
        }
        let metered = ask_network_manager().await;
        let asked = Some((Instant::now(), metered));
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        metered
    }
}

impl Default for Uplink {
    fn default() -> Self {
        Self::new(Link::default())
    }
}

/// An upload that is held, for as long as it is.
struct Held<'a> {
    count: &'a AtomicUsize,
    reporter: &'a Reporter,
}

impl<'a> Held<'a> {
    fn new(count: &'a AtomicUsize, reporter: &'a Reporter) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        reporter.waits_for(Some("a connection that is not metered"));
        Self { count, reporter }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.reporter.waits_for(None);
    }
}

/// Asks NetworkManager. Where there is none, or no answer, the connection counts as not metered.
async fn ask_network_manager() -> bool {
    let mut ask = Command::new("busctl");
    ask.args(["get-property", SERVICE, OBJECT, SERVICE, "Metered"])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    match timeout(ANSWER_MAX, ask.output()).await {
        Ok(Ok(answer)) => says_metered(&String::from_utf8_lossy(&answer.stdout)),
        _ => false,
    }
}

/// Reads NetworkManager's `NMMetered`: 1 is yes, 3 a guess that it is.
fn says_metered(answer: &str) -> bool {
    matches!(answer.trim(), "u 1" | "u 3")
}

const SERVICE: &str = "org.freedesktop.NetworkManager";
const OBJECT: &str = "/org/freedesktop/NetworkManager";
/// An answer counts for so long: a laptop that changes networks is noticed soon enough.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// A bus that does not answer by then has nobody who would.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// What may go at once.
const BURST: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Phase;

    #[tokio::test(start_paused = true)]
    async fn uploads_share_the_limit() {
        let uplink = Uplink::new(Link {
            up: Some(1 << 20),
            ..Link::default()
        });
        let start = Instant::now();
        let one = async {
            for _ in 0..80 {
                uplink.let_through(64 << 10).await;
            }
        };
        let other = async {
            for _ in 0..80 {
                uplink.let_through(64 << 10).await;
            }
        };
        tokio::join!(one, other);
        // 10 MiB at 1 MiB/s; the last block is let through when those before it have gone.
        let seconds = start.elapsed().as_secs_f64();
        assert!((9.8..=10.1).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let uplink = Uplink::default();
        let start = Instant::now();
        uplink.let_through(u64::MAX).await;
        let (_sender, hurry) = watch::channel(false);
        let reporter = Reporter::new(Phase::Push);
        uplink.wait_while_held(Some(&hurry), &reporter).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn on_a_metered_connection_only_what_nobody_waits_for_is_held() {
        let uplink = Uplink::new(Link {
            pause_on_metered: true,
            metered: Metered::Yes,
            ..Link::default()
        });
        let reporter = Reporter::new(Phase::Push);
        uplink.wait_while_held(None, &reporter).await;
        let (sender, hurry) = watch::channel(false);
        let mut progress = reporter.subscribe();
        let held = uplink.wait_while_held(Some(&hurry), &reporter);
        let somebody_comes = async {
            let says = progress.wait_for(|now| now.waits_for.is_some());
            assert!(
                says.await
                    .unwrap()
                    .waits_for
                    .as_ref()
                    .unwrap()
                    .contains("metered")
            );
            assert!(uplink.is_held());
            sender.send(true).unwrap();
        };
        tokio::join!(held, somebody_comes);
        assert!(!uplink.is_held());
        assert_eq!(reporter.now().waits_for, None);
    }

    #[test]
    fn network_managers_words_are_understood() {
        for (answer, metered) in [
            ("u 1\n", true),
            ("u 3\n", true),
            ("u 0\n", false),
            ("u 2\n", false),
            ("u 4\n", false),
            ("", false),
            ("Failed to get property", false),
        ] {
            assert_eq!(says_metered(answer), metered, "{answer}");
        }
    }
}
