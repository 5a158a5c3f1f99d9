//! Which local checkpoints are let go of when there are many.
//!
//! All of the last hour stay, one for each hour of a day, one for each day of thirty; those that somebody has said
//! something about stay as long as there are not too many in all. What a commit or a staging waits for stays
//! whatever it is, and so do the newest: a clock that jumps ahead makes everything old at once. Only computes.

use std::collections::{BTreeMap, BTreeSet};

use img_types::WallMillis;

/// A checkpoint, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Its place in the order of checkpoints.
    pub(super) generation: u64,
    pub(super) time: WallMillis,
    /// Somebody has said what it is.
    pub(super) is_named: bool,
    /// Something under way is made of it.
    pub(super) is_needed: bool,
}

/// The generations of the checkpoints to let go of; `cuts` come oldest first.
pub(super) fn to_drop(cuts: &[Cut], now: WallMillis) -> BTreeSet<u64> {
    let mut newest_of = BTreeMap::new();
    for cut in cuts {
        for span in [HOUR, DAY] {
            newest_of.insert((span, cut.time.0.div_euclid(span)), cut.generation);
        }
    }
    let is_newest_of = |cut: &Cut, span: i64| {
        newest_of.get(&(span, cut.time.0.div_euclid(span))) == Some(&cut.generation)
    };
    let older = &cuts[..cuts.len().saturating_sub(NEWEST_KEPT)];
    let mut gone: BTreeSet<u64> = older
        .iter()
        .filter(|cut| !cut.is_needed && !cut.is_named)
        .filter(|cut| {
            // One of the future was taken before the clock was set back.
            let age = now.0.saturating_sub(cut.time.0);
            let is_kept = match age {
                _ if age <= HOUR => true,
                _ if age <= DAY => is_newest_of(cut, HOUR),
                _ if age <= KEPT_MAX => is_newest_of(cut, DAY),
                _ => false,
            };
            !is_kept
        })
        .map(|cut| cut.generation)
        .collect();
    let mut too_many = (cuts.len() - gone.len()).saturating_sub(CHECKPOINTS_MAX);
    for is_named in [false, true] {
        for cut in older {
            let may_go = cut.is_named == is_named && !cut.is_needed;
            if too_many > 0 && may_go && gone.insert(cut.generation) {
                too_many -= 1;
            }
        }
    }
    gone
}

/// Milliseconds within which all stay.
const HOUR: i64 = 3_600_000;
/// Milliseconds within which one of each hour stays.
const DAY: i64 = 24 * HOUR;
/// Milliseconds within which one of each day stays.
const KEPT_MAX: i64 = 30 * DAY;
/// The newest stay whatever the clock says.
const NEWEST_KEPT: usize = 16;
/// Checkpoints of one checkout: more than a person looks through, and each is walked when the outbox is trimmed.
const CHECKPOINTS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallMillis = WallMillis(1_000 * DAY);
    const MINUTE: i64 = 60_000;

    /// One each few minutes, oldest first.
    fn every(minutes: i64, count: i64) -> Vec<Cut> {
        let cut = |number: i64| Cut {
            generation: (count - number).cast_unsigned(),
            time: WallMillis(NOW.0 - number * minutes * MINUTE),
            is_named: false,
            is_needed: false,
        };
        (0..count).rev().map(cut).collect()
    }

    fn left(cuts: &[Cut], now: WallMillis) -> Vec<Cut> {
        let gone = to_drop(cuts, now);
        let left = cuts.iter().filter(|cut| !gone.contains(&cut.generation));
        left.copied().collect()
    }

    fn between(cuts: &[Cut], from: i64, to: i64) -> usize {
        let ages = cuts.iter().map(|cut| NOW.0 - cut.time.0);
        ages.filter(|age| (from..to).contains(age)).count()
    }

    #[test]
    fn the_older_the_fewer_are_kept() {
        // Forty days, thinned whenever one is taken, as in life.
        let mut kept: Vec<Cut> = Vec::new();
        for cut in every(5, 40 * 24 * 12) {
            kept.push(cut);
            kept = left(&kept, cut.time);
        }
        assert!(kept.len() < 80, "{}", kept.len());
        assert_eq!(between(&kept, 0, HOUR), 12);
        // The newest sixteen reach a little farther back than an hour.
        assert!((23..=27).contains(&between(&kept, HOUR, DAY)));
        assert!((28..=30).contains(&between(&kept, DAY, KEPT_MAX + 1)));
        assert_eq!(between(&kept, KEPT_MAX + 1, i64::MAX), 0);
        assert_eq!(left(&kept, NOW), kept, "nothing more is to go");
    }

    #[test]
    fn the_newest_stay_whatever_the_clock_says() {
        let cuts = every(1, 40);
        let ahead = WallMillis(NOW.0 + 1_000 * DAY);
        assert_eq!(left(&cuts, ahead), &cuts[40 - NEWEST_KEPT..]);
        assert_eq!(left(&cuts, WallMillis(0)), cuts, "set back");
        assert_eq!(to_drop(&[], NOW), BTreeSet::new());
    }

    #[test]
    fn what_is_needed_stays_and_what_is_named_goes_last() {
        let mut cuts = every(2 * 24 * 60, 1_100);
        for cut in &mut cuts {
            cut.is_named = cut.generation % 2 == 0;
            cut.is_needed = cut.generation == 3;
        }
        let kept = left(&cuts, NOW);
        assert_eq!(kept.iter().filter(|cut| cut.is_named).count(), 550);
        assert!(kept.iter().any(|cut| cut.generation == 3));
        assert!(kept.len() < 600, "{}", kept.len());

        // Too many of them: the oldest go, but not what is needed.
        let mut cuts = every(2 * 24 * 60, 2_000);
        for cut in &mut cuts {
            cut.is_named = true;
            cut.is_needed = cut.generation == 3;
        }
        let kept = left(&cuts, NOW);
        assert_eq!(kept.len(), CHECKPOINTS_MAX);
        assert_eq!((kept[0].generation, kept[1].generation), (3, 1_002));
        // Those without a name first, also newer ones.
        let mut cuts = every(0, 1_010);
        for cut in &mut cuts[..500] {
            cut.is_named = true;
        }
        let kept = left(&cuts, NOW);
        assert_eq!(kept.len(), CHECKPOINTS_MAX);
        assert!(kept[..500].iter().all(|cut| cut.is_named));
    }
}
