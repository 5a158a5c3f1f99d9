//! A tree in a temporary place, mounted.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use img_index::{Boundary, Node, NodeSource};
use img_proto::Class;
use img_seal::Reference;
use imgd::mount::{MountConfig, Mounted};
use imgd::tree::{Fetching, OwnerMapping, Source, SourceError, Tree, TreeConfig, Wanted};
use rustix::io::Errno;
use tokio::runtime::Runtime;

/// A home without objects.
#[derive(Debug)]
pub(crate) struct Nothing;

impl NodeSource for Nothing {
    fn node(&self, _reference: &Reference) -> Option<Arc<Node>> {
        None
    }
}

impl Source for Nothing {
    fn block(&self, _reference: &Reference) -> Option<Bytes> {
        None
    }

    fn fetch<'a>(&'a self, _wanted: &'a Wanted, _class: Class) -> Fetching<'a> {
        Box::pin(async { Err(SourceError::Failed("there are no objects here".into())) })
    }

    fn keep(&self, _value: &[u8]) -> Result<Reference, Errno> {
        Err(Errno::NOSPC)
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// A mounted tree with its state folder and runtime.
pub(crate) struct Place {
    /// Unmounted before the folders go.
    pub(crate) mounted: Option<Mounted>,
    pub(crate) runtime: Runtime,
    folder: tempfile::TempDir,
}

impl Place {
    /// Mounts a new, empty tree.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        Self::within(folder)
    }

    /// Mounts a new, empty tree whose state folder is made already.
    pub(crate) fn within(folder: tempfile::TempDir) -> Self {
        for part in ["mount", "other"] {
            std::fs::create_dir(folder.path().join(part)).unwrap();
        }
        let mut place = Self {
            mounted: None,
            runtime: Runtime::new().unwrap(),
            folder,
        };
        let tree = Tree::create(
            &place.state(),
            config(),
            Arc::new(Nothing),
            place.runtime.handle(),
        );
        place.mount(tree.unwrap());
        place
    }

    /// Takes over a state folder that another process has left; mounts nothing yet.
    pub(crate) fn adopt(folder: tempfile::TempDir) -> Self {
        Self {
            mounted: None,
            runtime: Runtime::new().unwrap(),
            folder,
        }
    }

    /// Mounts the tree as its journal has it.
    pub(crate) fn recover(&mut self) {
        let tree = Tree::recover(
            &self.state(),
            config(),
            Arc::new(Nothing),
            self.runtime.handle(),
        );
        self.mount(tree.unwrap());
    }

    fn mount(&mut self, tree: Arc<Tree>) {
        self.mounted = Some(mount(tree, &self.root(), self.runtime.handle()));
    }

    /// The mount's root.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// A path in the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The tree's state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Unmounts; fails the test if that is refused.
    pub(crate) fn unmount(&mut self) {
        self.mounted.take().unwrap().unmount().unwrap();
    }

    /// Runs a shell script in the mount; `$OTHER` is the folder beside. Returns what it printed.
    pub(crate) fn shell(&self, script: &str) -> String {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.root())
            .env("OTHER", self.folder.path().join("other"))
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{said}\n{error}");
        said
    }
}

/// Mounts a tree as root would.
pub(crate) fn mount(tree: Arc<Tree>, dir: &Path, runtime: &tokio::runtime::Handle) -> Mounted {
    let config = MountConfig {
        dir: dir.to_path_buf(),
        suid: true,
        dev: true,
        shared: true,
    };
    Mounted::new(tree, &config, runtime).unwrap()
}

/// An empty image whose ids are shown as they are.
pub(crate) fn config() -> TreeConfig {
    TreeConfig {
        root: None,
        boundary: Boundary::from_bytes([7; 32]),
        owner: OwnerMapping::Keep,
    }
}

/// Names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs a program that must succeed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}
