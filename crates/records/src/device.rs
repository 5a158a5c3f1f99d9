//! A device's keys and Ed25519 signatures.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use img_types::bytes::{DecodeError, Reader};
use img_types::{DeviceId, HomeId};
use zeroize::Zeroizing;

const ID_CONTEXT: &str = "imgctl device id v1";
const POSSESSION: &[u8] = b"imgctl possession v1\0";

/// The three public keys of a device. 96 bytes: sign, tls, kem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKeys {
    /// Ed25519; verifies the device's records.
    pub sign: [u8; 32],
    /// Ed25519; the device's identity in TLS (a raw public key).
    pub tls: [u8; 32],
    /// X25519; home secrets are wrapped to it.
    pub kem: [u8; 32],
}

impl PublicKeys {
    /// The device's id: the derive-hash of its keys.
    pub fn device_id(&self) -> DeviceId {
        let mut hasher = blake3::Hasher::new_derive_key(ID_CONTEXT);
        for key in self.all() {
            hasher.update(key);
        }
        DeviceId::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Appends the keys' bytes.
    pub fn encode(&self, record: &mut Vec<u8>) {
        for key in self.all() {
            record.extend_from_slice(key);
        }
    }

    /// Reads keys.
    ///
    /// # Errors
    /// The bytes end early.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            sign: reader.array()?,
            tls: reader.array()?,
            kem: reader.array()?,
        })
    }

    /// Signs that the holder of `secret` wants all three keys to be one device of this home.
    pub fn prove_possession(&self, home: &HomeId, secret: &SigningSecret) -> [u8; 64] {
        secret.sign(&self.possession_message(home))
    }

    /// Checks the joiner's signature under its three keys.
    ///
    /// # Errors
    /// It is not the signature of these keys for this home.
    pub fn verify_possession(
        &self,
        home: &HomeId,
        possession: &[u8; 64],
    ) -> Result<(), SignatureError> {
        verify(&self.sign, &self.possession_message(home), possession)
    }

    pub(crate) fn all(&self) -> [&[u8; 32]; 3] {
        [&self.sign, &self.tls, &self.kem]
    }

    fn possession_message(&self, home: &HomeId) -> Vec<u8> {
        let mut message = [POSSESSION, home.as_bytes()].concat();
        self.encode(&mut message);
        message
    }
}

/// A secret Ed25519 key that signs records.
#[derive(Clone)]
pub struct SigningSecret(SigningKey);

impl SigningSecret {
    /// Makes a new random key.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)
            .expect("the operating system has randomness once it has booted");
        Self::from_bytes(*seed)
    }

    /// Takes a stored seed.
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&Zeroizing::new(seed)))
    }

    /// Shows the seed, to store it.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(..)")
    }
}

/// Says that a signature is not that key's over that message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct SignatureError;

/// Checks a signature strictly: weak keys and malleable signatures are refused, so that one
/// signature means one key and one message.
///
/// # Errors
/// The signature is not that key's over that message, or the key is weak.
pub fn verify(
    public: &[u8; 32],
    message: &[u8],
    signature: &[u8; 64],
) -> Result<(), SignatureError> {
    VerifyingKey::from_bytes(public)
        .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
        .map_err(|_| SignatureError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::Verifier;

    #[test]
    fn signatures_bind_key_and_message() {
        let secret = SigningSecret::from_bytes([1; 32]);
        let signature = secret.sign(b"message");
        assert_eq!(verify(&secret.public(), b"message", &signature), Ok(()));
        assert!(verify(&secret.public(), b"massage", &signature).is_err());
        let other = SigningSecret::generate().public();
        assert!(verify(&other, b"message", &signature).is_err());
        let mut changed = signature;
        changed[63] ^= 0x80;
        assert!(verify(&secret.public(), b"message", &changed).is_err());
        assert_eq!(*secret.to_bytes(), [1; 32]);
        assert_eq!(format!("{secret:?}"), "SigningSecret(..)");
    }

    /// The neutral element as key and as R with s = 0 satisfies the plain equation for every
    /// message: whoever enrolled it could have "signed" anything.
    #[test]
    fn weak_keys_that_sign_everything_are_refused() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        let plain = VerifyingKey::from_bytes(&neutral).unwrap();
        assert!(plain.is_weak());
        let lenient = plain.verify(b"any message", &Signature::from_bytes(&signature));
        assert!(lenient.is_ok(), "the plain check accepts it");
        assert_eq!(
            verify(&neutral, b"any message", &signature),
            Err(SignatureError)
        );
    }

    #[test]
    fn possession_binds_all_keys_and_the_home() {
        let secret = SigningSecret::from_bytes([1; 32]);
        let keys = PublicKeys {
            sign: secret.public(),
            tls: [2; 32],
            kem: [3; 32],
        };
        let home = HomeId::from_bytes([4; 32]);
        let possession = keys.prove_possession(&home, &secret);
        assert_eq!(keys.verify_possession(&home, &possession), Ok(()));
        let elsewhere = HomeId::from_bytes([5; 32]);
        assert!(keys.verify_possession(&elsewhere, &possession).is_err());
        for other in [
            PublicKeys {
                tls: [9; 32],
                ..keys
            },
            PublicKeys {
                kem: [9; 32],
                ..keys
            },
        ] {
            assert!(other.verify_possession(&home, &possession).is_err());
            assert_ne!(other.device_id(), keys.device_id());
        }
    }
}
