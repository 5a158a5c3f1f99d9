//! The journal of one checkout: what its overlay held when it was last synced.
//!
//! It owns the SQLite file beside the arenas and the order of its rows; it does not know what a
//! change means. `fsync` brings the arenas to disk first and commits the journal then, so a row
//! never names bytes that a power loss can take. A crash at any point leaves the state of the last
//! commit: rows of a transaction appear together or not at all, and arena bytes behind the last row
//! belong to nobody. See "Order of durable writes" in `docs/architecture.md`.

use std::path::Path;

use img_index::Inode;
use img_overlay::{Change, GenerationId};
use img_seal::Reference;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{INDEX_KEY_LEN_MAX, INDEX_VALUE_LEN_MAX};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

/// Name of the journal in a checkout's directory.
pub const JOURNAL_FILE: &str = "journal.sqlite";

/// Says why a journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite or the disk refuses.
    #[error("the checkout's journal: {0}")]
    Database(#[from] rusqlite::Error),
    /// The journal was written by another imgd.
    #[error("the checkout's journal has version {0}, which this imgd does not know")]
    Version(i64),
    /// A row holds what its format does not allow.
    #[error("the checkout's journal holds a {0}")]
    Malformed(#[from] DecodeError),
}

impl JournalError {
    /// Whether the disk has no room, so that a later try may succeed. After any other failed write nobody knows what
    /// is durable.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Database(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }
}

/// What a checkout is besides its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The root below all generations; none while the image has no first root.
    pub root: Option<Reference>,
    /// The oldest generation that no root contains yet.
    pub oldest: GenerationId,
    /// The generation that is written to.
    pub top: GenerationId,
    /// One above the highest inode ever used, unless still unknown.
    pub next_inode: Option<Inode>,
    /// How often the checkout was set to another root: the entry generation that the kernel sees.
    pub restores: u64,
}

/// One checkout's journal.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
}

impl Journal {
    /// Opens or makes the journal in a checkout's directory.
    ///
    /// # Errors
    /// SQLite refuses, or another version has written it.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let connection = Connection::open(dir.join(JOURNAL_FILE))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match version {
            0 => connection.execute_batch(&format!(
                "BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
            ))?,
            VERSION => {}
            other => return Err(JournalError::Version(other)),
        }
        Ok(Self { connection })
    }

    /// Reads what the checkout is; none before the first write.
    ///
    /// # Errors
    /// SQLite refuses, or the row is malformed.
    pub fn head(&self) -> Result<Option<Head>, JournalError> {
        let row = self
            .connection
            .query_row(
                "SELECT root, oldest, top, next_inode, restores FROM head",
                [],
                |row| {
                    Ok((
                        row.get::<_, Option<Vec<u8>>>(0)?,
                        row.get::<_, i64>(1)?,
                        row.get::<_, i64>(2)?,
                        row.get::<_, Option<i64>>(3)?,
                        row.get::<_, i64>(4)?,
                    ))
                },
            )
            .optional()?;
        let Some((root, oldest, top, next_inode, restores)) = row else {
            return Ok(None);
        };
        let root = root
            .map(|bytes| {
                let mut reader = Reader::new(&bytes);
                let reference = Reference::decode(&mut reader)?;
                reader.finish()?;
                Ok::<_, DecodeError>(reference)
            })
            .transpose()?;
        Ok(Some(Head {
            root,
            oldest: GenerationId(number(oldest)?),
            top: GenerationId(number(top)?),
            next_inode: next_inode.map(number).transpose()?.map(Inode),
            restores: number(restores)?,
        }))
    }

    /// Reads the changes of one generation, in the order in which they were made.
    ///
    /// # Errors
    /// SQLite refuses, or a row is malformed.
    pub fn changes(&self, generation: GenerationId) -> Result<Vec<Change>, JournalError> {
        let mut statement = self
            .connection
            .prepare("SELECT changes FROM batch WHERE generation = ?1 ORDER BY id")?;
        let mut rows = statement.query([stored(generation.0)])?;
        let mut changes = Vec::new();
        while let Some(row) = rows.next()? {
            let bytes: Vec<u8> = row.get(0)?;
            let mut reader = Reader::new(&bytes);
            while reader.remaining() > 0 {
                changes.push(Change::decode(reader.bytes(CHANGE_LEN_MAX)?)?);
            }
        }
        Ok(changes)
    }

    /// Commits batches of changes and the head that belongs to them; durable when it returns.
    /// Returns the bytes of the rows it added.
    ///
    /// # Errors
    /// SQLite refuses; nothing of the call is in the journal then.
    pub fn commit(
        &mut self,
        head: &Head,
        batches: &[(GenerationId, Vec<Change>)],
    ) -> Result<u64, JournalError> {
        let mut added = 0;
        let mut record = Vec::new();
        let transaction = self.connection.transaction()?;
        for (generation, changes) in batches {
            for chunk in changes.chunks(BATCH_CHANGES_MAX) {
                let mut bytes = Vec::new();
                for change in chunk {
                    record.clear();
                    change.encode(&mut record);
                    bytes.put_bytes(&record);
                }
                added += bytes.len() as u64;
                transaction
                    .prepare_cached("INSERT INTO batch (generation, changes) VALUES (?1, ?2)")?
                    .execute(params![stored(generation.0), bytes])?;
            }
        }
        write_head(&transaction, head)?;
        transaction.commit()?;
        Ok(added)
    }

    /// Sets the head and drops the rows of every generation older than its oldest.
    ///
    /// # Errors
    /// SQLite refuses; nothing of the call is in the journal then.
    pub fn drop_sealed(&mut self, head: &Head) -> Result<(), JournalError> {
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "DELETE FROM batch WHERE generation < ?1",
            [stored(head.oldest.0)],
        )?;
        write_head(&transaction, head)?;
        transaction.commit()?;
        Ok(())
    }
}

fn write_head(connection: &Connection, head: &Head) -> Result<(), rusqlite::Error> {
    let root = head.root.as_ref().map(|reference| {
        let mut bytes = Vec::with_capacity(Reference::LEN);
        reference.encode(&mut bytes);
        bytes
    });
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO head (one, root, oldest, top, next_inode, restores)
             VALUES (1, ?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            root,
            stored(head.oldest.0),
            stored(head.top.0),
            head.next_inode.map(|inode| stored(inode.0)),
            stored(head.restores),
        ])?;
    Ok(())
}

/// SQLite's integers are signed; none of these numbers comes near 2^63.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(stored: i64) -> Result<u64, DecodeError> {
    u64::try_from(stored).map_err(|_| DecodeError("negative number"))
}

const VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    root BLOB,
    oldest INTEGER NOT NULL,
    top INTEGER NOT NULL,
    next_inode INTEGER,
    restores INTEGER NOT NULL
) STRICT;
CREATE TABLE batch (
    id INTEGER PRIMARY KEY,
    generation INTEGER NOT NULL,
    changes BLOB NOT NULL
) STRICT;
CREATE INDEX batch_generation ON batch (generation, id);
";

/// Changes in one row: keeps a row's blob near a megabyte.
const BATCH_CHANGES_MAX: usize = 8_192;
/// Longest record of a change: a key, a value, their lengths and a few fixed bytes.
const CHANGE_LEN_MAX: usize = 2 * INDEX_KEY_LEN_MAX + INDEX_VALUE_LEN_MAX + 64;

#[cfg(test)]
mod tests {
    use img_index::Key;

    use super::*;

    fn head(oldest: u64, top: u64) -> Head {
        Head {
            root: None,
            oldest: GenerationId(oldest),
            top: GenerationId(top),
            next_inode: Some(Inode(9)),
            restores: 2,
        }
    }

    fn write(offset: u64) -> Change {
        Change::Write {
            inode: Inode(5),
            offset,
            len: 10,
            arena: offset * 2,
        }
    }

    #[test]
    fn another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::open(dir.path()).unwrap());
        drop(Journal::open(dir.path()).unwrap());
        let other = Connection::open(dir.path().join(JOURNAL_FILE)).unwrap();
        other.pragma_update(None, "user_version", 9).unwrap();
        drop(other);
        let refused = Journal::open(dir.path());
        assert!(
            matches!(refused, Err(JournalError::Version(9))),
            "{refused:?}"
        );
    }

    #[test]
    fn keeps_order_and_drops_whole_generations() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.head().unwrap(), None);
        let first = vec![write(1), Change::Delete(Key::attributes(Inode(4)))];
        let second = vec![write(2)];
        journal
            .commit(
                &head(1, 2),
                &[
                    (GenerationId(1), first.clone()),
                    (GenerationId(2), second.clone()),
                ],
            )
            .unwrap();
        journal
            .commit(&head(1, 2), &[(GenerationId(1), vec![write(3)])])
            .unwrap();
        drop(journal);

        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.head().unwrap(), Some(head(1, 2)));
        let all: Vec<Change> = first.into_iter().chain([write(3)]).collect();
        assert_eq!(journal.changes(GenerationId(1)).unwrap(), all);
        journal.drop_sealed(&head(2, 2)).unwrap();
        assert_eq!(journal.changes(GenerationId(1)).unwrap(), []);
        assert_eq!(journal.changes(GenerationId(2)).unwrap(), second);
        assert_eq!(journal.head().unwrap(), Some(head(2, 2)));
    }
}
