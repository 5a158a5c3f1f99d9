//! The space that files occupy.

use img_index::Inode;

use super::super::data::RANGES_COUNTED_MAX;
use super::super::Access;
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
