//! Those who wait for a checkout: what they are told while it does not go on.

use tokio::time::Instant;

use super::Worker;
use crate::error::ApiError;
use crate::home::CallError;

impl Worker {
    /// Tells those who wait for an absent home that it is, after a while; what they wait for goes on.
    pub(super) fn notice_absence(&mut self) {
        // A home that vanished without a word is known to be away only after the connection's idle time.
        let now_shown = self.reporter.now();
        let at_home = self.streaming.is_some() || self.farewell.is_some();
        let silent = at_home && self.shown_last.as_ref() == Some(&now_shown);
        self.shown_last = Some(now_shown);
        let patience = if !self.shared.home.connected() {
            AWAY_PATIENCE
        } else if silent {
            SILENCE_PATIENCE
        } else {
            self.away_since = None;
            return;
        };
        let since = *self.away_since.get_or_insert_with(Instant::now);
        if since.elapsed() < patience {
            return;
        }
        let absence = self.shared.home.absence();
        if !matches!(absence, CallError::Away) {
            let error = self.shared.home.explain(&absence, &self.name);
            self.tell_who_waits(&error);
            return;
        }
        let cut = self.shared.home.explain(&absence, &self.name);
        for waiting in std::mem::take(&mut self.waiting_cuts) {
            let _ = waiting.done.send(Err(cut.clone()));
        }
        let commit = self.commit_waits();
        self.wishes.tell(&commit);
        let release = self.release_waits();
        self.answer_release(|| Err(release.clone()));
    }

    /// Answers those who wait for what does not go on now; it will by itself. Only a cut that was not taken
    /// has to be asked for again.
    pub(super) fn tell_who_waits(&mut self, error: &ApiError) {
        for waiting in std::mem::take(&mut self.waiting_cuts) {
            let _ = waiting.done.send(Err(error.clone()));
        }
        self.wishes.tell(error);
        self.answer_release(|| Err(error.clone()));
    }

    pub(super) fn somebody_waits(&self) -> bool {
        !self.release_waiters.is_empty()
            || !self.waiting_cuts.is_empty()
            || self.wishes.are_waited_for()
    }
}

/// How long somebody waits for an absent home before hearing that it is.
const AWAY_PATIENCE: std::time::Duration = std::time::Duration::from_millis(1_500);
/// How long somebody waits for a connected home that sends no sign: longer than a slow link needs for one
/// block.
const SILENCE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
