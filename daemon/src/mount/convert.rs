//! Between the kernel's words and the tree's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, TimeOrNow};
use img_index::{FileKind, Inode, Timestamp};
use rustix::io::Errno;

use crate::tree::{Access, SetTime, Shown};

/// Attributes as the kernel takes them. There is no access time: it shows the time of change.
pub(super) fn file_attr(shown: &Shown) -> FileAttr {
    let attributes = &shown.attributes;
    FileAttr {
        ino: INodeNo(shown.inode.0),
        size: attributes.size,
        blocks: shown.blocks,
        atime: system_time(attributes.mtime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attributes.kind),
        // Twelve bits by the format.
        perm: (attributes.mode & 0o7777) as u16,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: IO_SIZE,
        flags: 0,
    }
}

/// What a lookup says to have the kernel remember that there is no such name.
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: IO_SIZE,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Socket => FileType::Socket,
    }
}

/// The kind that `mknod` asks for.
pub(super) fn node_kind(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        libc::S_IFSOCK => Some(FileKind::Socket),
        _ => None,
    }
}

pub(super) fn access(flags: OpenFlags, kill_privileges: bool) -> Access {
    let mode = flags.acc_mode();
    Access {
        writes: mode != OpenAccMode::O_RDONLY,
        maps: mode == OpenAccMode::O_RDWR,
        truncates: flags.0 & libc::O_TRUNC != 0,
        kill_privileges,
    }
}

pub(super) fn inode(number: INodeNo) -> Inode {
    Inode(number.0)
}

pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(received(time)),
    }
}

/// Undoes how fuser 0.18 reads a time: before the epoch it subtracts the nanoseconds as well, so
/// the seconds and nanoseconds that the kernel sent are those of the distance.
fn received(time: SystemTime) -> Timestamp {
    let (distance, sign) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since, 1),
        Err(before) => (before.duration(), -1),
    };
    Timestamp {
        seconds: sign * i64::try_from(distance.as_secs()).unwrap_or(i64::MAX),
        nanos: distance.subsec_nanos(),
    }
}

/// The moment itself; fuser writes times right.
fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let start = match time.seconds {
        0.. => UNIX_EPOCH.checked_add(seconds),
        _ => UNIX_EPOCH.checked_sub(seconds),
    };
    let moment = start.and_then(|start| start.checked_add(Duration::from_nanos(time.nanos.into())));
    moment.unwrap_or(UNIX_EPOCH)
}

/// The size of reads and writes that programs are told to prefer: one block.
const IO_SIZE: u32 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive() {
        let time = Timestamp {
            seconds: -2,
            nanos: 800_000_000,
        };
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(1_200));
        assert_eq!(crate::tree::timestamp(system_time(time)), time);
        // As fuser hands over what the kernel sent as (-2, 800,000,000).
        assert_eq!(received(UNIX_EPOCH - Duration::new(2, 800_000_000)), time);
    }
}
