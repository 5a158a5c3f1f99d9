//! Which folder the demo imports.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The least size of a folder that is chosen without being asked for: large enough to be real.
const WANTED_BYTES: u64 = 200_000_000;

/// A folder and its size.
#[derive(Debug, Clone)]
pub(crate) struct Corpus {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// Takes the folder asked for, or the first of several system folders that is large enough, or else the
/// largest.
pub(crate) fn choose(path: Option<&Path>) -> Result<Corpus> {
    if let Some(path) = path {
        let path = path
            .canonicalize()
            .with_context(|| path.display().to_string())?;
        ensure!(path.is_dir(), "{} is no folder", path.display());
        return Ok(measured(path));
    }
    let mut largest = None;
    for path in candidates() {
        let corpus = measured(path);
        if corpus.bytes >= WANTED_BYTES {
            return Ok(corpus);
        }
        if largest
            .as_ref()
            .is_none_or(|largest: &Corpus| largest.bytes < corpus.bytes)
        {
            largest = Some(corpus);
        }
    }
    largest.context("no folder to import; name one: cargo xtask demo PATH")
}

fn candidates() -> Vec<PathBuf> {
    let mut candidates = named("/usr/lib", |name| name.starts_with("python3"));
    candidates.push("/usr/share".into());
    candidates.extend(named("/usr/lib", |name| name.ends_with("-linux-gnu")));
    let toolchain = Command::new("rustc").args(["--print", "sysroot"]).output();
    if let Ok(toolchain) = toolchain {
        candidates.push(String::from_utf8_lossy(&toolchain.stdout).trim().into());
    }
    candidates.retain(|path| path.is_dir());
    candidates
}

fn named(folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn measured(path: PathBuf) -> Corpus {
    let bytes = size(&path);
    Corpus { path, bytes }
}

/// Bytes of all files below a folder; what cannot be read does not count.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) if metadata.is_file() => metadata.size(),
            _ => 0,
        })
        .sum()
}
