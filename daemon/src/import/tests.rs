use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use img_seal::HomeSecret;
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
    for (name, value) in [("user.note", &b"short"[..]), ("user.long", &long)] {
        for path in ["small", "deep"] {
            let set = lsetxattr(top.join(path), name, value, XattrFlags::empty());
            set.expect("the file system holds extended attributes");
        }
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

#[test]
fn a_sparse_member_in_pax_form_is_left_out_and_named_instead_of_read_wrongly() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"island", 1 << 19).unwrap();
    std::fs::write(dir.path().join("plain"), "text").unwrap();
    let tar = dir.path().join("a.tar");
    let made = std::process::Command::new("tar")
        .args(["--sparse", "--format=posix", "-cf"])
        .arg(&tar)
        .args(["-C", dir.path().to_str().unwrap(), "sparse", "plain"])
        .status()
        .unwrap();
    assert!(made.success());
    let imported = imported(&tar, &Kept::default());
    assert_eq!(imported.files, 1);
    assert_eq!(imported.skipped.len(), 1);
    assert!(imported.skipped[0].reason.contains("sparse"));
}
