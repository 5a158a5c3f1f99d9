//! What the home has signed for: commits with their receipts, of this device and of others.
//!
//! With them this device can prove that the home went back in time, and give back what it lost.

use img_proto::ImageRow;
use img_types::{CommitId, ImageId, Incarnation, LogPosition, Seq};
use rusqlite::params;

use super::{Database, StateError};

/// A commit that the home has signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its id.
    pub commit: CommitId,
    /// Of which image.
    pub image: ImageId,
    /// Its number.
    pub seq: Seq,
    /// The signed record.
    pub record: Vec<u8>,
    /// The home's signed receipt.
    pub receipt: Vec<u8>,
    /// The database in which the receipt was signed.
    pub incarnation: Incarnation,
    /// The receipt's place in the log.
    pub position: LogPosition,
}

impl Database {
    /// Keeps commits with their receipts; the newest ones, if there are many.
    ///
    /// # Errors
    /// The database failed.
    pub fn keep_acknowledged(&mut self, commits: &[Acknowledged]) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        let mut new = 0;
        for commit in commits {
            new += transaction.execute(
                "INSERT INTO acknowledged (commit_id, image, seq, record, receipt, incarnation, position) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (commit_id) DO UPDATE \
                 SET receipt = ?5, incarnation = ?6, position = ?7 WHERE incarnation != ?6",
                params![
                    commit.commit.as_bytes(),
                    commit.image.as_bytes(),
                    commit.seq.0,
                    commit.record,
                    commit.receipt,
                    commit.incarnation.as_bytes(),
                    commit.position.0,
                ],
            )?;
        }
        if new == 0 {
            return Ok(());
        }
        transaction.execute(
            "DELETE FROM acknowledged WHERE number <= (SELECT MAX(number) FROM acknowledged) - ?1",
            params![ACKNOWLEDGED_MAX],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// The commits of an image that the home has signed for, as far as they are kept, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn acknowledged(&self, image: ImageId) -> Result<Vec<Acknowledged>, StateError> {
        let mut statement = self.sql.prepare(
            "SELECT commit_id, seq, record, receipt, incarnation, position FROM acknowledged \
             WHERE image = ?1 ORDER BY seq, number",
        )?;
        let rows = statement.query_map(params![image.as_bytes()], |row| {
            Ok(Acknowledged {
                commit: CommitId::from_bytes(row.get(0)?),
                image,
                seq: Seq(row.get(1)?),
                record: row.get(2)?,
                receipt: row.get(3)?,
                incarnation: Incarnation::from_bytes(row.get(4)?),
                position: LogPosition(row.get(5)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The place in the log of a commit that the home has signed for, if its receipt is kept.
    ///
    /// # Errors
    /// The database failed.
    pub fn acknowledged_at(&self, commit: CommitId) -> Result<Option<LogPosition>, StateError> {
        let mut statement = self
            .sql
            .prepare_cached("SELECT position FROM acknowledged WHERE commit_id = ?1")?;
        let mut positions = statement.query_map(params![commit.as_bytes()], |row| row.get(0))?;
        Ok(positions.next().transpose()?.map(LogPosition))
    }

    /// The newest commit of each image that the home has signed for.
    ///
    /// # Errors
    /// The database failed.
    pub fn newest_acknowledged(&self) -> Result<Vec<(ImageId, Seq, CommitId)>, StateError> {
        // Of a maximum SQLite gives the row that has it.
        let mut statement = self
            .sql
            .prepare("SELECT image, MAX(seq), commit_id FROM acknowledged GROUP BY image")?;
        let rows = statement.query_map([], |row| {
            Ok((
                ImageId::from_bytes(row.get(0)?),
                Seq(row.get(1)?),
                CommitId::from_bytes(row.get(2)?),
            ))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The receipt that stands farthest in the log of each of the home's databases, the farthest of all first.
    ///
    /// # Errors
    /// The database failed.
    pub fn farthest_receipts(&self) -> Result<Vec<Vec<u8>>, StateError> {
        // Of a maximum SQLite gives the row that has it.
        let mut statement = self.sql.prepare(
            "SELECT receipt, MAX(position) FROM acknowledged GROUP BY incarnation ORDER BY 2 DESC",
        )?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Goes on with a home that has lost commits: forgets those, and takes the images as they are there now.
    ///
    /// # Errors
    /// The database failed.
    pub fn go_on_without(
        &mut self,
        lost: &[CommitId],
        images: &[ImageRow],
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        for commit in lost {
            transaction.execute(
                "DELETE FROM acknowledged WHERE commit_id = ?1",
                params![commit.as_bytes()],
            )?;
        }
        transaction.commit()?;
        self.set_images(images)
    }
}

/// Commits that are kept, of all images: some 20 MB, and months of what one device makes and looks at.
const ACKNOWLEDGED_MAX: u32 = 20_000;
