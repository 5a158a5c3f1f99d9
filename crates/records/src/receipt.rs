//! The receipt: the home's signature that a commit is in its log.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 32 + 8 + 32 | incarnation, log position, log root at that position |
//! | 32 + 8 + 32 | image, number, commit |
//! | 64 | signature of the home |

use img_types::bytes::{DecodeError, Reader, Write};
use img_types::{CommitId, ImageId, Incarnation, LogPosition, LogRoot, Seq};

use crate::signed::{Record, Signed, version};

const VERSION: u8 = 1;

/// A receipt with its signature.
pub type SignedReceipt = Signed<Receipt>;

/// Says that a commit was acknowledged, and where in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The home's database.
    pub incarnation: Incarnation,
    /// Number of log entries, the commit's included.
    pub position: LogPosition,
    /// Hash chain over them.
    pub log_root: LogRoot,
    /// Which image.
    pub image: ImageId,
    /// The commit's number.
    pub seq: Seq,
    /// The commit.
    pub commit: CommitId,
}

impl Record for Receipt {
    const NAME: &'static str = "receipt";
    const LEN_MAX: usize = 1 + 32 + 8 + 32 + 32 + 8 + 32 + 64;

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u8(VERSION);
        bytes.extend_from_slice(self.incarnation.as_bytes());
        bytes.put_u64(self.position.0);
        bytes.extend_from_slice(self.log_root.as_bytes());
        bytes.extend_from_slice(self.image.as_bytes());
        bytes.put_u64(self.seq.0);
        bytes.extend_from_slice(self.commit.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        version(reader, VERSION)?;
        Ok(Self {
            incarnation: Incarnation::from_bytes(reader.array()?),
            position: LogPosition(reader.u64()?),
            log_root: LogRoot::from_bytes(reader.array()?),
            image: ImageId::from_bytes(reader.array()?),
            seq: Seq(reader.u64()?),
            commit: CommitId::from_bytes(reader.array()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::SigningSecret;
    use img_types::HomeId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn receipts_round_trip(
            incarnation: [u8; 32], position: u64, image: [u8; 32], seq: u64, commit: [u8; 32],
            cut in 0usize..Receipt::LEN_MAX,
        ) {
            let receipt = Receipt {
                incarnation: Incarnation::from_bytes(incarnation),
                position: LogPosition(position),
                log_root: LogRoot::from_bytes(commit),
                image: ImageId::from_bytes(image),
                seq: Seq(seq),
                commit: CommitId::from_bytes(commit),
            };
            let home = HomeId::from_bytes(image);
            let secret = SigningSecret::from_bytes([2; 32]);
            let signed = Signed::sign(receipt, &home, &secret);
            let bytes = signed.to_bytes();
            prop_assert_eq!(bytes.len(), Receipt::LEN_MAX);
            let received = SignedReceipt::decode(&bytes).unwrap();
            prop_assert_eq!(received.verify(&home, &secret.public()), Ok(()));
            prop_assert_eq!(received, signed);
            prop_assert!(SignedReceipt::decode(&bytes[..cut]).is_err());
        }
    }
}
