use std::fs;

use super::*;

const MIN: Duration = Duration::from_secs(60);
const MAX: Duration = Duration::from_secs(1_800);

fn pace(interval: Interval, costs: &[u64]) -> Pace {
    let settings = Checkpoints {
        interval,
        ..Checkpoints::default()
    };
    let now = Instant::now();
    let mut pace = Pace::new(settings, now);
    for millis in costs {
        pace.spend(Duration::from_millis(*millis));
        pace.cut(now);
    }
    pace
}

fn seconds(pace: &Pace, power: Power) -> u64 {
    pace.interval(power).unwrap().as_secs()
}

const CHANGED: Situation = Situation {
    changed: true,
    is_held: false,
};

#[test]
fn the_interval_follows_youngs_formula_within_its_bounds() {
    // sqrt(2 · 0.1 s · 7 d) = 347.8 s.
    assert_eq!(seconds(&pace(Interval::Auto, &[100]), Power::Mains), 347);
    assert_eq!(seconds(&pace(Interval::Auto, &[400]), Power::Mains), 695);
    assert_eq!(pace(Interval::Auto, &[1]).interval(Power::Mains), Some(MIN));
    let dear = pace(Interval::Auto, &[3_600_000]);
    assert_eq!(dear.interval(Power::Mains), Some(MAX));
    // Before anything is known it is better to save too often.
    assert_eq!(pace(Interval::Auto, &[]).interval(Power::Mains), Some(MIN));
}

#[test]
fn costs_are_averaged_over_the_last_few() {
    let mut pace = pace(Interval::Auto, &[3_600_000, 100, 100, 100, 100]);
    assert_eq!(pace.interval(Power::Mains), Some(MAX));
    // One that is spent in parts counts once, and the dear one is forgotten.
    for _ in 0..4 {
        pace.spend(Duration::from_millis(25));
    }
    pace.cut(Instant::now());
    assert_eq!(seconds(&pace, Power::Mains), 347);
    // A cut that cost nothing that is known says nothing.
    pace.cut(Instant::now());
    assert_eq!(seconds(&pace, Power::Mains), 347);
}

#[test]
fn a_battery_that_ends_soon_shortens_what_is_computed() {
    let dear = pace(Interval::Auto, &[3_600_000]);
    assert_eq!(dear.interval(Power::Battery), Some(MAX));
    assert_eq!(dear.interval(Power::NearlyEmpty), Some(MAX / 10));
    let cheap = pace(Interval::Auto, &[100]);
    assert_eq!(cheap.interval(Power::NearlyEmpty), Some(MIN));
    let five = Duration::from_secs(300);
    let fixed = pace(Interval::Fixed(five), &[3_600_000]);
    assert_eq!(fixed.interval(Power::NearlyEmpty), Some(five));
}

#[test]
fn nothing_is_cut_before_its_time_nor_without_a_change_nor_over_one_that_streams() {
    let five = Duration::from_secs(300);
    let mut pace = pace(Interval::Fixed(five), &[]);
    let start = pace.since;
    let due = start + five;
    assert_eq!(pace.step(start, Power::Mains, CHANGED), Step::Wait(due));
    assert_eq!(pace.step(due, Power::Mains, CHANGED), Step::Cut);
    let streams = Situation {
        is_held: true,
        ..CHANGED
    };
    assert_eq!(pace.step(due, Power::Mains, streams), Step::Hold);
    let idle = Situation {
        changed: false,
        is_held: true,
    };
    assert_eq!(pace.step(due, Power::Mains, idle), Step::Pass);
    // What begins to change after a long rest is not cut at its first byte.
    pace.pass(due);
    assert_eq!(
        pace.step(due, Power::Mains, CHANGED),
        Step::Wait(due + five)
    );
}

#[test]
fn switched_off_there_are_none() {
    let off = pace(Interval::Off, &[]);
    assert_eq!(off.interval(Power::NearlyEmpty), None);
    let later = Instant::now() + MAX;
    assert_eq!(off.step(later, Power::Mains, CHANGED), Step::Never);
}

#[test]
fn the_policy_says_from_when_on_a_checkpoint_becomes_a_commit() {
    let now = Instant::now();
    let with = |commit| {
        let settings = Checkpoints {
            commit,
            ..Checkpoints::default()
        };
        Pace::new(settings, now)
    };
    assert_eq!(with(CommitPolicy::Every).commits_from(), Some(now));
    assert_eq!(with(CommitPolicy::Hand).commits_from(), None);
    let mut after = with(CommitPolicy::After(MIN));
    assert_eq!(after.commits_from(), Some(now + MIN));
    after.committed(now + MAX);
    assert_eq!(after.commits_from(), Some(now + MAX + MIN));
}

#[test]
fn the_kernel_says_what_the_device_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let supply = |name: &str, files: &[(&str, &str)]| {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), format!("{text}\n")).unwrap();
        }
    };
    assert_eq!(power(&dir.path().join("none")), Power::Mains);
    supply("AC", &[("type", "Mains"), ("online", "0")]);
    let mouse = [("type", "Battery"), ("scope", "Device")];
    supply("mouse", &mouse);
    supply("mouse", &[("status", "Discharging"), ("capacity", "3")]);
    assert_eq!(power(dir.path()), Power::Mains);
    let battery = [("type", "Battery"), ("status", "Discharging")];
    supply("BAT0", &battery);
    supply("BAT0", &[("capacity", "9")]);
    assert_eq!(power(dir.path()), Power::NearlyEmpty);
    // A second one is not used up yet.
    supply("BAT1", &[("type", "Battery"), ("status", "Not charging")]);
    supply("BAT1", &[("capacity", "80")]);
    assert_eq!(power(dir.path()), Power::Battery);
    supply("BAT1", &[("capacity", "broken")]);
    assert_eq!(power(dir.path()), Power::NearlyEmpty);
    supply("BAT0", &[("status", "Charging")]);
    assert_eq!(power(dir.path()), Power::Mains);
}
