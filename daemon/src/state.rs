//! The state folder of one device: its lock, its permissions and its database.
//!
//! | path | what |
//! |---|---|
//! | `lock` | held by the one daemon that serves this folder |
//! | `identity/` | the device's secrets, see [`crate::identity`] |
//! | `device.db` | home pin, roster, last-seen images, checkouts, requests under way; SQLite, WAL, `synchronous=FULL` |
//! | `checkouts/<id>/` | journal and arenas of one checkout |
//! | `objects/` | the cache of objects and the outboxes |
//! | `imgd.log`, `imgd.log.1` | the log, where imgctl started the daemon |
//!
//! Everything here is 0700 or 0600. What a row means is its module's business; nothing here talks to the home.

mod acknowledged;
mod applications;
mod branches;
mod checkouts;
mod home;
mod hydrations;
mod requests;
mod roots;
#[cfg(test)]
mod tests;
mod wishes;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use img_types::CheckoutId;
use rusqlite::Connection;

pub use acknowledged::Acknowledged;
pub use branches::{BranchedRow, TakenRow};
pub use checkouts::{CheckoutRow, CheckpointRow, ClosedCheckout, PendingCommit, Stage};
pub use home::{HomePin, IssuedInvite};
pub use hydrations::HydrationRow;
pub use requests::JournaledRequest;
pub use roots::KeptRoot;
pub use wishes::{CommitRequest, WishRow};

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon serves this folder.
    #[error("another imgd serves this state folder")]
    Locked,
    /// The folder was written by a newer imgd.
    #[error("the state folder has version {0}, which this imgd does not know")]
    Version(i64),
    /// The file system failed.
    #[error("the state folder cannot be used: {0}")]
    Io(#[from] io::Error),
    /// The database failed.
    #[error("the state database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// A row does not parse.
    #[error("the state database is damaged: {0}")]
    Damaged(&'static str),
}

/// The state folder, locked for this daemon; clones share it.
#[derive(Debug, Clone)]
pub struct State {
    dir: Arc<Path>,
    database: Arc<Mutex<Database>>,
    _lock: Arc<File>,
}

/// The database; its methods are short transactions that are durable when they return.
#[derive(Debug)]
pub struct Database {
    sql: Connection,
}

impl State {
    /// Opens a state folder, or makes a new one, and locks it.
    ///
    /// # Errors
    /// Another daemon has it, or it cannot be read or written.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        private_dir(dir)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StateError::Locked,
            TryLockError::Error(error) => StateError::Io(error),
        })?;
        for name in ["identity", "checkouts", "objects"] {
            private_dir(&dir.join(name))?;
        }
        let database = Database::open(&dir.join("device.db"))?;
        // The names before the first promise.
        File::open(dir)?.sync_all()?;
        Ok(Self {
            dir: dir.into(),
            database: Arc::new(Mutex::new(database)),
            _lock: Arc::new(lock),
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of the device's secrets.
    pub fn identity_dir(&self) -> PathBuf {
        self.dir.join("identity")
    }

    /// The folder of the object cache.
    pub fn objects_dir(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// The folder of a checkout's journal and arenas.
    pub fn checkout_dir(&self, checkout: CheckoutId) -> PathBuf {
        self.dir.join("checkouts").join(checkout.to_string())
    }

    /// Works on the database on a thread that may block.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let state = self.clone();
        tokio::task::spawn_blocking(move || state.now(work))
            .await
            .unwrap_or(Err(StateError::Damaged("a database call panicked")))
    }

    /// Works on the database on this thread, which must be one that may block.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn now<T>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        // A call that panicked has rolled its transaction back.
        let done = work(&mut self.database.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(StateError::Database(error)) = &done
            && let Some(error) = error.sqlite_error()
            && error.extended_code == SYNC_FAILED
        {
            // The kernel may have dropped the pages: what was promised before can no longer be vouched for.
            tracing::error!(%error, "the state database cannot be synced; ending before data is lost");
            std::process::abort();
        }
        done
    }
}

impl Database {
    fn open(path: &Path) -> Result<Self, StateError> {
        // SQLite gives its WAL the database file's mode.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        let sql = Connection::open(path)?;
        sql.pragma_update(None, "journal_mode", "wal")?;
        sql.pragma_update(None, "synchronous", "full")?;
        sql.pragma_update(None, "foreign_keys", true)?;
        let version: i64 = sql.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let steps: &[&str] = match version {
            0 => &[
                SCHEMA, FROM_3, FROM_4, FROM_5, FROM_6, FROM_7, FROM_8, FROM_9, FROM_10, FROM_11,
            ],
            2 => &[
                FROM_2, FROM_3, FROM_4, FROM_5, FROM_6, FROM_7, FROM_8, FROM_9, FROM_10, FROM_11,
            ],
            3 => &[
                FROM_3, FROM_4, FROM_5, FROM_6, FROM_7, FROM_8, FROM_9, FROM_10, FROM_11,
            ],
            4 => &[
                FROM_4, FROM_5, FROM_6, FROM_7, FROM_8, FROM_9, FROM_10, FROM_11,
            ],
            5 => &[FROM_5, FROM_6, FROM_7, FROM_8, FROM_9, FROM_10, FROM_11],
            6 => &[FROM_6, FROM_7, FROM_8, FROM_9, FROM_10, FROM_11],
            7 => &[FROM_7, FROM_8, FROM_9, FROM_10, FROM_11],
            8 => &[FROM_8, FROM_9, FROM_10, FROM_11],
            9 => &[FROM_9, FROM_10, FROM_11],
            10 => &[FROM_10, FROM_11],
            11 => &[FROM_11],
            VERSION => &[],
            newer => return Err(StateError::Version(newer)),
        };
        if !steps.is_empty() {
            let steps = steps.concat();
            sql.execute_batch(&format!(
                "BEGIN; {steps} PRAGMA user_version = {VERSION}; COMMIT;"
            ))?;
        }
        Ok(Self { sql })
    }
}

/// Makes a folder that only its owner enters, or makes it so.
fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// SQLite's extended code of an fsync that failed.
const SYNC_FAILED: i32 = rusqlite::ffi::SQLITE_IOERR_FSYNC;

const VERSION: i64 = 12;

/// What version 3 has that version 2 had not.
const FROM_2: &str = "
ALTER TABLE checkpoints ADD COLUMN wish BLOB;
CREATE TABLE closed (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    dir BLOB NOT NULL,
    head BLOB
) STRICT;
";

/// What version 4 has that version 3 had not.
const FROM_3: &str = "
CREATE TABLE acknowledged (
    number INTEGER PRIMARY KEY,
    commit_id BLOB UNIQUE NOT NULL,
    image BLOB NOT NULL,
    seq INTEGER NOT NULL,
    record BLOB NOT NULL,
    receipt BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    position INTEGER NOT NULL
) STRICT;
CREATE INDEX acknowledged_images ON acknowledged (image, seq);
";

/// What version 5 has that version 4 had not: a wish is no longer a part of its checkpoint, of which there may be none.
const FROM_4: &str = "
CREATE TABLE wishes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    checkout BLOB NOT NULL REFERENCES checkouts ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    request BLOB NOT NULL,
    under_way INTEGER NOT NULL DEFAULT 0,
    root BLOB,
    sealed_bytes INTEGER
) STRICT;
INSERT INTO wishes (checkout, generation, request)
    SELECT checkout, generation, wish FROM checkpoints WHERE wish IS NOT NULL ORDER BY number;
ALTER TABLE checkpoints DROP COLUMN wish;
";

/// What version 6 has that version 5 had not.
const FROM_5: &str = "
CREATE TABLE checkpoint_roots (
    checkpoint BLOB PRIMARY KEY REFERENCES checkpoints (checkpoint) ON DELETE CASCADE,
    root BLOB NOT NULL
) STRICT;
";

/// What version 7 has that version 6 had not.
const FROM_6: &str = "
ALTER TABLE checkpoints ADD COLUMN automatic INTEGER NOT NULL DEFAULT 0;
";

/// What version 8 has that version 7 had not.
const FROM_7: &str = "
ALTER TABLE checkpoints ADD COLUMN stopped_us INTEGER;
ALTER TABLE checkpoints ADD COLUMN last_flush INTEGER NOT NULL DEFAULT 0;
CREATE TABLE applications (
    checkout BLOB PRIMARY KEY REFERENCES checkouts ON DELETE CASCADE,
    cgroup BLOB NOT NULL
) STRICT;
";

/// What version 9 has that version 8 had not.
const FROM_8: &str = "
ALTER TABLE checkouts ADD COLUMN refusal TEXT;
";

/// What version 10 has that version 9 had not: checkpoints stay when a later commit comes, as the checkout's past.
const FROM_9: &str = "
ALTER TABLE checkpoints ADD COLUMN past INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoint_roots ADD COLUMN sealed_bytes INTEGER NOT NULL DEFAULT 0;
";

/// What version 11 has that version 10 had not.
const FROM_10: &str = "
CREATE TABLE hydrations (
    checkout BLOB PRIMARY KEY REFERENCES checkouts ON DELETE CASCADE,
    message TEXT,
    hint TEXT
) STRICT;
";

/// What version 12 has that version 11 had not.
const FROM_11: &str = "
CREATE TABLE taken (
    checkout BLOB PRIMARY KEY REFERENCES checkouts ON DELETE CASCADE,
    device TEXT NOT NULL,
    reason TEXT,
    name TEXT NOT NULL,
    branch TEXT NOT NULL
) STRICT;
";

/// What version 3 has.
const SCHEMA: &str = "
CREATE TABLE home (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    address TEXT NOT NULL,
    home_key_hash BLOB NOT NULL,
    home_key BLOB,
    home_id BLOB NOT NULL,
    incarnation BLOB,
    position INTEGER,
    root BLOB
) STRICT;
CREATE TABLE roster (seq INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT;
CREATE TABLE enrolment (one INTEGER PRIMARY KEY CHECK (one = 1), record BLOB NOT NULL) STRICT;
CREATE TABLE invites (
    invite BLOB PRIMARY KEY,
    secret BLOB NOT NULL,
    expires INTEGER NOT NULL,
    entry BLOB
) STRICT;
CREATE TABLE images (image BLOB PRIMARY KEY, record BLOB NOT NULL) STRICT;
CREATE TABLE requests (
    number INTEGER PRIMARY KEY,
    request BLOB UNIQUE NOT NULL,
    call BLOB NOT NULL
) STRICT;
CREATE TABLE checkouts (
    checkout BLOB PRIMARY KEY,
    image BLOB NOT NULL,
    name TEXT NOT NULL,
    dir BLOB NOT NULL,
    stage INTEGER NOT NULL,
    read_only INTEGER NOT NULL,
    owner_map INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL,
    offline INTEGER NOT NULL,
    opened INTEGER NOT NULL,
    base BLOB,
    holder BLOB,
    sealed_bytes INTEGER NOT NULL DEFAULT 0,
    sent_bytes INTEGER NOT NULL DEFAULT 0,
    descriptor BLOB NOT NULL
) STRICT;
CREATE TABLE checkpoints (
    number INTEGER PRIMARY KEY,
    checkpoint BLOB UNIQUE NOT NULL,
    checkout BLOB NOT NULL REFERENCES checkouts ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    time INTEGER NOT NULL,
    freeze_us INTEGER NOT NULL,
    dirty_bytes INTEGER NOT NULL,
    message TEXT NOT NULL,
    wish BLOB
) STRICT;
CREATE TABLE closed (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    dir BLOB NOT NULL,
    head BLOB
) STRICT;
CREATE TABLE pending_commits (
    checkout BLOB PRIMARY KEY REFERENCES checkouts ON DELETE CASCADE,
    record BLOB NOT NULL,
    generation INTEGER NOT NULL
) STRICT;
";
