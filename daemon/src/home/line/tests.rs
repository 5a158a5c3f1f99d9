//! Lines of commits that are known in part.

use img_records::{Commit, Parent, Signed, SigningSecret};
use img_types::{
    CheckoutId, EntryId, Epoch, HomeId, ImageId, Incarnation, Instance, KeyEpoch, LogPosition,
    ObjectId, Token, WallMillis,
};

use super::*;

const IMAGE: ImageId = ImageId::from_bytes([1; 32]);

fn id(of: u8) -> CommitId {
    CommitId::from_bytes([of; 32])
}

fn place(of: u8) -> Place {
    Place {
        seq: Seq(u64::from(of % 100)),
        commit: id(of),
    }
}

fn loss(from: u8, to: Option<u8>) -> Loss {
    Loss {
        image: IMAGE,
        name: "vm".to_owned(),
        from: place(from),
        to: to.map(place),
    }
}

/// A commit whose number is its id's last two digits, after `parent`, made by a device of its own.
fn signed(of: u8, parent: Option<u8>) -> SignedCommit {
    let record = Commit {
        image: IMAGE,
        seq: place(of).seq,
        parent: parent.map(|parent| Parent {
            image: IMAGE,
            commit: id(parent),
        }),
        root: ObjectId::from_bytes([of; 32]),
        token: Some(Token {
            incarnation: Incarnation::from_bytes([0; 32]),
            epoch: Epoch(1),
        }),
        checkout: CheckoutId::from_bytes([0; 32]),
        device: maker(of),
        instance: Instance(1),
        roster: EntryId::from_bytes([0; 32]),
        key_epoch: KeyEpoch(0),
        clock: WallMillis(0),
        seen: None,
        sealed: Vec::new(),
    };
    let home = HomeId::from_bytes([0; 32]);
    Signed::sign(record, &home, &SigningSecret::from_bytes([2; 32]))
}

/// Odd ones are one device's, even ones another's.
fn maker(of: u8) -> DeviceId {
    DeviceId::from_bytes([of % 2; 32])
}

fn known(of: u8, parent: Option<u8>) -> Acknowledged {
    Acknowledged {
        commit: id(of),
        image: IMAGE,
        seq: place(of).seq,
        record: signed(of, parent).to_bytes(),
        receipt: Vec::new(),
        incarnation: Incarnation::from_bytes([0; 32]),
        position: LogPosition(0),
    }
}

/// What is missing, as first, last and the maker.
fn missing(line: &Line<'_>, unfit: Option<u8>) -> Vec<(u64, u64, Option<DeviceId>)> {
    let rows = line.missing(unfit.map(id)).into_iter();
    rows.map(|row| (row.first.0, row.last.0, row.device))
        .collect()
}

#[test]
fn the_part_after_the_homes_head_is_given_and_the_rest_is_named_with_its_maker() {
    let here = [known(0, None), known(1, Some(0))];
    let seen = [(id(2), signed(2, Some(1)))];
    let line = Line::new(&loss(2, Some(0)), &here, &seen);
    assert_eq!(line.givable(), [id(1)]);
    assert_eq!(missing(&line, None), [(2, 2, Some(maker(2)))]);
    // Nothing of the image is there.
    let line = Line::new(&loss(2, None), &here, &seen);
    assert_eq!(line.givable(), [id(0), id(1)]);
    // All of it is here, and one commit is not whole.
    let here = [known(1, Some(0)), known(2, Some(1))];
    let line = Line::new(&loss(2, Some(0)), &here, &[]);
    assert_eq!(line.givable(), [id(1), id(2)]);
    assert_eq!(missing(&line, Some(1)), [(1, 1, Some(maker(1)))]);
}

#[test]
fn behind_a_gap_nothing_is_given_and_the_gap_is_named() {
    let here = [known(5, Some(4))];
    let seen = [(id(4), signed(4, Some(3)))];
    let line = Line::new(&loss(5, Some(0)), &here, &seen);
    assert!(line.givable().is_empty() && !line.others_went_on());
    // Of the third commit its id is known, of those before nothing.
    let rows = [(1, 2, None), (3, 3, None), (4, 4, Some(maker(4)))];
    assert_eq!(missing(&line, None), rows);
    let words: Vec<_> = line.missing(None);
    let words: Vec<_> = words
        .iter()
        .map(|row| row.words(|_| "desk".into()))
        .collect();
    assert_eq!(words[0], "commits 1 to 2");
    assert_eq!(words[1], format!("commit 3 ({})", id(3).short()));
    assert_eq!(
        words[2],
        format!("commit 4 ({}) made by desk", id(4).short())
    );
}

#[test]
fn a_gap_in_the_middle_parts_what_can_be_given_from_what_waits() {
    let here = [known(1, Some(0)), known(2, Some(1)), known(5, Some(4))];
    let line = Line::new(&loss(5, Some(0)), &here, &[]);
    assert_eq!(line.givable(), [id(1), id(2)]);
    assert_eq!(missing(&line, None), [(3, 3, None), (4, 4, None)]);
}

#[test]
fn what_is_of_another_line_is_never_given() {
    // The home went on from commit 0 with 101, this device with 1.
    let here = [known(0, None), known(1, Some(0)), known(2, Some(1))];
    let line = Line::new(&loss(2, Some(101)), &here, &[]);
    assert!(line.others_went_on() && line.givable().is_empty());
    let line = Line::new(&loss(2, Some(103)), &here, &[]);
    assert!(line.others_went_on() && line.givable().is_empty());
    // The newest stands on 101: this device's own 1 is not of its line.
    let here = [known(1, Some(0)), known(102, Some(101))];
    let line = Line::new(&loss(102, Some(0)), &here, &[]);
    assert!(line.givable().is_empty() && !line.others_went_on());
    assert_eq!(missing(&line, None), [(1, 1, None)]);
}
