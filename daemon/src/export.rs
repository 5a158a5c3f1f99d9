//! Writes an image, or a part of it, to a folder, a raw file or a tar.
//!
//! Owns the way from a root to files of the device. What is written lies under the destination, whatever the
//! image says: the destination is fresh, every name is made by this export relative to a folder that it has
//! made before, names that lead elsewhere do not get through the index, and no symlink is followed.
//!
//! One thread walks the image; others fetch blocks and write them, as many as may be under way at a time. A
//! file or folder gets its owner, mode and times when the last of them lets go of it.

mod folder;
mod image;
mod made;
mod pool;
mod tarball;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_index::{Boundary, FileKind};
use img_seal::Reference;
use img_types::ObjectId;
use img_types::bytes::DecodeError;
use tokio::runtime::Handle;

use crate::events::Reporter;
use crate::import::{Cancel, DISK_NAME, Skipped};
use crate::objects::{FetchError, Objects};
use image::Image;
use made::Report;

/// What an export writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    /// A folder.
    Tree,
    /// One file.
    Disk,
    /// An archive.
    Tar,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Files and other things that are no folders, each name counted.
    pub files: u64,
    /// Sum of the sizes of the files.
    pub bytes: u64,
    /// What could not be made as it is in the image, for want of rights or because the destination cannot
    /// hold it.
    pub skipped: Vec<Skipped>,
}

/// Why an export ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is nothing at the path within the image.
    #[error("there is nothing at that path in the image")]
    NoSuchPath,
    /// Something stands at the destination.
    #[error("the destination is not empty")]
    NotEmpty,
    /// The image, or what the path names, is no single file.
    #[error("that is not a single file")]
    NotADisk,
    /// The destination cannot be written.
    #[error("the destination cannot be written: {0}")]
    Dest(#[from] io::Error),
    /// A part of the image cannot be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The image does not verify.
    #[error("object {0} is not the node that its parent says")]
    Misplaced(ObjectId),
    /// A patch does not verify.
    #[error("a patch of the image is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// Somebody ended it.
    #[error("the export was ended")]
    Cancelled,
}

/// An export to be done.
#[derive(Debug, Clone)]
pub struct Export {
    /// The objects of the image's home.
    pub objects: Arc<Objects>,
    /// The root of the state to write.
    pub root: Reference,
    /// The image's boundary, by which names are found.
    pub boundary: Boundary,
    /// Which part, from the image's top; nothing: all.
    pub path: Option<PathBuf>,
    /// What to write; nothing: by the destination and the image.
    pub kind: Option<ExportKind>,
    /// Where to.
    pub dest: PathBuf,
    /// Whether what cannot be had is left out and named, instead of ending the export.
    pub partial: bool,
}

impl ExportError {
    /// Whether something is only not here, and nothing is wrong with it.
    fn is_absence(&self) -> bool {
        matches!(self, Self::Fetch(FetchError::Away | FetchError::Never))
    }
}

impl Export {
    /// Fetches and writes. Blocks: for a thread that may, within a runtime that fetches.
    ///
    /// # Errors
    /// The destination is not fresh or cannot be written, or the image cannot be had; see [`ExportError`].
    pub fn run(
        &self,
        runtime: &Handle,
        reporter: &Reporter,
        cancel: &Cancel,
    ) -> Result<Exported, ExportError> {
        let image = Image::new(&self.objects, runtime, self.root, self.boundary);
        let top = image.find(self.path.as_deref().unwrap_or(Path::new("")))?;
        let kind = match self.kind {
            Some(kind) => kind,
            None => self.kind_by_content(&image, &top)?,
        };
        let report = Report::new(reporter, cancel, self.partial);
        if self.path.is_none() {
            match image.logical_bytes() {
                Err(error) if self.partial && error.is_absence() => {}
                bytes => report.set_total(bytes?),
            }
        }
        match kind {
            ExportKind::Tree => folder::write(&image, &top, &self.dest, &report),
            ExportKind::Disk => {
                let disk = match top.kind {
                    FileKind::File => top,
                    _ => image.only_file(&top)?.ok_or(ExportError::NotADisk)?,
                };
                folder::write_one(&image, &disk, &self.dest, &report)
            }
            ExportKind::Tar => tarball::write(&image, &top, &self.dest, &report),
        }?;
        Ok(report.into_exported())
    }

    fn kind_by_content(
        &self,
        image: &Image<'_>,
        top: &image::Found,
    ) -> Result<ExportKind, ExportError> {
        if self
            .dest
            .extension()
            .is_some_and(|extension| extension == "tar")
        {
            return Ok(ExportKind::Tar);
        }
        if self.dest.is_dir() {
            return Ok(ExportKind::Tree);
        }
        let is_disk = match top.kind {
            FileKind::File => true,
            FileKind::Directory => image
                .only_file(top)?
                .is_some_and(|file| file.name == DISK_NAME.as_bytes()),
            _ => false,
        };
        Ok(if is_disk {
            ExportKind::Disk
        } else {
            ExportKind::Tree
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
