//! The peer: restic, with a repository in a local folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A restic repository.
#[derive(Debug)]
pub(crate) struct Restic {
    repository: PathBuf,
    cache: PathBuf,
}

impl Restic {
    /// Makes an empty repository.
    pub(crate) fn init(dir: &Path) -> Result<Self> {
        let restic = Self {
            repository: dir.join("repository"),
            cache: dir.join("cache"),
        };
        restic.run(&["init"])?;
        Ok(restic)
    }

    /// Backs a path up; tells by how many bytes the repository grew.
    pub(crate) fn backup(&self, path: &Path) -> Result<u64> {
        let before = self.stored()?;
        self.run(&["backup", path.to_str().context("UTF-8")?])?;
        Ok(self.stored()? - before)
    }

    /// Restores the newest snapshot.
    pub(crate) fn restore(&self, to: &Path) -> Result<u64> {
        self.run(&[
            "restore",
            "latest",
            "--target",
            to.to_str().context("UTF-8")?,
        ])?;
        self.stored()
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let output = Command::new("restic")
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_PASSWORD", "benchmark")
            .env("RESTIC_CACHE_DIR", &self.cache)
            .args(["--quiet"])
            .args(args)
            .output()
            .context("restic (package restic)")?;
        ensure!(
            output.status.success(),
            "restic {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn stored(&self) -> Result<u64> {
        stored_below(&self.repository)
    }
}

/// Bytes of all files below a folder.
pub(crate) fn stored_below(root: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}

/// Core-seconds of all restic runs of this process that have ended.
pub(crate) fn core_seconds() -> Result<f64> {
    crate::timing::core_seconds_of(std::process::id())
}
