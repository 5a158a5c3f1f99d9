//! Contents: holes, maps, appends, sizes.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::support::{Place, run};

const MIB: u64 = 1 << 20;

#[test]
fn holes_are_kept_found_and_punched() {
    let place = Place::new();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(place.path("sparse"))
        .unwrap();
    file.write_all_at(b"data", 10 * MIB).unwrap();
    file.set_len(100 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 1);
    let seek = |to| rustix::fs::seek(&file, to);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(10 * MIB));
    assert_eq!(seek(SeekFrom::Hole(10 * MIB)), Ok(10 * MIB + 4));
    assert_eq!(seek(SeekFrom::Data(11 * MIB)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Hole(11 * MIB)), Ok(11 * MIB));
    assert_eq!(seek(SeekFrom::Hole(100 * MIB)), Err(Errno::NXIO));

    file.write_all_at(&[9; 1 << 20], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 1000, 5000).unwrap();
    let mut bytes = vec![1; 1 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..1000].iter().all(|&b| b == 9));
    assert!(bytes[1000..6000].iter().all(|&b| b == 0));
    assert!(bytes[6000..].iter().all(|&b| b == 9));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(1000));

    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 99 * MIB, 2 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 101 * MIB);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 101 * MIB, MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 101 * MIB);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 101 * MIB, MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 102 * MIB);
    assert_eq!(
        rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, MIB),
        Err(Errno::OPNOTSUPP)
    );
}

#[test]
fn a_file_that_shrank_reads_zeros_when_it_grows() {
    let place = Place::new();
    let path = place.path("file");
    fs::write(&path, [7; 10_000]).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(5).unwrap();
    file.set_len(10_000).unwrap();
    let mut expected = vec![0; 10_000];
    expected[..5].fill(7);
    assert_eq!(fs::read(&path).unwrap(), expected);
    // Opening with O_TRUNC does the same at once.
    fs::write(&path, "x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

#[test]
fn sparse_copies_by_ordinary_programs() {
    let place = Place::new();
    place.shell(
        "truncate -s 20M source
         printf start | dd of=source conv=notrunc status=none
         printf end | dd of=source bs=1 seek=20000000 conv=notrunc status=none
         dd if=source of=copy bs=64K conv=sparse status=none
         cmp source copy
         cp --sparse=always source again; cmp source again
         test $(stat -c %b copy) -lt 1000
         fallocate -p -o 0 -l 1M copy
         test $(head -c 5 copy | tr -d '\\0' | wc -c) = 0
         fallocate -d again; cmp source again",
    );
}

#[test]
fn maps_private_and_shared() {
    let place = Place::new();
    let path = place.path("mapped");
    fs::write(&path, vec![1; 8192]).unwrap();
    // In another process: a fault in this one would hold its memory while it waits for threads of its own.
    let mut mapper = Command::new("python3")
        .args(["-c", MAPPER])
        .current_dir(place.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut told = BufReader::new(mapper.stdout.take().unwrap());
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "mapped\n");

    // What a checkpoint does before its cut: the page reaches the tree without msync or close.
    let mounted = place.mounted.as_ref().unwrap();
    mounted.flush_maps();
    let inode = img_index::Inode(fs::metadata(&path).unwrap().ino());
    let in_tree = mounted.tree().read_data(inode, 4096, 1).unwrap();
    assert_eq!(in_tree, [5]);

    drop(mapper.stdin.take());
    assert!(mapper.wait().unwrap().success());
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[4096..4098], [5, 6]);
    assert_eq!(bytes[0], 1, "a private map changes nothing");
}

/// Writes through a private and a shared map, waits for the end of its input, writes again.
const MAPPER: &str = "
import mmap, sys
file = open('mapped', 'r+b')
private = mmap.mmap(file.fileno(), 8192, flags=mmap.MAP_PRIVATE)
private[0] = 9
shared = mmap.mmap(file.fileno(), 8192)
shared[4096] = 5
print('mapped', flush=True)
sys.stdin.read()
shared[4097] = 6
";

#[test]
fn appends_of_two_processes_do_not_overwrite_each_other() {
    let place = Place::new();
    place.shell(
        "writer() { for i in $(seq 300); do echo \"$1 $i\"; done >> log; }
         many() { for i in $(seq 300); do echo \"$1 $i\" >> log; done; }
         writer a & writer b & many c & many d & wait
         test $(wc -l < log) = 1200
         test $(sort -u log | wc -l) = 1200",
    );
    let mut one = OpenOptions::new()
        .append(true)
        .open(place.path("log"))
        .unwrap();
    let mut two = OpenOptions::new()
        .append(true)
        .open(place.path("log"))
        .unwrap();
    let before = one.metadata().unwrap().len();
    one.write_all(b"one\n").unwrap();
    two.write_all(b"two\n").unwrap();
    let bytes = fs::read(place.path("log")).unwrap();
    assert_eq!(&bytes[before as usize..], b"one\ntwo\n");
}

#[test]
fn statfs_shows_less_room_than_the_disk_below() {
    let place = Place::new();
    let inside = rustix::fs::statvfs(place.root()).unwrap();
    let below = rustix::fs::statvfs(place.state()).unwrap();
    assert_eq!(inside.f_namemax, 255);
    assert!(inside.f_bavail > 0);
    assert!(inside.f_bavail * inside.f_frsize < below.f_bavail * below.f_frsize);
}

#[test]
fn a_full_disk_is_said_before_a_write_is_accepted_and_can_be_left() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("state")).unwrap();
    let disk = SmallDisk::new(folder.path().join("state"));
    let mut place = Place::within(folder);
    let mut accepted = 0_u64;
    let error = loop {
        let bytes = vec![1; 1 << 20];
        match fs::write(place.path(&accepted.to_string()), bytes) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    assert!((5..40).contains(&accepted), "{accepted}");
    for number in 0..accepted {
        let bytes = fs::read(place.path(&number.to_string())).unwrap();
        assert!(bytes == vec![1; 1 << 20]);
    }
    // What was accepted can be made durable and checkpointed, and files can be removed.
    let tree = place.mounted.as_ref().unwrap().tree();
    tree.sync().unwrap();
    assert!(tree.freeze().unwrap().is_some());
    fs::remove_file(place.path("0")).unwrap();
    place.unmount();
    drop(disk);
}

/// A disk with room for some 20 MiB of writes and their seal above the reserve.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: PathBuf) -> Self {
        let options = ["-t", "tmpfs", "-o", "size=300m", "none"].map(OsStr::new);
        run("mount", options.into_iter().chain([dir.as_os_str()]));
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", [OsStr::new("--lazy"), self.0.as_os_str()]);
    }
}
