//! A checkout that goes on as another image.

use img_types::CheckoutId;
use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::roots::pass_checkpoints;
use super::wishes::drop_wishes;
use super::{Database, StateError};

/// What a checkout's row becomes when it goes on as a branch.
#[derive(Debug, Clone)]
pub struct BranchedRow {
    /// The branch.
    pub image: img_types::ImageId,
    /// Its name.
    pub name: String,
    /// Its signed descriptor.
    pub descriptor: Vec<u8>,
    /// Its signed first commit, on which the checkout stands.
    pub base: Vec<u8>,
    /// Its lease as the keeper encodes it.
    pub holder: Vec<u8>,
    /// The newest generation that the first commit contains.
    pub generation_max: u64,
    /// The wishes that have come true with it, by number.
    pub wishes: Vec<u64>,
    /// How it came to that, where nobody asked for it here.
    pub taken: Option<TakenRow>,
}

/// Who took the image of a checkout over, which goes on as a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TakenRow {
    /// The name of the device.
    pub device: String,
    /// What was said about it.
    pub reason: Option<String>,
    /// The name of the image that was taken over.
    pub name: String,
    /// The name of the branch.
    pub branch: String,
}

impl Database {
    /// A checkout goes on as a branch: from here on nothing of it belongs to the image that it left.
    ///
    /// # Errors
    /// The database failed.
    pub fn branched(
        &mut self,
        checkout: CheckoutId,
        branch: &BranchedRow,
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        transaction.execute(
            "UPDATE checkouts SET image = ?2, name = ?3, descriptor = ?4, base = ?5, holder = ?6, read_only = 0 WHERE checkout = ?1",
            params![
                checkout.as_bytes(),
                branch.image.as_bytes(),
                branch.name,
                branch.descriptor,
                branch.base,
                branch.holder,
            ],
        )?;
        pass_checkpoints(&transaction, checkout, branch.generation_max)?;
        drop_wishes(&transaction, &branch.wishes)?;
        transaction.execute(
            "DELETE FROM taken WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        if let Some(taken) = &branch.taken {
            transaction.execute(
                "INSERT INTO taken (checkout, device, reason, name, branch) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    checkout.as_bytes(),
                    taken.device,
                    taken.reason,
                    taken.name,
                    taken.branch
                ],
            )?;
        }
        // Signed for the image that was left, under a token that is over or was given back.
        transaction.execute(
            "DELETE FROM pending_commits WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// Who took a checkout's image over, until a person here goes on with what became of it.
    ///
    /// # Errors
    /// The database failed.
    pub fn taken(&self, checkout: CheckoutId) -> Result<Option<TakenRow>, StateError> {
        let taken = self
            .sql
            .query_row(
                "SELECT device, reason, name, branch FROM taken WHERE checkout = ?1",
                params![checkout.as_bytes()],
                |row| {
                    Ok(TakenRow {
                        device: row.get(0)?,
                        reason: row.get(1)?,
                        name: row.get(2)?,
                        branch: row.get(3)?,
                    })
                },
            )
            .optional()?;
        Ok(taken)
    }

    /// A person goes on with the branch that a checkout has become.
    ///
    /// # Errors
    /// The database failed.
    pub fn forget_taken(&mut self, checkout: CheckoutId) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM taken WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        Ok(())
    }
}
