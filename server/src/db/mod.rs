//! The home's database: opening it safely, reading it, and the one task that writes it.
//!
//! The rows are the truth of every lease, head and object place; nothing is cached beside them for longer than
//! a transaction but the log's end and the roster, which the writer publishes after each durable one. The
//! tables are described in `schema.sql`, the order of durable writes in `docs/protocol.md`.

pub(crate) mod audit;
mod batch;
pub(crate) mod devices;
pub(crate) mod effects;
pub(crate) mod history;
pub(crate) mod images;
mod memory;
pub(crate) mod objects;
pub(crate) mod requests;
mod row;
mod tx;
pub(crate) mod uploads;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use img_records::roster::Roster;
use img_types::Incarnation;
use img_types::limits::GROUP_CALLS_MAX;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

pub(crate) use memory::Needs;
pub(crate) use row::{Columns, big};
pub(crate) use tx::{NO_DEVICE, NO_IMAGE, Stop, Tx};
pub(crate) use writer::{Published, Writer};

/// Version of the tables; another one needs a migration.
const SCHEMA_VERSION: i64 = 3;
/// Before this version two connections could lose a write when one reset the write-ahead log.
const SQLITE_VERSION_MIN: (u32, u32, u32) = (3, 51, 3);
/// Connections that only read; each costs a thread and a page cache.
const READERS_MAX: u32 = 4;
/// Page cache of each connection: ids are random, so that every row lands on another page.
const CACHE_KIB: u32 = 16 * 1024;
/// Statements that each connection keeps prepared: all that this program has, those over many rows in each width.
const STATEMENTS_KEPT: usize = 256;
/// How long another process (`imghome invite`, `usage`) may hold the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address names no kind of database that is known.
    #[error("{0} is no database address; use sqlite:PATH")]
    UnknownAddress(String),
    /// The linked SQLite has a bug that loses data.
    #[error("SQLite {0} can lose acknowledged data; 3.51.3 or newer is needed")]
    SqliteTooOld(String),
    /// The tables are of another version.
    #[error(
        "the database has version {0}, this imghome works with version {SCHEMA_VERSION}; an older one is \
         brought up to it by: imghome serve"
    )]
    OtherVersion(i64),
    /// SQLite found damage.
    #[error("the database is damaged: {0}; restore it from a backup")]
    Damaged(String),
    /// The roster does not verify.
    #[error("the stored roster does not verify: {0}")]
    Roster(String),
    /// The database said no.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
}

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(PathBuf);

impl Address {
    /// The database in this file.
    pub fn file(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Reads `sqlite:PATH`.
    ///
    /// # Errors
    /// It is another kind of database.
    pub fn parse(text: &str) -> Result<Self, OpenError> {
        match text.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Ok(Self(PathBuf::from(path))),
            _ => Err(OpenError::UnknownAddress(text.to_owned())),
        }
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.0)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", format!("-{CACHE_KIB}"))
            // Pages as they were before a statement or a savepoint, which need not outlive the process.
            .pragma("temp_store", "MEMORY")
            .statement_cache_capacity(STATEMENTS_KEPT)
            .disable_statement_logging()
    }
}

/// What a new home starts with.
#[derive(Debug)]
pub(crate) struct NewHome<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: &'a str,
    pub(crate) incarnation: Incarnation,
    pub(crate) founding_hash: [u8; 32],
}

/// Makes the tables of a new home.
pub(crate) async fn create(address: &Address, home: &NewHome<'_>) -> Result<(), OpenError> {
    let options = address.options().create_if_missing(true);
    let mut connection = options.connect().await?;
    check_version(&mut connection).await?;
    let schema = for_sqlite(include_str!("schema.sql"));
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(schema))
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "INSERT INTO home (one, schema_version, name, address, incarnation, founding_hash, \
         running_ms, restored) VALUES (1, $1, $2, $3, $4, $5, 0, 0)",
    )
    .bind(SCHEMA_VERSION)
    .bind(home.name)
    .bind(home.address)
    .bind(&home.incarnation.as_bytes()[..])
    .bind(&home.founding_hash[..])
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    connection.close().await?;
    Ok(())
}

/// An open database.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    reads: SqlitePool,
    writer: Writer,
}

impl Database {
    /// Opens the database, checks it, and starts the writer.
    pub(crate) async fn open(address: &Address) -> Result<Self, OpenError> {
        let mut connection = address.options().connect().await?;
        check_version(&mut connection).await?;
        upgrade(&mut connection).await?;
        check_schema(&mut connection).await?;
        let damage: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&mut connection)
            .await?;
        if damage != "ok" {
            return Err(OpenError::Damaged(damage));
        }
        let roster = devices::load_roster(&mut connection).await?;
        let reads = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(address.options().read_only(true))
            .await?;
        let writer = Writer::start(connection, roster, GROUP_CALLS_MAX).await?;
        Ok(Self { reads, writer })
    }

    /// The connections that only read.
    pub(crate) fn reads(&self) -> &SqlitePool {
        &self.reads
    }

    /// The one task that writes.
    pub(crate) fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Finishes what is queued and closes every connection. The writer goes last: only a connection
    /// that may write moves the write-ahead log into the database and removes it.
    pub(crate) async fn close(&self) {
        self.reads.close().await;
        self.writer.stop().await;
    }
}

/// Opens one connection for a command beside the server.
pub(crate) async fn connect(address: &Address) -> Result<SqliteConnection, OpenError> {
    let mut connection = address.options().connect().await?;
    check_version(&mut connection).await?;
    check_schema(&mut connection).await?;
    Ok(connection)
}

async fn schema_version(connection: &mut SqliteConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT schema_version FROM home")
        .fetch_one(connection)
        .await
}

async fn check_schema(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    match schema_version(connection).await? {
        SCHEMA_VERSION => Ok(()),
        version => Err(OpenError::OtherVersion(version)),
    }
}

/// Brings the tables of an earlier version to this one.
async fn upgrade(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    for (version, sql) in [
        (1, include_str!("from_1.sql")),
        (2, include_str!("from_2.sql")),
    ] {
        if schema_version(&mut *connection).await? == version {
            let mut transaction = connection.begin().await?;
            sqlx::raw_sql(AssertSqlSafe(for_sqlite(sql)))
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
    }
    Ok(())
}

/// Only an INTEGER key is SQLite's own row number; a BIGINT one would be a second index.
fn for_sqlite(sql: &str) -> String {
    sql.replace("BIGINT PRIMARY KEY", "INTEGER PRIMARY KEY")
}

async fn check_version(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(connection)
        .await?;
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    if (part(), part(), part()) < SQLITE_VERSION_MIN {
        return Err(OpenError::SqliteTooOld(version));
    }
    Ok(())
}

/// The roster as far as it was published; nothing before the home is founded.
pub(crate) type SharedRoster = Option<std::sync::Arc<Roster>>;
