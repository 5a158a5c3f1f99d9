//! Which wishes become one commit, and in which order.

use super::*;

fn wish(number: u64, generation: u64, message: &str) -> Wish {
    Wish::from(WishRow {
        number,
        generation,
        request: CommitRequest {
            message: message.into(),
            ..CommitRequest::default()
        },
        under_way: false,
        root: None,
    })
}

fn branch(number: u64, generation: u64, name: &str) -> Wish {
    let mut wish = wish(number, generation, "");
    wish.request.branch = Some(name.into());
    wish
}

fn wishes(list: impl IntoIterator<Item = Wish>) -> Wishes {
    Wishes(list.into_iter().collect())
}

fn begun(wishes: &mut Wishes, sealed_upto: u64) -> Option<(Vec<u64>, u64, Option<String>)> {
    let batch = wishes.begin(sealed_upto)?;
    Some((batch.numbers, batch.generation, batch.request.branch))
}

#[test]
fn the_same_asked_twice_is_one_commit_of_the_newest_state() {
    let mut wishes = wishes([wish(1, 3, "first"), wish(2, 5, "second"), wish(4, 6, "")]);
    let batch = wishes.begin(9).unwrap();
    assert_eq!(batch.numbers, [1, 2, 4]);
    assert_eq!(batch.generation, 6);
    assert_eq!(batch.request.message, "second");
    assert_eq!(wishes.settle().len(), 3);
    assert!(wishes.is_empty() && wishes.begin(9).is_none());
}

#[test]
fn a_commit_comes_before_the_branch_that_was_asked_for_after_it() {
    let list = [
        wish(1, 3, "kept"),
        branch(2, 4, "new"),
        branch(3, 5, "other"),
        wish(4, 6, ""),
    ];
    let mut wishes = wishes(list);
    let mut order = Vec::new();
    while let Some(batch) = begun(&mut wishes, 9) {
        order.push(batch);
        wishes.settle();
    }
    let (new, other) = (Some("new".to_owned()), Some("other".to_owned()));
    assert_eq!(
        order,
        [
            (vec![1], 3, None),
            (vec![2], 4, new),
            (vec![3], 5, other),
            (vec![4], 6, None),
        ]
    );
}

#[test]
fn other_terms_are_another_commit() {
    for change in [
        |request: &mut CommitRequest| request.adopt_orphan = true,
        |request: &mut CommitRequest| request.take_over = true,
        |request: &mut CommitRequest| request.keep = true,
        |request: &mut CommitRequest| request.partial = true,
    ] {
        let mut other = wish(2, 3, "");
        change(&mut other.request);
        let mut wishes = wishes([wish(1, 3, ""), other]);
        assert_eq!(begun(&mut wishes, 9), Some((vec![1], 3, None)));
    }
}

#[test]
fn what_is_not_sealed_is_waited_for_and_not_passed_over() {
    let mut wishes = wishes([wish(1, 3, ""), wish(2, 5, ""), branch(3, 5, "new")]);
    assert_eq!(begun(&mut wishes, 2), None);
    assert_eq!(begun(&mut wishes, 4), Some((vec![1], 3, None)));
    wishes.settle();
    assert_eq!(begun(&mut wishes, 4), None);
    assert_eq!(begun(&mut wishes, 5), Some((vec![2], 5, None)));
}

#[test]
fn what_is_asked_while_a_commit_is_under_way_outlives_its_refusal() {
    let mut wishes = wishes([wish(1, 3, "")]);
    wishes.begin(9);
    wishes.push(wish(2, 3, ""));
    wishes.push(branch(3, 3, "new"));
    assert_eq!(numbers(&wishes.settle()), [1]);
    assert_eq!(numbers(wishes.iter()), [2, 3]);
}

#[test]
fn what_was_under_way_before_a_restart_is_known() {
    let rows = [true, false].map(|under_way| WishRow {
        number: 7 + u64::from(!under_way),
        generation: 1,
        request: CommitRequest::default(),
        under_way,
        root: None,
    });
    let mut wishes = Wishes::of(rows.to_vec());
    assert_eq!(numbers(&wishes.settle()), [7]);
    assert_eq!(numbers(wishes.iter()), [8]);
}

#[test]
fn a_release_joins_the_commit_before_it_and_is_forgotten_alone() {
    let last = || Wish {
        number: None,
        ..wish(0, 6, "")
    };
    let mut list = wishes([wish(1, 3, "kept"), last()]);
    let batch = list.begin(9).unwrap();
    assert_eq!((batch.numbers, batch.generation), (vec![1], 6));
    assert!(batch.is_last);
    list.forget_last();
    assert_eq!(numbers(list.iter()), [1]);
    assert!(!list.begin(9).unwrap().is_last);
}

#[test]
fn who_has_gone_does_not_wait() {
    let (committed, outcome) = oneshot::channel();
    let mut list = wishes([Wish {
        committed: Some(committed),
        ..wish(1, 3, "")
    }]);
    assert!(list.are_waited_for());
    drop(outcome);
    assert!(!list.are_waited_for());
    assert!(!list.under_way().any(|_| true));
    assert!(list.0[0].committed.is_some() && !list.0[0].answer(Ok(Value::Null)));
}

fn automatic(number: u64, generation: u64) -> Wish {
    let mut wish = wish(number, generation, "");
    wish.request.automatic = true;
    wish
}

#[test]
fn what_nobody_asked_for_adds_nothing_to_what_somebody_did() {
    let list = [
        automatic(1, 3),
        automatic(2, 4),
        wish(3, 5, "by hand"),
        automatic(4, 6),
        automatic(5, 7),
    ];
    let mut wishes = wishes(list);
    let batch = wishes.begin(9).unwrap();
    assert_eq!((&batch.numbers[..], batch.generation), (&[1, 2, 3][..], 5));
    assert_eq!(batch.request.message, "by hand");
    assert!(!batch.request.automatic, "a person's");
    wishes.settle();
    let batch = wishes.begin(9).unwrap();
    assert_eq!((&batch.numbers[..], batch.generation), (&[4, 5][..], 7));
    assert!(batch.request.automatic);
}

#[test]
fn what_nobody_asked_for_is_moved_while_it_waits_as_the_newest() {
    let mut only = wishes([automatic(1, 3)]);
    assert_eq!(only.move_automatic(5), Some(1));
    assert_eq!(only.begin(9).unwrap().generation, 5);
    assert_eq!(only.move_automatic(6), None, "it is under way");
    let mut asked = wishes([automatic(1, 3), wish(2, 4, "")]);
    assert_eq!(
        asked.move_automatic(5),
        None,
        "it would pass over a person's"
    );
    assert_eq!(asked.askers(), (true, true));
    assert_eq!(wishes([]).move_automatic(1), None);
}
