//! Which cgroups hold applications: written down before the first of them is frozen, so that after a crash none stays
//! frozen for ever.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use img_types::CheckoutId;
use rusqlite::params;

use super::{Database, StateError};

impl Database {
    /// An application runs in a checkout.
    ///
    /// # Errors
    /// The database failed, or there is no such checkout.
    pub fn set_application(
        &mut self,
        checkout: CheckoutId,
        cgroup: &Path,
    ) -> Result<(), StateError> {
        self.sql.execute(
            "INSERT OR REPLACE INTO applications (checkout, cgroup) VALUES (?1, ?2)",
            params![checkout.as_bytes(), cgroup.as_os_str().as_bytes()],
        )?;
        Ok(())
    }

    /// A checkout's application has ended.
    ///
    /// # Errors
    /// The database failed.
    pub fn drop_application(&mut self, checkout: CheckoutId) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM applications WHERE checkout = ?1",
            params![checkout.as_bytes()],
        )?;
        Ok(())
    }

    /// The cgroups of all applications.
    ///
    /// # Errors
    /// The database failed.
    pub fn applications(&self) -> Result<Vec<(CheckoutId, PathBuf)>, StateError> {
        let mut statement = self
            .sql
            .prepare("SELECT checkout, cgroup FROM applications ORDER BY checkout")?;
        let rows = statement.query_map([], |row| {
            let cgroup = PathBuf::from(OsString::from_vec(row.get(1)?));
            Ok((CheckoutId::from_bytes(row.get(0)?), cgroup))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
