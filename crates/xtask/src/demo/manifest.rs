//! What a tree holds, entry by entry, so that two trees can be compared bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Differences that are shown.
const SHOWN_MAX: usize = 10;

/// What `lstat` says of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Type and permissions.
    mode: u32,
    /// User and group, where the demo may set them.
    owner: Option<(u32, u32)>,
    /// Length of a file; zero for everything else.
    pub(crate) size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Number of a device node.
    device: u64,
}

/// An entry with a hash of its content or link target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) facts: Facts,
    content: Option<blake3::Hash>,
}

/// Every entry of a tree by its path below the root; sockets are left out.
pub(crate) type Manifest = BTreeMap<PathBuf, Entry>;

/// Reads the facts of every entry and no content.
pub(crate) fn facts(root: &Path) -> Result<BTreeMap<PathBuf, Facts>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    found.insert(PathBuf::new(), Facts::new(&fs::symlink_metadata(root)?));
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        let entries = fs::read_dir(&path).with_context(|| path.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let path = folder.join(entry.file_name());
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            if !metadata.file_type().is_socket() {
                found.insert(path, Facts::new(&metadata));
            }
        }
    }
    Ok(found)
}

/// Reads everything. Entries in `without`, and what lies below them, are left out.
pub(crate) fn read(root: &Path, without: &BTreeSet<PathBuf>) -> Result<Manifest> {
    let is_left_out = |path: &Path| path.ancestors().any(|above| without.contains(above));
    let mut manifest = Manifest::new();
    for (path, facts) in facts(root)? {
        if !is_left_out(&path) {
            let content = content(&root.join(&path), &facts)?;
            manifest.insert(path, Entry { facts, content });
        }
    }
    Ok(manifest)
}

/// What a tree must hold that began as `before` and was worked on at `root`: of entries that look
/// untouched the content of before, of all others what is there now. Returns also how many were touched.
pub(crate) fn after(before: &Manifest, root: &Path) -> Result<(Manifest, usize)> {
    let mut manifest = Manifest::new();
    let mut touched = 0;
    for (path, facts) in facts(root)? {
        let entry = match before.get(&path) {
            Some(entry) if entry.facts == facts => entry.clone(),
            _ => {
                touched += 1;
                let content = content(&root.join(&path), &facts)?;
                Entry { facts, content }
            }
        };
        manifest.insert(path, entry);
    }
    Ok((manifest, touched))
}

/// Refuses two trees that differ.
pub(crate) fn ensure_equal(expected: &Manifest, found: &Manifest) -> Result<()> {
    let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differing: Vec<_> = paths
        .into_iter()
        .filter(|path| expected.get(*path) != found.get(*path))
        .collect();
    let shown: Vec<_> = differing
        .iter()
        .take(SHOWN_MAX)
        .map(|path| {
            let (expected, found) = (expected.get(*path), found.get(*path));
            format!("{}: expected {expected:?}, found {found:?}", path.display())
        })
        .collect();
    ensure!(
        differing.is_empty(),
        "{} entries differ:\n{}",
        differing.len(),
        shown.join("\n")
    );
    Ok(())
}

impl Facts {
    fn new(metadata: &Metadata) -> Self {
        let kind = metadata.file_type();
        let is_root = rustix::process::geteuid().is_root();
        let is_device = kind.is_char_device() || kind.is_block_device();
        Self {
            mode: metadata.mode(),
            owner: is_root.then(|| (metadata.uid(), metadata.gid())),
            size: if kind.is_file() { metadata.size() } else { 0 },
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            device: if is_device { metadata.rdev() } else { 0 },
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        rustix::fs::FileType::from_raw_mode(self.mode).is_file()
    }

    fn is_symlink(&self) -> bool {
        rustix::fs::FileType::from_raw_mode(self.mode).is_symlink()
    }
}

fn content(path: &Path, facts: &Facts) -> Result<Option<blake3::Hash>> {
    let content = if facts.is_symlink() {
        fs::read_link(path).map(|target| Some(blake3::hash(target.as_os_str().as_bytes())))
    } else if facts.is_file() {
        hash(path).map(Some)
    } else {
        Ok(None)
    };
    content.with_context(|| path.display().to_string())
}

fn hash(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            len => hasher.update(&buffer[..len]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_differs_from_one_with_another_bit_or_entry() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/f"), "one").unwrap();
        symlink("d/f", root.join("l")).unwrap();
        let nothing = BTreeSet::new();
        let before = read(root, &nothing).unwrap();
        assert_eq!(before.len(), 4);
        ensure_equal(&before, &read(root, &nothing).unwrap()).unwrap();
        let (same, touched) = after(&before, root).unwrap();
        assert_eq!((same, touched), (before.clone(), 0));

        fs::write(root.join("d/f"), "two!").unwrap();
        let changed = read(root, &nothing).unwrap();
        assert!(ensure_equal(&before, &changed).is_err());
        let (now, touched) = after(&before, root).unwrap();
        assert_eq!((now, touched), (changed, 1));

        let without = read(root, &BTreeSet::from(["d".into()])).unwrap();
        assert_eq!(without.len(), 2);
        fs::remove_file(root.join("l")).unwrap();
        assert!(ensure_equal(&before, &read(root, &nothing).unwrap()).is_err());
    }
}
