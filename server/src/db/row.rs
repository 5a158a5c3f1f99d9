//! Reading columns by place, with the types of this project.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

/// Takes ids and numbers out of a row.
pub(crate) trait Columns {
    /// A column that holds 32 bytes.
    fn id<T>(&self, column: usize, make: fn([u8; 32]) -> T) -> sqlx::Result<T>;
    /// A column that holds 32 bytes or nothing.
    fn id_opt<T>(&self, column: usize, make: fn([u8; 32]) -> T) -> sqlx::Result<Option<T>>;
    /// A column that holds a number from zero up.
    fn number(&self, column: usize) -> sqlx::Result<u64>;
    /// A column that holds a number from zero up or nothing.
    fn number_opt(&self, column: usize) -> sqlx::Result<Option<u64>>;
    /// A column that holds bytes.
    fn bytes(&self, column: usize) -> sqlx::Result<Vec<u8>>;
    /// A column that holds bytes or nothing.
    fn bytes_opt(&self, column: usize) -> sqlx::Result<Option<Vec<u8>>>;
}

impl Columns for SqliteRow {
    fn id<T>(&self, column: usize, make: fn([u8; 32]) -> T) -> sqlx::Result<T> {
        array(column, self.try_get(column)?).map(make)
    }

    fn id_opt<T>(&self, column: usize, make: fn([u8; 32]) -> T) -> sqlx::Result<Option<T>> {
        match self.try_get::<Option<&[u8]>, _>(column)? {
            Some(bytes) => array(column, bytes).map(make).map(Some),
            None => Ok(None),
        }
    }

    fn number(&self, column: usize) -> sqlx::Result<u64> {
        unsigned(column, self.try_get(column)?)
    }

    fn number_opt(&self, column: usize) -> sqlx::Result<Option<u64>> {
        match self.try_get(column)? {
            Some(value) => unsigned(column, value).map(Some),
            None => Ok(None),
        }
    }

    fn bytes(&self, column: usize) -> sqlx::Result<Vec<u8>> {
        self.try_get(column)
    }

    fn bytes_opt(&self, column: usize) -> sqlx::Result<Option<Vec<u8>>> {
        self.try_get(column)
    }
}

/// The column value of a number. Counters never come near the limit.
pub(crate) fn big(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn array(column: usize, bytes: &[u8]) -> sqlx::Result<[u8; 32]> {
    bytes
        .try_into()
        .map_err(|_| unreadable(column, "not 32 bytes"))
}

fn unsigned(column: usize, value: i64) -> sqlx::Result<u64> {
    u64::try_from(value).map_err(|_| unreadable(column, "below zero"))
}

fn unreadable(column: usize, what: &'static str) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_string(),
        source: what.into(),
    }
}
