//! The file system that the kernel talks to.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use img_index::FileKind;
use img_types::limits::ENTRY_NAME_LEN_MAX;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::convert::{access, errno, file_attr, file_type, inode, no_entry, node_kind, set_time};
use super::gate::Gate;
use crate::tree::{
    Allocation, COOKIE_FIRST, Failure, NewInode, RenameMode, Seek, SetAttributes, SetXattr, Shown,
    Tree,
};

/// Answers the kernel's requests with a tree.
pub(super) struct Adapter {
    tree: Arc<Tree>,
    runtime: Handle,
    gate: Arc<Gate>,
    ending: watch::Sender<bool>,
    /// Bytes that the kernel has written back by itself: what shared maps have changed.
    written: Arc<AtomicU64>,
    /// The same for all entries of a mount: inodes are never given out twice, and a new number would take open
    /// files and working directories from programs.
    generation: Generation,
    /// The kernel lists directories without opening them.
    opens_directories: bool,
}

impl Adapter {
    pub(super) fn new(
        tree: Arc<Tree>,
        runtime: Handle,
        gate: Arc<Gate>,
        ending: watch::Sender<bool>,
        written: Arc<AtomicU64>,
    ) -> Self {
        let generation = Generation(tree.restores());
        Self {
            tree,
            runtime,
            gate,
            ending,
            written,
            generation,
            opens_directories: true,
        }
    }

    /// Tries an operation at once; what it lacks is fetched by a task, which repeats it and replies.
    fn answer<T: Send + 'static>(
        &self,
        operation: impl Fn(&Tree) -> Result<T, Failure> + Send + Sync + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let gate = Arc::clone(&self.gate);
        let attempt = move |tree: &Tree| {
            let pass = gate.enter();
            operation(tree).map(|value| (value, pass))
        };
        match attempt(&self.tree) {
            Ok((value, pass)) => {
                reply(Ok(value));
                drop(pass);
            }
            Err(Failure::Refused(errno)) => reply(Err(errno)),
            Err(Failure::Absent(wanted)) => {
                let tree = Arc::clone(&self.tree);
                self.runtime.spawn(async move {
                    match tree.repeat(wanted, attempt).await {
                        Ok((value, pass)) => {
                            reply(Ok(value));
                            drop(pass);
                        }
                        Err(errno) => reply(Err(errno)),
                    }
                });
            }
        }
    }

    fn answer_empty(
        &self,
        reply: ReplyEmpty,
        operation: impl Fn(&Tree) -> Result<(), Failure> + Send + Sync + 'static,
    ) {
        self.answer(operation, move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn answer_entry(
        &self,
        reply: ReplyEntry,
        operation: impl Fn(&Tree) -> Result<Option<Shown>, Failure> + Send + Sync + 'static,
    ) {
        let generation = self.generation;
        self.answer(operation, move |outcome| match outcome {
            Ok(Some(shown)) => reply.entry(&TTL, &file_attr(&shown), generation),
            Ok(None) => reply.entry(&TTL, &no_entry(), generation),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn sync(&self, reply: ReplyEmpty) {
        self.tree.sync_then(move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        });
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        for wanted in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DO_READDIRPLUS,
            // With it the umask is the tree's business, as it has none where an access list is inherited.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // Without it the kernel asks for a file capability before every single write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            config.add_capabilities(wanted & offered).ok();
        }
        self.opens_directories = !offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        config.set_max_write(MAX_WRITE).ok();
        // Reads that wait for the network must not starve local ones.
        config.set_max_background(MAX_BACKGROUND).ok();
        Ok(())
    }

    fn destroy(&mut self) {
        self.ending.send_replace(true);
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        self.answer_entry(reply, move |tree| tree.lookup(parent, &name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let ino = inode(ino);
        self.answer(
            move |tree| tree.attributes(ino),
            move |outcome| match outcome {
                Ok(shown) => reply.attr(&TTL, &file_attr(&shown)),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ino = inode(ino);
        let set = SetAttributes {
            mode,
            uid,
            gid,
            size,
            mtime: mtime.map(set_time),
            kill_privileges: !keeps_privileges(request),
        };
        if size.is_some() && handle.is_some_and(|handle| self.tree.is_stale(handle.0)) {
            return reply.error(fuser::Errno::ESTALE);
        }
        self.answer(
            move |tree| tree.set_attributes(ino, set),
            move |outcome| match outcome {
                Ok(shown) => reply.attr(&TTL, &file_attr(&shown)),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = inode(ino);
        self.answer(
            move |tree| tree.readlink(ino),
            move |outcome| match outcome {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = node_kind(mode) else {
            return reply.error(fuser::Errno::EPERM);
        };
        let new = new_inode(request, kind, mode, umask, rdev);
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        self.answer_entry(reply, move |tree| tree.make(parent, &name, new).map(Some));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let new = new_inode(request, FileKind::Directory, mode, umask, 0);
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        self.answer_entry(reply, move |tree| tree.make(parent, &name, new).map(Some));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        self.answer_empty(reply, move |tree| tree.unlink(parent, &name));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        self.answer_empty(reply, move |tree| tree.rmdir(parent, &name));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        let (uid, gid) = (request.uid(), request.gid());
        self.answer_entry(reply, move |tree| {
            tree.symlink(parent, &name, &target, uid, gid).map(Some)
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        let (new_parent, new_name) = (inode(new_parent), new_name.as_bytes().to_vec());
        self.answer_empty(reply, move |tree| {
            tree.rename(parent, &name, new_parent, &new_name, mode)
        });
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (ino, parent) = (inode(ino), inode(new_parent));
        let name = new_name.as_bytes().to_vec();
        self.answer_entry(reply, move |tree| tree.link(ino, parent, &name).map(Some));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (ino, access) = (inode(ino), access(flags, !keeps_privileges(request)));
        self.answer(
            move |tree| tree.open(ino, access),
            move |outcome| match outcome {
                Ok(restores) => {
                    reply.opened(FileHandle(restores), FopenFlags::FOPEN_KEEP_CACHE);
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let new = new_inode(request, FileKind::File, mode, umask, 0);
        let access = access(OpenFlags(flags & !libc::O_TRUNC), false);
        let (parent, name) = (inode(parent), name.as_bytes().to_vec());
        let generation = self.generation;
        // Opening may have to be repeated; what was made stays made.
        let made = OnceLock::new();
        self.answer(
            move |tree| {
                let shown = match made.get() {
                    Some(shown) => *shown,
                    None => {
                        let shown = tree.make(parent, &name, new)?;
                        *made.get_or_init(|| shown)
                    }
                };
                Ok((shown, tree.open(shown.inode, access)?))
            },
            move |outcome| match outcome {
                Ok((shown, restores)) => reply.created(
                    &TTL,
                    &file_attr(&shown),
                    generation,
                    FileHandle(restores),
                    FopenFlags::FOPEN_KEEP_CACHE,
                ),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = inode(ino);
        let stale = self.tree.is_stale(handle.0);
        if stale && access(flags, false).writes {
            return reply.error(fuser::Errno::ESTALE);
        }
        self.answer(
            move |tree| tree.read_data(ino, offset, u64::from(size)),
            move |outcome| match outcome {
                Ok(bytes) => reply.data(&bytes),
                // A restore took the file away.
                Err(Errno::NOENT) if stale => reply.error(fuser::Errno::ESTALE),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.tree.is_stale(handle.0) {
            return reply.error(fuser::Errno::ESTALE);
        }
        let ino = inode(ino);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        // A request carries far less than 4 GiB.
        let len = data.len() as u32;
        let finish = move |outcome| match outcome {
            Ok(()) => reply.written(len),
            Err(error) => reply.error(errno(error)),
        };
        // Tried by hand so that the bytes are copied only for a task, which hardly ever is needed:
        // an open file's attributes are in memory.
        match self.tree.write(ino, offset, data, kill) {
            Ok(()) => finish(Ok(())),
            Err(Failure::Refused(errno)) => finish(Err(errno)),
            Err(Failure::Absent(_)) => {
                let data = data.to_vec();
                self.answer(move |tree| tree.write(ino, offset, &data, kill), finish);
            }
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is left to do at close; told so once, the kernel no longer asks.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let access = access(flags, false);
        self.tree.release(inode(ino), access, handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(reply);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.opens_directories {
            reply.opened(NO_HANDLE, FopenFlags::empty());
        } else {
            reply.error(fuser::Errno::ENOSYS);
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let own = ino;
        self.answer(
            move |tree| tree.list(inode(ino), offset.max(COOKIE_FIRST), LISTED_MAX),
            move |outcome| match outcome {
                Ok(listed) => {
                    let full = dots(offset)
                        .any(|(cookie, name)| reply.add(own, cookie, FileType::Directory, name));
                    if !full {
                        for found in listed {
                            if reply.add(
                                INodeNo(found.entry.inode.0),
                                found.cookie,
                                file_type(found.entry.kind),
                                OsStr::from_bytes(&found.name),
                            ) {
                                break;
                            }
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let own = inode(ino);
        let generation = self.generation;
        self.answer(
            move |tree| {
                let listed = tree.list_shown(own, offset.max(COOKIE_FIRST), LISTED_PLUS_MAX)?;
                Ok((tree.attributes(own)?, listed))
            },
            move |outcome| match outcome {
                Ok((directory, listed)) => {
                    let directory = file_attr(&directory);
                    let full = dots(offset).any(|(cookie, name)| {
                        reply.add(directory.ino, cookie, name, &TTL, &directory, generation)
                    });
                    if !full {
                        for (found, shown) in listed {
                            let attr = file_attr(&shown);
                            let name = OsStr::from_bytes(&found.name);
                            if reply.add(attr.ino, found.cookie, name, &TTL, &attr, generation) {
                                break;
                            }
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.tree.space() {
            Ok(space) => {
                let total = space.total / u64::from(STATFS_UNIT);
                let available = space.available / u64::from(STATFS_UNIT);
                reply.statfs(
                    total,
                    available,
                    available,
                    INODES_SHOWN,
                    INODES_SHOWN,
                    STATFS_UNIT,
                    // A few hundred bytes.
                    ENTRY_NAME_LEN_MAX as u32,
                    STATFS_UNIT,
                );
            }
            Err(error) => reply.error(fuser::Errno::from(error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => SetXattr::Any,
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (ino, name, value) = (inode(ino), name.as_bytes().to_vec(), value.to_vec());
        let kill = !keeps_privileges(request);
        self.answer_empty(reply, move |tree| {
            tree.set_xattr(ino, &name, &value, mode, kill)
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (ino, name) = (inode(ino), name.as_bytes().to_vec());
        self.answer(
            move |tree| tree.xattr(ino, &name),
            move |outcome| reply_xattr(outcome, size, reply),
        );
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = inode(ino);
        self.answer(
            move |tree| tree.xattr_names(ino),
            move |outcome| reply_xattr(outcome, size, reply),
        );
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (ino, name) = (inode(ino), name.as_bytes().to_vec());
        self.answer_empty(reply, move |tree| tree.remove_xattr(ino, &name));
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if self.tree.is_stale(handle.0) {
            return reply.error(fuser::Errno::ESTALE);
        }
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let what = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Allocation::Reserve,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocation::Punch,
            libc::FALLOC_FL_ZERO_RANGE => Allocation::Zero,
            _ => return reply.error(fuser::Errno::EOPNOTSUPP),
        };
        let ino = inode(ino);
        self.answer_empty(reply, move |tree| {
            tree.allocate(ino, offset, length, what, keep_size)
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(fuser::Errno::ENXIO);
        };
        let ino = inode(ino);
        self.answer(
            move |tree| tree.seek(ino, offset, what),
            move |outcome| match outcome {
                // Sizes stay below 2^63.
                Ok(found) => reply.offset(found.cast_signed()),
                Err(error) => reply.error(errno(error)),
            },
        );
    }
}

/// `.` and `..` with their cookies, as far as a listing from `offset` on still has them.
fn dots(offset: u64) -> impl Iterator<Item = (u64, &'static str)> {
    let all = [(COOKIE_FIRST - 1, "."), (COOKIE_FIRST, "..")];
    all.into_iter().filter(move |(cookie, _)| *cookie > offset)
}

fn new_inode(request: &Request, kind: FileKind, mode: u32, umask: u32, rdev: u32) -> NewInode {
    NewInode {
        kind,
        mode,
        umask,
        uid: request.uid(),
        gid: request.gid(),
        rdev,
    }
}

/// Only root keeps set-id bits when it truncates; fuser does not pass the kernel's own word on.
fn keeps_privileges(request: &Request) -> bool {
    request.uid() == 0
}

fn reply_xattr(outcome: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match outcome {
        // Values and lists stay far below 4 GiB.
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

/// How long the kernel may believe what it was told: imgd is the only one who changes anything, and
/// says so when a restore does.
const TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Open directories need no state of their own.
const NO_HANDLE: FileHandle = FileHandle(0);
/// Largest write in one request; the kernel allows 256 pages.
const MAX_WRITE: u32 = 1024 * 1024;
/// Requests that the kernel may have under way in the background.
const MAX_BACKGROUND: u16 = 256;
/// Entries of one answer to a listing; a few more than the kernel's buffer usually takes.
const LISTED_MAX: usize = 512;
/// Entries of one answer to a listing with attributes.
const LISTED_PLUS_MAX: usize = 128;
/// Unit of `statfs`.
const STATFS_UNIT: u32 = 4096;
/// Inodes are only limited by space; programs want to see some number.
const INODES_SHOWN: u64 = 1 << 32;
