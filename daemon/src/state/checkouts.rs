//! Rows about checkouts: what must survive a restart so that each goes on where it was.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use img_proto::LeaseTerms;
use img_records::Maps;
use img_types::{CheckoutId, CommitId, ImageId, LeaseMode, RequestId, WallMillis};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::roots::pass_checkpoints;
use super::wishes::{drop_fulfilled, drop_wishes, sign_wishes};
use super::{Database, StateError};

/// A checkout as it stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckoutRow {
    /// Its id.
    pub checkout: CheckoutId,
    /// The image it is of.
    pub image: ImageId,
    /// The image's name when it was opened.
    pub name: String,
    /// The image's signed descriptor when it was opened.
    pub descriptor: Vec<u8>,
    /// Where it is mounted.
    pub dir: PathBuf,
    /// How far its life is.
    pub stage: Stage,
    /// Whether it took no lease.
    pub read_only: bool,
    /// Whether the root's owner shows as the mounter.
    pub owner_map: bool,
    /// Terms of its lease.
    pub terms: LeaseTerms,
    /// When it was opened.
    pub opened: WallMillis,
    /// The signed commit it stands on; nothing for an image without one.
    pub base: Option<Vec<u8>>,
    /// The lease as [`img_lease`]'s holder persists it.
    pub holder: Option<Vec<u8>>,
    /// Sealed bytes of its newest commit.
    pub sealed_bytes: u64,
    /// Bytes sent for its newest commit.
    pub sent_bytes: u64,
}

/// How far a checkout's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The lease is being asked for; nothing is mounted and nothing can be lost.
    Opening,
    /// It is mounted, or is to be mounted again.
    Open,
    /// A release waits: what changed is committed, then the lease is given back.
    Releasing,
    /// A release waits that drops what changed.
    Discarding,
}

/// A cut of a checkout that is durable here and not committed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Its id.
    pub checkpoint: [u8; 32],
    /// Of which checkout.
    pub checkout: CheckoutId,
    /// The generation that it closed.
    pub generation: u64,
    /// When.
    pub time: WallMillis,
    /// How long writers waited, in microseconds.
    pub freeze_us: u64,
    /// How long an application stood still for it, in microseconds; nothing if none was stopped.
    pub stopped_us: Option<u64>,
    /// Dirty bytes that it closed.
    pub dirty_bytes: u64,
    /// What it holds of shared memory maps.
    pub maps: Maps,
    /// What the person said about it.
    pub message: String,
    /// Whether nobody asked for it.
    pub automatic: bool,
}

/// A checkout that has ended, for whoever asks for its end again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedCheckout {
    /// Its image's name.
    pub name: String,
    /// Where it was mounted.
    pub dir: PathBuf,
    /// Its newest commit at home; nothing for a read-only one.
    pub head: Option<CommitId>,
}

/// A signed commit, written before it is first sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingCommit {
    /// Of which checkout.
    pub checkout: CheckoutId,
    /// The signed record.
    pub record: Vec<u8>,
    /// The newest generation that its root contains.
    pub generation: u64,
}

impl Stage {
    fn code(self) -> i64 {
        match self {
            Self::Opening => 0,
            Self::Open => 1,
            Self::Releasing => 2,
            Self::Discarding => 3,
        }
    }

    fn from_code(code: i64) -> Option<Self> {
        [Self::Opening, Self::Open, Self::Releasing, Self::Discarding]
            .into_iter()
            .find(|stage| stage.code() == code)
    }
}

impl Database {
    /// Adds a checkout.
    ///
    /// # Errors
    /// The database failed.
    pub fn add_checkout(&mut self, row: &CheckoutRow) -> Result<(), StateError> {
        self.sql.execute(
            &format!("INSERT INTO checkouts ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"),
            params![
                row.checkout.as_bytes(),
                row.image.as_bytes(),
                row.name,
                row.dir.as_os_str().as_bytes(),
                row.stage.code(),
                row.read_only,
                row.owner_map,
                row.terms.ttl_ms,
                row.terms.mode == LeaseMode::Offline,
                row.opened.0,
                row.base,
                row.holder,
                row.sealed_bytes,
                row.sent_bytes,
                row.descriptor,
            ],
        )?;
        Ok(())
    }

    /// The grant has come: base and lease stand in the row, and its request is struck out.
    ///
    /// # Errors
    /// The database failed.
    pub fn checkout_granted(
        &mut self,
        checkout: CheckoutId,
        base: Option<&[u8]>,
        holder: Option<&[u8]>,
        request: Option<RequestId>,
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        transaction.execute(
            "UPDATE checkouts SET stage = ?2, base = ?3, holder = ?4 WHERE checkout = ?1",
            params![checkout.as_bytes(), Stage::Open.code(), base, holder],
        )?;
        if let Some(request) = request {
            transaction.execute(
                "DELETE FROM requests WHERE request = ?1",
                params![request.as_bytes()],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// All checkouts, oldest first.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn checkouts(&self) -> Result<Vec<CheckoutRow>, StateError> {
        let mut statement = self
            .sql
            .prepare(&format!("SELECT {COLUMNS} FROM checkouts ORDER BY rowid"))?;
        let rows = statement.query_map([], |row| Ok(read(row)))?;
        rows.map(|row| row?).collect()
    }

    /// One checkout.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn checkout(&self, checkout: CheckoutId) -> Result<Option<CheckoutRow>, StateError> {
        self.sql
            .query_row(
                &format!("SELECT {COLUMNS} FROM checkouts WHERE checkout = ?1"),
                params![checkout.as_bytes()],
                |row| Ok(read(row)),
            )
            .optional()?
            .transpose()
    }

    /// Moves a checkout on. Where its changes are dropped, a signed commit of them is not sent any more.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_stage(&mut self, checkout: CheckoutId, stage: Stage) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        transaction.execute(
            "UPDATE checkouts SET stage = ?2 WHERE checkout = ?1",
            params![checkout.as_bytes(), stage.code()],
        )?;
        if stage == Stage::Discarding {
            transaction.execute(
                "DELETE FROM pending_commits WHERE checkout = ?1",
                params![checkout.as_bytes()],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// A read-only checkout keeps the lease that it took for a commit.
    ///
    /// # Errors
    /// The database failed.
    pub fn keep_lease(&mut self, checkout: CheckoutId) -> Result<(), StateError> {
        self.sql.execute(
            "UPDATE checkouts SET read_only = 0 WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        Ok(())
    }

    /// Replaces a checkout's lease.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_holder(&mut self, checkout: CheckoutId, holder: &[u8]) -> Result<(), StateError> {
        self.sql.execute(
            "UPDATE checkouts SET holder = ?2 WHERE checkout = ?1",
            params![checkout.as_bytes(), holder],
        )?;
        Ok(())
    }

    /// Removes a checkout and all that hangs on it.
    ///
    /// # Errors
    /// The database failed.
    pub fn remove_checkout(&mut self, checkout: CheckoutId) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM checkouts WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        Ok(())
    }

    /// Removes a checkout that has ended, and remembers that it has.
    ///
    /// # Errors
    /// The database failed.
    pub fn close_checkout(
        &mut self,
        checkout: CheckoutId,
        closed: &ClosedCheckout,
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        transaction.execute(
            "DELETE FROM checkouts WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        transaction.execute(
            "INSERT INTO closed (name, dir, head) VALUES (?1, ?2, ?3)",
            params![
                closed.name,
                closed.dir.as_os_str().as_bytes(),
                closed.head.map(|head| *head.as_bytes()),
            ],
        )?;
        transaction.execute(
            "DELETE FROM closed WHERE number <= (SELECT MAX(number) FROM closed) - ?1",
            params![CLOSED_MAX],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// The newest checkout of a name, or at a folder, that has ended; as far as it is remembered.
    ///
    /// # Errors
    /// The database failed.
    pub fn closed_checkout(
        &self,
        name: Option<&str>,
        dir: Option<&Path>,
    ) -> Result<Option<ClosedCheckout>, StateError> {
        let closed = self
            .sql
            .query_row(
                "SELECT name, dir, head FROM closed WHERE name = ?1 OR dir = ?2 ORDER BY number DESC",
                params![name, dir.map(|dir| dir.as_os_str().as_bytes())],
                |row| {
                    Ok(ClosedCheckout {
                        name: row.get(0)?,
                        dir: PathBuf::from(OsString::from_vec(row.get(1)?)),
                        head: row.get::<_, Option<_>>(2)?.map(CommitId::from_bytes),
                    })
                },
            )
            .optional()?;
        Ok(closed)
    }

    /// Adds a checkpoint that is durable here.
    ///
    /// # Errors
    /// The database failed.
    pub fn add_checkpoint(&mut self, row: &CheckpointRow) -> Result<(), StateError> {
        add_checkpoint(&self.sql, row)
    }

    /// The checkpoints of a checkout that no commit contains yet, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn checkpoints(&self, checkout: CheckoutId) -> Result<Vec<CheckpointRow>, StateError> {
        self.read_checkpoints(checkout, false)
    }

    /// The checkpoints of a checkout that are kept although a later state is a commit, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn past_checkpoints(&self, checkout: CheckoutId) -> Result<Vec<CheckpointRow>, StateError> {
        self.read_checkpoints(checkout, true)
    }

    fn read_checkpoints(
        &self,
        checkout: CheckoutId,
        past: bool,
    ) -> Result<Vec<CheckpointRow>, StateError> {
        let mut statement = self.sql.prepare(
            "SELECT checkpoint, generation, time, freeze_us, dirty_bytes, message, automatic, stopped_us, last_flush FROM checkpoints WHERE checkout = ?1 AND past = ?2 ORDER BY number",
        )?;
        let rows = statement.query_map(params![checkout.as_bytes(), past], |row| {
            Ok(CheckpointRow {
                checkpoint: row.get(0)?,
                checkout,
                generation: row.get(1)?,
                time: WallMillis(row.get(2)?),
                freeze_us: row.get(3)?,
                dirty_bytes: row.get(4)?,
                message: row.get(5)?,
                automatic: row.get(6)?,
                stopped_us: row.get(7)?,
                maps: match row.get(8)? {
                    true => Maps::LastFlush,
                    false => Maps::Exact,
                },
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Writes a signed commit down before it is first sent, with the wishes that it fulfils and no others.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_pending_commit(
        &mut self,
        pending: &PendingCommit,
        wishes: &[u64],
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        sign_wishes(&transaction, pending.checkout, wishes)?;
        transaction.execute(
            "INSERT OR REPLACE INTO pending_commits (checkout, record, generation) VALUES (?1, ?2, ?3)",
            params![
                pending.checkout.as_bytes(),
                pending.record,
                pending.generation
            ],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// The signed commit that has no receipt yet.
    ///
    /// # Errors
    /// The database failed.
    pub fn pending_commit(
        &self,
        checkout: CheckoutId,
    ) -> Result<Option<PendingCommit>, StateError> {
        let pending = self
            .sql
            .query_row(
                "SELECT record, generation FROM pending_commits WHERE checkout = ?1",
                params![checkout.as_bytes()],
                |row| {
                    Ok(PendingCommit {
                        checkout,
                        record: row.get(0)?,
                        generation: row.get(1)?,
                    })
                },
            )
            .optional()?;
        Ok(pending)
    }

    /// Drops the signed commit: the home refused it for good.
    ///
    /// # Errors
    /// The database failed.
    pub fn drop_pending_commit(&mut self, checkout: CheckoutId) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM pending_commits WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        Ok(())
    }

    /// What is wanted up to a generation is in the base already: its checkpoints are history, and the wishes for it have
    /// come true.
    ///
    /// # Errors
    /// The database failed.
    pub fn unchanged(
        &mut self,
        checkout: CheckoutId,
        generation_max: u64,
        wishes: &[u64],
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        pass_checkpoints(&transaction, checkout, generation_max)?;
        drop_wishes(&transaction, wishes)?;
        transaction.commit()?;
        Ok(())
    }

    /// The pending commit has its receipt: it is the base, the checkpoints up to its generation are the past, and the
    /// wishes that it was signed for have come true.
    ///
    /// # Errors
    /// The database failed.
    pub fn committed(
        &mut self,
        checkout: CheckoutId,
        base: &[u8],
        generation_max: u64,
        sealed_bytes: u64,
        sent_bytes: u64,
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        transaction.execute(
            "UPDATE checkouts SET base = ?2, sealed_bytes = ?3, sent_bytes = ?4 WHERE checkout = ?1",
            params![checkout.as_bytes(), base, sealed_bytes, sent_bytes],
        )?;
        pass_checkpoints(&transaction, checkout, generation_max)?;
        drop_fulfilled(&transaction, checkout)?;
        transaction.execute(
            "DELETE FROM pending_commits WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        transaction.commit()?;
        Ok(())
    }
}

pub(super) fn add_checkpoint(sql: &Connection, row: &CheckpointRow) -> Result<(), StateError> {
    sql.execute(
        "INSERT INTO checkpoints (checkpoint, checkout, generation, time, freeze_us, dirty_bytes, message, automatic, stopped_us, last_flush) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            row.checkpoint,
            row.checkout.as_bytes(),
            row.generation,
            row.time.0,
            row.freeze_us,
            row.dirty_bytes,
            row.message,
            row.automatic,
            row.stopped_us,
            row.maps == Maps::LastFlush,
        ],
    )?;
    Ok(())
}

fn read(row: &Row<'_>) -> Result<CheckoutRow, StateError> {
    Ok(CheckoutRow {
        checkout: CheckoutId::from_bytes(row.get(0)?),
        image: ImageId::from_bytes(row.get(1)?),
        name: row.get(2)?,
        dir: PathBuf::from(OsString::from_vec(row.get(3)?)),
        stage: Stage::from_code(row.get(4)?).ok_or(StateError::Damaged("a checkout's stage"))?,
        read_only: row.get(5)?,
        owner_map: row.get(6)?,
        terms: LeaseTerms {
            ttl_ms: row.get(7)?,
            mode: if row.get(8)? {
                LeaseMode::Offline
            } else {
                LeaseMode::Online
            },
        },
        opened: WallMillis(row.get(9)?),
        base: row.get(10)?,
        holder: row.get(11)?,
        sealed_bytes: row.get(12)?,
        sent_bytes: row.get(13)?,
        descriptor: row.get(14)?,
    })
}

const COLUMNS: &str = "checkout, image, name, dir, stage, read_only, owner_map, ttl_ms, offline, opened, base, holder, sealed_bytes, sent_bytes, descriptor";
/// Ended checkouts that are remembered: more than a person closes between a command and its repetition.
const CLOSED_MAX: u32 = 100;
