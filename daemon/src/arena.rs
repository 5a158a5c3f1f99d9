//! The file that holds a generation's dirty bytes.
//!
//! An arena owns positions, not meaning: which file and offset a position belongs to stands in the
//! overlay and, once synced, in the journal. Bytes are appended, or overwritten in place where the
//! top generation owns the range already. See "Write" and the order of durable writes in
//! `docs/architecture.md`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use img_overlay::GenerationId;

/// Dirty bytes of one generation, shared by whoever still reads from it.
///
/// The file goes when it has been retired and the last reader lets go of it.
#[derive(Debug)]
pub struct Arena {
    file: File,
    path: PathBuf,
    len: AtomicU64,
    unsynced: AtomicBool,
    retired: AtomicBool,
}

impl Arena {
    /// Makes an empty arena for a new generation, over whatever a crash left under its name; the name is
    /// durable when this returns.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(dir: &Path, generation: GenerationId) -> io::Result<Self> {
        let path = Self::path(dir, generation);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        // The name before the first journal row that counts on it.
        File::open(dir)?.sync_all()?;
        Ok(Self::new(file, path, 0))
    }

    /// Opens the arena of a generation that the journal knows; it goes on behind its last byte.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(dir: &Path, generation: GenerationId) -> io::Result<Self> {
        let path = Self::path(dir, generation);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|error| {
            let message = format!("the arena of generation {generation}: {error}");
            io::Error::new(error.kind(), message)
        })?;
        let len = file.metadata()?.len();
        Ok(Self::new(file, path, len))
    }

    fn new(file: File, path: PathBuf, len: u64) -> Self {
        Self {
            file,
            path,
            len: AtomicU64::new(len),
            unsynced: AtomicBool::new(len > 0),
            retired: AtomicBool::new(false),
        }
    }

    /// Removes arenas of generations outside `oldest..=top`: those of sealed ones that a crash left.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed.
    pub fn remove_others(dir: &Path, oldest: GenerationId, top: GenerationId) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let generation = name
                .to_str()
                .and_then(|name| name.strip_prefix(FILE_PREFIX));
            if let Some(generation) = generation.and_then(|number| number.parse().ok())
                && !(oldest..=top).contains(&GenerationId(generation))
            {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Names the file of a generation's arena.
    pub fn path(dir: &Path, generation: GenerationId) -> PathBuf {
        dir.join(format!("{FILE_PREFIX}{generation}"))
    }

    /// Bytes appended so far, overwritten and zeroed ones included.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Tells whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends and returns the position of the first byte. One caller at a time: the top's lock.
    ///
    /// # Errors
    /// The disk is full or fails; the position is then used again.
    pub fn append(&self, bytes: &[u8]) -> io::Result<u64> {
        let position = self.len();
        self.write_at(bytes, position)?;
        self.len
            .store(position + bytes.len() as u64, Ordering::Release);
        Ok(position)
    }

    /// Overwrites bytes that the top generation owns.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.unsynced.store(true, Ordering::Release);
        let mut position = position;
        for chunk in bytes.chunks(CHUNK_LEN) {
            self.file.write_all_at(chunk, position)?;
            position += chunk.len() as u64;
        }
        Ok(())
    }

    /// Reads exactly `bytes.len()` bytes; needs no lock.
    ///
    /// # Errors
    /// The disk fails, or the arena ends before: it was cut from outside.
    pub fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, position)
    }

    /// Brings every byte written before the call to disk; cheap when there is none.
    ///
    /// # Errors
    /// The sync failed: what was acknowledged may be gone, so the caller must not go on.
    pub fn sync(&self) -> io::Result<()> {
        if self.unsynced.swap(false, Ordering::AcqRel) {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Lets the file go with its last reader, after the generation's seal became the root.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "cannot remove the arena of a sealed generation");
        }
    }
}

const FILE_PREFIX: &str = "arena-";
/// Bytes of one write to the file. The page cache takes each as one folio, and to overwrite 4 KiB in
/// a folio costs ext4 a walk over all of its buffers: half of all time with writes of 1 MiB.
const CHUNK_LEN: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_overwrites_and_outlives_its_retirement() {
        let dir = tempfile::tempdir().unwrap();
        let arena = Arena::create(dir.path(), GenerationId(3)).unwrap();
        assert!(arena.is_empty());
        assert_eq!(arena.append(b"hello").unwrap(), 0);
        assert_eq!(arena.append(b"world").unwrap(), 5);
        arena.write_at(b"W", 5).unwrap();
        arena.sync().unwrap();
        drop(arena);

        let arena = Arena::open(dir.path(), GenerationId(3)).unwrap();
        assert_eq!(arena.len(), 10);
        arena.retire();
        let mut bytes = [0; 5];
        arena.read_at(&mut bytes, 5).unwrap();
        assert_eq!(&bytes, b"World");
        assert!(arena.read_at(&mut bytes, 6).is_err());
        drop(arena);
        assert!(!Arena::path(dir.path(), GenerationId(3)).exists());
    }
}
