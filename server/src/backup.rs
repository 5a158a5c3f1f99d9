//! Backup of a home that may be running, and restore into a new folder.
//!
//! ```text
//! TO/backup.key      the home's key, 0600: without it no device would recognise the restored home
//!    backup.sqlite   the database, as of one moment
//!    packs/          the packs that it names
//!    spool/          copies of the spools that it names
//!    backup.lock     held by the one process that writes here
//! ```
//!
//! The names differ from a home's, so that nobody serves a backup: a restored home begins a new incarnation
//! first. The database is copied before what it names and takes its place last, so that a crash at any moment
//! leaves the backup of before or the new one. Packs never change: those that are there already are kept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use img_store::{PackId, Packs};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::calls;
use crate::db::objects::StoreNumber;
use crate::db::{self, Address, Columns as _, Database, OpenError};
use crate::folder::{Folder, FolderError, private_folder};
use crate::home::Places;
use crate::ingest::spool_path;

const KEY: &str = "backup.key";
const DATABASE: &str = "backup.sqlite";
const LOCK: &str = "backup.lock";
const PACKS: &str = "packs";
const SPOOL: &str = "spool";
/// How often a backup begins anew because spools became packs under it. Each takes 64 MiB of uploads.
const TRIES_MAX: usize = 20;

/// Why there is no backup or no restored home.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The home's folder, or the new one, cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The folder holds something else.
    #[error(
        "{0} holds something that is no backup; name a new or empty folder, or one with an earlier backup"
    )]
    NotABackup(PathBuf),
    /// The folder holds another home's backup.
    #[error("{0} holds the backup of another home")]
    OtherHome(PathBuf),
    /// The folder holds no finished backup.
    #[error("{0} holds no backup; make one with: imghome backup DIR {0}")]
    NoBackup(PathBuf),
    /// Another process writes there.
    #[error("another process is making a backup in {0}")]
    InUse(PathBuf),
    /// Uploads were faster than the backup.
    #[error("objects were moved faster than they could be copied; try again when less is uploaded")]
    Overtaken,
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The restored database does not take a new incarnation.
    #[error("the restored home does not begin: {0}")]
    Failed(String),
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Packs and spools that were copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that were there from an earlier backup.
    pub kept: u64,
    /// What could not be copied because it is missing or damaged, each as a sentence.
    pub problems: Vec<String>,
}

/// Copies a home, running or not, into a folder that is new, empty or holds its earlier backup.
///
/// # Errors
/// Either folder cannot be used, or the disk is full; the earlier backup is then as it was.
pub async fn backup(places: &Places, to: &Path) -> Result<Copied, BackupError> {
    let _lock = begin(to)?;
    let key = places.folder.key_path();
    let bytes = fs::read(&key).map_err(io_at(&key))?;
    let kept = to.join(KEY);
    match fs::read(&kept) {
        Ok(earlier) if earlier == bytes => {}
        Ok(_) => return Err(BackupError::OtherHome(to.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            copy(&key, &kept)?;
        }
        Err(source) => return Err(io_at(&kept)(source)),
    }
    for inner in [PACKS, SPOOL] {
        let inner = to.join(inner);
        private_folder(&inner).map_err(io_at(&inner))?;
    }
    let mut copied = Copied::default();
    for _ in 0..TRIES_MAX {
        copied.kept = 0;
        let fresh = to.join("new.sqlite");
        copy_database(&places.database, &fresh).await?;
        let stores = stores(&fresh).await?;
        let objects = places.objects.join(PACKS);
        let target = Target {
            packs: to.join(PACKS),
            spool: to.join(SPOOL),
        };
        let whole = copy_stores(
            &stores,
            &objects,
            &places.folder.spool(),
            &target,
            &mut copied,
        );
        if !whole? {
            continue;
        }
        check_tables(to, &stores, &mut copied).await?;
        sync(to)?;
        let place = to.join(DATABASE);
        fs::rename(&fresh, &place).map_err(io_at(&place))?;
        sync(to)?;
        remove_other_spools(&target.spool, &stores)?;
        return Ok(copied);
    }
    Err(BackupError::Overtaken)
}

/// Makes a home in a new or empty folder from a backup. It begins a new incarnation: all leases are void, and
/// nothing may be collected.
///
/// # Errors
/// There is no backup, or the folder cannot be used; nothing is left in it then.
pub async fn restore(from: &Path, dir: &Path) -> Result<Copied, BackupError> {
    for file in [KEY, DATABASE] {
        if !from.join(file).is_file() {
            return Err(BackupError::NoBackup(from.to_owned()));
        }
    }
    let taken = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(source) => return Err(io_at(dir)(source)),
    };
    if taken {
        return Err(FolderError::NotEmpty(dir.to_owned()).into());
    }
    let dir = std::path::absolute(dir).map_err(io_at(dir))?;
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(FolderError::NotEmpty(dir).into());
    };
    // What an earlier attempt left under this name is of no use.
    let making = parent.join(format!(".{}.restoring", name.to_string_lossy()));
    match fs::remove_dir_all(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_at(&making)(error));
        }
        _ => {}
    }
    let folder = Folder::at(&making);
    let target = Target {
        packs: folder.objects().join(PACKS),
        spool: folder.spool(),
    };
    for inner in [&making, &target.packs, &target.spool] {
        private_folder(inner).map_err(io_at(inner))?;
    }
    copy(&from.join(KEY), &folder.key_path())?;
    copy(&from.join(DATABASE), &folder.database())?;
    let mut copied = Copied::default();
    let stores = stores(&folder.database()).await?;
    let (packs, spool) = (from.join(PACKS), from.join(SPOOL));
    if !copy_stores(&stores, &packs, &spool, &target, &mut copied)? {
        copied
            .problems
            .push("a spool is missing in the backup".to_owned());
    }
    check_tables(&folder.objects(), &stores, &mut copied).await?;
    let database = Database::open(&Address::file(&folder.database())).await?;
    let begun = database
        .writer()
        .call(|tx| Box::pin(async move { calls::begin_incarnation(tx).await }));
    let begun = begun.await;
    database.close().await;
    begun.map_err(|error| BackupError::Failed(error.to_string()))?;
    for inner in [&folder.objects(), &making] {
        sync(inner)?;
    }
    fs::rename(&making, &dir).map_err(io_at(&dir))?;
    sync(parent)?;
    Ok(copied)
}

/// Where packs and spools are copied to.
struct Target {
    packs: PathBuf,
    spool: PathBuf,
}

/// The stores that a database names: packs, and spools that objects lie in.
struct Stores {
    packs: Vec<PackId>,
    spools: Vec<StoreNumber>,
}

/// Takes the folder for this process.
fn begin(to: &Path) -> Result<File, BackupError> {
    private_folder(to).map_err(io_at(to))?;
    let path = to.join(LOCK);
    let strange = fs::read_dir(to).map_err(io_at(to))?.next().is_some();
    if strange && !path.is_file() {
        return Err(BackupError::NotABackup(to.to_owned()));
    }
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_at(&path))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BackupError::InUse(to.to_owned())),
        Err(errno) => Err(io_at(&path)(errno.into())),
    }
}

/// Copies the database as of one moment; its writer goes on meanwhile.
async fn copy_database(from: &Address, to: &Path) -> Result<(), BackupError> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_at(to)(error)),
        _ => {}
    }
    let mut connection = db::connect(from).await?;
    let name = to.to_str().ok_or_else(|| {
        io_at(to)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path is not UTF-8",
        ))
    })?;
    sqlx::query("VACUUM INTO $1")
        .bind(name)
        .execute(&mut connection)
        .await
        .map_err(OpenError::from)?;
    connection.close().await.map_err(OpenError::from)?;
    sync(to)
}

async fn stores(database: &Path) -> Result<Stores, BackupError> {
    let read = async {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(database)
            .read_only(true);
        let mut connection = options.connect().await?;
        let packs = db::objects::packs(&mut connection).await?;
        let rows = sqlx::query(
            "SELECT DISTINCT o.store FROM objects o JOIN stores s ON s.number = o.store \
             WHERE s.pack IS NULL ORDER BY o.store",
        )
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        let spools = rows.iter().map(|row| row.number(0).map(StoreNumber));
        Ok::<_, sqlx::Error>(Stores {
            packs: packs.into_iter().map(|(_, pack)| pack).collect(),
            spools: spools.collect::<sqlx::Result<_>>()?,
        })
    };
    Ok(read.await.map_err(OpenError::from)?)
}

/// Copies what is not there; `false` if a spool has become a pack since the database was copied.
fn copy_stores(
    stores: &Stores,
    packs: &Path,
    spool: &Path,
    target: &Target,
    copied: &mut Copied,
) -> Result<bool, BackupError> {
    // Spools first: these are the ones that go.
    for number in &stores.spools {
        let (from, to) = (
            spool_path(spool, *number),
            spool_path(&target.spool, *number),
        );
        match copy(&from, &to) {
            Ok(bytes) => copied.count(bytes),
            Err(error) if error.is_missing() => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    for id in &stores.packs {
        let (from, to) = (
            packs.join(id.to_string()),
            target.packs.join(id.to_string()),
        );
        let there = fs::metadata(&to).map(|file| file.len()).ok();
        if there.is_some() && there == fs::metadata(&from).map(|file| file.len()).ok() {
            copied.kept += 1;
            continue;
        }
        match copy(&from, &to) {
            Ok(bytes) => copied.count(bytes),
            // `check_tables` tells of it.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    sync(&target.packs)?;
    sync(&target.spool)?;
    Ok(true)
}

/// Notes packs that are missing or damaged in the copy.
async fn check_tables(
    folder: &Path,
    stores: &Stores,
    copied: &mut Copied,
) -> Result<(), BackupError> {
    let packs = Packs::local(folder).map_err(|error| BackupError::Failed(error.to_string()))?;
    for id in &stores.packs {
        if let Err(error) = packs.table(*id).await {
            copied.problems.push(error.to_string());
        }
    }
    Ok(())
}

/// Removes copies of spools that the newest backup does not name.
fn remove_other_spools(spool: &Path, stores: &Stores) -> Result<(), BackupError> {
    let named: Vec<PathBuf> = stores
        .spools
        .iter()
        .map(|number| spool_path(spool, *number))
        .collect();
    for entry in fs::read_dir(spool).map_err(io_at(spool))? {
        let path = entry.map_err(io_at(spool))?.path();
        if !named.contains(&path) {
            fs::remove_file(&path).map_err(io_at(&path))?;
        }
    }
    Ok(())
}

/// Copies a file under another name, syncs it and gives it its name.
fn copy(from: &Path, to: &Path) -> Result<u64, BackupError> {
    let part = to.with_extension("part");
    let mut source = File::open(from).map_err(io_at(from))?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&part)
        .map_err(io_at(&part))?;
    let bytes = io::copy(&mut source, &mut file).map_err(io_at(&part))?;
    file.sync_all().map_err(io_at(&part))?;
    fs::rename(&part, to).map_err(io_at(to))?;
    Ok(bytes)
}

fn sync(path: &Path) -> Result<(), BackupError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(io_at(path))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

impl Copied {
    fn count(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

impl BackupError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }

    fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
