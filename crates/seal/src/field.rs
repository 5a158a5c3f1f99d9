//! Seals the secret fields of signed records: names, messages, root keys.
//!
//! XChaCha20-Poly1305 with a nonce that is a keyed hash of everything that is encrypted, so that it
//! stays safe where randomness repeats, as after cloning a virtual machine: equal nonces then mean
//! equal messages.
//!
//! | bytes | field |
//! |---|---|
//! | 0..24 | nonce = first 24 bytes of BLAKE3_keyed(k_mac, len(aad) as u64 ‖ aad ‖ salt ‖ secret) |
//! | 24..40 | encrypted salt, 16 random bytes |
//! | then | encrypted secret |
//! | last 16 | tag |
//!
//! aad = purpose ‖ clear bytes of the record; k_enc and k_mac are derived per purpose, which also
//! keeps the concatenation unambiguous.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::keys::{context, derive, random};

const NONCE_LEN: usize = 24;
const SALT_LEN: usize = 16;

/// Bytes by which a sealed field is longer than its secret.
pub const FIELD_OVERHEAD: usize = NONCE_LEN + SALT_LEN + 16;

/// Seals fields of one kind of record; each purpose gets keys of its own.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct FieldKey([u8; 32]);

impl FieldKey {
    /// The key of the fields that a joining device sends to its inviter.
    pub fn of_invite(secret: &[u8; 16]) -> Self {
        Self(derive(context::INVITE_FIELDS, &[secret]))
    }

    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[cfg(test)]
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn cipher(&self, purpose: &str) -> XChaCha20Poly1305 {
        let key = Zeroizing::new(derive(
            context::FIELD_ENCRYPTION,
            &[&self.0, purpose.as_bytes()],
        ));
        XChaCha20Poly1305::new((&*key).into())
    }

    fn nonce(&self, purpose: &str, aad: &[u8], salted: &[u8]) -> [u8; NONCE_LEN] {
        let key = Zeroizing::new(derive(context::FIELD_NONCE, &[&self.0, purpose.as_bytes()]));
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher.update(&(aad.len() as u64).to_le_bytes());
        hasher.update(aad);
        hasher.update(salted);
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hasher.finalize().as_bytes()[..NONCE_LEN]);
        hasher.zeroize();
        nonce
    }
}

impl fmt::Debug for FieldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FieldKey(..)")
    }
}

/// Says that a field was not sealed under this key for this purpose and these clear bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed field does not open")]
pub struct FieldError;

/// Seals `secret` for one purpose, bound to the clear bytes of its record.
pub fn seal_field(key: &FieldKey, purpose: &str, clear: &[u8], secret: &[u8]) -> Vec<u8> {
    seal_salted(key, purpose, clear, secret, random())
}

/// Opens a field.
///
/// # Errors
/// The bytes, the purpose, the clear bytes or the key are not those of the sealing.
pub fn open_field(
    key: &FieldKey,
    purpose: &str,
    clear: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, FieldError> {
    let (nonce, msg) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(FieldError)?;
    let aad = [purpose.as_bytes(), clear].concat();
    let payload = Payload { msg, aad: &aad };
    let mut salted = key
        .cipher(purpose)
        .decrypt(&XNonce::from(*nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| FieldError)?;
    // The tag alone does not commit to the key: the nonce, a hash under the same key, does.
    if salted.len() < SALT_LEN || key.nonce(purpose, &aad, &salted) != *nonce {
        return Err(FieldError);
    }
    salted.drain(..SALT_LEN);
    Ok(salted)
}

pub(crate) fn seal_salted(
    key: &FieldKey,
    purpose: &str,
    clear: &[u8],
    secret: &[u8],
    salt: [u8; SALT_LEN],
) -> Vec<u8> {
    let aad = [purpose.as_bytes(), clear].concat();
    let salted = Zeroizing::new([&salt, secret].concat());
    let nonce = key.nonce(purpose, &aad, &salted);
    let payload = Payload {
        msg: &salted,
        aad: &aad,
    };
    let ciphertext = key
        .cipher(purpose)
        .encrypt(&XNonce::from(nonce), payload)
        .expect("the cipher takes messages of up to 256 GiB");
    [&nonce[..], &ciphertext].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> FieldKey {
        FieldKey::from_bytes([7; 32])
    }

    #[test]
    fn a_repeated_salt_repeats_a_nonce_only_for_the_same_message() {
        let sealed = |clear: &[u8], secret: &[u8]| seal_salted(&key(), "p", clear, secret, [1; 16]);
        assert_eq!(sealed(b"c", b"one"), sealed(b"c", b"one"));
        assert_ne!(sealed(b"c", b"one")[..24], sealed(b"c", b"two")[..24]);
        assert_ne!(sealed(b"c", b"one")[..24], sealed(b"d", b"one")[..24]);
    }

    #[test]
    fn equal_secrets_look_different() {
        let first = seal_field(&key(), "p", b"", b"name");
        assert_ne!(first, seal_field(&key(), "p", b"", b"name"));
        assert_eq!(first.len(), 4 + FIELD_OVERHEAD);
    }

    #[test]
    fn purpose_clear_bytes_and_key_are_bound() {
        let sealed = seal_field(&key(), "name", b"clear", b"secret");
        assert_eq!(
            *open_field(&key(), "name", b"clear", &sealed).unwrap(),
            b"secret"
        );
        assert_eq!(
            open_field(&key(), "nam", b"eclear", &sealed),
            Err(FieldError)
        );
        assert_eq!(
            open_field(&key(), "name", b"cleaR", &sealed),
            Err(FieldError)
        );
        let other = FieldKey::of_invite(&[7; 16]);
        assert_eq!(
            open_field(&other, "name", b"clear", &sealed),
            Err(FieldError)
        );
    }

    #[test]
    fn every_bit_flip_is_refused() {
        let mut sealed = seal_field(&key(), "p", b"c", b"secret");
        for bit in 0..sealed.len() * 8 {
            sealed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_field(&key(), "p", b"c", &sealed), Err(FieldError));
            sealed[bit / 8] ^= 1 << (bit % 8);
        }
    }

    proptest! {
        #[test]
        fn round_trips(
            clear in proptest::collection::vec(any::<u8>(), 0..200),
            secret in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let sealed = seal_field(&key(), "p", &clear, &secret);
            prop_assert_eq!(&*open_field(&key(), "p", &clear, &sealed).unwrap(), &secret);
        }

        #[test]
        fn opening_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(open_field(&key(), "p", b"", &bytes), Err(FieldError));
        }
    }
}
