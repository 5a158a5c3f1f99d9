//! What is worked on: a copy of a real tree, and a raw disk that holds it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Bytes of files that the corpus holds at most, so that a run takes minutes.
const TREE_BYTES_MAX: u64 = 1_300_000_000;

/// Copies files of `from` to `to`, in the order of their paths, until there are enough.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![from.to_owned()];
    while let Some(folder) = folders.pop() {
        let target = to.join(folder.strip_prefix(from)?);
        std::fs::create_dir_all(&target)?;
        let mut children = std::fs::read_dir(&folder)?
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| folder.display().to_string())?;
        children.sort_by_key(std::fs::DirEntry::file_name);
        for child in children {
            let kind = child.file_type()?;
            if kind.is_dir() {
                folders.push(child.path());
            } else if kind.is_file() {
                bytes += std::fs::copy(child.path(), target.join(child.file_name()))?;
            }
            if bytes > TREE_BYTES_MAX {
                return Ok(bytes);
            }
        }
    }
    Ok(bytes)
}

/// Makes a raw ext4 disk of 2.3 GB that holds a tree.
pub(crate) fn disk(tree: &Path, path: &Path) -> Result<PathBuf> {
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(tree)
        .arg(path)
        .arg("2300M")
        .status()
        .context("mke2fs (package e2fsprogs)")?;
    ensure!(made.success(), "mke2fs failed");
    Ok(path.to_owned())
}

/// Overwrites `count` pages of a file, chosen and filled at random by `seed`.
pub(crate) fn write_pages(path: &Path, count: u64, seed: u64) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let pages = file.metadata()?.len() / 4096;
    for n in 0..count {
        let mut luck = blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .update(&n.to_le_bytes())
            .finalize_xof();
        let mut place = [0; 8];
        luck.fill(&mut place);
        let mut page = [0; 4096];
        luck.fill(&mut page);
        file.write_all_at(&page, u64::from_le_bytes(place) % pages * 4096)?;
    }
    file.sync_all()?;
    Ok(())
}
