use std::fs;

use img_testkit::object;

use super::*;
use crate::record::HEADER_LEN;

fn spool_with(path: &Path, seeds: std::ops::Range<u64>) -> Vec<(ObjectId, Place, Bytes)> {
    let mut spool = Spool::create(path).unwrap();
    let mut written = Vec::new();
    for seed in seeds {
        let (id, bytes) = object(seed, 256 + 40 * seed as usize);
        let place = spool.append(id, &bytes).unwrap();
        assert_eq!(spool.reader().read(place).unwrap(), bytes);
        written.push((id, place, bytes));
    }
    spool.sync().unwrap();
    written
}

#[test]
fn a_spool_cut_at_any_byte_keeps_every_whole_object_and_goes_on() {
    let folder = img_testkit::folder().unwrap();
    let whole = folder.path().join("whole");
    let written = spool_with(&whole, 0..5);
    let bytes = fs::read(&whole).unwrap();
    let cut = folder.path().join("cut");
    for len in 0..=bytes.len() {
        fs::write(&cut, &bytes[..len]).unwrap();
        let (mut spool, found) = Spool::recover(&cut, 0).unwrap();
        let expected: Vec<_> = written
            .iter()
            .filter(|(_, place, _)| place.end() <= len as u64)
            .map(|(id, place, _)| (*id, *place))
            .collect();
        assert_eq!(found, expected, "cut at {len}");
        let (id, more) = object(99, 300);
        let place = spool.append(id, &more).unwrap();
        let end = expected.last().map_or(0, |(_, place)| place.end());
        assert_eq!(place.offset, end + HEADER_LEN as u64);
        assert_eq!(Spool::recover(&cut, 0).unwrap().1.len(), expected.len() + 1);
    }
}

#[test]
fn a_damaged_object_is_left_out_and_those_behind_it_stay() {
    let folder = img_testkit::folder().unwrap();
    let path = folder.path().join("spool");
    let written = spool_with(&path, 0..3);
    let mut bytes = fs::read(&path).unwrap();
    bytes[written[1].1.offset as usize + 20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (spool, found) = Spool::recover(&path, 0).unwrap();
    let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [written[0].0, written[2].0]);
    assert_eq!(spool.len(), written[2].1.end());
}

#[test]
fn a_damaged_header_does_not_cut_what_somebody_remembers() {
    let folder = img_testkit::folder().unwrap();
    let path = folder.path().join("spool");
    let written = spool_with(&path, 0..4);
    let mut bytes = fs::read(&path).unwrap();
    bytes[written[1].1.offset as usize - 1] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (mut spool, found) = Spool::recover(&path, written[2].1.end()).unwrap();
    assert_eq!(found, [(written[0].0, written[0].1)]);
    for (_, place, object) in &written[1..3] {
        assert_eq!(spool.reader().read(*place).unwrap(), object);
    }
    let (id, more) = object(99, 300);
    let place = spool.append(id, &more).unwrap();
    assert_eq!(place.offset, written[2].1.end() + HEADER_LEN as u64);
    // A file that is shorter than what is remembered is not made longer.
    let len = fs::metadata(&path).unwrap().len();
    assert_eq!(Spool::recover(&path, 1 << 40).unwrap().0.len(), len);
}

#[test]
fn zeros_behind_the_last_record_are_cut() {
    let folder = img_testkit::folder().unwrap();
    let path = folder.path().join("spool");
    let written = spool_with(&path, 0..2);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(10_000).unwrap();
    let (spool, found) = Spool::recover(&path, 0).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(spool.len(), written[1].1.end());
    assert_eq!(fs::metadata(&path).unwrap().len(), spool.len());
}

#[test]
fn an_existing_spool_is_not_made_again_and_too_long_an_object_changes_nothing() {
    let folder = img_testkit::folder().unwrap();
    let path = folder.path().join("spool");
    let mut spool = Spool::create(&path).unwrap();
    assert!(Spool::create(&path).is_err());
    let (id, _) = object(1, 256);
    let long = vec![0; img_types::limits::OBJECT_LEN_MAX + 1];
    assert!(spool.append(id, &long).is_err());
    assert!(spool.is_empty());
}
