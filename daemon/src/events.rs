//! What happens in the daemon, for those who watch: events for everybody, progress for one operation.
//!
//! Owns the shapes that `docs/control-api.md` describes under "Long operations" and "events". Nothing here
//! waits for a reader: events are dropped for slow ones, progress only ever shows its newest value.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use img_types::{CheckoutId, CommitId, ImageId, WallMillis};
use serde::Serialize;
use tokio::sync::{broadcast, watch};

/// Something that anybody may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// The connection to the home came or went.
    Home {
        /// Whether it stands.
        connected: bool,
    },
    /// A checkout opened, closed or changed its state.
    Checkout {
        /// Which.
        checkout: CheckoutId,
        /// Its image's name.
        name: String,
        /// Its folder.
        dir: String,
        /// The state's word, or `closed`.
        state: &'static str,
        /// The device that has taken the image over, where one has.
        rival: Option<String>,
        /// What was said about it, once that is known.
        reason: Option<String>,
        /// The name of the image that was taken over, where the checkout goes on as a branch.
        left: Option<String>,
    },
    /// Work on a checkout went on.
    Progress {
        /// Which.
        checkout: CheckoutId,
        /// Its image's name.
        name: String,
        /// How far.
        #[serde(flatten)]
        progress: Progress,
    },
    /// An image has a new head.
    Head {
        /// Which.
        image: ImageId,
        /// Its name.
        name: String,
        /// The head.
        head: CommitId,
    },
    /// A lease of this device has a new deadline, or ended.
    Lease {
        /// Which image.
        image: ImageId,
        /// Its name.
        name: String,
        /// RFC 3339, or nothing where it ended.
        until: Option<String>,
    },
}

impl Event {
    /// The event's name in the stream.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Home { .. } => "home",
            Self::Checkout { .. } => "checkout",
            Self::Progress { .. } => "progress",
            Self::Head { .. } => "head",
            Self::Lease { .. } => "lease",
        }
    }
}

/// Tells everybody who listens; costs nothing while nobody does.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Events {
    /// Starts without listeners.
    pub fn new() -> Self {
        Self(broadcast::channel(EVENTS_MAX).0)
    }

    /// Tells everybody.
    pub fn send(&self, event: Event) {
        // Without a listener there is nobody to tell, which is no error.
        let _ = self.0.send(event);
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

/// What a long operation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Reads a folder, disk or tar into an image.
    Import,
    /// Turns closed generations into sealed objects.
    Seal,
    /// Sends objects home.
    Push,
    /// Moves the head.
    Commit,
    /// Mounts a checkout.
    Mount,
    /// Gets objects from the home.
    Fetch,
    /// Writes an image's files somewhere else.
    Export,
    /// Waits for somebody.
    Wait,
    /// Unmounts a checkout.
    Unmount,
    /// Gives a lease back.
    Release,
}

/// How far a long operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes done in this phase.
    pub done_bytes: u64,
    /// Bytes of the whole phase, once known.
    pub total_bytes: Option<u64>,
    /// Files done, where files are what is worked on.
    pub files: Option<u64>,
    /// What the operation waits for, in words.
    pub waits_for: Option<String>,
}

/// Where an operation says how far it is; clones report to the same place.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<watch::Sender<Progress>>);

impl Reporter {
    /// Starts in a phase, with nothing done.
    pub fn new(phase: Phase) -> Self {
        Self(Arc::new(watch::Sender::new(Progress::start(phase, None))))
    }

    /// Begins a phase.
    pub fn phase(&self, phase: Phase, total_bytes: Option<u64>) {
        self.0.send_replace(Progress::start(phase, total_bytes));
    }

    /// Adds bytes that are done.
    pub fn advance(&self, bytes: u64) {
        self.0.send_modify(|progress| progress.done_bytes += bytes);
    }

    /// Adds files that are done.
    pub fn files(&self, files: u64) {
        self.0
            .send_modify(|progress| *progress.files.get_or_insert(0) += files);
    }

    /// Sets what is done and what there is in all.
    pub fn set(&self, done_bytes: u64, total_bytes: Option<u64>) {
        self.0.send_modify(|progress| {
            progress.done_bytes = done_bytes;
            progress.total_bytes = total_bytes;
        });
    }

    /// Says what the operation waits for, or that it goes on.
    pub fn waits_for(&self, what: Option<&str>) {
        self.0
            .send_modify(|progress| progress.waits_for = what.map(str::to_owned));
    }

    /// The newest progress.
    pub fn now(&self) -> Progress {
        self.0.borrow().clone()
    }

    /// Watches from now on.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.0.subscribe()
    }
}

impl Progress {
    fn start(phase: Phase, total_bytes: Option<u64>) -> Self {
        Self {
            phase,
            done_bytes: 0,
            total_bytes,
            files: None,
            waits_for: None,
        }
    }
}

/// The wall clock.
pub fn now() -> WallMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WallMillis(since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }))
}

/// Renders a wall time as RFC 3339 in UTC, to the second.
pub fn time(at: WallMillis) -> String {
    let millis = u64::try_from(at.0).unwrap_or(0).min(TIME_MAX_MS);
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Renders a wall time for sentences, as imgctl does in its tables.
pub fn time_in_words(at: WallMillis) -> String {
    format!("{} UTC", time(at).replace('T', " ").trim_end_matches('Z'))
}

/// The wall time a number of milliseconds from now.
pub fn after(millis: u64) -> WallMillis {
    later(now(), millis)
}

/// The wall time a number of milliseconds after another.
pub fn later(at: WallMillis, millis: u64) -> WallMillis {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    WallMillis(at.0.saturating_add(millis))
}

/// Renders the wall time a number of milliseconds from now.
pub fn time_after(millis: u64) -> String {
    time(after(millis))
}

/// Events that a slow listener may be behind before it loses the oldest.
const EVENTS_MAX: usize = 1_024;
/// The last time that RFC 3339 can render: the end of the year 9999.
const TIME_MAX_MS: u64 = 253_402_300_799_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_serialise_as_documented() {
        let reporter = Reporter::new(Phase::Push);
        reporter.set(1, Some(2));
        reporter.waits_for(Some("the home"));
        let event = Event::Progress {
            checkout: CheckoutId::from_bytes([1; 32]),
            name: "vm".into(),
            progress: reporter.now(),
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(event.name(), "progress");
        assert_eq!(json["phase"], "push");
        assert_eq!(json["done_bytes"], 1);
        assert_eq!(json["total_bytes"], 2);
        assert_eq!(json["files"], serde_json::Value::Null);
        assert_eq!(json["waits_for"], "the home");
    }

    #[test]
    fn times_are_rfc_3339_and_never_panic() {
        assert_eq!(time(WallMillis(0)), "1970-01-01T00:00:00Z");
        assert_eq!(time(WallMillis(-5)), "1970-01-01T00:00:00Z");
        assert_eq!(time(WallMillis(i64::MAX)), "9999-12-31T23:59:59Z");
        assert_eq!(time_in_words(WallMillis(0)), "1970-01-01 00:00:00 UTC");
    }

    #[tokio::test]
    async fn progress_shows_its_newest_value() {
        let reporter = Reporter::new(Phase::Import);
        let mut watch = reporter.subscribe();
        reporter.advance(5);
        reporter.advance(6);
        reporter.files(2);
        watch.changed().await.unwrap();
        let progress = watch.borrow_and_update().clone();
        assert_eq!((progress.done_bytes, progress.files), (11, Some(2)));
    }
}
