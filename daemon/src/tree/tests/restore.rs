//! Standing on another root under open files.

use img_index::Inode;
use img_seal::Reference;
use rustix::io::Errno;

use super::super::{Access, Restored};
use super::Place;
use super::single::file;

const WRITES: Access = Access {
    writes: true,
    maps: true,
    truncates: false,
    kill_privileges: false,
};

fn write(place: &Place, inode: Inode, text: &str) {
    place
        .run(|tree| tree.write(inode, 0, text.as_bytes(), false))
        .unwrap();
}

fn read(place: &Place, inode: Inode) -> Result<Vec<u8>, Errno> {
    place.run(|tree| tree.read_data(inode, 0, 100))
}

/// Cuts and seals all there is; returns the root.
fn root(place: &Place) -> Reference {
    while place.freeze() || place.tree().closed_oldest().is_some() {
        place.seal();
    }
    place.tree().root().unwrap()
}

fn restore(place: &Place, root: Reference, force: bool) -> Restored {
    let from = place.tree().root().unwrap();
    let restored = place.run(|tree| tree.restore(from, root, force));
    let restored = restored.unwrap();
    place.keep_journal();
    restored
}

#[test]
fn a_tree_goes_back_and_forth_between_roots_and_keeps_its_place_after_a_crash() {
    let mut place = Place::new();
    let first = file(&place, "first");
    write(&place, first, "one");
    let old = root(&place);
    write(&place, first, "two");
    let second = file(&place, "second");
    let new = root(&place);

    let upto = place.tree().closed_upto();
    assert!(matches!(restore(&place, old, false), Restored::Done(closed) if closed.0 == upto + 1));
    assert_eq!(place.tree().sealed_upto(), upto + 1);
    assert_eq!(read(&place, first).unwrap(), b"one");
    assert_eq!(
        place.run(|tree| tree.lookup(Inode::ROOT, b"second")),
        Ok(None)
    );
    place.crash();
    assert_eq!(place.tree().root(), Some(old));
    assert_eq!(read(&place, first).unwrap(), b"one");

    // A number that was used before a restore is never given to another file.
    let third = file(&place, "third");
    assert!(third > second, "{third:?} {second:?}");
    let kept = root(&place);
    assert!(matches!(restore(&place, new, false), Restored::Done(_)));
    assert_eq!(read(&place, first).unwrap(), b"two");
    assert_eq!(
        place.run(|tree| tree.lookup(Inode::ROOT, b"third")),
        Ok(None)
    );
    assert!(matches!(restore(&place, kept, false), Restored::Done(_)));
    assert!(
        place
            .run(|tree| tree.lookup(Inode::ROOT, b"third"))
            .unwrap()
            .is_some()
    );
    assert_eq!(place.tree().restores(), 3);
}

#[test]
fn what_is_in_no_root_yet_is_never_replaced() {
    let place = Place::new();
    let inode = file(&place, "file");
    write(&place, inode, "one");
    let old = root(&place);
    write(&place, inode, "two");
    assert_eq!(restore(&place, old, true), Restored::Unsealed);
    assert!(place.freeze());
    assert_eq!(restore(&place, old, true), Restored::Unsealed);
    assert_eq!(read(&place, inode).unwrap(), b"two");
    place.seal();
    // Sealed by now, but by somebody else than who asks.
    let stale = place.run(|tree| tree.restore(old, old, true));
    assert_eq!(stale, Ok(Restored::Unsealed));
    assert!(matches!(restore(&place, old, true), Restored::Done(_)));
    assert_eq!(read(&place, inode).unwrap(), b"one");
}

#[test]
fn files_open_for_writing_stand_in_the_way_unless_forced() {
    let place = Place::new();
    let old = root(&place);
    let gone = file(&place, "gone later");
    write(&place, gone, "text");
    let new = root(&place);
    let stays = place
        .run(|tree| tree.open(gone, Access::default()))
        .unwrap();
    let writes = place.run(|tree| tree.open(gone, WRITES)).unwrap();
    assert_eq!(restore(&place, old, false), Restored::Writers(1));
    assert!(!place.tree().is_stale(writes));
    assert!(matches!(restore(&place, old, true), Restored::Done(_)));
    assert!(place.tree().is_stale(writes) && place.tree().is_stale(stays));
    assert_eq!(read(&place, gone), Err(Errno::NOENT));
    assert_eq!(place.tree().open_files(), 0);

    // Back again: closing the handles of before takes nothing from those of now.
    assert!(matches!(restore(&place, new, false), Restored::Done(_)));
    let now = place.run(|tree| tree.open(gone, WRITES)).unwrap();
    place
        .run(|tree| tree.unlink(Inode::ROOT, b"gone later"))
        .unwrap();
    place.tree().release(gone, WRITES, writes);
    place.tree().release(gone, Access::default(), stays);
    assert_eq!(read(&place, gone).unwrap(), b"text");
    place.tree().release(gone, WRITES, now);
    assert_eq!(read(&place, gone), Err(Errno::NOENT));
}

#[test]
fn readers_go_on_with_what_is_there_now() {
    let place = Place::new();
    let inode = file(&place, "file");
    write(&place, inode, "one");
    let old = root(&place);
    write(&place, inode, "two and more");
    root(&place);
    let handle = place
        .run(|tree| tree.open(inode, Access::default()))
        .unwrap();
    assert!(matches!(restore(&place, old, false), Restored::Done(_)));
    assert_eq!(read(&place, inode).unwrap(), b"one");
    place.run(|tree| tree.unlink(Inode::ROOT, b"file")).unwrap();
    assert_eq!(read(&place, inode).unwrap(), b"one");
    place.tree().release(inode, Access::default(), handle);
    assert_eq!(read(&place, inode), Err(Errno::NOENT));
}
