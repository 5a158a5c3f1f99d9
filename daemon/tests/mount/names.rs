//! Names, links, directories, attributes.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use imgd::acl::Acl;
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::support::{Place, names};

#[test]
fn renames_with_every_flag() {
    let place = Place::new();
    let (a, b) = (place.path("a"), place.path("b"));
    fs::write(&a, "A").unwrap();
    fs::write(&b, "B").unwrap();
    let rename = |flags| rustix::fs::renameat_with(CWD, &a, CWD, &b, flags);

    assert_eq!(rename(RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename(RenameFlags::WHITEOUT), Err(Errno::INVAL));
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(&a).unwrap(), "B");
    assert_eq!(fs::read_to_string(&b).unwrap(), "A");
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read_to_string(&b).unwrap(), "B");
    assert_eq!(rename(RenameFlags::EXCHANGE), Err(Errno::NOENT));

    fs::create_dir_all(place.path("d/sub")).unwrap();
    fs::create_dir(place.path("e")).unwrap();
    assert_eq!(fs::metadata(place.path("d")).unwrap().nlink(), 3);
    fs::rename(place.path("d/sub"), place.path("e/sub")).unwrap();
    assert_eq!(fs::metadata(place.path("d")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(place.path("e")).unwrap().nlink(), 3);
    // Over a directory only if it is empty.
    let over = fs::rename(place.path("d"), place.path("e")).unwrap_err();
    assert_eq!(over.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
    fs::rename(place.path("e"), place.path("d")).unwrap();
    assert_eq!(names(&place.root()), ["b", "d"]);
    assert_eq!(names(&place.path("d")), ["sub"]);
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let mut place = Place::new();
    let path = place.path("file");
    let mut file = fs::File::create_new(&path).unwrap();
    file.write_all(b"before").unwrap();
    let mut reader = fs::File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    file.write_all(b" and after").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.sync_all().unwrap();
    drop(file);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");

    // The mount is busy while it is open, and goes on.
    let mut mounted = place.mounted.take().unwrap();
    assert_eq!(
        mounted.unmount().unwrap_err().raw_os_error(),
        Some(Errno::BUSY.raw_os_error())
    );
    reader.seek(SeekFrom::Start(0)).unwrap();
    reader.read_to_string(&mut text).unwrap();
    drop(reader);
    mounted.unmount().unwrap();
    assert_eq!(mounted.tree().stats().dirty_bytes, 0, "its data is gone");
}

#[test]
fn links_count_and_keep_the_inode() {
    let place = Place::new();
    let (one, two) = (place.path("one"), place.path("two"));
    fs::write(&one, "text").unwrap();
    fs::hard_link(&one, &two).unwrap();
    assert_eq!(fs::metadata(&one).unwrap().nlink(), 2);
    assert_eq!(
        fs::metadata(&one).unwrap().ino(),
        fs::metadata(&two).unwrap().ino()
    );
    fs::rename(&one, &two).unwrap();
    assert!(one.exists(), "two names of one inode: rename does nothing");
    fs::remove_file(&one).unwrap();
    assert_eq!(fs::metadata(&two).unwrap().nlink(), 1);
    assert_eq!(fs::read_to_string(&two).unwrap(), "text");

    symlink("two", place.path("soft")).unwrap();
    assert_eq!(fs::read_to_string(place.path("soft")).unwrap(), "text");
    let long = "x/".repeat(2_000);
    symlink(&long, place.path("long")).unwrap();
    assert_eq!(
        fs::read_link(place.path("long")).unwrap().as_os_str(),
        long.as_str()
    );
}

#[test]
fn keeps_modes_owners_times_and_kinds() {
    let place = Place::new();
    let path = place.path("file");
    fs::write(&path, "text").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4711);
    std::os::unix::fs::chown(&path, Some(123), Some(456)).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (123, 456));
    assert_eq!(
        metadata.mode() & 0o7777,
        0o711,
        "chown takes set-user-id away"
    );

    for (seconds, nanos) in [(1_234_567_890, 123_456_789), (-2, 800_000_000), (-5, 0)] {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (seconds, nanos));
    }

    place.shell("mkfifo fifo; mknod null c 1 3; mknod disk b 7 99; mkdir -m 2775 shared");
    let metadata = |name| fs::symlink_metadata(place.path(name)).unwrap();
    assert!(metadata("fifo").file_type().is_fifo());
    assert!(metadata("null").file_type().is_char_device());
    assert_eq!(metadata("disk").rdev(), rustix::fs::makedev(7, 99));
    place.shell("echo gone > null; test -z \"$(cat null)\"");

    place.shell("chgrp 77 shared; mkdir shared/sub; touch shared/file");
    assert_eq!(metadata("shared/file").gid(), 77, "the group is inherited");
    assert_eq!(metadata("shared/sub").gid(), 77);
    assert_eq!(metadata("shared/sub").mode() & 0o2000, 0o2000);
}

#[test]
fn others_lose_set_id_bits_with_a_write_and_reach_only_what_they_may() {
    let place = Place::new();
    place.shell("chmod 755 . .. ; echo text > file; chmod 6777 file; echo private > secret; chmod 600 secret");
    // A user without rights writes: both bits go.
    place.shell("setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'echo more >> file'");
    let mode = fs::metadata(place.path("file")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o777);
    place.shell(
        "chmod 6777 file; setpriv --reuid 65534 --regid 65534 --clear-groups truncate -s 1 file",
    );
    assert_eq!(
        fs::metadata(place.path("file")).unwrap().mode() & 0o7777,
        0o777
    );
    place.shell("! setpriv --reuid 65534 --regid 65534 --clear-groups cat secret 2>/dev/null");
}

#[test]
fn extended_attributes_with_their_flags_and_sizes() {
    let place = Place::new();
    let path = place.path("file");
    fs::write(&path, "text").unwrap();
    let set = |name, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    set("user.one", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(set("user.one", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
    set("user.one", b"22", XattrFlags::REPLACE).unwrap();
    assert_eq!(
        set("user.two", b"2", XattrFlags::REPLACE),
        Err(Errno::NODATA)
    );
    set("trusted.three", &[3; 2048], XattrFlags::empty()).unwrap();
    assert_eq!(
        set("user.four", &[3; 2049], XattrFlags::empty()),
        Err(Errno::NOSPC)
    );
    assert_eq!(
        set("system.nfs4_acl", b"\x02\0\0\0", XattrFlags::empty()),
        Err(Errno::OPNOTSUPP)
    );

    let mut value = [0; 4096];
    let get = |name, value: &mut [u8]| rustix::fs::getxattr(&path, name, value);
    assert_eq!(get("user.one", &mut value[..1]), Err(Errno::RANGE));
    assert_eq!(get("user.one", &mut value), Ok(2));
    assert_eq!(get("trusted.three", &mut value), Ok(2048));
    assert_eq!(get("user.none", &mut value), Err(Errno::NODATA));
    let len = rustix::fs::listxattr(&path, &mut value).unwrap();
    assert_eq!(&value[..len], b"trusted.three\0user.one\0");
    // A program that asks for the size first.
    assert_eq!(place.shell("getfattr --only-values -n user.one file"), "22");
    rustix::fs::removexattr(&path, "user.one").unwrap();
    assert_eq!(
        rustix::fs::removexattr(&path, "user.one"),
        Err(Errno::NODATA)
    );
}

#[test]
fn a_large_directory_is_deleted_while_it_is_listed() {
    let place = Place::new();
    place.shell("mkdir large; cd large; seq -f 'entry number %.0f' 10000 | xargs -d '\\n' touch");
    let dir = place.path("large");
    assert_eq!(names(&dir).len(), 10_000);

    // Every second entry as it is met; none of the others is missed or met twice.
    let mut met = std::collections::BTreeSet::new();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let entry = entry.unwrap();
        assert!(met.insert(entry.file_name()));
        if at % 2 == 0 {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!(met.len(), 10_000);
    assert_eq!(names(&dir).len(), 5_000);
    assert_eq!(
        fs::remove_dir(&dir).unwrap_err().raw_os_error(),
        Some(Errno::NOTEMPTY.raw_os_error())
    );
    place.shell("rm -r large");
    assert_eq!(names(&place.root()), Vec::<String>::new());
}

#[test]
fn names_at_their_limits() {
    let place = Place::new();
    let longest = "é".repeat(127) + "x";
    fs::write(place.path(&longest), "").unwrap();
    assert_eq!(names(&place.root()), [longest]);
    let error = fs::write(place.path(&"x".repeat(256)), "").unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
    // Names are bytes.
    place.shell("touch $'\\xff\\xfe'; test -e $'\\xff\\xfe'; rm $'\\xff\\xfe'");
    // What was looked up in vain appears as soon as it is made.
    place.shell("! test -e later; touch later; test -e later; mv later moved; ! test -e later; test -e moved");
}

#[test]
fn access_lists_are_kept_inherited_and_enforced() {
    let mut place = Place::new();
    let list = |text: &str| Acl::from_text(text).unwrap().encode();
    let text = |path: &Path, name: &str| {
        let mut value = [0; 1_024];
        match rustix::fs::getxattr(path, name, &mut value[..]) {
            Ok(len) => Ok(Acl::decode(&value[..len]).unwrap().to_text()),
            Err(error) => Err(error),
        }
    };
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let set = |path: &Path, name, text: &str| {
        rustix::fs::setxattr(path, name, &list(text), XattrFlags::empty()).unwrap();
    };
    let nobody_reads = |path: &Path| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]);
        command.arg(path).output().unwrap().status.success()
    };
    let open_to_all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.root(), open_to_all).unwrap();

    let file = place.path("file");
    fs::write(&file, "text").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(text(&file, access), Err(Errno::NODATA));
    let for_nobody = "user::rw-,user:65534:r--,group::---,mask::r--,other::---";
    if rustix::process::geteuid().is_root() {
        assert!(!nobody_reads(&file));
        set(&file, access, for_nobody);
        assert!(nobody_reads(&file));
    } else {
        set(&file, access, for_nobody);
    }
    assert_eq!(mode(&file), 0o640, "the group's bits are the mask");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let masked = for_nobody.replace("mask::r--", "mask::---");
    assert_eq!(text(&file, access).unwrap(), masked);
    if rustix::process::geteuid().is_root() {
        assert!(!nobody_reads(&file));
    }
    set(&file, access, "user::rw-,group::r--,other::r--");
    assert_eq!(
        (mode(&file), text(&file, access)),
        (0o644, Err(Errno::NODATA))
    );
    let on_file = rustix::fs::setxattr(&file, default, &list(for_nobody), XattrFlags::empty());
    assert_eq!(on_file, Err(Errno::ACCESS));

    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    let inherited = "user::rwx,user:7:rwx,group::r-x,mask::rwx,other::---";
    set(&folder, default, inherited);
    place.shell(
        "umask 077; echo text > folder/made; mkdir folder/below; echo text > plain; mkdir bare",
    );
    let made = place.path("folder/made");
    assert_eq!(mode(&made), 0o660, "the umask has no say");
    let expected = "user::rw-,user:7:rwx,group::r-x,mask::rw-,other::---";
    assert_eq!(text(&made, access).unwrap(), expected);
    let below = place.path("folder/below");
    assert_eq!(text(&below, default).unwrap(), inherited);
    assert_eq!(
        (
            mode(&below),
            mode(&place.path("plain")),
            mode(&place.path("bare"))
        ),
        (0o770, 0o600, 0o700)
    );

    place.unmount();
    place.recover();
    assert_eq!(text(&made, access).unwrap(), expected);
    assert_eq!(text(&below, default).unwrap(), inherited);
}

#[test]
fn a_socket_is_bound_and_answers() {
    use std::os::unix::net::{UnixListener, UnixStream};
    let place = Place::new();
    let path = place.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"hello").unwrap();
    drop(stream);
    let mut said = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "hello");
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    // As on any disk the name outlives whoever listened, and is removed before the next bind.
    drop(listener);
    let refused = UnixStream::connect(&path).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    fs::remove_file(&path).unwrap();
    UnixListener::bind(&path).unwrap();
}
