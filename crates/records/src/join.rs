//! What a joining device and its inviter prove to each other through the home.
//!
//! Both know the invite's secret and the home does not, so it can neither join nor change what it
//! relays.
//!
//! Request: version 1 (1), keys (96), possession (64), sealed name (4 + n), proof (32) =
//! `MAC(home id ‖ keys ‖ possession ‖ sealed name)`. Answer: version 1 (1), signed roster entry
//! (4 + n), proof (32) = `MAC(BLAKE3(entry))`. The MACs are keyed BLAKE3 under keys derived from
//! the secret with the contexts `imgctl join request v1` and `imgctl join answer v1`.

use img_types::HomeId;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{JOIN_FRAME_LEN_MAX, ROSTER_ENTRY_LEN_MAX};
use zeroize::Zeroizing;

use crate::device::{PublicKeys, SignatureError};
use crate::roster::NAME_SEALED_LEN_MAX;
use crate::signed::version;

const VERSION: u8 = 1;
const REQUEST_CONTEXT: &str = "imgctl join request v1";
const ANSWER_CONTEXT: &str = "imgctl join answer v1";

/// Says that the other side does not know the invite's secret, or that something was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the proof is not that of the invite's holder")]
pub struct ProofError;

impl From<SignatureError> for ProofError {
    fn from(_: SignatureError) -> Self {
        Self
    }
}

/// Asks the inviter to put a device on the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The device's keys.
    pub keys: PublicKeys,
    /// Its signature under all three; see [`PublicKeys::prove_possession`].
    pub possession: [u8; 64],
    /// Its name, sealed under a key of the invite's secret.
    pub name_sealed: Vec<u8>,
    /// Shows that the sender has the invite.
    pub proof: [u8; 32],
}

impl JoinRequest {
    /// Makes a request.
    pub fn new(
        secret: &[u8; 16],
        home: &HomeId,
        keys: PublicKeys,
        possession: [u8; 64],
        name_sealed: Vec<u8>,
    ) -> Self {
        let mut request = Self {
            keys,
            possession,
            name_sealed,
            proof: [0; 32],
        };
        request.proof = *request.mac(secret, home).as_bytes();
        request
    }

    /// Checks, at the inviter, that the sender has the invite and its three keys.
    ///
    /// # Errors
    /// It has not; the invite must be burnt.
    pub fn verify(&self, secret: &[u8; 16], home: &HomeId) -> Result<(), ProofError> {
        // The comparison of hashes takes constant time.
        if self.mac(secret, home) != self.proof {
            return Err(ProofError);
        }
        self.keys.verify_possession(home, &self.possession)?;
        Ok(())
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        self.body(&mut bytes);
        bytes.extend_from_slice(&self.proof);
        bytes
    }

    /// Reads a request.
    ///
    /// # Errors
    /// The bytes are malformed or too long.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > JOIN_FRAME_LEN_MAX {
            return Err(DecodeError("request too long"));
        }
        let mut reader = Reader::new(bytes);
        version(&mut reader, VERSION)?;
        let request = Self {
            keys: PublicKeys::decode(&mut reader)?,
            possession: reader.array()?,
            name_sealed: reader.bytes(NAME_SEALED_LEN_MAX)?.to_vec(),
            proof: reader.array()?,
        };
        reader.finish()?;
        Ok(request)
    }

    fn body(&self, bytes: &mut Vec<u8>) {
        self.keys.encode(bytes);
        bytes.extend_from_slice(&self.possession);
        bytes.put_bytes(&self.name_sealed);
    }

    fn mac(&self, secret: &[u8; 16], home: &HomeId) -> blake3::Hash {
        let mut message = home.as_bytes().to_vec();
        self.body(&mut message);
        mac(REQUEST_CONTEXT, secret, &message)
    }
}

/// Brings the signed roster entry back to the joiner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAnswer {
    /// The signed entry that adds the joiner.
    pub entry: Vec<u8>,
    /// Shows that the sender is the inviter.
    pub proof: [u8; 32],
}

impl JoinAnswer {
    /// Makes an answer.
    pub fn new(secret: &[u8; 16], entry: Vec<u8>) -> Self {
        let proof = *Self::mac(secret, &entry).as_bytes();
        Self { entry, proof }
    }

    /// Checks, at the joiner, that the inviter answers with this entry.
    ///
    /// # Errors
    /// Somebody else made the answer.
    pub fn verify(&self, secret: &[u8; 16]) -> Result<(), ProofError> {
        if Self::mac(secret, &self.entry) == self.proof {
            Ok(())
        } else {
            Err(ProofError)
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.put_bytes(&self.entry);
        bytes.extend_from_slice(&self.proof);
        bytes
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// The bytes are malformed or too long.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        version(&mut reader, VERSION)?;
        let answer = Self {
            entry: reader.bytes(ROSTER_ENTRY_LEN_MAX)?.to_vec(),
            proof: reader.array()?,
        };
        reader.finish()?;
        Ok(answer)
    }

    fn mac(secret: &[u8; 16], entry: &[u8]) -> blake3::Hash {
        mac(ANSWER_CONTEXT, secret, blake3::hash(entry).as_bytes())
    }
}

fn mac(context: &'static str, secret: &[u8; 16], message: &[u8]) -> blake3::Hash {
    let key = Zeroizing::new(blake3::derive_key(context, secret));
    blake3::keyed_hash(&key, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::SigningSecret;
    use proptest::prelude::*;

    const HOME: HomeId = HomeId::from_bytes([1; 32]);
    const SECRET: [u8; 16] = [2; 16];

    fn request() -> JoinRequest {
        let sign = SigningSecret::from_bytes([3; 32]);
        let keys = PublicKeys {
            sign: sign.public(),
            tls: [4; 32],
            kem: [5; 32],
        };
        let possession = keys.prove_possession(&HOME, &sign);
        JoinRequest::new(&SECRET, &HOME, keys, possession, b"sealed name".to_vec())
    }

    #[test]
    fn whoever_changes_a_request_is_noticed() {
        let bytes = request().encode();
        let received = JoinRequest::decode(&bytes).unwrap();
        assert_eq!(received, request());
        assert_eq!(received.verify(&SECRET, &HOME), Ok(()));
        assert_eq!(received.verify(&[9; 16], &HOME), Err(ProofError));
        let elsewhere = HomeId::from_bytes([9; 32]);
        assert_eq!(received.verify(&SECRET, &elsewhere), Err(ProofError));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if let Ok(changed) = JoinRequest::decode(&changed) {
                assert_eq!(changed.verify(&SECRET, &HOME), Err(ProofError), "{at}");
            }
        }
    }

    #[test]
    fn a_request_without_possession_is_refused() {
        let good = request();
        let keys = PublicKeys {
            kem: [6; 32],
            ..good.keys
        };
        let forged = JoinRequest::new(&SECRET, &HOME, keys, good.possession, good.name_sealed);
        assert_eq!(forged.verify(&SECRET, &HOME), Err(ProofError));
    }

    #[test]
    fn only_the_inviter_answers() {
        let answer = JoinAnswer::new(&SECRET, b"entry".to_vec());
        let received = JoinAnswer::decode(&answer.encode()).unwrap();
        assert_eq!(received.verify(&SECRET), Ok(()));
        assert_eq!(received.verify(&[9; 16]), Err(ProofError));
        let swapped = JoinAnswer {
            entry: b"other".to_vec(),
            ..received
        };
        assert_eq!(swapped.verify(&SECRET), Err(ProofError));
        assert_ne!(answer.proof, request().proof);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = JoinRequest::decode(&bytes);
            let _ = JoinAnswer::decode(&bytes);
        }
    }
}
