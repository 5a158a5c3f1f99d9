//! Writes into a fresh folder, or one file.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_index::{FileKind, Inode, Key};
use img_types::limits::BLOCK_SIZE;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, XattrFlags, chmodat, chownat, linkat, lsetxattr, mkdirat,
    mknodat, openat, symlinkat, utimensat,
};
use rustix::io::{Errno, pwritev};

use super::ExportError;
use super::image::{Found, Image, Metadata, Piece};
use super::made::{Made, Report, owner, times};
use super::pool::Pool;

/// Writes what stands at the top into a folder that is absent or empty.
pub(super) fn write(
    image: &Image<'_>,
    top: &Found,
    dest: &Path,
    report: &Report<'_>,
) -> Result<(), ExportError> {
    let dest = fresh_folder(dest)?;
    std::thread::scope(|scope| {
        let pool = Pool::start(scope, report);
        let mut writer = Writer {
            image,
            report,
            pool,
            linked: HashMap::new(),
            entered: HashSet::new(),
        };
        let outcome = match top.kind {
            FileKind::Directory => writer.tree(top, dest),
            _ => writer.alone(top, dest),
        };
        if let Err(error) = outcome {
            report.fail(error);
        }
    });
    report.outcome()
}

/// Writes one file to a path where there is none, or an empty one.
pub(super) fn write_one(
    image: &Image<'_>,
    file: &Found,
    dest: &Path,
    report: &Report<'_>,
) -> Result<(), ExportError> {
    let metadata = image.metadata(file)?.ok_or(ExportError::NoSuchPath)?;
    let made = fresh_file(dest)?;
    std::thread::scope(|scope| {
        let pool = Pool::start(scope, report);
        let mut writer = Writer {
            image,
            report,
            pool,
            linked: HashMap::new(),
            entered: HashSet::new(),
        };
        let path = PathBuf::from(OsStr::from_bytes(&file.name));
        let size = metadata.attributes.size;
        let made = Made::new(made, metadata, path, None, report);
        if let Err(error) = writer.fill(made, file.inode, size) {
            report.fail(error);
        }
    });
    report.outcome()
}

/// Opens a folder that holds nothing, made if it is absent.
fn fresh_folder(dest: &Path) -> Result<File, ExportError> {
    match std::fs::create_dir(dest) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !dest.is_dir() || std::fs::read_dir(dest)?.next().is_some() {
                return Err(ExportError::NotEmpty);
            }
        }
        created => created?,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, dest, flags, Mode::empty()).map_err(io::Error::from)?;
    Ok(folder.into())
}

/// Opens a file that holds nothing, made if it is absent.
pub(super) fn fresh_file(dest: &Path) -> Result<File, ExportError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, dest, flags, Mode::RUSR | Mode::WUSR);
    let file = match file {
        Ok(file) => File::from(file),
        Err(Errno::ISDIR | Errno::LOOP) => return Err(ExportError::NotEmpty),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > 0 {
        return Err(ExportError::NotEmpty);
    }
    Ok(file)
}

/// Walks the image and makes what it meets; contents are left to the pool.
struct Writer<'env> {
    image: &'env Image<'env>,
    report: &'env Report<'env>,
    pool: Pool<'env>,
    /// Where files with more than one name have been made.
    linked: HashMap<Inode, PathBuf>,
    /// Folders that have been gone into: an image in which one lies in itself has no end.
    entered: HashSet<Inode>,
}

/// A folder of the image that is being gone through.
struct Level<'env> {
    inode: Inode,
    made: Arc<Made<'env>>,
    entries: std::vec::IntoIter<Found>,
    more: Option<Key>,
}

impl<'env> Writer<'env> {
    fn tree(&mut self, top: &Found, dest: File) -> Result<(), ExportError> {
        let metadata = self.image.metadata(top)?.ok_or(ExportError::NoSuchPath)?;
        let root = Made::new(dest, metadata, PathBuf::new(), None, self.report);
        let mut stack = vec![self.enter(top.inode, Arc::clone(&root))?];
        while let Some(mut level) = stack.pop() {
            if !self.report.goes_on() {
                break;
            }
            let Some(found) = level.entries.next() else {
                if level.more.is_some() {
                    let more = level.more.take();
                    let listed = self.image.entries(level.inode, more, ENTRIES_MAX);
                    if let Some((entries, more)) = self.report.had(&level.made.path, listed)? {
                        level.entries = entries.into_iter();
                        level.more = more;
                        stack.push(level);
                    }
                }
                continue;
            };
            let below = self.make(&root, &level.made, &found)?;
            stack.push(level);
            stack.extend(below);
        }
        Ok(())
    }

    /// Makes the only thing that the export is about, inside the destination.
    fn alone(&mut self, top: &Found, dest: File) -> Result<(), ExportError> {
        let metadata = self.image.find(Path::new(""))?;
        let metadata = self.image.metadata(&metadata)?;
        let metadata = metadata.ok_or(ExportError::NoSuchPath)?;
        let root = Made::new(dest, metadata, PathBuf::new(), None, self.report);
        self.make(&root, &root, top)?;
        Ok(())
    }

    fn enter(&mut self, inode: Inode, made: Arc<Made<'env>>) -> Result<Level<'env>, ExportError> {
        self.entered.insert(inode);
        let (entries, more) = self.image.entries(inode, None, ENTRIES_MAX)?;
        Ok(Level {
            inode,
            made,
            entries: entries.into_iter(),
            more,
        })
    }

    /// Makes what an entry names; returns a folder to go into.
    fn make(
        &mut self,
        root: &Arc<Made<'env>>,
        folder: &Arc<Made<'env>>,
        found: &Found,
    ) -> Result<Option<Level<'env>>, ExportError> {
        let name = OsStr::from_bytes(&found.name);
        let path = folder.path.join(name);
        let Some(metadata) = self.report.had(&path, self.image.metadata(found))? else {
            return Ok(None);
        };
        let Some(metadata) = metadata else {
            self.report.skip(&path, "has no attributes in the image");
            return Ok(None);
        };
        let attributes = metadata.attributes;
        if attributes.kind != FileKind::Directory {
            if let Some(first) = self.linked.get(&found.inode) {
                let flags = AtFlags::empty();
                linkat(&root.file, first, &folder.file, name, flags).map_err(io::Error::from)?;
                self.report.file(0);
                return Ok(None);
            }
            if attributes.nlink > 1 {
                self.linked.insert(found.inode, path.clone());
            }
        }
        match attributes.kind {
            FileKind::Directory if self.entered.contains(&found.inode) => {
                self.report
                    .skip(&path, "is a folder that has another place too");
            }
            FileKind::Directory => {
                mkdirat(&folder.file, name, Mode::RWXU).map_err(io::Error::from)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(&folder.file, name, flags, Mode::empty());
                let made = File::from(made.map_err(io::Error::from)?);
                let above = Some(Arc::clone(folder));
                let made = Made::new(made, metadata, path.clone(), above, self.report);
                let below = self.enter(found.inode, made);
                return self.report.had(&path, below);
            }
            FileKind::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let made = openat(&folder.file, name, flags, Mode::RUSR | Mode::WUSR);
                let made = File::from(made.map_err(io::Error::from)?);
                let above = Some(Arc::clone(folder));
                let made = Made::new(made, metadata, path, above, self.report);
                self.fill(made, found.inode, attributes.size)?;
            }
            _ => self.special(folder, name, &path, &metadata)?,
        }
        Ok(None)
    }

    /// Writes a file's contents: small ones as one job, large ones piece by piece.
    fn fill(&mut self, made: Arc<Made<'env>>, inode: Inode, size: u64) -> Result<(), ExportError> {
        let (image, report) = (self.image, self.report);
        report.file(size);
        made.file.set_len(size)?;
        if size <= SMALL_LEN_MAX {
            self.pool.run(move || {
                let pieces = image.pieces(inode, None, PIECES_MAX);
                if let Some((pieces, _)) = report.had(&made.path, pieces)? {
                    write_what_is_had(image, &made, report, &pieces, size)?;
                }
                report.advance(size);
                Ok(())
            });
            return Ok(());
        }
        let (mut more, mut done) = (None, 0);
        loop {
            let listed = image.pieces(inode, more, PIECES_MAX);
            let Some((pieces, next)) = report.had(&made.path, listed)? else {
                return Ok(());
            };
            let end = match pieces.last() {
                Some(Piece::Block(offset, _)) if next.is_some() => {
                    offset.saturating_add(BLOCK_SIZE as u64).min(size)
                }
                _ => size,
            };
            let (made, covered) = (Arc::clone(&made), end.saturating_sub(done));
            self.pool.run(move || {
                write_what_is_had(image, &made, report, &pieces, size)?;
                report.advance(covered);
                Ok(())
            });
            done = end;
            more = next;
            if more.is_none() || !report.goes_on() {
                return Ok(());
            }
        }
    }

    /// Symlinks, FIFOs, sockets and device nodes.
    fn special(
        &self,
        folder: &Made<'env>,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), ExportError> {
        let attributes = &metadata.attributes;
        let mode = Mode::from_raw_mode(attributes.mode);
        let node = |kind| mknodat(&folder.file, name, kind, Mode::RUSR, attributes.rdev.into());
        let made = match attributes.kind {
            FileKind::Symlink => {
                symlinkat(OsStr::from_bytes(&metadata.symlink), &folder.file, name)
            }
            FileKind::Fifo => node(FileType::Fifo),
            FileKind::CharDevice => node(FileType::CharacterDevice),
            FileKind::Socket => node(FileType::Socket),
            _ => node(FileType::BlockDevice),
        };
        match made {
            Ok(()) => {}
            Err(Errno::PERM) => {
                self.report.skip(path, "only root can make device nodes");
                return Ok(());
            }
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let finish = || {
            let (uid, gid) = owner(attributes);
            self.report
                .own(|| chownat(&folder.file, name, Some(uid), Some(gid), flags))?;
            if attributes.kind != FileKind::Symlink {
                // Just made, in a folder that only this export knows: no symlink.
                chmodat(&folder.file, name, mode, AtFlags::empty())?;
            }
            utimensat(&folder.file, name, &times(attributes), flags)
        };
        finish().map_err(io::Error::from)?;
        let through = format!("/proc/self/fd/{}", folder.file.as_raw_fd());
        let through = Path::new(&through).join(name);
        for (name, value) in &metadata.xattrs {
            if let Err(error) = lsetxattr(&through, &name[..], value, XattrFlags::empty()) {
                self.report.no_xattr(path, name, error);
            }
        }
        self.report.file(0);
        Ok(())
    }
}

/// Writes pieces of a file; where some cannot be had and the export takes what there is, the others.
fn write_what_is_had(
    image: &Image<'_>,
    made: &Made<'_>,
    report: &Report<'_>,
    pieces: &[Piece],
    size: u64,
) -> Result<(), ExportError> {
    let written = write_pieces(image, &made.file, pieces, size);
    if report.had(&made.path, written)?.is_none() && pieces.len() > 1 {
        for piece in pieces {
            let piece = std::slice::from_ref(piece);
            report.had(&made.path, write_pieces(image, &made.file, piece, size))?;
        }
    }
    Ok(())
}

/// Writes what lies before the file's end, each run of contents that touch with one call.
fn write_pieces(
    image: &Image<'_>,
    file: &File,
    pieces: &[Piece],
    size: u64,
) -> Result<(), ExportError> {
    let contents = image.contents(pieces)?;
    let mut run: Vec<IoSlice<'_>> = Vec::with_capacity(pieces.len());
    let (mut start, mut end) = (0, 0);
    for (piece, content) in pieces.iter().zip(&contents) {
        let offset = piece.offset();
        let len = size.saturating_sub(offset).min(content.len() as u64);
        if offset != end {
            write_run(file, &mut run, start)?;
            run.clear();
            start = offset;
        }
        run.push(IoSlice::new(&content[..len as usize]));
        end = offset + len;
    }
    write_run(file, &mut run, start)
}

fn write_run(file: &File, mut run: &mut [IoSlice<'_>], mut offset: u64) -> Result<(), ExportError> {
    IoSlice::advance_slices(&mut run, 0);
    while !run.is_empty() {
        match pwritev(file, run, offset) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut run, written);
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(())
}

/// Entries of a folder that are listed at a time.
const ENTRIES_MAX: usize = 1_000;
/// Pieces of a file that are one job.
const PIECES_MAX: usize = 16;
/// Files up to this size are one job, their list of pieces included.
const SMALL_LEN_MAX: u64 = (PIECES_MAX * BLOCK_SIZE) as u64;
