//! Room on the disk, and the space that files occupy.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use img_index::Inode;
use img_types::limits::DISK_RESERVE;
use rustix::io::Errno;

use super::super::data::RANGES_COUNTED_MAX;
use super::super::{Access, Failure};
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
    let size = RANGES_COUNTED_MAX as u64 * 2_048 + 1_024;
    assert_eq!(blocks(), size / 512, "it counts as if it had none");
}
