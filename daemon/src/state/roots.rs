//! Roots of checkpoints: what each was sealed into, so that it can be read although no commit contains it.

use img_seal::Reference;
use img_types::CheckoutId;
use img_types::bytes::Reader;
use rusqlite::params;

use super::{Database, StateError};

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
    ) -> Result<(), StateError> {
        let mut bytes = Vec::with_capacity(Reference::LEN);
        root.encode(&mut bytes);
        self.sql.execute(
            "INSERT OR REPLACE INTO checkpoint_roots (checkpoint, root) \
             SELECT checkpoint, ?3 FROM checkpoints WHERE checkout = ?1 AND generation = ?2",
            params![checkout.as_bytes(), generation, bytes],
        )?;
        Ok(())
    }

    /// The roots of a checkout's checkpoints, as far as they are kept: checkpoint, generation, root.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn checkpoint_roots(
        &self,
        checkout: CheckoutId,
    ) -> Result<Vec<([u8; 32], u64, Reference)>, StateError> {
        let mut statement = self.sql.prepare(
            "SELECT checkpoint, generation, root FROM checkpoints JOIN checkpoint_roots USING (checkpoint) \
             WHERE checkout = ?1 ORDER BY number",
        )?;
        let rows = statement.query_map(params![checkout.as_bytes()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?))
        })?;
        let rows = rows.map(|row| {
            let (checkpoint, generation, root) = row?;
            let root = Reference::decode(&mut Reader::new(&root));
            let root = root.map_err(|_| StateError::Damaged("a checkpoint's root"))?;
            Ok((checkpoint, generation, root))
        });
        rows.collect()
    }

    /// Forgets the roots of all checkpoints of a checkout but the newest: their objects are about to go.
    ///
    /// # Errors
    /// The database failed.
    pub fn keep_checkpoint_roots(
        &mut self,
        checkout: CheckoutId,
        newest: usize,
    ) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM checkpoint_roots WHERE checkpoint IN (SELECT checkpoint FROM checkpoints \
             WHERE checkout = ?1 ORDER BY number DESC LIMIT -1 OFFSET ?2)",
            params![checkout.as_bytes(), newest],
        )?;
        Ok(())
    }
}
