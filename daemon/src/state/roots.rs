//! Roots of checkpoints: what each was sealed into, so that it can be read and gone back to although no commit
//! contains it; and what becomes of checkpoints when a commit comes, or when they are too many.

use img_seal::Reference;
use img_types::CheckoutId;
use img_types::bytes::Reader;
use rusqlite::{Transaction, params};

use super::checkouts::add_checkpoint;
use super::{CheckpointRow, Database, StateError};

/// What a checkpoint was sealed into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRoot {
    /// The checkpoint.
    pub checkpoint: [u8; 32],
    /// The generation that it ends with.
    pub generation: u64,
    /// The root.
    pub root: Reference,
    /// Bytes that were sealed for it.
    pub sealed_bytes: u64,
}

impl Database {
    /// Notes what the checkpoints that end with a generation were sealed into.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_checkpoint_root(
        &mut self,
        checkout: CheckoutId,
        generation: u64,
        root: &Reference,
        sealed_bytes: u64,
    ) -> Result<(), StateError> {
        self.sql.execute(
            "INSERT OR REPLACE INTO checkpoint_roots (checkpoint, root, sealed_bytes) \
             SELECT checkpoint, ?3, ?4 FROM checkpoints WHERE checkout = ?1 AND generation = ?2",
            params![checkout.as_bytes(), generation, encode(root), sealed_bytes],
        )?;
        Ok(())
    }

    /// Adds a checkpoint that had its root before it was taken, as one that a checkout was set to has.
    ///
    /// # Errors
    /// The database failed; neither is there then.
    pub fn add_sealed_checkpoint(
        &mut self,
        row: &CheckpointRow,
        root: &Reference,
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        add_checkpoint(&transaction, row)?;
        transaction.execute(
            "INSERT INTO checkpoint_roots (checkpoint, root, sealed_bytes) VALUES (?1, ?2, 0)",
            params![row.checkpoint, encode(root)],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// The roots of a checkout's checkpoints, also of past ones, as far as they are kept, oldest first.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn checkpoint_roots(&self, checkout: CheckoutId) -> Result<Vec<KeptRoot>, StateError> {
        let mut statement = self.sql.prepare(
            "SELECT checkpoint, generation, root, sealed_bytes FROM checkpoints JOIN checkpoint_roots USING (checkpoint) \
             WHERE checkout = ?1 ORDER BY number",
        )?;
        let rows = statement.query_map(params![checkout.as_bytes()], |row| {
            let root: Vec<u8> = row.get(2)?;
            Ok((row.get(0)?, row.get(1)?, root, row.get(3)?))
        })?;
        let rows = rows.map(|row| {
            let (checkpoint, generation, root, sealed_bytes) = row?;
            let root = Reference::decode(&mut Reader::new(&root));
            Ok(KeptRoot {
                checkpoint,
                generation,
                root: root.map_err(|_| StateError::Damaged("a checkpoint's root"))?,
                sealed_bytes,
            })
        });
        rows.collect()
    }

    /// Forgets checkpoints with their roots: their objects are about to go.
    ///
    /// # Errors
    /// The database failed; all are there then.
    pub fn drop_checkpoints(&mut self, checkpoints: &[[u8; 32]]) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        for checkpoint in checkpoints {
            transaction.execute(
                "DELETE FROM checkpoints WHERE checkpoint = ?1",
                params![checkpoint],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// A generation is in a commit, within the transaction that makes that the base: the checkpoint that ends with it is
/// the commit, and those before it are the past as far as they can be gone back to.
pub(super) fn pass_checkpoints(
    transaction: &Transaction<'_>,
    checkout: CheckoutId,
    generation_max: u64,
) -> Result<(), StateError> {
    let of = params![checkout.as_bytes(), generation_max];
    transaction.execute(
        "DELETE FROM checkpoints WHERE checkout = ?1 AND past = 0 AND (generation = ?2 OR (generation < ?2 \
         AND checkpoint NOT IN (SELECT checkpoint FROM checkpoint_roots)))",
        of,
    )?;
    transaction.execute(
        "UPDATE checkpoints SET past = 1 WHERE checkout = ?1 AND generation < ?2",
        of,
    )?;
    Ok(())
}

fn encode(root: &Reference) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(Reference::LEN);
    root.encode(&mut bytes);
    bytes
}
