use std::ffi::OsStr;
use std::time::UNIX_EPOCH;

use super::*;

fn attributes() -> Attributes {
    Attributes {
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: UNIX_EPOCH,
    }
}

fn empty() -> Disk {
    Disk::load(tempfile::tempdir().unwrap().path()).unwrap()
}

fn file(disk: &mut Disk, name: &str, data: &[u8]) -> Node {
    let body = Body::File(Bytes::default());
    let node = disk
        .make(ROOT, OsStr::new(name), attributes(), body)
        .unwrap();
    disk.write(node, 0, data).unwrap();
    node
}

fn read<'a>(disk: &'a Disk, name: &str) -> Option<&'a [u8]> {
    let node = disk.lookup(ROOT, OsStr::new(name)).ok()?;
    Some(disk.bytes(node).unwrap())
}

fn after(disk: &Disk, way: Way, seed: u64) -> Disk {
    let mut disk = disk.clone();
    disk.cut(way, &mut Luck::new(seed));
    disk
}

#[test]
fn a_file_needs_its_own_sync_and_its_folders() {
    let mut disk = empty();
    let node = file(&mut disk, "a", b"one");
    disk.sync(node).unwrap();
    assert_eq!(read(&after(&disk, Way::Nothing, 0), "a"), None);
    disk.sync(ROOT).unwrap();
    disk.write(node, 0, b"two!").unwrap();
    assert_eq!(read(&after(&disk, Way::Nothing, 0), "a"), Some(&b"one"[..]));
    assert_eq!(
        read(&after(&disk, Way::Everything, 0), "a"),
        Some(&b"two!"[..])
    );
    disk.sync(node).unwrap();
    disk.set_len(node, 1).unwrap();
    assert_eq!(
        read(&after(&disk, Way::Nothing, 0), "a"),
        Some(&b"two!"[..])
    );
    assert_eq!(
        read(&after(&disk, Way::Everything, 0), "a"),
        Some(&b"t"[..])
    );
}

#[test]
fn names_change_with_the_folders_sync_and_renames_at_once() {
    let mut disk = empty();
    for (name, data) in [("old", b"1"), ("new", b"2")] {
        let node = file(&mut disk, name, data);
        disk.sync(node).unwrap();
    }
    disk.sync(ROOT).unwrap();
    disk.rename((ROOT, OsStr::new("new")), (ROOT, OsStr::new("old")))
        .unwrap();
    for seed in 0..40 {
        let torn = after(&disk, Way::Torn, seed);
        let found = (read(&torn, "old"), read(&torn, "new"));
        let before = (Some(&b"1"[..]), Some(&b"2"[..]));
        assert!(found == before || found == (Some(&b"2"[..]), None));
    }
    disk.sync(ROOT).unwrap();
    disk.remove(ROOT, OsStr::new("old")).unwrap();
    assert_eq!(read(&after(&disk, Way::Nothing, 0), "old"), Some(&b"2"[..]));
    assert_eq!(read(&after(&disk, Way::Everything, 0), "old"), None);
}

#[test]
fn a_torn_disk_mixes_sectors_and_never_touches_what_was_synced() {
    let mut disk = empty();
    let node = file(&mut disk, "a", &[1; 10_000]);
    let still = file(&mut disk, "still", &[3; 5_000]);
    for node in [node, still, ROOT] {
        disk.sync(node).unwrap();
    }
    disk.write(node, 1_000, &[2; 9_000]).unwrap();
    let (mut mixed, mut old, mut new) = (0, 0, 0);
    for seed in 0..100 {
        let torn = after(&disk, Way::Torn, seed);
        assert_eq!(read(&torn, "still"), Some(&[3; 5_000][..]));
        let bytes = read(&torn, "a").unwrap();
        assert_eq!(bytes.len(), 10_000);
        let fresh = bytes.iter().filter(|byte| **byte == 2).count();
        match fresh {
            0 => old += 1,
            9_000 => new += 1,
            _ => mixed += 1,
        }
        for sector in bytes[1_024..].chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
        }
    }
    assert!(mixed > 10 && old > 10 && new > 10, "{mixed} {old} {new}");
}

#[test]
fn what_a_failed_sync_lost_no_later_sync_brings_back() {
    let mut disk = empty();
    let node = file(&mut disk, "a", b"old");
    disk.sync(node).unwrap();
    disk.sync(ROOT).unwrap();
    disk.write(node, 0, b"new").unwrap();
    disk.fail_sync(node).unwrap();
    disk.sync(node).unwrap();
    assert_eq!(read(&disk, "a"), Some(&b"new"[..]));
    assert_eq!(read(&after(&disk, Way::Nothing, 0), "a"), Some(&b"old"[..]));
}
