//! Single cases that have names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use img_index::{FileKind, Inode};
use img_overlay::GenerationId;
use rustix::io::Errno;

use super::super::{Access, Failure, FreezeError, NewInode, OwnerMapping, SetXattr, Tree};
use super::{Place, config};
use crate::arena::Arena;

pub(super) fn file(place: &Place, name: &str) -> Inode {
    let new = NewInode {
        kind: FileKind::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
    };
    place
        .run(|tree| tree.make(Inode::ROOT, name.as_bytes(), new))
        .unwrap()
        .inode
}

#[test]
fn a_warm_tree_makes_a_file_while_the_home_is_away() {
    let mut place = Place::new();
    for number in 0..2_000 {
        file(&place, &format!("a rather long name of a file {number}"));
    }
    assert!(place.freeze());
    place.seal();
    place.memory.forget();
    place.crash();
    place.runtime.block_on(place.tree().warm_up());
    place.memory.set_away(true);
    let new = NewInode {
        kind: FileKind::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
    };
    let made = place.tree().make(Inode::ROOT, b"new", new).unwrap();
    let missing = place.tree().xattr(made.inode, b"security.capability");
    assert_eq!(missing, Err(Failure::Refused(Errno::NODATA)));
}

#[test]
fn a_large_attribute_is_durable_before_the_journal_names_it() {
    let mut place = Place::new();
    let inode = file(&place, "file");
    let value = img_testkit::bytes(1, 65_536);
    let set = |place: &Place, value: &[u8]| {
        place.run(|tree| tree.set_xattr(inode, b"user.large", value, SetXattr::Any, false))
    };
    set(&place, &value).unwrap();
    assert!(place.memory.is_unsynced());
    let named = |place: &Place| place.tree().with_values_kept(BTreeSet::len);
    assert_eq!(named(&place), 1);
    place.sync();
    assert!(!place.memory.is_unsynced());
    let read = |place: &Place| place.run(|tree| tree.xattr(inode, b"user.large"));
    assert_eq!(read(&place), Ok(value.clone()));
    place.crash();
    assert_eq!(named(&place), 1, "what keeps it is known after a crash");
    assert_eq!(read(&place), Ok(value.clone()));
    assert!(place.freeze());
    assert_eq!(named(&place), 1);
    place.seal();
    assert_eq!(named(&place), 0, "the root keeps it now");
    assert_eq!(read(&place), Ok(value));
    assert_eq!(set(&place, &[1; 65_537]), Err(Errno::TOOBIG));
}

#[test]
fn a_journal_whose_arena_is_missing_or_cut_is_refused() {
    let place = Place::new();
    let inode = file(&place, "file");
    place
        .run(|tree| tree.write(inode, 0, &[1; 10_000], false))
        .unwrap();
    place.sync();
    let recover = || {
        let tree = Tree::recover(
            &place.dir(),
            config(),
            place.source(),
            place.runtime.handle(),
        );
        tree.map(drop).unwrap_err().to_string()
    };
    let arena = Arena::path(&place.dir(), GenerationId(1));
    let whole = std::fs::read(&arena).unwrap();
    std::fs::write(&arena, &whole[..9_999]).unwrap();
    assert!(recover().contains("ends before"), "{}", recover());
    std::fs::remove_file(&arena).unwrap();
    assert!(recover().contains("arena of generation 1"), "{}", recover());
    assert!(!arena.exists(), "nothing is made in its place");
}

#[test]
fn a_write_into_an_absent_block_waits_for_nobody() {
    let place = Place::new();
    let inode = file(&place, "file");
    place
        .run(|tree| tree.write(inode, 0, &[1; 200_000], false))
        .unwrap();
    assert!(place.freeze());
    place.seal();
    place.memory.forget();
    place
        .run(|tree| tree.open(inode, Access::default()))
        .unwrap();
    place.memory.forget();
    place.memory.set_away(true);

    // Once, without a fetch: it finishes.
    place.tree().write(inode, 70_000, &[2; 100], false).unwrap();
    assert_eq!(place.tree().read_data(inode, 70_000, 100), Ok(vec![2; 100]));
    assert!(matches!(
        place.tree().read_data(inode, 69_999, 100),
        Err(Failure::Absent(_))
    ));
    place.memory.set_away(false);
    let around = place
        .run(|tree| tree.read_data(inode, 69_999, 102))
        .unwrap();
    assert_eq!(around, [&[1][..], &[2; 100], &[1]].concat());
}

#[test]
fn a_read_fails_in_bounded_time_while_the_home_is_away() {
    let place = Place::new();
    let inode = file(&place, "file");
    place
        .run(|tree| tree.write(inode, 0, &[1; 100_000], false))
        .unwrap();
    assert!(place.freeze());
    place.seal();
    place.memory.forget();
    place.memory.set_away(true);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let tree = Arc::clone(place.tree());
    let started = std::time::Instant::now();
    let outcome =
        runtime.block_on(tree.repeat(Default::default(), |tree| tree.read_data(inode, 0, 10)));
    assert_eq!(outcome, Err(Errno::IO));
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "by the paused clock"
    );
}

#[test]
fn two_generations_may_wait_and_writes_go_on() {
    let place = Place::new();
    let inode = file(&place, "file");
    for value in 1..=3 {
        place
            .run(|tree| tree.write(inode, 0, &[value; 10], false))
            .unwrap();
        if value < 3 {
            assert!(place.freeze());
        }
    }
    assert_eq!(place.tree().freeze(), Err(FreezeError::Unsealed));
    assert_eq!(place.tree().stats().closed, 2);
    place.seal();
    assert!(place.freeze());
    place.seal();
    place.seal();
    assert!(!place.freeze(), "nothing has changed");
    assert_eq!(place.tree().stats().dirty_bytes, 0);
    assert_eq!(
        place.run(|tree| tree.read_data(inode, 0, 99)),
        Ok(vec![3; 10])
    );
}

#[test]
fn a_reader_keeps_an_arena_that_was_sealed_away() {
    let place = Place::new();
    let inode = file(&place, "file");
    place
        .run(|tree| tree.write(inode, 0, &[7; 1000], false))
        .unwrap();
    assert!(place.freeze());
    let closed = place.tree().closed_oldest().unwrap();
    place.seal();
    let mut bytes = [0; 10];
    closed.arena.read_at(&mut bytes, 500).unwrap();
    assert_eq!(bytes, [7; 10]);
    drop(closed);
    let left = std::fs::read_dir(place.dir()).unwrap();
    let arenas = left.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .as_encoded_bytes()
            .starts_with(b"arena")
    });
    assert_eq!(arenas.count(), 1, "only the top's is left");
}

#[test]
fn owners_are_mapped_both_ways_and_others_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new();
    let mapped = |uid, gid| {
        let mut config = config();
        config.owner = OwnerMapping::Map { uid, gid };
        config
    };
    let handle = place.runtime.handle();
    let tree = Tree::create(folder.path(), mapped(1000, 1001), place.source(), handle).unwrap();
    let make = |tree: &Tree, name: &str, uid, gid| {
        let new = NewInode {
            kind: FileKind::File,
            mode: 0o600,
            umask: 0,
            uid,
            gid,
            rdev: 0,
        };
        tree.make(Inode::ROOT, name.as_bytes(), new).unwrap().inode
    };
    let own = make(&tree, "own", 1000, 1001);
    let other = make(&tree, "other", 3, 4);
    drop(tree);
    // Somebody else mounts it.
    let tree = Tree::recover(folder.path(), mapped(2000, 2001), place.source(), handle).unwrap();
    let owner = |inode| {
        let attributes = tree.attributes(inode).unwrap().attributes;
        (attributes.uid, attributes.gid)
    };
    assert_eq!(owner(own), (2000, 2001));
    assert_eq!(owner(other), (3, 4));
    assert_eq!(owner(make(&tree, "new", 2000, 4)), (2000, 4));
}

#[test]
fn inodes_are_never_used_twice() {
    let mut place = Place::new();
    let first = file(&place, "first");
    place
        .run(|tree| tree.unlink(Inode::ROOT, b"first"))
        .unwrap();
    assert!(place.freeze());
    place.seal();
    place.crash();
    let second = file(&place, "second");
    assert!(second > first);
    // The root itself says so to a checkout that starts from it.
    assert!(place.freeze());
    place.seal();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.root = place.tree().root();
    let handle = place.runtime.handle();
    place.tree = Some(Tree::create(folder.path(), config, place.source(), handle).unwrap());
    assert_eq!(file(&place, "third"), Inode(second.0 + 1));
}

#[test]
fn only_what_still_needs_lost_contents_is_taken_out() {
    let place = Place::new();
    let old = file(&place, "name");
    let block = vec![7; 65_536];
    place
        .run(|tree| tree.write(old, 0, &block.repeat(2), false))
        .unwrap();
    place
        .run(|tree| tree.link(old, Inode::ROOT, b"again").map(drop))
        .unwrap();
    assert!(place.freeze());
    place.seal();
    let names: [(Inode, &[u8]); 2] = [(Inode::ROOT, b"name"), (Inode::ROOT, b"again")];
    let take = |inode, names: &[(Inode, &[u8])]| {
        place.run(|tree| tree.take_out(inode, &[(0, 65_536)], names))
    };
    let found = |name: &[u8]| place.run(|tree| tree.lookup(Inode::ROOT, name)).unwrap();
    // Not all of its names, or one that is another's: nothing goes.
    assert_eq!(take(old, &names[..1]), Err(Errno::STALE));
    assert_eq!(take(old, &[]), Err(Errno::STALE));
    place
        .run(|tree| tree.unlink(Inode::ROOT, b"again"))
        .unwrap();
    assert_eq!(take(old, &names), Err(Errno::STALE));
    let other = file(&place, "again");
    assert_eq!(take(old, &names), Err(Errno::STALE));
    assert_eq!(found(b"name").map(|shown| shown.inode), Some(old));
    assert_eq!(found(b"again").map(|shown| shown.inode), Some(other));
    // What was written over as a whole is whole, and what is new was never lost.
    place
        .run(|tree| tree.write(other, 0, &block, false))
        .unwrap();
    assert_eq!(take(other, &names[1..]), Ok(false));
    place.run(|tree| tree.write(old, 1, &block, false)).unwrap();
    let access = Access::default();
    place.run(|tree| tree.open(old, access)).unwrap();
    assert_eq!(take(old, &names[..1]), Ok(true));
    assert_eq!(found(b"name"), None);
    let read = place.run(|tree| tree.read_data(old, 0, 1));
    assert_eq!(
        read,
        Err(Errno::NOENT),
        "never zeros in place of what is lost"
    );
    assert_eq!(take(old, &[]), Ok(false));
}

#[test]
fn a_lost_file_without_a_name_is_dropped_although_it_is_open() {
    let place = Place::new();
    let open = file(&place, "open");
    place
        .run(|tree| tree.write(open, 0, &[7; 65_536], false))
        .unwrap();
    assert!(place.freeze());
    place.seal();
    place
        .run(|tree| tree.open(open, Access::default()))
        .unwrap();
    place.run(|tree| tree.unlink(Inode::ROOT, b"open")).unwrap();
    let take = || place.run(|tree| tree.take_out(open, &[(0, 65_536)], &[]));
    assert_eq!(take(), Ok(true));
    assert_eq!(take(), Ok(false));
    assert!(place.run(|tree| tree.attributes(open)).is_err());
}
