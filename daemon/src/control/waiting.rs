//! Operations that somebody watches and that may need the home: told what they wait for, and given up in time.
//!
//! A read of a mounted file waits longer, because a program knows no better; a person does.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error::{ApiError, Kind};
use crate::events::Reporter;
use crate::home::Home;

/// Does something that may need the home; `stays` says what is left of it where the home does not come back.
pub(super) async fn for_home<T>(
    home: &Home,
    reporter: &Reporter,
    stays: &str,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let mut work = pin!(work);
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut patience = Patience::default();
    loop {
        tokio::select! {
            biased;
            outcome = &mut work => return outcome,
            _ = looks.tick() => {}
        }
        let now = reporter.now();
        let need = match (home.connected(), home.objects().waits_for_home()) {
            (true, _) => Need::Nothing,
            (false, true) => Need::Objects,
            (false, false) => Need::Unknown,
        };
        let waits = patience.look(need, (now.done_bytes, now.files), Instant::now());
        if now.waits_for.is_some() != (waits != Waits::Not) {
            let what = (waits != Waits::Not).then_some("the home");
            reporter.waits_for(what);
        }
        if waits == Waits::TooLong {
            let mut told = home.explain(&home.absence(), "the home");
            if told.kind == Kind::HomeAway {
                let seconds = GIVEN_UP_AFTER.as_secs();
                told.message = format!("The home has not answered for {seconds} seconds. {stays}");
            }
            return Err(told);
        }
    }
}

/// What an operation wants of a home that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// The home is there.
    Nothing,
    /// Objects that are not on this device.
    Objects,
    /// Nothing, or a word that is waited for a short time only.
    Unknown,
}

/// Whether an operation waits for the home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Not,
    Still,
    TooLong,
}

/// Since when an operation has not moved on without the home.
#[derive(Debug, Default)]
struct Patience {
    since: Option<Instant>,
    done: (u64, Option<u64>),
}

impl Patience {
    fn look(&mut self, need: Need, done: (u64, Option<u64>), now: Instant) -> Waits {
        let moved = std::mem::replace(&mut self.done, done) != done;
        if need == Need::Nothing || moved {
            self.since = None;
            return Waits::Not;
        }
        let since = *self.since.get_or_insert(now);
        match need {
            Need::Objects if now.duration_since(since) >= GIVEN_UP_AFTER => Waits::TooLong,
            Need::Objects => Waits::Still,
            _ if done == (0, None) => Waits::Still,
            _ => Waits::Not,
        }
    }
}

/// How often it is looked: with the two seconds after which a silent home counts as away, a person hears within
/// three what is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a home that is away is waited for: one that was started anew is back by then.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_an_absent_home_waits_and_not_for_ever() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::default();
        assert_eq!(
            patience.look(Need::Nothing, (0, None), after(0)),
            Waits::Not
        );
        assert_eq!(
            patience.look(Need::Unknown, (0, None), after(1)),
            Waits::Still
        );
        assert_eq!(
            patience.look(Need::Objects, (9, None), after(2)),
            Waits::Not,
            "it moves"
        );
        assert_eq!(
            patience.look(Need::Objects, (9, None), after(3)),
            Waits::Still
        );
        // What is on this device is written, however slowly.
        assert_eq!(
            patience.look(Need::Unknown, (9, None), after(30)),
            Waits::Not
        );
        assert_eq!(
            patience.look(Need::Objects, (9, None), after(12)),
            Waits::Still
        );
        assert_eq!(
            patience.look(Need::Objects, (9, None), after(13)),
            Waits::TooLong
        );
        assert_eq!(
            patience.look(Need::Nothing, (9, None), after(14)),
            Waits::Not
        );
        assert_eq!(
            patience.look(Need::Objects, (9, None), after(15)),
            Waits::Still
        );
    }
}
