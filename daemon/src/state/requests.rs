//! The journal of mutating calls: written before a call is first sent, kept until its effect is.

use img_proto::Call;
use img_types::RequestId;
use rusqlite::params;

use super::{Database, StateError};

/// A call whose answer has not taken effect here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournaledRequest {
    /// The id under which it is sent, every time.
    pub id: RequestId,
    /// Its full content.
    pub call: Call,
}

impl Database {
    /// Writes a call down.
    ///
    /// # Errors
    /// The database failed.
    pub fn journal_request(&mut self, request: &JournaledRequest) -> Result<(), StateError> {
        let call = postcard::to_allocvec(&request.call)
            .map_err(|_| StateError::Damaged("a call does not encode"))?;
        self.sql.execute(
            "INSERT INTO requests (request, call) VALUES (?1, ?2)",
            params![request.id.as_bytes(), call],
        )?;
        Ok(())
    }

    /// The calls without an answer, oldest first.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn journaled_requests(&self) -> Result<Vec<JournaledRequest>, StateError> {
        let mut statement = self
            .sql
            .prepare("SELECT request, call FROM requests ORDER BY number")?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, Vec<u8>>(1)?))
        })?;
        rows.map(|row| {
            let (id, call) = row?;
            Ok(JournaledRequest {
                id: RequestId::from_bytes(id),
                call: postcard::from_bytes(&call)
                    .map_err(|_| StateError::Damaged("a journaled call"))?,
            })
        })
        .collect()
    }

    /// Strikes a call out: it was answered and the answer's effect is durable.
    ///
    /// # Errors
    /// The database failed.
    pub fn settle_request(&mut self, id: RequestId) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM requests WHERE request = ?1",
            params![id.as_bytes()],
        )?;
        Ok(())
    }
}
