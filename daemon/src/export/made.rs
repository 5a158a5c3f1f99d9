//! Files and folders that an export has made, and what it has to say about them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use img_index::{Attributes, Timestamp};
use rustix::fs::{
    Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fsetxattr, futimens,
};
use rustix::io::Errno;

use super::image::Metadata;
use super::{ExportError, Exported};
use crate::events::Reporter;
use crate::import::{Cancel, Skipped};

/// A file or folder that is being filled. When the last of its users lets go of it, it gets its owner, mode,
/// attributes and times; it holds its folder until then, so folders come after all that is in them.
pub(super) struct Made<'r> {
    pub(super) file: File,
    metadata: Metadata,
    pub(super) path: PathBuf,
    report: &'r Report<'r>,
    folder: Option<Arc<Made<'r>>>,
}

impl<'r> Made<'r> {
    pub(super) fn new(
        file: File,
        metadata: Metadata,
        path: PathBuf,
        folder: Option<Arc<Self>>,
        report: &'r Report<'r>,
    ) -> Arc<Self> {
        Arc::new(Self {
            file,
            metadata,
            path,
            report,
            folder,
        })
    }

    fn finish(&self) -> Result<(), Errno> {
        let attributes = &self.metadata.attributes;
        let fd = self.file.as_fd();
        self.report.own(|| {
            let (uid, gid) = owner(attributes);
            fchown(fd, Some(uid), Some(gid))
        })?;
        self.xattrs(fd);
        fchmod(fd, Mode::from_raw_mode(attributes.mode))?;
        futimens(fd, &times(attributes))
    }

    fn xattrs(&self, fd: BorrowedFd<'_>) {
        for (name, value) in &self.metadata.xattrs {
            if let Err(error) = fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
                self.report.no_xattr(&self.path, name, error);
            }
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if self.report.goes_on()
            && let Err(error) = self.finish()
        {
            self.report.fail(std::io::Error::from(error).into());
        }
        // Only now may the folder get its times.
        self.folder = None;
    }
}

/// What all threads of an export know.
pub(super) struct Report<'a> {
    reporter: &'a Reporter,
    cancel: &'a Cancel,
    is_root: bool,
    files: AtomicU64,
    bytes: AtomicU64,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    skipped: Mutex<Vec<Skipped>>,
    partial: bool,
    /// Names of what is not all there.
    incomplete: Mutex<BTreeSet<PathBuf>>,
    failure: Mutex<Option<ExportError>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(reporter: &'a Reporter, cancel: &'a Cancel, partial: bool) -> Self {
        Self {
            reporter,
            cancel,
            is_root: rustix::process::geteuid().is_root(),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            skipped: Mutex::default(),
            partial,
            incomplete: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    pub(super) fn set_total(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
        self.advance(0);
    }

    /// Adds bytes that are written or are holes.
    pub(super) fn advance(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total_bytes.load(Ordering::Relaxed);
        self.reporter
            .set(done, (total > 0).then(|| total.max(done)));
    }

    /// Counts a name that is no folder's.
    pub(super) fn file(&self, size: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.reporter.files(1);
    }

    pub(super) fn skip(&self, path: &Path, reason: impl Into<String>) {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.push(Skipped {
            path: path.to_owned(),
            reason: reason.into(),
        });
    }

    /// What could be had of a thing. In an export that takes what there is, what is absent is named once.
    pub(super) fn had<T>(
        &self,
        path: &Path,
        outcome: Result<T, ExportError>,
    ) -> Result<Option<T>, ExportError> {
        match outcome {
            Err(error) if self.partial && error.is_absence() => {
                let mut incomplete = self
                    .incomplete
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if incomplete.insert(path.to_owned()) {
                    self.skip(path, "is not whole: parts of it are not on this device");
                }
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    pub(super) fn no_xattr(&self, path: &Path, name: &[u8], error: Errno) {
        let name = String::from_utf8_lossy(name);
        let error = std::io::Error::from(error);
        self.skip(path, format!("without its attribute {name}: {error}"));
    }

    /// Changes an owner. Who is not root cannot give files away and is not asked to.
    pub(super) fn own(&self, change: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        if self.is_root { change() } else { Ok(()) }
    }

    /// Keeps the first reason why the export ends.
    pub(super) fn fail(&self, error: ExportError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    pub(super) fn goes_on(&self) -> bool {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.is_none() && !self.cancel.is_cancelled()
    }

    /// Why the export has ended, if it has.
    pub(super) fn outcome(&self) -> Result<(), ExportError> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match failure.take() {
            Some(error) => Err(error),
            None if self.cancel.is_cancelled() => Err(ExportError::Cancelled),
            None => Ok(()),
        }
    }

    pub(super) fn into_exported(self) -> Exported {
        let mut skipped = self
            .skipped
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        skipped.sort_by(|a, b| a.path.cmp(&b.path));
        Exported {
            files: self.files.into_inner(),
            bytes: self.bytes.into_inner(),
            skipped,
        }
    }
}

pub(super) fn owner(attributes: &Attributes) -> (Uid, Gid) {
    (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid))
}

/// Both times of a file; images keep no time of the last access.
pub(super) fn times(attributes: &Attributes) -> Timestamps {
    let Timestamp { seconds, nanos } = attributes.mtime;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
