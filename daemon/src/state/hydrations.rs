//! Rows about hydrations that were asked for and are not complete.

use img_types::CheckoutId;
use rusqlite::{OptionalExtension, params};

use super::{Database, StateError};

/// A hydration that somebody asked for, until everything is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HydrationRow {
    /// What a person has to mend before it can go on, and how; nothing where it goes on by itself.
    pub problem: Option<(String, String)>,
}

impl Database {
    /// Writes down that everything of a checkout is wanted here, or what is in the way of that.
    ///
    /// # Errors
    /// The database failed, or the checkout is gone.
    pub fn set_hydration(
        &mut self,
        checkout: CheckoutId,
        row: &HydrationRow,
    ) -> Result<(), StateError> {
        let problem = row.problem.as_ref();
        self.sql.execute(
            "INSERT OR REPLACE INTO hydrations (checkout, message, hint) VALUES (?1, ?2, ?3)",
            params![
                checkout.as_bytes(),
                problem.map(|(message, _)| message),
                problem.map(|(_, hint)| hint),
            ],
        )?;
        Ok(())
    }

    /// The hydration of a checkout that is not complete.
    ///
    /// # Errors
    /// The database failed.
    pub fn hydration(&self, checkout: CheckoutId) -> Result<Option<HydrationRow>, StateError> {
        let row = self
            .sql
            .query_row(
                "SELECT message, hint FROM hydrations WHERE checkout = ?1",
                params![checkout.as_bytes()],
                |row| {
                    let (message, hint): (Option<_>, Option<_>) = (row.get(0)?, row.get(1)?);
                    Ok(HydrationRow {
                        problem: message.zip(hint),
                    })
                },
            )
            .optional()?;
        Ok(row)
    }

    /// Everything is here.
    ///
    /// # Errors
    /// The database failed.
    pub fn hydrated(&mut self, checkout: CheckoutId) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM hydrations WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        Ok(())
    }
}
