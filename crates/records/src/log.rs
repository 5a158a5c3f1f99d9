//! The home's log: a hash chain over fixed-size entries of all that it acknowledged.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | kind: 1 commit, 2 grant, 3 steal, 4 release, 5 readmit, 6 roster, 7 descriptor, 8 delete, 9 incarnation |
//! | 32 + 32 + 32 | image, subject, device; zeros where there is none |
//! | 8 + 8 | epoch, the home's clock in milliseconds |
//!
//! `root of n+1 entries = derive_hash("imgctl log v1", root of n entries ‖ entry)`; the root of no
//! entries is 32 zero bytes.

use img_types::bytes::{DecodeError, Reader, Write};
use img_types::{DeviceId, Epoch, ImageId, LogRoot, WallMillis};

use crate::signed::version;

const VERSION: u8 = 1;
const CONTEXT: &str = "imgctl log v1";

/// What a log entry tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogKind {
    /// The head moved; subject: the commit.
    Commit,
    /// A lease was granted; subject: the checkout that holds it from then on.
    Grant,
    /// A lease was taken by force, also by deleting the image; subject: the checkout that lost it.
    Steal,
    /// A lease was given back; subject: the checkout that had it.
    Release,
    /// The head moved to commits that were given back; subject: the new head.
    Readmit,
    /// The roster grew; subject: the entry.
    Roster,
    /// An image got a descriptor; subject: the descriptor.
    Descriptor,
    /// An image was deleted; subject: its head.
    Delete,
    /// A new database continues the log; subject: its incarnation.
    Incarnation,
}

impl LogKind {
    const ALL: [Self; 9] = [
        Self::Commit,
        Self::Grant,
        Self::Steal,
        Self::Release,
        Self::Readmit,
        Self::Roster,
        Self::Descriptor,
        Self::Delete,
        Self::Incarnation,
    ];

    /// The kind's code in entries and in databases.
    pub fn code(self) -> u8 {
        self as u8 + 1
    }

    /// The kind of a code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// One thing that the home acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEntry {
    /// What happened.
    pub kind: LogKind,
    /// To which image; zeros where it concerns none.
    pub image: ImageId,
    /// With what; see [`LogKind`].
    pub subject: [u8; 32],
    /// By whom; zeros for the home itself.
    pub device: DeviceId,
    /// The image's epoch after it.
    pub epoch: Epoch,
    /// The home's wall clock; information only.
    pub time: WallMillis,
}

impl LogEntry {
    /// Length of an entry in bytes.
    pub const LEN: usize = 1 + 1 + 32 + 32 + 32 + 8 + 8;

    /// The root of a log without entries.
    pub const EMPTY_ROOT: LogRoot = LogRoot::from_bytes([0; 32]);

    /// Appends the entry's bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u8(VERSION);
        bytes.put_u8(self.kind.code());
        bytes.extend_from_slice(self.image.as_bytes());
        bytes.extend_from_slice(&self.subject);
        bytes.extend_from_slice(self.device.as_bytes());
        bytes.put_u64(self.epoch.0);
        bytes.put_i64(self.time.0);
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// The bytes end early or name an unknown kind.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        version(reader, VERSION)?;
        Ok(Self {
            kind: LogKind::from_code(reader.u8()?).ok_or(DecodeError("unknown kind of entry"))?,
            image: ImageId::from_bytes(reader.array()?),
            subject: reader.array()?,
            device: DeviceId::from_bytes(reader.array()?),
            epoch: Epoch(reader.u64()?),
            time: WallMillis(reader.i64()?),
        })
    }

    /// The root of the log that continues `previous` with this entry.
    pub fn chain(previous: LogRoot, entry: &Self) -> LogRoot {
        let mut bytes = Vec::with_capacity(32 + Self::LEN);
        bytes.extend_from_slice(previous.as_bytes());
        entry.encode(&mut bytes);
        LogRoot::from_bytes(blake3::derive_key(CONTEXT, &bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_are_dense_and_inverse() {
        for kind in LogKind::ALL {
            assert_eq!(LogKind::from_code(kind.code()), Some(kind));
        }
        assert_eq!(LogKind::from_code(0), None);
        assert_eq!(LogKind::from_code(10), None);
    }

    proptest! {
        #[test]
        fn entries_round_trip_and_every_byte_counts(
            kind in 1u8..10, image: [u8; 32], subject: [u8; 32], epoch: u64, time: i64,
            at in 0usize..LogEntry::LEN,
        ) {
            let entry = LogEntry {
                kind: LogKind::from_code(kind).unwrap(),
                image: ImageId::from_bytes(image),
                subject,
                device: DeviceId::from_bytes(image),
                epoch: Epoch(epoch),
                time: WallMillis(time),
            };
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), LogEntry::LEN);
            prop_assert_eq!(LogEntry::decode(&mut Reader::new(&bytes)), Ok(entry));
            prop_assert!(LogEntry::decode(&mut Reader::new(&bytes[..at])).is_err());
            bytes[at] ^= 1;
            if let Ok(other) = LogEntry::decode(&mut Reader::new(&bytes)) {
                let root = LogEntry::EMPTY_ROOT;
                prop_assert_ne!(LogEntry::chain(root, &other), LogEntry::chain(root, &entry));
            }
        }
    }
}
