use img_types::{BootMillis, Epoch, Incarnation, WallMillis};

use super::*;

const TTL_MS: u64 = 600_000;
const CAUSES: [Cause; 9] = [
    Cause::Granted,
    Cause::Renewed,
    Cause::DeadlinePassed,
    Cause::Superseded,
    Cause::Committed,
    Cause::Branched,
    Cause::GivenBack,
    Cause::AdoptionEnded,
    Cause::Closed,
];

fn at(ms: u64) -> Moment {
    Moment {
        boot_id: BootId([1; 16]),
        boot: BootMillis(ms),
        wall: WallMillis(ms as i64),
    }
}

fn commit(n: u8) -> CommitId {
    CommitId::from_bytes([n; 32])
}

fn token(epoch: u64) -> Token {
    Token {
        incarnation: Incarnation::from_bytes([1; 32]),
        epoch: Epoch(epoch),
    }
}

fn terms(mode: LeaseMode) -> Terms {
    Terms {
        ttl_ms: TTL_MS,
        mode,
    }
}

fn grant(epoch: u64) -> Granted {
    Granted {
        token: token(epoch),
        terms: terms(LeaseMode::Online),
        head: Some(commit(1)),
        sent: at(0),
        luck: 0,
    }
}

fn request(n: u8) -> RequestId {
    RequestId::from_bytes([n; 32])
}

fn leased() -> Holder {
    Holder::leased(
        ImageId::from_bytes([1; 32]),
        CheckoutId::from_bytes([1; 32]),
        &grant(1),
    )
}

fn read_only() -> Holder {
    Holder::read_only(
        ImageId::from_bytes([1; 32]),
        CheckoutId::from_bytes([1; 32]),
        Some(commit(1)),
    )
}

fn superseded(holder: &Holder) -> Event {
    Event::TokenStale {
        image: holder.image(),
        token: holder.token().unwrap_or(token(1)),
        rival: None,
    }
}

/// A checkout in a state, reached by events alone. `adopting`: it was an orphan before.
fn in_state(kind: Kind, adopting: bool) -> Holder {
    let mut holder = leased();
    if adopting {
        holder.apply(superseded(&holder)).unwrap();
        holder.apply(Event::Granted(grant(2))).unwrap();
    }
    match kind {
        Kind::Leased => {}
        Kind::Lapsed => {
            holder.apply(Event::Tick(at(TTL_MS))).unwrap();
        }
        Kind::Orphan => {
            holder.apply(superseded(&holder)).unwrap();
        }
        Kind::ReadOnly => holder = read_only(),
        Kind::Closed => {
            holder.apply(Event::Closed).unwrap();
        }
    }
    assert_eq!(holder.kind(), kind);
    holder
}

/// An event that is not stale and has the given meaning; nothing where none can have it.
fn event(holder: &mut Holder, cause: Cause) -> Option<Event> {
    let has_token = holder.token().is_some();
    match cause {
        Cause::Granted => Some(Event::Granted(grant(9))),
        Cause::Renewed => {
            let renewal = holder.ask_renewal(request(1), None, at(1))?;
            Some(Event::Renewed {
                request: renewal.request,
                ttl_ms: TTL_MS,
                luck: 0,
            })
        }
        Cause::DeadlinePassed => (holder.kind() == Kind::Leased).then_some(Event::Tick(at(TTL_MS))),
        Cause::Superseded => has_token.then(|| superseded(holder)),
        Cause::Committed => Some(Event::Committed {
            commit: commit(2),
            parent: Some(commit(1)),
        }),
        Cause::Branched => Some(Event::Branched {
            image: ImageId::from_bytes([2; 32]),
            granted: grant(1),
        }),
        Cause::GivenBack | Cause::AdoptionEnded => Some(Event::GivenBack),
        Cause::Closed => Some(Event::Closed),
    }
}

#[test]
fn every_edge_of_the_table_is_taken_and_every_other_is_forbidden() {
    let mut allowed = 0;
    let mut forbidden = 0;
    for from in [
        Kind::Leased,
        Kind::Lapsed,
        Kind::Orphan,
        Kind::ReadOnly,
        Kind::Closed,
    ] {
        for cause in CAUSES {
            let mut holder = in_state(from, cause == Cause::AdoptionEnded);
            let Some(event) = event(&mut holder, cause) else {
                continue;
            };
            let before = holder.clone();
            let edge = TRANSITIONS
                .iter()
                .find(|(state, by, _)| (*state, *by) == (from, cause));
            match edge {
                Some((_, _, to)) => {
                    assert_eq!(holder.apply(event), Ok(true), "{from:?} {cause:?}");
                    assert_eq!(holder.kind(), *to, "{from:?} {cause:?}");
                    allowed += 1;
                }
                None => {
                    let outcome = holder.apply(event);
                    let Err(Forbidden::Transition { from: state, .. }) = outcome else {
                        panic!("{from:?} {cause:?}: {outcome:?}")
                    };
                    assert_eq!(state, from);
                    assert_eq!(holder, before, "a forbidden event changed something");
                    forbidden += 1;
                }
            }
        }
    }
    assert_eq!(allowed, TRANSITIONS.len());
    assert_eq!(forbidden, 12);
}

#[test]
fn the_table_has_each_edge_once_and_nothing_leads_out_of_closed() {
    for (position, (from, cause, _)) in TRANSITIONS.iter().enumerate() {
        assert_ne!(*from, Kind::Closed);
        assert!(
            !TRANSITIONS[..position]
                .iter()
                .any(|(state, by, _)| (state, by) == (from, cause))
        );
    }
}

#[test]
fn a_live_lease_takes_no_second_grant_and_a_closed_checkout_none() {
    for kind in [Kind::Leased, Kind::Closed] {
        let mut holder = in_state(kind, false);
        assert_eq!(
            holder.apply(Event::Granted(grant(2))),
            Err(Forbidden::Transition {
                from: kind,
                cause: Cause::Granted
            })
        );
    }
}

#[test]
fn a_checkout_is_granted_only_the_head_it_stands_on() {
    for kind in [Kind::Lapsed, Kind::Orphan, Kind::ReadOnly] {
        let mut holder = in_state(kind, false);
        let elsewhere = Granted {
            head: Some(commit(7)),
            ..grant(2)
        };
        assert_eq!(
            holder.apply(Event::Granted(elsewhere)),
            Err(Forbidden::NotAtBase)
        );
        assert_eq!(holder.kind(), kind);
    }
}

#[test]
fn repeated_and_outdated_messages_change_nothing() {
    let mut holder = leased();
    assert_eq!(holder.apply(Event::Granted(grant(1))), Ok(false));
    let renewal = holder.ask_renewal(request(1), None, at(10)).unwrap();
    let renewed = |request| Event::Renewed {
        request,
        ttl_ms: TTL_MS,
        luck: 0,
    };
    assert_eq!(holder.apply(renewed(request(2))), Ok(false));
    assert_eq!(holder.apply(renewed(renewal.request)), Ok(true));
    assert_eq!(holder.apply(renewed(renewal.request)), Ok(false));
    let first = Event::Committed {
        commit: commit(2),
        parent: Some(commit(1)),
    };
    let second = Event::Committed {
        commit: commit(3),
        parent: Some(commit(2)),
    };
    assert_eq!(holder.apply(first), Ok(true));
    assert_eq!(holder.apply(second), Ok(true));
    assert_eq!(holder.apply(first), Ok(false));
    assert_eq!(holder.base(), Some(commit(3)));
    // The head is what the checkout stands on after all.
    let own = Event::HeadMoved {
        image: holder.image(),
        token: token(1),
        head: Some(commit(3)),
    };
    assert_eq!(holder.apply(own), Ok(false));
    let stale = Event::TokenStale {
        image: holder.image(),
        token: token(0),
        rival: None,
    };
    assert_eq!(holder.apply(stale), Ok(false));
    assert_eq!(holder.apply(superseded(&holder.clone())), Ok(true));
    // An orphan is not taken in by its own old grant.
    let old = Granted {
        head: Some(commit(3)),
        ..grant(1)
    };
    assert_eq!(holder.apply(Event::Granted(old)), Ok(false));
    assert_eq!(holder.kind(), Kind::Orphan);
}

#[test]
fn a_lease_for_a_late_commit_goes_back_to_where_it_came_from() {
    let mut orphan = in_state(Kind::Orphan, false);
    orphan.apply(Event::Granted(grant(2))).unwrap();
    orphan.apply(Event::Tick(at(TTL_MS))).unwrap();
    orphan.apply(Event::GivenBack).unwrap();
    assert_eq!(orphan.kind(), Kind::Orphan);
    let mut reader = read_only();
    reader.apply(Event::Granted(grant(2))).unwrap();
    reader.apply(Event::GivenBack).unwrap();
    assert_eq!(reader.kind(), Kind::ReadOnly);
}

#[test]
fn the_deadline_follows_the_formula_and_either_clock_can_end_it() {
    let term = Term::new(at(1_000), terms(LeaseMode::Online), 0);
    let usable = TTL_MS - TTL_MS / 250 - 2_000;
    assert!(!term.past(&at(1_000 + usable - 1)));
    assert!(term.past(&at(1_000 + usable)));
    let slept = Moment {
        wall: WallMillis(1_000),
        ..at(1_000 + usable)
    };
    assert!(term.past(&slept), "the boot clock alone");
    let jumped = Moment {
        wall: WallMillis(1_000 + usable as i64),
        ..at(1_001)
    };
    assert!(term.past(&jumped), "the wall clock alone");
    let set_back = Moment {
        wall: WallMillis(0),
        ..at(1_001)
    };
    assert_eq!(term.remaining_ms(&set_back), usable - 1);
    let short = Terms {
        ttl_ms: 1_500,
        ..terms(LeaseMode::Online)
    };
    assert!(Term::new(at(0), short, 0).past(&at(0)));
}

#[test]
fn after_a_reboot_the_wall_clock_must_not_stand_before_what_it_showed() {
    let mut holder = leased();
    holder.apply(Event::Tick(at(200_000))).unwrap();
    let kept = serde_json::to_string(&holder).unwrap();
    let rebooted = |wall| Moment {
        boot_id: BootId([2; 16]),
        boot: BootMillis(0),
        wall: WallMillis(wall),
    };
    for (wall, kind) in [
        (199_999, Kind::Lapsed),
        (200_000, Kind::Leased),
        (TTL_MS as i64, Kind::Lapsed),
    ] {
        let mut holder: Holder = serde_json::from_str(&kept).unwrap();
        assert!(holder.renewal_due(&rebooted(wall), false));
        holder.apply(Event::Tick(rebooted(wall))).unwrap();
        assert_eq!(holder.kind(), kind, "wall {wall}");
    }
}

#[test]
fn renewals_come_at_a_third_spread_by_luck_and_one_at_a_time() {
    let third = TTL_MS / 3;
    let due = |luck| Term::new(at(0), terms(LeaseMode::Online), luck).renewal_in_ms(&at(0));
    assert_eq!(due(0), third);
    assert!(due(u16::MAX) >= third - third / 10 && due(u16::MAX) < third);
    let mut holder = leased();
    assert!(!holder.renewal_due(&at(third - 1), true));
    assert_eq!(holder.wake_in_ms(&at(third - 1)), Some(1));
    assert!(holder.renewal_due(&at(third), false));
    let wanted = Terms {
        ttl_ms: 2 * TTL_MS,
        mode: LeaseMode::Offline,
    };
    let asked = holder
        .ask_renewal(request(1), Some(wanted), at(third))
        .unwrap();
    let again = holder.ask_renewal(request(2), None, at(third + 500));
    assert_eq!(again, Some(asked));
    let renewed = Event::Renewed {
        request: asked.request,
        ttl_ms: 2 * TTL_MS,
        luck: 0,
    };
    holder.apply(renewed).unwrap();
    let tenure = holder.tenure().unwrap();
    assert_eq!(tenure.terms, wanted);
    assert_eq!(
        tenure.until(),
        WallMillis((third + 2 * TTL_MS) as i64),
        "counts from the first sending"
    );
    // An offline lease is renewed whenever there is contact again.
    assert!(holder.renewal_due(&at(third + 1), true));
    assert!(!holder.renewal_due(&at(third + 1), false));
}

#[test]
fn a_long_offline_lease_is_renewed_as_often_as_a_usual_one() {
    let month = Terms {
        ttl_ms: 30 * 86_400_000,
        mode: LeaseMode::Offline,
    };
    let term = Term::new(at(0), month, 0);
    assert_eq!(term.renewal_in_ms(&at(0)), 3_600_000);
    let online = Terms {
        ttl_ms: 24 * 3_600_000,
        mode: LeaseMode::Online,
    };
    assert_eq!(
        Term::new(at(0), online, 0).renewal_in_ms(&at(0)),
        8 * 3_600_000
    );
}

#[test]
fn a_stale_token_of_the_image_before_a_branch_says_nothing() {
    let mut holder = leased();
    let before = holder.image();
    let branch = ImageId::from_bytes([9; 32]);
    let granted = Granted {
        head: Some(commit(9)),
        ..grant(1)
    };
    let onward = Event::Branched {
        image: branch,
        granted,
    };
    assert_eq!(holder.apply(onward), Ok(true));
    // Each image counts its own epochs: the branch's first token may equal the one of before.
    let late = Event::TokenStale {
        image: before,
        token: granted.token,
        rival: None,
    };
    assert_eq!(holder.apply(late), Ok(false));
    let moved = Event::HeadMoved {
        image: before,
        token: granted.token,
        head: Some(commit(2)),
    };
    assert_eq!(holder.apply(moved), Ok(false));
    assert_eq!(holder.kind(), Kind::Leased);
}
