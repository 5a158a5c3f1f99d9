//! The folder of a home: what lies where, who may open it, and the home's own key.
//!
//! ```text
//! DIR/home.key       Ed25519 seed, 0600: TLS identity of the home and signer of receipts
//!     home.lock      held by the one process that serves the home
//!     home.sqlite    the database (unless --db names another)
//!     spool/         objects that are durable here and not in a pack yet
//!     objects/       the object store (unless --objects names another)
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use img_records::device::SigningSecret;
use zeroize::Zeroizing;

/// Why a home's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder holds something already.
    #[error("{0} is not empty; a home is made in a new or empty folder")]
    NotEmpty(PathBuf),
    /// The folder holds no home.
    #[error("{0} is not a home; make one with: imghome init {0}")]
    NoHome(PathBuf),
    /// Another process serves the home.
    #[error("{0} is being used by another imghome process")]
    InUse(PathBuf),
    /// The key file does not hold a key.
    #[error("{0} does not hold a home key of 32 bytes")]
    BadKey(PathBuf),
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A home's folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

/// Keeps a second process from serving the same home until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl Folder {
    /// Makes the folder of a new home with a new key.
    ///
    /// # Errors
    /// The folder is not empty or cannot be written.
    pub fn create(path: &Path) -> Result<Self, FolderError> {
        let folder = Self {
            path: path.to_owned(),
        };
        private_folder(path).map_err(|source| folder.io(path, source))?;
        let mut entries = fs::read_dir(path).map_err(|source| folder.io(path, source))?;
        if entries.next().is_some() {
            return Err(FolderError::NotEmpty(path.to_owned()));
        }
        for inner in [folder.spool(), folder.objects()] {
            private_folder(&inner).map_err(|source| folder.io(&inner, source))?;
        }
        let key = folder.key_path();
        folder
            .write_key(&SigningSecret::generate().to_bytes())
            .map_err(|source| folder.io(&key, source))?;
        Ok(folder)
    }

    /// Opens the folder of a home that was made before.
    ///
    /// # Errors
    /// There is no home.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let folder = Self {
            path: path.to_owned(),
        };
        if folder.key_path().is_file() {
            Ok(folder)
        } else {
            Err(FolderError::NoHome(path.to_owned()))
        }
    }

    /// Keeps every other process from serving this home.
    ///
    /// # Errors
    /// Another process serves it.
    pub fn lock(&self) -> Result<FolderLock, FolderError> {
        let path = self.path.join("home.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| self.io(&path, source))?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(FolderLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::InUse(self.path.clone())),
            Err(errno) => Err(self.io(&path, errno.into())),
        }
    }

    /// Reads the home's key.
    ///
    /// # Errors
    /// The file is unreadable or holds no key.
    pub fn key(&self) -> Result<SigningSecret, FolderError> {
        let path = self.key_path();
        let mut file = File::open(&path).map_err(|source| self.io(&path, source))?;
        let mut seed = Zeroizing::new([0; 32]);
        let mut rest = [0; 1];
        file.read_exact(&mut *seed)
            .map_err(|_| FolderError::BadKey(path.clone()))?;
        match file.read(&mut rest) {
            Ok(0) => Ok(SigningSecret::from_bytes(*seed)),
            _ => Err(FolderError::BadKey(path)),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database's default place.
    pub fn database(&self) -> PathBuf {
        self.path.join("home.sqlite")
    }

    /// Where spools lie.
    pub fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    /// The object store's default place.
    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// A folder that is being made.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Where the key lies.
    pub(crate) fn key_path(&self) -> PathBuf {
        self.path.join("home.key")
    }

    fn write_key(&self, seed: &[u8; 32]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(self.key_path())?;
        file.write_all(seed)?;
        file.sync_all()?;
        File::open(&self.path)?.sync_all()
    }

    fn io(&self, path: &Path, source: io::Error) -> FolderError {
        FolderError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Makes a folder, and those around it, that only its owner may look into.
pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_made_once_and_served_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home");
        let missing = Folder::open(&path);
        assert!(matches!(missing, Err(FolderError::NoHome(_))));
        let made = Folder::create(&path).unwrap();
        let again = Folder::create(&path);
        assert!(matches!(again, Err(FolderError::NotEmpty(_))));
        let opened = Folder::open(&path).unwrap();
        assert_eq!(made.key().unwrap().public(), opened.key().unwrap().public());

        let lock = opened.lock().unwrap();
        assert!(matches!(made.lock(), Err(FolderError::InUse(_))));
        drop(lock);
        made.lock().unwrap();
    }

    #[test]
    fn a_key_file_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("home")).unwrap();
        fs::write(folder.key_path(), [7; 33]).unwrap();
        assert!(matches!(folder.key(), Err(FolderError::BadKey(_))));
    }
}
