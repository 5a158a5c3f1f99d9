//! Room on the disk, and the space that files occupy.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use img_index::Inode;
use img_types::limits::{BLOCK_SIZE, DISK_RESERVE};
use rustix::io::Errno;

use super::super::data::RANGES_COUNTED_MAX;
use super::super::{Access, Allocation, Failure, SetAttributes, Tree};
use super::Place;
use super::single::file;

fn open_file(place: &Place) -> Inode {
    let inode = file(place, "file");
    let access = Access {
        writes: true,
        ..Access::default()
    };
    place.run(|tree| tree.open(inode, access)).unwrap();
    inode
}

#[test]
fn a_write_that_does_not_fit_gets_the_room_of_what_is_evictable() {
    let place = Place::new();
    let inode = open_file(&place);
    let (free, evictable) = (&place.memory.free, &place.memory.evictable);
    free.store(DISK_RESERVE - 5_000, Ordering::SeqCst);
    place.tree().lock().room.pretend(Arc::clone(free));
    evictable.store(20_000, Ordering::SeqCst);
    let write = |bytes: &[u8]| place.run(|tree| tree.write(inode, 0, bytes, false));

    let refused = place.tree().write(inode, 0, &[1; 1_000], false);
    let Err(Failure::Absent(wanted)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(wanted.room, 7_000, "what it takes twice, and the reserve");
    assert_eq!(write(&[1; 1_000]), Ok(()));
    assert_eq!(evictable.load(Ordering::SeqCst), 13_000);
    assert_eq!(write(&[2; 50_000]), Err(Errno::NOSPC), "that is too much");
    assert_eq!(evictable.load(Ordering::SeqCst), 13_000, "in vain");
    assert_eq!(write(&[3; 1_000]), Ok(()));
    let read = place.run(|tree| tree.read_data(inode, 0, 2_000));
    assert_eq!(read.unwrap(), [3; 1_000]);
}

#[test]
fn a_file_of_very_many_dirty_ranges_is_not_counted_range_by_range() {
    let place = Place::new();
    let inode = open_file(&place);
    let blocks = || place.run(|tree| tree.attributes(inode)).unwrap().blocks;
    let write = |range: usize| {
        let offset = range as u64 * 2_048;
        place
            .run(|tree| tree.write(inode, offset, &[1; 1_024], false))
            .unwrap();
    };
    (0..RANGES_COUNTED_MAX / 2).for_each(write);
    assert_eq!(blocks(), RANGES_COUNTED_MAX as u64, "the holes are seen");
    (0..=RANGES_COUNTED_MAX).for_each(write);
    let written = (RANGES_COUNTED_MAX as u64 + 1) * 1_024;
    assert_eq!(blocks(), written / 512, "the holes are still seen");
}

#[test]
fn the_space_of_a_file_with_holes_is_told_without_its_part_of_the_index() {
    const BLOCK: u64 = BLOCK_SIZE as u64;
    let place = Place::new();
    let inode = open_file(&place);
    let blocks = || place.run(|tree| tree.attributes(inode)).unwrap().blocks;
    let write = |offset: u64, len: usize| {
        place
            .run(|tree| tree.write(inode, offset, &vec![1; len], false))
            .unwrap();
    };
    let seal = || {
        place.freeze();
        place.seal();
        place.memory.forget();
        place.tree().release_all();
        place
            .run(|tree| tree.open(inode, Access::default()))
            .unwrap();
    };
    let resize = |size: u64| {
        let set = SetAttributes {
            size: Some(size),
            ..SetAttributes::default()
        };
        place.run(|tree| tree.set_attributes(inode, set)).unwrap();
    };
    write(0, BLOCK_SIZE);
    write(50 * BLOCK, BLOCK_SIZE);
    assert_eq!(blocks(), 256, "two blocks");
    seal();
    assert_eq!(blocks(), 256, "two extents");

    write(20 * BLOCK, 4_096);
    assert_eq!(blocks(), 264, "and a page");
    let punch = |tree: &Tree| tree.allocate(inode, 0, BLOCK, Allocation::Punch, true);
    place.run(punch).unwrap();
    assert_eq!(blocks(), 264, "where the extents are is not known");
    seal();
    assert_eq!(blocks(), 256, "one extent is gone, one has come");

    resize(40 * BLOCK);
    seal();
    assert_eq!(blocks(), 128);
    resize(1 << 40);
    assert_eq!(blocks(), 128);
    resize(0);
    assert_eq!(blocks(), 0);
}

#[test]
fn the_space_of_a_file_without_holes_is_what_is_left_of_it() {
    let place = Place::new();
    let inode = open_file(&place);
    let blocks = || place.run(|tree| tree.attributes(inode)).unwrap().blocks;
    let write = |tree: &Tree| tree.write(inode, 0, &vec![1; 10 * BLOCK_SIZE], false);
    place.run(write).unwrap();
    place.freeze();
    place.seal();
    place.run(write).unwrap();
    assert_eq!(blocks(), 1_280, "what is overwritten counts once");
    place.freeze();
    place.seal();
    let punch = |tree: &Tree| {
        let len = 3 * BLOCK_SIZE as u64;
        tree.allocate(inode, 0, len, Allocation::Punch, true)
    };
    place.run(punch).unwrap();
    assert_eq!(blocks(), 896);
}
