//! The disk in memory as a real file system, so that the programs run on it as they are.
//!
//! Nothing bypasses the page cache, since SQLite maps its shared memory; writes go through at once. That shared
//! memory (`-shm`) is rebuilt after every crash and written back when the kernel likes, so that it is no step.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite,
    Request, Session, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::disk::{Attributes, Body, Bytes, Disk, Names, Node};
use crate::gate::{Act, Fault, Gate, Verdict};

/// A disk that is mounted; dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
    shared: Arc<Shared>,
    _session: BackgroundSession,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    disk: Disk,
    gate: Gate,
    is_over: bool,
}

impl Mounted {
    /// Mounts a disk over a folder.
    ///
    /// # Errors
    /// FUSE is not available.
    pub fn new(disk: Disk, dir: &Path) -> Result<Self> {
        let state = State {
            disk,
            gate: Gate::open(),
            is_over: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("crash".to_owned()),
            MountOption::NoAtime,
        ];
        config.n_threads = Some(2);
        let session = Session::new(Adapter(Arc::clone(&shared)), dir, &config)
            .and_then(Session::spawn)
            .with_context(|| format!("mounting a disk over {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            shared,
            _session: session,
        })
    }

    /// A handle that others may keep.
    pub fn trigger(&self) -> Trigger {
        Trigger(Arc::clone(&self.shared))
    }

    /// Unmounts and returns what was on the disk, unsynced changes included. Nobody may use it any more.
    ///
    /// # Errors
    /// It cannot be unmounted.
    pub fn take(self) -> Result<Disk> {
        let disk = self.shared.state().disk.clone();
        unmount(&self.dir, UnmountFlags::empty())
            .with_context(|| format!("unmounting {}", self.dir.display()))?;
        Ok(disk)
    }
}

/// What is asked of a disk's gate, whoever has mounted it.
#[derive(Debug, Clone)]
pub struct Trigger(Arc<Shared>);

impl Trigger {
    /// Begins to count steps, with this fault among them.
    pub fn arm(&self, fault: Fault) {
        self.0.state().gate.arm(fault);
    }

    /// Ends the fault; returns the step that it met.
    pub fn disarm(&self) -> Option<String> {
        let mut state = self.0.state();
        state.gate.disarm();
        state.gate.hit().map(str::to_owned)
    }

    /// Steps and syncs since the fault was armed.
    pub fn counted(&self) -> (u64, u64) {
        self.0.state().gate.counted()
    }

    /// The step that the fault met.
    pub fn hit(&self) -> Option<String> {
        self.0.state().gate.hit().map(str::to_owned)
    }

    /// Waits until the fault meets a step or [`Self::end`] says that none will come; tells which.
    pub fn wait_for_hit(&self) -> bool {
        let state = self.0.state();
        let waiting = |state: &mut State| state.gate.hit().is_none() && !state.is_over;
        let state = self.0.changed.wait_while(state, waiting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.gate.hit().is_some()
    }

    /// Ends all waiting: the play is over.
    pub fn end(&self) {
        self.0.state().is_over = true;
        self.0.changed.notify_all();
    }

    /// Waits for the play's end; kills who plays if it takes longer than this, and returns false then.
    pub fn end_within(&self, within: Duration) -> bool {
        let waiting = |state: &mut State| !state.is_over;
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.0.state(), within, waiting);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            state.gate.shut();
        }
        !timeout.timed_out()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Not mounted any more is as good.
        let _ = unmount(&self.dir, UnmountFlags::DETACH);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the kernel.
#[derive(Debug)]
struct Adapter(Arc<Shared>);

impl Adapter {
    /// Takes one step: asks the gate, and does it if that lets it pass.
    fn step<T>(
        &self,
        act: Act,
        request: &Request,
        node: Node,
        what: impl FnOnce(&str) -> String,
        work: impl FnOnce(&mut Disk) -> Result<T, Errno>,
    ) -> Result<T, fuser::Errno> {
        let mut state = self.0.state();
        let State { disk, gate, .. } = &mut *state;
        let name = disk.entry(node).map_err(errno)?.name.to_string_lossy();
        if name.ends_with("-shm") {
            return work(disk).map_err(errno);
        }
        let verdict = gate.judge(act, request.pid(), || what(&name));
        if verdict != Verdict::Done {
            self.0.changed.notify_all();
        }
        match verdict {
            Verdict::Done => work(disk).map_err(errno),
            Verdict::Lost => {
                disk.fail_sync(node).map_err(errno)?;
                Err(errno(Errno::IO))
            }
            Verdict::Refused(error) => Err(errno(error)),
        }
    }

    /// Makes an entry, which is a step.
    fn make(
        &self,
        request: &Request,
        folder: INodeNo,
        name: &OsStr,
        mode: u32,
        body: Body,
    ) -> Result<FileAttr, fuser::Errno> {
        let attributes = Attributes {
            mode: mode & 0o7777,
            uid: request.uid(),
            gid: request.gid(),
            mtime: SystemTime::now(),
        };
        let (text, is_scratch) = (name.to_string_lossy(), name_is_scratch(name));
        let work = |disk: &mut Disk| {
            let node = disk.make(folder.0, name, attributes, body)?;
            shown(disk, node)
        };
        if is_scratch {
            return work(&mut self.0.state().disk).map_err(errno);
        }
        let what = |folder: &str| format!("create {text} in {folder}");
        self.step(Act::Grow, request, folder.0, what, work)
    }

    fn remove(&self, request: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = |disk: &mut Disk| disk.remove(folder.0, name);
        let done = if name_is_scratch(name) {
            work(&mut self.0.state().disk).map_err(errno)
        } else {
            let what = |folder: &str| format!("remove {} from {folder}", name.to_string_lossy());
            self.step(Act::Shrink, request, folder.0, what, work)
        };
        answer(reply, done);
    }

    fn sync(&self, request: &Request, node: INodeNo, kind: &str, reply: ReplyEmpty) {
        let what = |name: &str| format!("sync {kind}{name}");
        let done = self.step(Act::Sync, request, node.0, what, |disk| disk.sync(node.0));
        answer(reply, done);
    }
}

impl Filesystem for Adapter {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.0.state();
        let found = state.disk.lookup(parent.0, name);
        match found.and_then(|node| shown(&state.disk, node)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match shown(&self.0.state().disk, ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(errno(error)),
        }
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
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = |disk: &mut Disk| {
            let attributes = disk.attributes(ino.0)?;
            attributes.mode = mode.map_or(attributes.mode, |mode| mode & 0o7777);
            attributes.uid = uid.unwrap_or(attributes.uid);
            attributes.gid = gid.unwrap_or(attributes.gid);
            attributes.mtime = match mtime {
                Some(TimeOrNow::SpecificTime(time)) => time,
                Some(TimeOrNow::Now) => SystemTime::now(),
                None => attributes.mtime,
            };
            if let Some(size) = size {
                disk.set_len(ino.0, place(size)?)?;
            }
            shown(disk, ino.0)
        };
        let done = match size {
            Some(size) => {
                let what = |name: &str| format!("cut {name} at {size}");
                self.step(Act::Shrink, request, ino.0, what, change)
            }
            None => change(&mut self.0.state().disk).map_err(errno),
        };
        match done {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.state().disk.entry(ino.0).map(|entry| &entry.body) {
            Ok(Body::Link(target)) => reply.data(target.as_os_str().as_encoded_bytes()),
            _ => reply.error(errno(Errno::INVAL)),
        }
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
        let body = Body::Folder(Names::default());
        match self.make(request, parent, name, mode & !umask, body) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(request, parent, name, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(request, parent, name, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        match self.make(request, parent, name, 0o777, Body::Link(target.to_owned())) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let what = |folder: &str| {
            let (from, to) = (name.to_string_lossy(), newname.to_string_lossy());
            format!("rename {from} in {folder} to {to}")
        };
        let work = |disk: &mut Disk| {
            if flags.contains(RenameFlags::RENAME_EXCHANGE) {
                return Err(Errno::INVAL);
            }
            let is_there = disk.lookup(newparent.0, newname).is_ok();
            if is_there && flags.contains(RenameFlags::RENAME_NOREPLACE) {
                return Err(Errno::EXIST);
            }
            disk.rename((parent.0, name), (newparent.0, newname))
        };
        answer(reply, self.step(Act::Grow, request, parent.0, what, work));
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let what = |name: &str| format!("link {name} as {}", newname.to_string_lossy());
        let work = |disk: &mut Disk| {
            disk.link(ino.0, newparent.0, newname)?;
            shown(disk, ino.0)
        };
        match self.step(Act::Grow, request, ino.0, what, work) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.state();
        let piece = state.disk.bytes(ino.0).and_then(|bytes| {
            let start = place(offset)?.min(bytes.len());
            Ok(&bytes[start..bytes.len().min(start + size as usize)])
        });
        match piece {
            Ok(piece) => reply.data(piece),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let what = |name: &str| format!("write {} bytes of {name} at {offset}", data.len());
        let work = |disk: &mut Disk| {
            disk.write(ino.0, place(offset)?, data)?;
            disk.attributes(ino.0)?.mtime = SystemTime::now();
            Ok(())
        };
        match self.step(Act::Grow, request, ino.0, what, work) {
            // A request carries far less than 4 GiB.
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(errno(Errno::NOSYS));
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(request, ino, "", reply);
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(request, ino, "folder ", reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.0.state();
        let names = match state.disk.names(ino.0) {
            Ok(names) => names,
            Err(error) => return reply.error(errno(error)),
        };
        // The offset of an entry is its number, so that a listing is never cut; a folder that shrinks while it
        // is listed in pieces may lose entries, which POSIX allows for none that stay. Numbers only grow.
        let mut all: Vec<_> = names.iter().map(|(name, node)| (*node, name)).collect();
        all.sort_unstable();
        for (node, name) in all.into_iter().filter(|(node, _)| *node > offset) {
            let kind = shown(&state.disk, node).map_or(FileType::RegularFile, |attr| attr.kind);
            if reply.add(INodeNo(node), node, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // A full disk that does not say so: a quota. The programs' own look at their reserve would hide the steps.
        let (blocks, files) = (1 << 24, 1 << 20);
        reply.statfs(blocks, blocks, blocks, files, files, 4096, 255, 4096);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let body = Body::File(Bytes::default());
        match self.make(request, parent, name, mode & !umask, body) {
            Ok(attr) => reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(error),
        }
    }
}

fn answer(reply: ReplyEmpty, done: Result<(), fuser::Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn shown(disk: &Disk, node: Node) -> Result<FileAttr, Errno> {
    let entry = disk.entry(node)?;
    let attributes = entry.attributes;
    let (kind, size) = match &entry.body {
        Body::File(_) => (FileType::RegularFile, disk.bytes(node)?.len()),
        Body::Folder(_) => (FileType::Directory, 0),
        Body::Link(target) => (FileType::Symlink, target.as_os_str().len()),
    };
    let size = size as u64;
    Ok(FileAttr {
        ino: INodeNo(node),
        size,
        blocks: size.div_ceil(512),
        atime: attributes.mtime,
        mtime: attributes.mtime,
        ctime: attributes.mtime,
        crtime: attributes.mtime,
        kind,
        // Twelve bits.
        perm: (attributes.mode & 0o7777) as u16,
        nlink: 1,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn name_is_scratch(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(b"-shm")
}

/// A position in a file of this disk, all of which is in memory.
fn place(offset: u64) -> Result<usize, Errno> {
    let offset = usize::try_from(offset).map_err(|_| Errno::FBIG)?;
    (offset < LEN_MAX).then_some(offset).ok_or(Errno::FBIG)
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

/// Only the kernel changes the disk, so that it may remember everything.
const TTL: Duration = Duration::from_secs(3600);
/// Longest file: more than any scenario needs.
const LEN_MAX: usize = 1 << 30;
