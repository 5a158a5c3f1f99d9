//! The tree against a model, with a home in memory and a sealer that knows no tricks.

mod memory;
mod model;
mod property;
mod restore;
mod single;
mod space;
mod waiting;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use img_index::Boundary;
use rustix::io::Errno;
use tokio::runtime::Runtime;

use super::{Failure, OwnerMapping, Tree, TreeConfig, Wanted};
use memory::Memory;

/// A tree over a home in memory, and what is needed to crash it.
struct Place {
    tree: Option<Arc<Tree>>,
    memory: Arc<Memory>,
    runtime: Runtime,
    folder: tempfile::TempDir,
    lives: u32,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut place = Self {
            tree: None,
            memory: Arc::new(Memory::new()),
            runtime: Runtime::new().unwrap(),
            folder,
            lives: 0,
        };
        let dir = place.dir();
        std::fs::create_dir(&dir).unwrap();
        let tree = Tree::create(&dir, config(), place.source(), place.runtime.handle());
        place.tree = Some(tree.unwrap());
        place.keep_journal();
        place
    }

    fn tree(&self) -> &Arc<Tree> {
        self.tree.as_ref().unwrap()
    }

    /// Runs an operation as a request does: again and again, with what it lacks fetched.
    fn run<T>(&self, operation: impl Fn(&Tree) -> Result<T, Failure>) -> Result<T, Errno> {
        let tree = Arc::clone(self.tree());
        self.runtime
            .block_on(tree.repeat(Wanted::default(), operation))
    }

    /// Syncs, and remembers the journal as it is then.
    fn sync(&self) {
        self.tree().sync().unwrap();
        self.keep_journal();
    }

    /// Takes a checkpoint's cut, unless two wait or nothing has changed.
    fn freeze(&self) -> bool {
        let cut = matches!(self.tree().freeze(), Ok(Some(_)));
        if cut {
            self.keep_journal();
        }
        cut
    }

    /// Seals the oldest closed generation, if there is one.
    fn seal(&self) {
        if let Some(closed) = self.tree().closed_oldest() {
            let root = self.memory.seal(&closed);
            self.tree().sealed(closed.generation.id(), root).unwrap();
            self.keep_journal();
        }
    }

    /// Ends the tree's life as a kill does: the arenas have all that was written, the journal what
    /// was synced last. The tree comes back from these.
    fn crash(&mut self) {
        let (old, kept) = (self.dir(), self.kept());
        self.lives += 1;
        let new = self.dir();
        std::fs::create_dir(&new).unwrap();
        copy(&kept, &new, |_| true);
        copy(&old, &new, |name| name.starts_with("arena-"));
        self.tree = None;
        std::fs::remove_dir_all(old).unwrap();
        let tree = Tree::recover(&new, config(), self.source(), self.runtime.handle());
        self.tree = Some(tree.unwrap());
        self.keep_journal();
    }

    fn keep_journal(&self) {
        // Nothing may write the journal while it is copied.
        let _log = self.tree().log();
        let kept = self.kept();
        std::fs::remove_dir_all(&kept).ok();
        std::fs::create_dir(&kept).unwrap();
        copy(&self.dir(), &kept, |name| name.starts_with("journal"));
    }

    fn source(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join(format!("life-{}", self.lives))
    }

    fn kept(&self) -> PathBuf {
        self.folder.path().join("kept")
    }
}

fn copy(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        if wanted(name.to_str().unwrap()) {
            std::fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

fn config() -> TreeConfig {
    TreeConfig {
        root: None,
        boundary: Boundary::from_bytes([7; 32]),
        owner: OwnerMapping::Keep,
    }
}
