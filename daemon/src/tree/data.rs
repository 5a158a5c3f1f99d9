//! Contents of files: read, write, allocate, find holes.
//!
//! A read resolves its range under the lock into pieces (arena, zeros, below) and reads them
//! outside of it: a root never changes, and an arena stays readable for whoever holds it.

use std::sync::Arc;

use img_index::{FileKind, Inode, Key, KeyParts, KeyRange, Value};
use img_overlay::Piece;
use img_seal::Reference;
use img_types::limits::{BLOCK_SIZE, INLINE_LEN_MAX};
use rustix::io::Errno;

use super::attributes::without_privileges;
use super::source::Wanted;
use super::transaction::Transaction;
use super::view::{Failure, View};
use super::{Tree, block};
use crate::arena::Arena;

/// What `fallocate` is to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Make sure that it can be written; nothing is reserved beyond the check for room.
    Reserve,
    /// Make it a hole.
    Punch,
    /// Make it read as zeros.
    Zero,
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole, or the end of the file.
    Hole,
}

/// A file's range as it was under the lock.
struct Snapshot {
    size: u64,
    root: Option<Reference>,
    pieces: Vec<(Piece, Option<Arc<Arena>>)>,
}

impl Tree {
    /// Reads up to `len` bytes; fewer only at the file's end.
    ///
    /// # Errors
    /// Nodes or blocks are absent, the inode is no file, or the disk fails.
    pub fn read_data(&self, inode: Inode, offset: u64, len: u64) -> Result<Vec<u8>, Failure> {
        let snapshot = self.read(|view| snapshot(view, inode, offset, len))?;
        let end = offset.saturating_add(len).min(snapshot.size);
        let mut bytes = vec![0; span(end.saturating_sub(offset))?];
        let mut wanted = Wanted::default();
        let mut at = 0;
        for (piece, arena) in &snapshot.pieces {
            let part = &mut bytes[at..];
            let part = &mut part[..span(piece.len())?];
            at += part.len();
            match piece {
                Piece::Arena { position, .. } => {
                    let arena = arena.as_ref().ok_or(Errno::IO)?;
                    arena.read_at(part, *position).map_err(|error| {
                        tracing::error!(%error, "cannot read from an arena");
                        Errno::IO
                    })?;
                }
                Piece::Zero { .. } => {}
                Piece::Copied { extent, offset, .. } => {
                    match block::assemble(&*self.source, extent) {
                        Ok(content) => place(part, u64::from(*offset), 0, &content)?,
                        Err(failure) => wanted.add(failure)?,
                    }
                }
                Piece::Below { offset, .. } => {
                    if let Some(root) = &snapshot.root
                        && let Err(failure) = self.read_below(root, inode, *offset, part)
                    {
                        wanted.add(failure)?;
                    }
                }
            }
        }
        if wanted.is_empty() {
            Ok(bytes)
        } else {
            Err(Failure::Absent(wanted))
        }
    }

    /// Writes bytes into the top generation; never waits for the network.
    ///
    /// `kill_privileges` clears the set-id bits, as a write by somebody without the right to keep
    /// them must.
    ///
    /// # Errors
    /// The inode is no file, or there is no room. Attributes that are absent can only be those of
    /// a file that is not open.
    pub fn write(
        &self,
        inode: Inode,
        offset: u64,
        bytes: &[u8],
        kill_privileges: bool,
    ) -> Result<(), Failure> {
        let len = bytes.len() as u64;
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= FILE_SIZE_MAX)
            .ok_or(Errno::FBIG)?;
        let below = self.change(|transaction| {
            let mut attributes = transaction.attributes(inode)?;
            regular(attributes.kind)?;
            transaction.state.grant(len)?;
            let appended = transaction.state.write(inode, offset, bytes)?;
            attributes.size = attributes.size.max(end);
            attributes.mtime = transaction.now;
            attributes.ctime = transaction.now;
            if kill_privileges {
                attributes.mode = without_privileges(attributes.kind, attributes.mode);
            }
            transaction.set_attributes(inode, attributes);
            drop_capability(transaction, inode);
            Ok(transaction.state.root.filter(|_| appended))
        })?;
        if let Some(root) = below {
            let blocks = (block_start(offset)..end).step_by(BLOCK_SIZE);
            blocks.for_each(|block| self.prefetch(&root, Key::extent(inode, block)));
        }
        Ok(())
    }

    /// Reserves, zeroes or punches a range; `keep_size` leaves the size where it is.
    ///
    /// # Errors
    /// The inode is no file, or there is no room.
    pub fn allocate(
        &self,
        inode: Inode,
        offset: u64,
        len: u64,
        what: Allocation,
        keep_size: bool,
    ) -> Result<(), Failure> {
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= FILE_SIZE_MAX)
            .ok_or(Errno::FBIG)?;
        self.change(|transaction| {
            let mut attributes = transaction.attributes(inode)?;
            regular(attributes.kind)?;
            if what == Allocation::Reserve {
                transaction.state.grant(len)?;
            }
            if !keep_size {
                attributes.size = attributes.size.max(end);
            }
            let end = end.min(attributes.size);
            if what != Allocation::Reserve && offset < end {
                transaction.zero(inode, offset, end - offset);
            }
            attributes.mtime = transaction.now;
            attributes.ctime = transaction.now;
            transaction.set_attributes(inode, attributes);
            drop_capability(transaction, inode);
            Ok(())
        })
    }

    /// Finds data or a hole at or behind `offset`.
    ///
    /// A file with more than [`SEEK_EXTENTS_MAX`] extents in a row may show its later holes as
    /// data, as POSIX allows.
    ///
    /// # Errors
    /// `offset` is at the end or behind, or there is no more data (ENXIO), or nodes are absent.
    pub fn seek(&self, inode: Inode, offset: u64, what: Seek) -> Result<u64, Failure> {
        let snapshot = self.read(|view| snapshot(view, inode, offset, u64::MAX))?;
        if offset >= snapshot.size {
            return Err(Errno::NXIO.into());
        }
        let mut at = offset;
        for (piece, _) in &snapshot.pieces {
            let found = match (piece, what) {
                (Piece::Arena { .. } | Piece::Copied { .. }, Seek::Data)
                | (Piece::Zero { .. }, Seek::Hole) => Some(at),
                (Piece::Below { offset, len }, _) => {
                    self.seek_below(snapshot.root.as_ref(), inode, *offset, *len, what)?
                }
                _ => None,
            };
            if let Some(found) = found {
                return Ok(found);
            }
            at += piece.len();
        }
        match what {
            Seek::Data => Err(Errno::NXIO.into()),
            Seek::Hole => Ok(snapshot.size),
        }
    }

    /// Fills `part` with what the root holds from `offset` on; it comes as zeros.
    fn read_below(
        &self,
        root: &Reference,
        inode: Inode,
        offset: u64,
        part: &mut [u8],
    ) -> Result<(), Failure> {
        let end = offset + part.len() as u64;
        let mut range = KeyRange::extents(inode, block_start(offset), end);
        if offset < INLINE_LEN_MAX as u64 {
            range.start = KeyRange::data(inode).start;
        }
        let limit = part.len() / BLOCK_SIZE + 3;
        let mut wanted = Wanted::default();
        for (key, value) in img_index::range(&*self.source, root, &range, limit)? {
            let (from, content) = match (key.parts(), value) {
                (KeyParts::Inline(_), Value::Inline(content)) => (0, content.into()),
                (KeyParts::Extent { offset, .. }, Value::Extent(extent)) => {
                    match block::assemble(&*self.source, &extent) {
                        Ok(content) => (offset, content),
                        Err(failure) => {
                            wanted.add(failure)?;
                            continue;
                        }
                    }
                }
                _ => continue,
            };
            place(part, offset, from, &content)?;
        }
        if wanted.is_empty() {
            Ok(())
        } else {
            Err(Failure::Absent(wanted))
        }
    }

    fn seek_below(
        &self,
        root: Option<&Reference>,
        inode: Inode,
        offset: u64,
        len: u64,
        what: Seek,
    ) -> Result<Option<u64>, Failure> {
        let end = offset + len;
        let Some(root) = root else {
            return Ok((what == Seek::Hole).then_some(offset));
        };
        let mut expected = block_start(offset);
        if offset < INLINE_LEN_MAX as u64
            && let Some(Value::Inline(_)) =
                img_index::get(&*self.source, root, &Key::inline(inode))?
        {
            if what == Seek::Data {
                return Ok(Some(offset));
            }
            expected = BLOCK_SIZE as u64;
        }
        let mut scanned = 0;
        while expected < end {
            let range = KeyRange::extents(inode, expected, end);
            let found = img_index::range(&*self.source, root, &range, SEEK_STEP)?;
            for (key, _) in &found {
                let KeyParts::Extent { offset: start, .. } = key.parts() else {
                    continue;
                };
                match what {
                    Seek::Data => return Ok(Some(start.max(offset))),
                    Seek::Hole if start > expected => return Ok(Some(expected.max(offset))),
                    Seek::Hole => expected = start + BLOCK_SIZE as u64,
                }
            }
            scanned += found.len();
            if found.len() < SEEK_STEP {
                break;
            }
            if scanned >= SEEK_EXTENTS_MAX {
                return Ok(None);
            }
        }
        Ok((what == Seek::Hole && expected < end).then_some(expected.max(offset)))
    }

    /// Counts the 512-byte units that a file occupies, from what is in memory.
    ///
    /// Dirty ranges count as they are. Below them the root says how many extents the file has, not where: what
    /// overwrites contents of a file with holes counts beside them, and what punches them does not count yet,
    /// until the seal. So do ranges beyond [`RANGES_COUNTED_MAX`]. The count never exceeds the size.
    pub(super) fn blocks(&self, view: View<'_>, inode: Inode, size: u64) -> u64 {
        let overlay = &view.state.overlay;
        let (mut dirty, mut below) = (0, 0);
        if overlay.ranges(inode) > RANGES_COUNTED_MAX {
            (dirty, below) = (overlay.arena_bytes(inode), size);
        } else {
            for piece in overlay.read(inode, 0, size) {
                match piece {
                    Piece::Arena { len, .. } | Piece::Copied { len, .. } => dirty += len,
                    Piece::Zero { .. } => {}
                    Piece::Below { len, .. } => below += len,
                }
            }
        }
        if below > 0 {
            below = below.min(self.allocated_below(view, inode, size));
        }
        dirty.saturating_add(below).min(size).div_ceil(512)
    }

    /// What a file of this size occupies in the root. If the root's attributes are not in memory any more, which
    /// only happens while it is open, it counts as full.
    fn allocated_below(&self, view: View<'_>, inode: Inode, size: u64) -> u64 {
        let Some(root) = &view.state.root else {
            return 0;
        };
        match img_index::get(&*self.source, root, &Key::attributes(inode)) {
            Ok(Some(Value::Attributes(attributes))) => attributes.allocated(),
            Ok(_) => 0,
            Err(_) => size,
        }
    }
}

fn snapshot(view: View<'_>, inode: Inode, offset: u64, len: u64) -> Result<Snapshot, Failure> {
    let attributes = view.attributes(inode)?;
    regular(attributes.kind)?;
    let end = offset.saturating_add(len).min(attributes.size);
    let pieces = match end.checked_sub(offset) {
        None | Some(0) => Vec::new(),
        Some(len) => view.state.overlay.read(inode, offset, len),
    };
    let pieces = pieces.into_iter().map(|piece| {
        let arena = match &piece {
            Piece::Arena { generation, .. } => view.state.arenas.get(generation).cloned(),
            _ => None,
        };
        (piece, arena)
    });
    Ok(Snapshot {
        size: attributes.size,
        root: view.state.root,
        pieces: pieces.collect(),
    })
}

/// Copies what `content`, which starts at `from` in the file, has of `part`, which starts at
/// `offset`.
fn place(part: &mut [u8], offset: u64, from: u64, content: &[u8]) -> Result<(), Errno> {
    let start = offset.max(from);
    let end = (offset + part.len() as u64).min(from + content.len() as u64);
    if start < end {
        let target = span(start - offset)?..span(end - offset)?;
        part[target].copy_from_slice(&content[span(start - from)?..span(end - from)?]);
    }
    Ok(())
}

/// A write takes a file capability away.
pub(super) fn drop_capability(transaction: &mut Transaction<'_>, inode: Inode) {
    if let Some(open) = transaction.state.open.get_mut(&inode)
        && open.capability
    {
        open.capability = false;
        transaction.delete(Key::xattr(inode, super::xattrs::CAPABILITY));
    }
}

pub(super) fn regular(kind: FileKind) -> Result<(), Errno> {
    match kind {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}

fn block_start(offset: u64) -> u64 {
    offset - offset % BLOCK_SIZE as u64
}

fn span(len: u64) -> Result<usize, Errno> {
    usize::try_from(len).map_err(|_| Errno::FBIG)
}

/// Largest size of a file: offsets are signed in the kernel.
pub(super) const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Extents that one look at the index asks for while it seeks.
const SEEK_STEP: usize = 256;
/// Extents that one search for a hole looks at: 4 GiB of data in a row.
pub const SEEK_EXTENTS_MAX: usize = 65_536;
/// Dirty ranges that one `stat` looks at.
pub(super) const RANGES_COUNTED_MAX: usize = 4_096;
