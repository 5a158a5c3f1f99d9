//! The limit that a person has set: the file `limit`, a decimal number of bytes and a line end.
//!
//! It is written anew under another name and renamed over the old one.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::StoreError;
use crate::spool::sync_parent;

const NAME: &str = "limit";

/// The limit that was set; nothing if none was, or if the file does not say.
pub(super) fn read(folder: &Path) -> Result<Option<u64>, StoreError> {
    let text = match fs::read(folder.join(NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let limit = std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.trim_end().parse().ok());
    if limit.is_none() {
        tracing::warn!("the file of the cache's limit is damaged; the default holds");
    }
    Ok(limit)
}

/// Sets the limit; durable when this returns.
pub(super) fn write(folder: &Path, limit: u64) -> Result<(), StoreError> {
    let path = folder.join(NAME);
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(format!("{limit}\n").as_bytes())?;
    file.sync_all().map_err(StoreError::Sync)?;
    fs::rename(&new, &path)?;
    sync_parent(&path)
}
