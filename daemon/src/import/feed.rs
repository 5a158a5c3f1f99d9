//! What a walker hands on: items in order, and parts of files to whichever sealer is free.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use img_index::{Attributes, Inode};
use img_seal::Reference;
use img_types::limits::BLOCK_SIZE;
use rustix::fs::{Advice, SeekFrom, fadvise, seek};

use super::sealers::Shared;
use super::{Cancel, ImportError, Skipped};

/// One thing that a walker has met.
pub(super) enum Item {
    /// An inode. If it is a file with parts, they follow.
    Node(Box<Node>),
    /// A part of the file before.
    Part(Receiver<Sealed>),
    /// The file before has no more parts. What was read may be compared with the file now.
    End(Option<Stamp>),
    /// One more name of an inode that came before.
    Link {
        name: Name,
        inode: Inode,
        path: PathBuf,
    },
    /// Something that is left out, or not as it was.
    Skip(Skipped),
    /// That was all.
    Complete,
}

/// A place in the tree.
pub(super) struct Name {
    pub(super) parent: Inode,
    pub(super) name: Box<[u8]>,
}

/// An inode with all but its blocks.
pub(super) struct Node {
    pub(super) inode: Inode,
    /// Nothing for the root.
    pub(super) name: Option<Name>,
    pub(super) attributes: Attributes,
    pub(super) symlink: Option<Vec<u8>>,
    pub(super) xattrs: Xattrs,
    pub(super) content: Content,
    /// For messages.
    pub(super) path: PathBuf,
}

/// Names and values of extended attributes.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What belongs to a node beside its metadata.
pub(super) enum Content {
    /// Nothing.
    None,
    /// All of a small file.
    Inline(Vec<u8>),
    /// Parts that follow.
    Parts,
}

/// What a file was when its reading began.
pub(super) struct Stamp {
    pub(super) file: Arc<File>,
    pub(super) attributes: Attributes,
}

/// The sealed blocks of a part, by their offsets; holes are left out.
pub(super) type Sealed = Result<Vec<(u64, Reference)>, PartError>;

/// Why a part was not sealed.
pub(super) enum PartError {
    /// It could not be read.
    Read(std::io::Error),
    /// Nothing can be sealed any more.
    Fatal(ImportError),
}

/// Up to [`PART_LEN`] bytes of a file to be sealed, from a block's start on.
pub(super) struct Job {
    pub(super) bytes: Bytes,
    pub(super) offset: u64,
    pub(super) done: SyncSender<Sealed>,
}

/// Where a part's bytes are.
pub(super) enum Bytes {
    /// In a file, at a position of its own. What lies behind the file's end is zeros if it may be short.
    File {
        file: Arc<File>,
        position: u64,
        len: usize,
        may_be_short: bool,
    },
    /// Here.
    Memory(Vec<u8>),
}

/// Nobody listens any more: the import has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended;

/// The walker's end of the queues.
pub(super) struct Feed<'a> {
    pub(super) shared: &'a Shared<'a>,
    items: SyncSender<Item>,
    jobs: SyncSender<Job>,
    cancel: &'a Cancel,
    next_inode: u64,
}

/// The sealers' end.
pub(super) type Jobs = Arc<Mutex<Receiver<Job>>>;

impl<'a> Feed<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, cancel: &'a Cancel) -> (Self, Receiver<Item>, Jobs) {
        let (items, items_out) = sync_channel(ITEMS_MAX);
        let (jobs, jobs_out) = sync_channel(JOBS_MAX);
        let feed = Self {
            shared,
            items,
            jobs,
            cancel,
            next_inode: Inode::ROOT.0,
        };
        (feed, items_out, Arc::new(Mutex::new(jobs_out)))
    }

    /// A number that no other inode has; the first is the root's.
    pub(super) fn number(&mut self) -> Inode {
        let inode = Inode(self.next_inode);
        self.next_inode += 1;
        inode
    }

    pub(super) fn send(&self, item: Item) -> Result<(), Ended> {
        if self.cancel.is_cancelled() {
            return Err(Ended);
        }
        self.items.send(item).map_err(|_| Ended)
    }

    pub(super) fn skip(&self, path: &Path, reason: impl Into<String>) -> Result<(), Ended> {
        self.send(Item::Skip(Skipped {
            path: path.to_owned(),
            reason: reason.into(),
        }))
    }

    /// Hands on a part of the file whose node was sent last.
    pub(super) fn part(&self, bytes: Bytes, offset: u64) -> Result<(), Ended> {
        let (done, sealed) = sync_channel(1);
        let job = Job {
            bytes,
            offset,
            done,
        };
        self.send(Item::Part(sealed))?;
        self.jobs.send(job).map_err(|_| Ended)
    }

    /// Hands on all parts of a file that hold data, and asks the kernel to read them ahead.
    pub(super) fn parts(&self, file: &Arc<File>, size: u64, sparse: bool) -> Result<(), Ended> {
        let mut at = 0;
        while at < size {
            let (start, end) = if sparse {
                data_after(file, at, size)
            } else {
                (at, size)
            };
            self.shared.advance(start - at);
            at = start;
            while at < end {
                let len = (end - at).min(PART_LEN as u64);
                // Only a hint: where it is not taken the part is read a little later.
                let _ = fadvise(file, at, std::num::NonZeroU64::new(len), Advice::WillNeed);
                let bytes = Bytes::File {
                    file: Arc::clone(file),
                    position: at,
                    len: len as usize,
                    may_be_short: true,
                };
                self.part(bytes, at)?;
                at += len;
            }
        }
        Ok(())
    }
}

/// The next stretch of data at or behind `at`, a block's start, in whole blocks; empty at the end if there
/// is none.
fn data_after(file: &File, at: u64, size: u64) -> (u64, u64) {
    let block = BLOCK_SIZE as u64;
    let data = match seek(file, SeekFrom::Data(at)) {
        Ok(data) if data < size => data,
        Ok(_) | Err(rustix::io::Errno::NXIO) => return (size, size),
        // The file system cannot say: all of it may be data.
        Err(_) => return (at, size),
    };
    let hole = seek(file, SeekFrom::Hole(data)).unwrap_or(size);
    // At least the block in which the data lies, whatever a file that changes answers.
    let end = hole.max(data + 1).next_multiple_of(block).min(size);
    ((data - data % block).max(at), end)
}

/// Bytes of a part: enough that handing it on costs nothing beside sealing it.
pub(super) const PART_LEN: usize = 1024 * 1024;
/// Items that may wait for the assembler; bounds open files too.
const ITEMS_MAX: usize = 128;
/// Parts that may wait for a sealer.
const JOBS_MAX: usize = 32;
