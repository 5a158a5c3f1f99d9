//! A checkout that goes on as another image.

use img_types::CheckoutId;
use rusqlite::params;

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
        // Signed for the image that was left, under a token that is over or was given back.
        transaction.execute(
            "DELETE FROM pending_commits WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        transaction.commit()?;
        Ok(())
    }
}
