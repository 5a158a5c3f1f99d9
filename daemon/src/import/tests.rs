use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use img_index::{Inode, Key, Node, NodeSource, Value, open_node};
use img_seal::{HomeSecret, Reference};
use img_types::limits::{BLOCK_SIZE, INLINE_LEN_MAX};
use img_types::{KeyEpoch, ObjectId};
use rustix::fs::{FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::*;
use crate::events::Phase;

/// What a sink is told to do when it is given an object.
type Hook = Box<dyn Fn() -> Result<(), SinkClosed> + Send + Sync>;

/// Keeps sealed objects in memory.
#[derive(Default)]
pub(crate) struct Kept {
    objects: Mutex<BTreeMap<ObjectId, Vec<u8>>>,
    hook: Option<Hook>,
}

impl Kept {
    pub(crate) fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectId, Vec<u8>>> {
        self.objects.lock().unwrap()
    }
}

impl ObjectSink for Kept {
    fn put(&self, sealed: Sealed) -> Result<(), SinkClosed> {
        if let Some(hook) = &self.hook {
            hook()?;
        }
        let before = self.objects().insert(sealed.reference.id, sealed.bytes);
        assert!(before.is_none(), "an object was given twice");
        Ok(())
    }
}

impl NodeSource for Kept {
    fn node(&self, reference: &Reference) -> Option<Arc<Node>> {
        let objects = self.objects();
        let bytes = objects.get(&reference.id)?;
        Some(Arc::new(open_node(&keys(), reference, bytes).unwrap()))
    }
}

pub(crate) const BOUNDARY: Boundary = Boundary::from_bytes([3; 32]);

pub(crate) fn keys() -> KeyRing {
    KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([9; 32]))
}

pub(crate) fn import(from: &Path) -> Import {
    Import {
        from: from.to_owned(),
        kind: None,
        strict: false,
        boundary: BOUNDARY,
        keys: keys(),
    }
}

/// Imports and says what came of it.
pub(crate) fn imported(from: &Path, kept: &Kept) -> Imported {
    let reporter = Reporter::new(Phase::Import);
    let imported = import(from).run(kept, &reporter, &Cancel::default());
    let imported = imported.unwrap();
    let objects = kept.objects();
    assert!(objects.contains_key(&imported.root.id));
    let progress = reporter.now();
    assert_eq!(progress.files.unwrap_or(0), imported.files);
    imported
}

/// Bytes that are the same everywhere and do not compress.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    img_testkit::bytes(seed, len)
}

/// Something of every kind that an image can hold, and a socket.
pub(crate) fn make_tree(top: &Path) {
    let file = |name: &str, content: &[u8]| std::fs::write(top.join(name), content).unwrap();
    std::fs::create_dir_all(top.join("deep/er/est")).unwrap();
    std::fs::create_dir(top.join("empty folder")).unwrap();
    file("empty", b"");
    file("small", b"a few bytes");
    file("zeros", &[0; 100]);
    file("ends in zeros", b"abc\0\0\0");
    file("inline", &noise(1, INLINE_LEN_MAX));
    file("just too long", &noise(2, INLINE_LEN_MAX + 1));
    file("one block", &noise(3, BLOCK_SIZE));
    file("deep/er/many blocks", &noise(4, 40 * BLOCK_SIZE + 17));
    file("deep/er/est/twin a", &noise(5, 100_000));
    file("deep/er/est/twin b", &noise(5, 100_000));
    file("all zeros", &vec![0; 3 * BLOCK_SIZE]);
    let sparse = std::fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 20 << 20).unwrap();
    sparse
        .write_all_at(&noise(6, 70_000), (33 << 20) + 5)
        .unwrap();
    symlink("deep/er", top.join("link")).unwrap();
    symlink("/nowhere at all", top.join("broken link")).unwrap();
    std::fs::hard_link(top.join("small"), top.join("deep/the same")).unwrap();
    std::fs::hard_link(top.join("one block"), top.join("deep/the same block")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"not \xff utf-8");
    std::fs::write(top.join(odd), b"odd").unwrap();
    file(&"n".repeat(255), b"the longest name");
    file("executable", b"#!/bin/sh");
    let mode = |name: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(top.join(name), mode).unwrap();
    };
    mode("executable", 0o6755);
    mode("deep/er", 0o1711);
    let node = |name: &str, kind, dev| {
        let mode = Mode::from_raw_mode(0o640);
        mknodat(rustix::fs::CWD, top.join(name), kind, mode, dev)
    };
    node("fifo", FileType::Fifo, 0).unwrap();
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(1, 3);
        node("device", FileType::CharacterDevice, device).unwrap();
        std::os::unix::fs::chown(top.join("small"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(top.join("link"), Some(1234), Some(4321)).unwrap();
    }
    let long: Vec<u8> = (b'a'..=b'z').cycle().take(3_000).collect();
    let acl = |text| Acl::from_text(text).unwrap().encode();
    let access = acl("u::rw-,u:1234:rwx,g::r--,g:7:-w-,m::rw-,o::---");
    let default = acl("u::rwx,g::r-x,g:4321:rwx,m::rwx,o::r-x");
    for (path, name, value) in [
        ("small", "user.note", &b"short"[..]),
        ("small", "user.long", &long),
        ("small", "user.lines", b"one\ntwo\0=three"),
        ("deep", "user.note", b"short"),
        ("deep", "user.long", &long),
        ("just too long", "system.posix_acl_access", &access),
        ("empty folder", "system.posix_acl_default", &default),
    ] {
        let set = lsetxattr(top.join(path), name, value, XattrFlags::empty());
        set.expect("the file system holds extended attributes and access lists");
    }
    let _socket = UnixListener::bind(top.join("socket")).unwrap();
    // Folders last: what is made in them changes them.
    for (path, seconds, nanos) in [
        ("small", 1_000_000_000, 123_456_789),
        ("deep/er/est", 1_234_567, 0),
        ("deep", 2_000_000_000, 999_999_999),
        ("", 1_500_000_000, 5),
    ] {
        let time = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, top.join(path), &times, flags).unwrap();
    }
}

#[test]
fn a_tree_becomes_an_image_and_only_its_socket_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let kept = Kept::default();
    let tree = imported(dir.path(), &kept);
    assert_eq!(tree.skipped.len(), 1, "{:?}", tree.skipped);
    assert_eq!(tree.skipped[0].path, Path::new("socket"));

    // What the file system says, hard links once.
    let mut inodes = BTreeMap::new();
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.path().symlink_metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if !metadata.file_type().is_socket() {
                let size = if metadata.is_file() {
                    metadata.len()
                } else {
                    0
                };
                inodes.insert(metadata.ino(), size);
            }
        }
    }
    assert_eq!(tree.files, inodes.len() as u64);
    assert_eq!(tree.logical_bytes, inodes.values().sum::<u64>());
    let objects = kept.objects();
    assert_eq!(tree.objects, objects.len() as u64);
    let bytes: usize = objects.values().map(Vec::len).sum();
    assert_eq!(tree.sealed_bytes, bytes as u64);
    // One block, 41 of the large file, 2 of the twins, 1 too long, 3 of the sparse one, 1 attribute, nodes.
    assert!((49..60).contains(&objects.len()), "{}", objects.len());
}

#[test]
fn the_same_tree_is_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let (first, second) = (Kept::default(), Kept::default());
    assert_eq!(imported(dir.path(), &first), imported(dir.path(), &second));
    assert_eq!(*first.objects(), *second.objects());
}

#[test]
fn a_disk_is_one_file_without_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let disk = std::fs::File::create(&path).unwrap();
    disk.set_len(3 << 30).unwrap();
    disk.write_all_at(&noise(1, 200_000), 1 << 30).unwrap();
    let kept = Kept::default();
    let reporter = Reporter::new(Phase::Import);
    let imported = import(&path).run(&kept, &reporter, &Cancel::default());
    let imported = imported.unwrap();
    assert_eq!((imported.files, imported.logical_bytes), (1, 3 << 30));
    assert!(imported.sealed_bytes < 300_000);
    let disk = img_index::get(&kept, &imported.root, &Key::attributes(Inode(2)));
    let Ok(Some(Value::Attributes(disk))) = disk else {
        panic!("{disk:?}");
    };
    assert_eq!(disk.extents, Some(4), "what `stat` tells as its space");
    let progress = reporter.now();
    assert_eq!(progress.total_bytes, Some(3 << 30));
    assert_eq!(progress.done_bytes, 3 << 30);
}

#[test]
fn what_is_no_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let run = |path: &Path, kind| {
        let kept = Kept::default();
        let mut import = import(path);
        import.kind = kind;
        let outcome = import.run(&kept, &Reporter::new(Phase::Import), &Cancel::default());
        assert!(kept.objects().is_empty() || outcome.is_ok());
        outcome.unwrap_err()
    };
    assert!(matches!(run(&empty, None), ImportError::EmptyDisk));
    let absent = dir.path().join("absent");
    assert!(matches!(run(&absent, None), ImportError::Source(_)));
    let tree = Some(SourceKind::Tree);
    assert!(matches!(run(&empty, tree), ImportError::OtherKind(_)));
    let disk = Some(SourceKind::Disk);
    assert!(matches!(run(dir.path(), disk), ImportError::OtherKind(_)));
}

#[test]
fn a_strict_import_leaves_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut import = import(dir.path());
    import.strict = true;
    let reporter = Reporter::new(Phase::Import);
    let outcome = import.run(&Kept::default(), &reporter, &Cancel::default());
    match outcome.unwrap_err() {
        ImportError::Strict(skipped) => assert_eq!(skipped.path, Path::new("socket")),
        error => panic!("{error}"),
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, noise(1, 60 << 20)).unwrap();
    std::fs::write(dir.path().join("other"), noise(2, 100_000)).unwrap();
    let shrinking = path.clone();
    let kept = Kept {
        hook: Some(Box::new(move || {
            let file = std::fs::OpenOptions::new().write(true).open(&shrinking);
            file.unwrap().set_len(1_000).unwrap();
            Ok(())
        })),
        ..Kept::default()
    };
    let imported = imported(dir.path(), &kept);
    assert_eq!(imported.files, 2);
    let [skipped] = &imported.skipped[..] else {
        panic!("{:?}", imported.skipped)
    };
    assert_eq!(skipped.path, Path::new("log"));
    assert!(skipped.reason.starts_with("changed"));
}

#[test]
fn an_import_ends_when_it_is_told_to_or_its_sink_closes() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..50 {
        let content = noise(number, 3 << 20);
        std::fs::write(dir.path().join(number.to_string()), content).unwrap();
    }
    let run = |hook: Hook, cancel: &Cancel| {
        let kept = Kept {
            hook: Some(hook),
            ..Kept::default()
        };
        let reporter = Reporter::new(Phase::Import);
        let outcome = import(dir.path()).run(&kept, &reporter, cancel);
        let taken = kept.objects().len();
        assert!(taken < 50 * 48, "it went on to the end");
        outcome.unwrap_err()
    };
    let closed = run(Box::new(|| Err(SinkClosed)), &Cancel::default());
    assert!(matches!(closed, ImportError::Sink(SinkClosed)), "{closed}");
    let cancel = Cancel::default();
    let ending = cancel.clone();
    let cancelled = run(
        Box::new(move || {
            ending.cancel();
            Ok(())
        }),
        &cancel,
    );
    assert!(matches!(cancelled, ImportError::Cancelled), "{cancelled}");
}

/// Makes a tar with the system's own program, in a folder.
fn tar(dir: &Path, name: &str, args: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let made = std::process::Command::new("tar")
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(&path)
        .args(args)
        .status();
    assert!(made.unwrap().success());
    path
}

/// Unpacks an image; returns the folder.
fn unpacked(dir: &Path, name: &str, kept: &Kept, imported: &Imported) -> PathBuf {
    let dest = dir.join(name);
    crate::export::tests::unpack(kept, imported.root, &dest);
    dest
}

#[test]
fn sparse_members_of_every_form_are_read_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
    sparse.set_len((300 << 20) + 17).unwrap();
    for island in 0..40u64 {
        sparse
            .write_all_at(&noise(island, 5_000), island * 7_000_000 + 3)
            .unwrap();
    }
    let all_hole = std::fs::File::create(dir.path().join("hole")).unwrap();
    all_hole.set_len(5 << 20).unwrap();
    std::fs::write(dir.path().join("plain"), noise(100, 3_000_000)).unwrap();
    let members = ["--sparse", "sparse", "hole", "plain"];
    for form in ["gnu", "0.0", "0.1", "1.0"] {
        let option = match form {
            "gnu" => "--format=gnu".to_owned(),
            form => format!("--sparse-version={form}"),
        };
        let mut args = vec![option.as_str()];
        args.extend((form != "gnu").then_some("--format=posix"));
        args.extend(members);
        let path = tar(dir.path(), &format!("{form}.tar"), &args);
        assert!(path.metadata().unwrap().len() < 6 << 20);
        let kept = Kept::default();
        let imported = imported(&path, &kept);
        assert_eq!(imported.skipped, [], "{form}");
        assert!(imported.sealed_bytes < 10 << 20, "holes are holes");
        let out = unpacked(dir.path(), form, &kept, &imported);
        for name in ["sparse", "hole", "plain"] {
            let (a, b) = (dir.path().join(name), out.join(name));
            assert!(
                std::fs::read(a).unwrap() == std::fs::read(&b).unwrap(),
                "{form} {name}"
            );
        }
        assert!(out.join("sparse").metadata().unwrap().blocks() * 512 < 8 << 20);
    }
}

#[test]
fn of_a_name_that_stands_in_a_tar_twice_the_last_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let path = at("a.tar");
    let append = |names: &[&str]| {
        let added = std::process::Command::new("tar")
            .arg("-rf")
            .arg(&path)
            .arg("-C")
            .arg(dir.path())
            .args(names)
            .status();
        assert!(added.unwrap().success());
    };
    std::fs::write(at("file"), noise(1, 200_000)).unwrap();
    std::fs::hard_link(at("file"), at("linked")).unwrap();
    std::fs::write(at("becomes folder"), noise(2, 100_000)).unwrap();
    std::fs::create_dir(at("becomes file")).unwrap();
    std::fs::write(at("becomes file/gone"), noise(3, 100_000)).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    std::fs::write(at("folder/first"), "first").unwrap();
    append(&["file", "linked", "becomes folder", "becomes file", "folder"]);
    std::fs::remove_file(at("file")).unwrap();
    std::fs::write(at("file"), noise(4, 150_000)).unwrap();
    std::fs::remove_file(at("becomes folder")).unwrap();
    std::fs::create_dir(at("becomes folder")).unwrap();
    std::fs::write(at("becomes folder/inside"), noise(5, 100_000)).unwrap();
    std::fs::remove_dir_all(at("becomes file")).unwrap();
    std::fs::write(at("becomes file"), noise(6, 100_000)).unwrap();
    std::fs::remove_file(at("folder/first")).unwrap();
    std::fs::write(at("folder/second"), "second").unwrap();
    append(&["file", "becomes folder", "becomes file", "folder"]);

    let kept = Kept::default();
    let imported = imported(&path, &kept);
    assert_eq!(imported.skipped, []);
    let out = unpacked(dir.path(), "out", &kept, &imported);
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    assert!(read("file") == noise(4, 150_000));
    assert!(
        read("linked") == noise(1, 200_000),
        "the other name has what it had"
    );
    assert!(read("becomes folder/inside") == noise(5, 100_000));
    assert!(read("becomes file") == noise(6, 100_000));
    assert_eq!(
        (read("folder/first"), read("folder/second")),
        (b"first".into(), b"second".into())
    );
    assert_eq!(imported.files, 6);
}

#[test]
fn a_tar_that_was_cut_short_or_damaged_is_no_image() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), noise(1, 100_000)).unwrap();
    std::fs::write(dir.path().join("b"), "small").unwrap();
    let path = tar(dir.path(), "whole.tar", &["a", "b"]);
    let whole = std::fs::read(&path).unwrap();
    let run = |bytes: &[u8]| {
        let path = dir.path().join("part.tar");
        std::fs::write(&path, bytes).unwrap();
        let kept = Kept::default();
        import(&path).run(&kept, &Reporter::new(Phase::Import), &Cancel::default())
    };
    assert!(run(&whole).is_ok());
    // In a header, in contents, between members, and where the end mark is missing.
    let a_end = 512 + 100_000usize.next_multiple_of(512);
    for len in [
        600,
        50_000,
        512 + 100_000,
        a_end,
        a_end + 300,
        a_end + 515,
        a_end + 1_024,
    ] {
        let outcome = run(&whole[..len]);
        assert!(
            matches!(outcome, Err(ImportError::Archive { .. })),
            "{len}: {outcome:?}"
        );
    }
    let mut damaged = whole.clone();
    damaged[a_end + 5] ^= 1;
    assert!(matches!(run(&damaged), Err(ImportError::Archive { .. })));
}

#[test]
fn a_source_is_known_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("source");
    let look_at = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        look(&path, None)
    };
    let is_form = |outcome| matches!(outcome, Err(ImportError::Form { .. }));
    for magic in [
        &b"\x1f\x8b\x08"[..],
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"BZh9",
        b"QFI\xfb",
    ] {
        let mut bytes = magic.to_vec();
        bytes.resize(4_096, 7);
        assert!(is_form(look_at(&bytes)), "{magic:?}");
    }
    assert!(is_form(look_at(&b"just some lines of text\n".repeat(512))));
    assert!(is_form(look_at(&noise(1, 10_001))), "no whole sectors");
    assert!(matches!(look_at(&noise(1, 10_240)), Ok(SourceKind::Disk)));
    assert!(matches!(look_at(&[0; 1 << 20]), Ok(SourceKind::Disk)));
    assert!(matches!(look_at(&[0; 10_240]), Ok(SourceKind::Tar)));
    assert!(matches!(look_at(b""), Err(ImportError::EmptyDisk)));
    assert!(matches!(look(dir.path(), None), Ok(SourceKind::Tree)));
    // Whoever says what it is gets it.
    std::fs::write(&path, b"text").unwrap();
    assert!(matches!(
        look(&path, Some(SourceKind::Disk)),
        Ok(SourceKind::Disk)
    ));

    let empty = tar(dir.path(), "empty.tar", &["-T", "/dev/null"]);
    let kept = Kept::default();
    assert_eq!(imported(&empty, &kept).files, 0);
}

#[test]
fn an_attribute_that_images_do_not_keep_is_named() {
    assert!(keeps_xattr(b"user.note", b"x") && !keeps_xattr(b"system.nfs4_acl", b"x"));
    assert!(!keeps_xattr(ACCESS, b"x") && !keeps_xattr(b"user.long", &[0; BLOCK_SIZE + 1]));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "text").unwrap();
    let record = "SCHILY.acl.access:=user::rw-\nuser:anna:r--\ngroup::r--\nmask::r--\nother::---";
    let option = format!("--pax-option={record}");
    let path = tar(dir.path(), "a.tar", &["--format=posix", &option, "file"]);
    let imported = imported(&path, &Kept::default());
    assert_eq!(imported.files, 1);
    assert!(
        imported.skipped[0].reason.contains("--numeric-owner"),
        "{:?}",
        imported.skipped
    );
}
