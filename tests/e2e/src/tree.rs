//! Compares two file trees in everything that a program can see.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What is compared of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    links: u64,
    rdev: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Checks that two trees have the same entries with the same content, mode, owner, times, link
/// counts, link targets, devices and extended attributes; sockets are left out.
///
/// # Errors
/// The first difference, by path.
pub fn assert_equal(left: &Path, right: &Path) -> Result<usize> {
    let left_entries = read(left)?;
    let right_entries = read(right)?;
    for (path, entry) in &left_entries {
        let other = right_entries
            .get(path)
            .with_context(|| format!("{} is only in {}", path.display(), left.display()))?;
        ensure!(
            entry == other,
            "{} differs:\n{}\n{}",
            path.display(),
            entry.describe(),
            other.describe()
        );
    }
    for path in right_entries.keys() {
        ensure!(
            left_entries.contains_key(path),
            "{} is only in {}",
            path.display(),
            right.display()
        );
    }
    Ok(left_entries.len())
}

impl Entry {
    fn read(path: &Path, metadata: &Metadata) -> Result<Option<Self>> {
        let kind = metadata.file_type();
        let (kind, content) = if kind.is_file() {
            ("file", hash_file(path)?)
        } else if kind.is_dir() {
            ("directory", Vec::new())
        } else if kind.is_symlink() {
            let target = fs::read_link(path)?;
            ("symlink", target.into_os_string().into_encoded_bytes())
        } else if kind.is_fifo() {
            ("fifo", Vec::new())
        } else if kind.is_char_device() {
            ("character device", Vec::new())
        } else if kind.is_block_device() {
            ("block device", Vec::new())
        } else {
            return Ok(None);
        };
        Ok(Some(Self {
            kind,
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            links: if metadata.is_dir() {
                0
            } else {
                metadata.nlink()
            },
            rdev: metadata.rdev(),
            content,
            xattrs: xattrs(path)?,
        }))
    }

    fn describe(&self) -> String {
        let mut shown = self.clone();
        shown.content.truncate(40);
        format!("{shown:?}")
    }
}

fn read(root: &Path) -> Result<BTreeMap<PathBuf, Entry>> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for child in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = child?.path();
            let metadata = path.symlink_metadata()?;
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            if let Some(entry) = Entry::read(&path, &metadata)? {
                entries.insert(path.strip_prefix(root)?.to_owned(), entry);
            }
        }
    }
    Ok(entries)
}

fn hash_file(path: &Path) -> Result<Vec<u8>> {
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut &file, &mut hasher).with_context(|| path.display().to_string())?;
    let mut content = file.metadata()?.len().to_le_bytes().to_vec();
    content.extend_from_slice(hasher.finalize().as_bytes());
    Ok(content)
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 64 * 1024];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = BTreeMap::new();
    for name in names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 64 * 1024];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_any_change_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        fs::create_dir_all(left.join("sub")).unwrap();
        fs::write(left.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("file", left.join("sub/link")).unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([&left, &right])
            .status()
            .unwrap();
        assert!(copied.success());
        assert_eq!(assert_equal(&left, &right).unwrap(), 3);
        fs::write(right.join("sub/file"), "tex!").unwrap();
        assert!(assert_equal(&left, &right).is_err());
        fs::remove_file(right.join("sub/file")).unwrap();
        assert!(assert_equal(&left, &right).is_err());
    }
}
