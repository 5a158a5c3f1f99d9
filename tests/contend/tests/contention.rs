//! A short run of what `cargo xtask bench leases` does for long.

use std::time::Duration;

use contend::fleet::{Order, run};

#[test]
fn nothing_is_granted_twice_or_lost_among_processes_that_are_killed() {
    let order = Order {
        calls: 4_000,
        clients: 12,
        images: 3,
        // Whoever sleeps past a deadline takes ten seconds for it.
        lapsing: 0,
        seed: 1,
        calm: Duration::from_millis(60),
    };
    let report = run(&order).unwrap();
    let findings = &report.findings;
    assert_eq!(findings.problems, Vec::<String>::new(), "{report:?}");
    assert!(findings.answered() >= order.calls, "{report:?}");
    assert!(findings.commits > 50, "{report:?}");
    let done = report.disturbances;
    assert!(
        done.killed > 0 && done.stopped > 0 && done.doubled > 0,
        "{report:?}"
    );
}
