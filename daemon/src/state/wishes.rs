//! Commits that are wanted: what a person asked of a checkout, and what finishes by itself when the home is back.
//!
//! A wish stands here from before its asker is answered until the transaction that makes it come true, or until it
//! has been refused for good. Their order is the order of asking.

use img_seal::Reference;
use img_types::bytes::{DecodeError, Reader};
use img_types::{CheckoutId, CommitId, ImageId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{Database, StateError};

/// A commit that is wanted of a checkout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WishRow {
    /// Its number: whoever asks later has a higher one. Never given again.
    pub number: u64,
    /// The newest generation that the commit has to contain.
    pub generation: u64,
    /// What was asked.
    pub request: CommitRequest,
    /// Whether the commit that was signed last is to fulfil it.
    pub under_way: bool,
    /// The root of its generation and the bytes sealed for that, once it is sealed: what is cut and sealed later is
    /// not asked for.
    pub root: Option<(Reference, u64)>,
}

/// What is asked of a commit. Kept as JSON, so that one that was written down by another version is read as far as
/// it is understood, and not at all if it says what is not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommitRequest {
    /// What the person says about it.
    pub message: String,
    /// Also from an orphan, if nothing was committed since.
    pub adopt_orphan: bool,
    /// Also over a lapsed lease with newer work at home.
    pub take_over: bool,
    /// A read-only checkout keeps the lease that it took for this.
    pub keep: bool,
    /// Not as the image's head, but as a new image of this name, on which the checkout goes on.
    pub branch: Option<String>,
    /// The branch leaves out what is lost here and at home.
    pub partial: bool,
    /// Nobody asked for it.
    pub automatic: bool,
    /// The commit that the branch continues, of another branch with this checkout's work; else the base.
    pub onto: Option<(ImageId, CommitId)>,
}

impl Database {
    /// Wants a commit. Returns the wish's number.
    ///
    /// # Errors
    /// The database failed, or there is no such checkout.
    pub fn add_wish(
        &mut self,
        checkout: CheckoutId,
        generation: u64,
        request: &CommitRequest,
        root: Option<(Reference, u64)>,
    ) -> Result<u64, StateError> {
        let encoded = serde_json::to_vec(request)
            .map_err(|_| StateError::Damaged("a wanted commit does not encode"))?;
        self.sql.execute(
            "INSERT INTO wishes (checkout, generation, request, root, sealed_bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                checkout.as_bytes(),
                generation,
                encoded,
                root.map(|(root, _)| encode(root)),
                root.map(|(_, sealed_bytes)| sealed_bytes),
            ],
        )?;
        u64::try_from(self.sql.last_insert_rowid())
            .map_err(|_| StateError::Damaged("a wanted commit's number"))
    }

    /// The wanted commits of a checkout, oldest first. One that cannot be read is left out, and stays.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn wishes(&self, checkout: CheckoutId) -> Result<Vec<WishRow>, StateError> {
        let mut statement = self.sql.prepare(
            "SELECT number, generation, request, under_way, root, sealed_bytes FROM wishes WHERE checkout = ?1 ORDER BY number",
        )?;
        let rows = statement.query_map(params![checkout.as_bytes()], |row| Ok(read(row)))?;
        let rows: Result<Vec<_>, StateError> = rows.map(|row| row?).collect();
        Ok(rows?.into_iter().flatten().collect())
    }

    /// The generation of a wish is sealed.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_wish_root(
        &mut self,
        number: u64,
        root: Reference,
        sealed_bytes: u64,
    ) -> Result<(), StateError> {
        self.sql.execute(
            "UPDATE wishes SET root = ?2, sealed_bytes = ?3 WHERE number = ?1",
            params![number, encode(root), sealed_bytes],
        )?;
        Ok(())
    }

    /// The numbers of the wishes that the signed commit was signed for.
    ///
    /// # Errors
    /// The database failed.
    pub fn signed_wishes(&self, checkout: CheckoutId) -> Result<Vec<u64>, StateError> {
        let mut statement = self
            .sql
            .prepare("SELECT number FROM wishes WHERE checkout = ?1 AND under_way")?;
        let rows = statement.query_map(params![checkout.as_bytes()], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What wishes are about has changed: a newer generation, without what is lost. Its root is not known yet; where it
    /// is the same generation, it is.
    ///
    /// # Errors
    /// The database failed.
    pub fn move_wishes(&mut self, numbers: &[u64], generation: u64) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        for number in numbers {
            transaction.execute(
                "UPDATE wishes SET generation = ?2, root = CASE generation WHEN ?2 THEN root END, sealed_bytes = CASE generation WHEN ?2 THEN sealed_bytes END WHERE number = ?1",
                params![number, generation],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Wants these no more: they were refused for good. What is to be told of it is kept for whoever has gone.
    ///
    /// # Errors
    /// The database failed.
    pub fn refuse_wishes(
        &mut self,
        checkout: CheckoutId,
        numbers: &[u64],
        told: Option<&str>,
    ) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        drop_wishes(&transaction, numbers)?;
        if told.is_some() {
            set_refusal(&transaction, checkout, told)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Keeps what is to be told of a refusal, or forgets it.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_refusal(
        &mut self,
        checkout: CheckoutId,
        told: Option<&str>,
    ) -> Result<(), StateError> {
        set_refusal(&self.sql, checkout, told)
    }

    /// What is to be told of a refusal that nobody heard.
    ///
    /// # Errors
    /// The database failed.
    pub fn refusal(&self, checkout: CheckoutId) -> Result<Option<String>, StateError> {
        let told = self.sql.query_row(
            "SELECT refusal FROM checkouts WHERE checkout = ?1",
            params![checkout.as_bytes()],
            |row| row.get(0),
        );
        Ok(told.optional()?.flatten())
    }
}

/// A commit is signed that fulfils these wishes and no others, within the transaction that writes it down.
pub(super) fn sign_wishes(
    transaction: &Transaction<'_>,
    checkout: CheckoutId,
    numbers: &[u64],
) -> Result<(), StateError> {
    transaction.execute(
        "UPDATE wishes SET under_way = 0 WHERE checkout = ?1",
        params![checkout.as_bytes()],
    )?;
    for number in numbers {
        transaction.execute(
            "UPDATE wishes SET under_way = 1 WHERE number = ?1",
            params![number],
        )?;
    }
    Ok(())
}

fn set_refusal(
    sql: &Connection,
    checkout: CheckoutId,
    told: Option<&str>,
) -> Result<(), StateError> {
    sql.execute(
        "UPDATE checkouts SET refusal = ?2 WHERE checkout = ?1",
        params![checkout.as_bytes(), told],
    )?;
    Ok(())
}

/// Strikes wishes out, within what makes them come true.
pub(super) fn drop_wishes(
    transaction: &Transaction<'_>,
    numbers: &[u64],
) -> Result<(), StateError> {
    for number in numbers {
        transaction.execute("DELETE FROM wishes WHERE number = ?1", params![number])?;
    }
    Ok(())
}

/// Strikes out what the signed commit was signed for, within the transaction that makes it the base.
pub(super) fn drop_fulfilled(
    transaction: &Transaction<'_>,
    checkout: CheckoutId,
) -> Result<(), StateError> {
    transaction.execute(
        "DELETE FROM wishes WHERE checkout = ?1 AND under_way",
        params![checkout.as_bytes()],
    )?;
    Ok(())
}

fn encode(root: Reference) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(Reference::LEN);
    root.encode(&mut bytes);
    bytes
}

/// A row; nothing if it cannot be read: the checkout is worth more.
fn read(row: &Row<'_>) -> Result<Option<WishRow>, StateError> {
    let (request, root): (Vec<u8>, Option<Vec<u8>>) = (row.get(2)?, row.get(4)?);
    let request = serde_json::from_slice(&request).map_err(|error| error.to_string());
    let root = root.map(|root| decode(&root)).transpose();
    let (request, root) = match (request, root) {
        (Ok(request), Ok(root)) => (request, root),
        (Err(error), _) => {
            tracing::warn!(error, "a wanted commit cannot be read and is not made");
            return Ok(None);
        }
        (_, Err(error)) => {
            tracing::warn!(%error, "a wanted commit has no root and is not made");
            return Ok(None);
        }
    };
    let sealed_bytes: Option<u64> = row.get(5)?;
    Ok(Some(WishRow {
        number: row.get(0)?,
        generation: row.get(1)?,
        request,
        under_way: row.get(3)?,
        root: root.map(|root| (root, sealed_bytes.unwrap_or(0))),
    }))
}

fn decode(root: &[u8]) -> Result<Reference, DecodeError> {
    let mut reader = Reader::new(root);
    let root = Reference::decode(&mut reader)?;
    reader.finish()?;
    Ok(root)
}
