//! Hands a home secret on: to a device's receiving key, and from each secret to its predecessor.
//!
//! A wrap is HPKE base mode (RFC 9180) with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
//! ChaCha20-Poly1305: 32 bytes encapsulated key, then 48 bytes ciphertext of the secret, with
//! info = `"imgctl hs wrap v1" ‖ home id ‖ id of the previous roster entry ‖ receiving key ‖ key
//! epoch`. Base mode authenticates no sender: wraps only ever stand inside signed roster entries,
//! beside the secret's commitment.

use std::fmt;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use img_types::{EntryId, HomeId, KeyEpoch};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::field::{open_field, seal_field};
use crate::keys::{HomeSecret, random};

const INFO: &[u8] = b"imgctl hs wrap v1";
const PREVIOUS_PURPOSE: &str = "previous home secret";
const ENCAPSULATED_LEN: usize = 32;

/// Length of a wrapped home secret in bytes.
pub const WRAP_LEN: usize = ENCAPSULATED_LEN + 32 + 16;

/// The secret half of a receiving key (X25519).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct KemSecret([u8; 32]);

impl KemSecret {
    /// Makes a new random key.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Takes a key that was stored.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the key, to store it.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }

    /// The public half, which roster entries name.
    pub fn public(&self) -> [u8; 32] {
        X25519HkdfSha256::sk_to_pk(&self.private())
            .to_bytes()
            .into()
    }

    fn private(&self) -> <X25519HkdfSha256 as Kem>::PrivateKey {
        Deserializable::from_bytes(&self.0).expect("every 32 bytes are an X25519 key")
    }
}

impl fmt::Debug for KemSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KemSecret(..)")
    }
}

/// Where a wrap stands; binds it to one roster entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapInfo {
    /// The home; zeros in the genesis entry.
    pub home: HomeId,
    /// The entry before the one that carries the wrap; zeros in the genesis entry.
    pub previous: EntryId,
    /// The wrapped secret's epoch.
    pub epoch: KeyEpoch,
}

impl WrapInfo {
    fn bytes(&self, receiver: &[u8; 32]) -> Vec<u8> {
        [
            INFO,
            self.home.as_bytes(),
            self.previous.as_bytes(),
            receiver,
            &self.epoch.0.to_le_bytes(),
        ]
        .concat()
    }
}

/// Says that a secret cannot be wrapped or unwrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// The receiving key is not a usable X25519 key.
    #[error("the receiving key is not usable")]
    Receiver,
    /// The bytes were not wrapped for this key at this place.
    #[error("the home secret does not open with this device's key")]
    NotForThisKey,
}

/// Wraps a home secret for a receiving key.
///
/// # Errors
/// The key is one of the few that give no secret agreement.
pub fn wrap_secret(
    receiver: &[u8; 32],
    info: WrapInfo,
    secret: &HomeSecret,
) -> Result<Vec<u8>, WrapError> {
    let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(receiver)
        .map_err(|_| WrapError::Receiver)?;
    let (encapsulated, ciphertext) =
        hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &key,
            &info.bytes(receiver),
            &*secret.to_bytes(),
            &[],
        )
        .map_err(|_| WrapError::Receiver)?;
    Ok([&encapsulated.to_bytes()[..], &ciphertext].concat())
}

/// Unwraps a home secret; compare its commitment with the roster entry's afterwards.
///
/// # Errors
/// The bytes were not wrapped for this key, home, entry and epoch.
pub fn unwrap_secret(
    receiver: &KemSecret,
    info: WrapInfo,
    wrapped: &[u8],
) -> Result<HomeSecret, WrapError> {
    let refused = |_| WrapError::NotForThisKey;
    let (encapsulated, ciphertext) = wrapped
        .split_at_checked(ENCAPSULATED_LEN)
        .ok_or(WrapError::NotForThisKey)?;
    let encapsulated =
        <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(refused)?;
    let secret = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &receiver.private(),
        &encapsulated,
        &info.bytes(&receiver.public()),
        ciphertext,
        &[],
    )
    .map(Zeroizing::new)
    .map_err(refused)?;
    let secret = secret
        .as_slice()
        .try_into()
        .map_err(|_| WrapError::NotForThisKey)?;
    Ok(HomeSecret::from_bytes(secret))
}

/// Seals the home secret of the epoch before under its successor, so that whoever has the newest
/// one reaches all older ones.
pub fn seal_previous(newer: &HomeSecret, epoch: KeyEpoch, previous: &HomeSecret) -> Vec<u8> {
    seal_field(
        &newer.previous_key(),
        PREVIOUS_PURPOSE,
        &epoch.0.to_le_bytes(),
        &*previous.to_bytes(),
    )
}

/// Opens the home secret of the epoch before `epoch`, the one of `newer`.
///
/// # Errors
/// The bytes were not sealed under that secret for that epoch.
pub fn open_previous(
    newer: &HomeSecret,
    epoch: KeyEpoch,
    sealed: &[u8],
) -> Result<HomeSecret, WrapError> {
    let secret = open_field(
        &newer.previous_key(),
        PREVIOUS_PURPOSE,
        &epoch.0.to_le_bytes(),
        sealed,
    )
    .map_err(|_| WrapError::NotForThisKey)?;
    let secret = secret
        .as_slice()
        .try_into()
        .map_err(|_| WrapError::NotForThisKey)?;
    Ok(HomeSecret::from_bytes(secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INFO: WrapInfo = WrapInfo {
        home: HomeId::from_bytes([1; 32]),
        previous: EntryId::from_bytes([2; 32]),
        epoch: KeyEpoch(3),
    };

    #[test]
    fn only_the_receiver_at_this_place_unwraps() {
        let receiver = KemSecret::generate();
        let secret = HomeSecret::generate();
        let wrapped = wrap_secret(&receiver.public(), INFO, &secret).unwrap();
        assert_eq!(wrapped.len(), WRAP_LEN);
        let opened = unwrap_secret(&receiver, INFO, &wrapped).unwrap();
        assert_eq!(opened.commitment(), secret.commitment());

        let refused = |key: &KemSecret, info: WrapInfo, bytes: &[u8]| {
            assert_eq!(
                unwrap_secret(key, info, bytes).unwrap_err(),
                WrapError::NotForThisKey
            );
        };
        refused(&KemSecret::generate(), INFO, &wrapped);
        let home = HomeId::from_bytes([0; 32]);
        refused(&receiver, WrapInfo { home, ..INFO }, &wrapped);
        let previous = EntryId::from_bytes([0; 32]);
        refused(&receiver, WrapInfo { previous, ..INFO }, &wrapped);
        let epoch = KeyEpoch(4);
        refused(&receiver, WrapInfo { epoch, ..INFO }, &wrapped);
        refused(&receiver, INFO, &wrapped[..WRAP_LEN - 1]);
        for byte in 0..WRAP_LEN {
            let mut changed = wrapped.clone();
            changed[byte] ^= 1;
            refused(&receiver, INFO, &changed);
        }
    }

    #[test]
    fn keys_without_agreement_are_refused() {
        let mut low_order = [0; 32];
        for first in [0, 1] {
            low_order[0] = first;
            let wrapped = wrap_secret(&low_order, INFO, &HomeSecret::generate());
            assert_eq!(wrapped, Err(WrapError::Receiver));
        }
    }

    #[test]
    fn older_secrets_are_reached_through_newer_ones() {
        let secrets: Vec<_> = (0..4).map(|_| HomeSecret::generate()).collect();
        let sealed: Vec<_> = (1..4)
            .map(|n| seal_previous(&secrets[n], KeyEpoch(n as u32), &secrets[n - 1]))
            .collect();
        let mut secret = secrets[3].clone();
        for n in (1..4).rev() {
            assert!(open_previous(&secret, KeyEpoch(n as u32 + 1), &sealed[n - 1]).is_err());
            secret = open_previous(&secret, KeyEpoch(n as u32), &sealed[n - 1]).unwrap();
            assert_eq!(secret.commitment(), secrets[n - 1].commitment());
        }
    }

    proptest! {
        #[test]
        fn unwrapping_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let receiver = KemSecret::from_bytes([5; 32]);
            prop_assert!(unwrap_secret(&receiver, INFO, &bytes).is_err());
        }
    }
}
