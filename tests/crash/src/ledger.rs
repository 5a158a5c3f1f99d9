//! What the programs have promised, and what may be there besides.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// The contents of a file; none if there is none.
type Content = Option<Vec<u8>>;

/// What was acknowledged, and what was begun and may or may not have happened.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Of each path what it held when it was last synced, and what it was given since.
    files: BTreeMap<String, Vec<Content>>,
    /// Ids of commits that the home has acknowledged.
    pub commits: Vec<String>,
    /// Ids of checkpoints that a device has acknowledged and no acknowledged commit contains.
    pub checkpoints: Vec<String>,
}

impl Ledger {
    /// Checks that a folder holds what was promised, and nothing that nobody wrote.
    ///
    /// # Errors
    /// The first file that does not.
    pub fn check(&self, folder: &Path) -> Result<()> {
        for (path, contents) in &self.files {
            let found = match fs::read(folder.join(path)) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => bail!("{path} cannot be read: {error}"),
            };
            is_one_of(found.as_deref(), contents).with_context(|| path.clone())?;
        }
        let known: BTreeSet<_> = self.files.keys().map(PathBuf::from).collect();
        let mut folders = vec![PathBuf::new()];
        while let Some(inner) = folders.pop() {
            for child in fs::read_dir(folder.join(&inner))? {
                let child = child?;
                let path = inner.join(child.file_name());
                if child.file_type()?.is_dir() {
                    folders.push(path);
                } else {
                    ensure!(
                        known.contains(&path),
                        "{} came from nowhere",
                        path.display()
                    );
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, path: &str, content: Content) {
        let contents = self.files.entry(path.to_owned());
        contents.or_insert_with(|| vec![None]).push(content);
    }

    fn promise(&mut self, path: &str) {
        if let Some(contents) = self.files.get_mut(path) {
            contents.drain(..contents.len() - 1);
        }
    }

    fn newest(&self, path: &str) -> Vec<u8> {
        let newest = self.files.get(path).and_then(|contents| contents.last());
        newest.cloned().flatten().unwrap_or_default()
    }
}

/// Whether a file holds one of these contents, or bytes of each where nothing was synced in between.
fn is_one_of(found: Option<&[u8]>, contents: &[Content]) -> Result<()> {
    let Some(found) = found else {
        ensure!(contents.contains(&None), "it is gone");
        return Ok(());
    };
    let there: Vec<_> = contents.iter().flatten().collect();
    ensure!(!there.is_empty(), "it is back");
    let lens = there.iter().map(|content| content.len());
    let (shortest, longest) = (lens.clone().min(), lens.max());
    ensure!(
        Some(found.len()) >= shortest && Some(found.len()) <= longest,
        "it has {} bytes and not {shortest:?} to {longest:?}",
        found.len()
    );
    for (at, byte) in found.iter().enumerate() {
        let fits = |content: &&Vec<u8>| content.get(at).map_or(*byte == 0, |other| other == byte);
        ensure!(there.iter().any(fits), "byte {at} is another");
    }
    Ok(())
}

/// A folder that is written to and synced, with its ledger.
#[derive(Debug)]
pub struct Writer<'a> {
    folder: PathBuf,
    ledger: &'a mut Ledger,
}

impl<'a> Writer<'a> {
    /// Writes in this folder.
    pub fn new(folder: &Path, ledger: &'a mut Ledger) -> Self {
        Self {
            folder: folder.to_owned(),
            ledger,
        }
    }

    /// Notes what a file has that is there, and durable.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn note(&mut self, path: &str) -> Result<()> {
        let content = fs::read(self.folder.join(path))?;
        self.ledger.begin(path, Some(content));
        self.ledger.promise(path);
        Ok(())
    }

    /// Writes bytes into a file, which is made if it is not there.
    ///
    /// # Errors
    /// The write fails; some of it may have happened.
    pub fn write(&mut self, path: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut content = self.ledger.newest(path);
        let whole = content.len();
        content.resize(whole.max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        // What is made but not yet written to is empty.
        if whole == 0 {
            self.ledger.begin(path, Some(Vec::new()));
        }
        self.ledger.begin(path, Some(content));
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(self.folder.join(path))?;
        Ok(file.write_all_at(bytes, offset as u64)?)
    }

    /// Appends bytes to a file.
    ///
    /// # Errors
    /// The write fails; some of it may have happened.
    pub fn append(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut content = self.ledger.newest(path);
        content.extend_from_slice(bytes);
        self.ledger.begin(path, Some(content));
        let mut file = File::options().write(true).open(self.folder.join(path))?;
        file.seek(SeekFrom::End(0))?;
        Ok(file.write_all(bytes)?)
    }

    /// Cuts or extends a file.
    ///
    /// # Errors
    /// It fails.
    pub fn set_len(&mut self, path: &str, len: usize) -> Result<()> {
        let mut content = self.ledger.newest(path);
        content.resize(len, 0);
        self.ledger.begin(path, Some(content));
        let file = File::options().write(true).open(self.folder.join(path))?;
        Ok(file.set_len(len as u64)?)
    }

    /// Renames a file over another.
    ///
    /// # Errors
    /// It fails.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let content = self.ledger.newest(from);
        self.ledger.begin(from, None);
        self.ledger.begin(to, Some(content));
        Ok(fs::rename(self.folder.join(from), self.folder.join(to))?)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// It fails.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        self.ledger.begin(path, None);
        Ok(fs::remove_file(self.folder.join(path))?)
    }

    /// Syncs a file: from then on it holds what it was given.
    ///
    /// # Errors
    /// The sync fails; nothing is promised.
    pub fn sync(&mut self, path: &str) -> Result<()> {
        File::open(self.folder.join(path))?.sync_all()?;
        self.ledger.promise(path);
        Ok(())
    }

    /// Syncs a folder and with it the names of these files, all of which are in it.
    ///
    /// # Errors
    /// The sync fails; nothing is promised.
    pub fn sync_names(&mut self, folder: &str, paths: &[&str]) -> Result<()> {
        File::open(self.folder.join(folder))?.sync_all()?;
        for path in paths {
            self.ledger.promise(path);
        }
        Ok(())
    }
}

/// Bytes that look like nothing else and do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_leaves_one_content_and_a_beginning_allows_a_mixture() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        let mut writer = Writer::new(dir.path(), &mut ledger);
        writer.write("a", 0, b"0000").unwrap();
        writer.sync("a").unwrap();
        writer.write("a", 1, b"11").unwrap();
        let path = dir.path().join("a");
        for (bytes, fits) in [
            ("0110", true),
            ("0010", true),
            ("0120", false),
            ("011", false),
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(ledger.check(dir.path()).is_ok(), fits, "{bytes}");
        }
        fs::write(&path, "0110").unwrap();
        Writer::new(dir.path(), &mut ledger).sync("a").unwrap();
        assert!(ledger.check(dir.path()).is_ok());
        fs::write(&path, "0010").unwrap();
        assert!(ledger.check(dir.path()).is_err());
        fs::remove_file(&path).unwrap();
        assert!(ledger.check(dir.path()).is_err());
    }

    #[test]
    fn what_nobody_wrote_or_somebody_removed_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        let mut writer = Writer::new(dir.path(), &mut ledger);
        writer.write("a", 0, b"0").unwrap();
        writer.sync("a").unwrap();
        writer.rename("a", "b").unwrap();
        writer.sync_names("", &["a", "b"]).unwrap();
        assert!(ledger.check(dir.path()).is_ok());
        fs::write(dir.path().join("a"), "0").unwrap();
        assert!(ledger.check(dir.path()).is_err());
        fs::rename(dir.path().join("a"), dir.path().join("c")).unwrap();
        assert!(ledger.check(dir.path()).is_err());
    }
}
