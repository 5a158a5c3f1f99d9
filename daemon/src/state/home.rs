//! Rows about the home: the pin, what was last seen of it, the roster, invites.

use img_proto::{ImageRow, Standing};
use img_types::{
    HomeId, HomeKey, ImageId, Incarnation, InviteId, LogPosition, LogRoot, WallMillis,
};
use rusqlite::{OptionalExtension, params};
use zeroize::Zeroizing;

use super::{Database, StateError};

/// The home that this device belongs to, pinned at enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HomePin {
    /// Where it listens.
    pub address: String,
    /// BLAKE3 of its public key.
    pub home_key_hash: [u8; 32],
    /// Its public key, once a connection has shown it.
    pub home_key: Option<HomeKey>,
    /// Hash of its genesis record.
    pub home: HomeId,
    /// The newest standing that this device has seen.
    pub seen: Option<Standing>,
}

/// An invite that this device has issued.
#[derive(Debug, Clone)]
pub struct IssuedInvite {
    /// Its id at the home.
    pub invite: InviteId,
    /// Its one-time secret.
    pub secret: Zeroizing<[u8; 16]>,
    /// After this time it is refused.
    pub expires: WallMillis,
    /// The signed roster entry that answers it, once made.
    pub entry: Option<Vec<u8>>,
}

impl Database {
    /// The home pin, if enrolled.
    ///
    /// # Errors
    /// The database failed.
    pub fn home(&self) -> Result<Option<HomePin>, StateError> {
        let columns = "address, home_key_hash, home_key, home_id, incarnation, position, root";
        let row = self
            .sql
            .query_row(&format!("SELECT {columns} FROM home"), [], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, [u8; 32]>(1)?,
                    row.get::<_, Option<[u8; 32]>>(2)?,
                    row.get::<_, [u8; 32]>(3)?,
                    row.get::<_, Option<[u8; 32]>>(4)?,
                    row.get::<_, Option<u64>>(5)?,
                    row.get::<_, Option<[u8; 32]>>(6)?,
                ))
            })
            .optional()?;
        Ok(row.map(
            |(address, home_key_hash, key, home, incarnation, position, root)| HomePin {
                address,
                home_key_hash,
                home_key: key.map(HomeKey::from_bytes),
                home: HomeId::from_bytes(home),
                seen: match (incarnation, position, root) {
                    (Some(incarnation), Some(position), Some(root)) => Some(Standing {
                        incarnation: Incarnation::from_bytes(incarnation),
                        position: LogPosition(position),
                        root: LogRoot::from_bytes(root),
                    }),
                    _ => None,
                },
            },
        ))
    }

    /// Pins the home with its roster and ends the enrolment, in one transaction.
    ///
    /// # Errors
    /// The database failed.
    pub fn enrolled(&mut self, pin: &HomePin, roster: &[Vec<u8>]) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        transaction.execute(
            "INSERT INTO home (one, address, home_key_hash, home_key, home_id) VALUES (1, ?1, ?2, ?3, ?4)",
            params![
                pin.address,
                pin.home_key_hash,
                pin.home_key.map(|key| *key.as_bytes()),
                pin.home.as_bytes(),
            ],
        )?;
        for (seq, entry) in roster.iter().enumerate() {
            transaction.execute(
                "INSERT INTO roster (seq, entry) VALUES (?1, ?2)",
                params![seq as u64, entry],
            )?;
        }
        transaction.execute("DELETE FROM enrolment", [])?;
        transaction.commit()?;
        Ok(())
    }

    /// Remembers the home's public key.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_home_key(&mut self, key: HomeKey) -> Result<(), StateError> {
        self.sql
            .execute("UPDATE home SET home_key = ?1", params![key.as_bytes()])?;
        Ok(())
    }

    /// Remembers where the home listens.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_address(&mut self, address: &str) -> Result<(), StateError> {
        self.sql
            .execute("UPDATE home SET address = ?1", params![address])?;
        Ok(())
    }

    /// Remembers the home's newest standing.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_seen(&mut self, seen: Standing) -> Result<(), StateError> {
        self.sql.execute(
            "UPDATE home SET incarnation = ?1, position = ?2, root = ?3",
            params![
                seen.incarnation.as_bytes(),
                seen.position.0,
                seen.root.as_bytes()
            ],
        )?;
        Ok(())
    }

    /// The roster's signed entries in order.
    ///
    /// # Errors
    /// The database failed.
    pub fn roster(&self) -> Result<Vec<Vec<u8>>, StateError> {
        let mut statement = self.sql.prepare("SELECT entry FROM roster ORDER BY seq")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Appends a signed roster entry.
    ///
    /// # Errors
    /// The database failed, or has an entry of this number.
    pub fn append_roster(&mut self, seq: u64, entry: &[u8]) -> Result<(), StateError> {
        self.sql.execute(
            "INSERT INTO roster (seq, entry) VALUES (?1, ?2)",
            params![seq, entry],
        )?;
        Ok(())
    }

    /// The enrolment under way, as [`crate::enrol`] encodes it.
    ///
    /// # Errors
    /// The database failed.
    pub fn enrolment(&self) -> Result<Option<Vec<u8>>, StateError> {
        let record = self
            .sql
            .query_row("SELECT record FROM enrolment", [], |row| row.get(0))
            .optional()?;
        Ok(record)
    }

    /// Replaces the enrolment under way.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_enrolment(&mut self, record: &[u8]) -> Result<(), StateError> {
        self.sql.execute(
            "INSERT INTO enrolment (one, record) VALUES (1, ?1) ON CONFLICT DO UPDATE SET record = ?1",
            params![record],
        )?;
        Ok(())
    }

    /// Gives up the enrolment under way.
    ///
    /// # Errors
    /// The database failed.
    pub fn end_enrolment(&mut self) -> Result<(), StateError> {
        self.sql.execute("DELETE FROM enrolment", [])?;
        Ok(())
    }

    /// Remembers an invite, or its answer.
    ///
    /// # Errors
    /// The database failed.
    pub fn put_invite(&mut self, invite: &IssuedInvite) -> Result<(), StateError> {
        self.sql.execute(
            "INSERT OR REPLACE INTO invites (invite, secret, expires, entry) VALUES (?1, ?2, ?3, ?4)",
            params![
                invite.invite.as_bytes(),
                invite.secret.as_slice(),
                invite.expires.0,
                invite.entry,
            ],
        )?;
        Ok(())
    }

    /// The invites that wait for somebody.
    ///
    /// # Errors
    /// The database failed.
    pub fn invites(&self) -> Result<Vec<IssuedInvite>, StateError> {
        let mut statement = self
            .sql
            .prepare("SELECT invite, secret, expires, entry FROM invites")?;
        let rows = statement.query_map([], |row| {
            Ok(IssuedInvite {
                invite: InviteId::from_bytes(row.get(0)?),
                secret: Zeroizing::new(row.get(1)?),
                expires: WallMillis(row.get(2)?),
                entry: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets an invite.
    ///
    /// # Errors
    /// The database failed.
    pub fn forget_invite(&mut self, invite: InviteId) -> Result<(), StateError> {
        self.sql.execute(
            "DELETE FROM invites WHERE invite = ?1",
            params![invite.as_bytes()],
        )?;
        Ok(())
    }

    /// The images as last seen at the home.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn images(&self) -> Result<Vec<ImageRow>, StateError> {
        let mut statement = self
            .sql
            .prepare("SELECT record FROM images ORDER BY image")?;
        let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
        rows.map(|row| postcard::from_bytes(&row?).map_err(|_| StateError::Damaged("an image row")))
            .collect()
    }

    /// Replaces the images last seen. What the home has signed for of those that are gone since is forgotten:
    /// they were deleted, and are not to come back.
    ///
    /// # Errors
    /// The database failed.
    pub fn set_images(&mut self, images: &[ImageRow]) -> Result<(), StateError> {
        let transaction = self.sql.transaction()?;
        transaction.execute_batch(
            "CREATE TEMP TABLE IF NOT EXISTS gone (image BLOB PRIMARY KEY) STRICT; DELETE FROM gone; \
             INSERT INTO gone SELECT image FROM images; DELETE FROM images;",
        )?;
        for image in images {
            put_image(&transaction, image)?;
        }
        transaction.execute(
            "DELETE FROM acknowledged WHERE image IN \
             (SELECT image FROM gone EXCEPT SELECT image FROM images)",
            [],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// The image as last seen at the home.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn image(&self, image: ImageId) -> Result<Option<ImageRow>, StateError> {
        let record: Option<Vec<u8>> = self
            .sql
            .query_row(
                "SELECT record FROM images WHERE image = ?1",
                params![image.as_bytes()],
                |row| row.get(0),
            )
            .optional()?;
        record
            .map(|record| {
                postcard::from_bytes(&record).map_err(|_| StateError::Damaged("an image row"))
            })
            .transpose()
    }
}

fn put_image(sql: &rusqlite::Connection, image: &ImageRow) -> Result<(), StateError> {
    let record = postcard::to_allocvec(image).map_err(|_| StateError::Damaged("an image row"))?;
    sql.execute(
        "INSERT INTO images (image, record) VALUES (?1, ?2)",
        params![image.image.as_bytes(), record],
    )?;
    Ok(())
}
