//! Home secrets and every key derived from them.
//!
//! | key | derive_key context | key material |
//! |---|---|---|
//! | `C_n`, objects | `imgctl 2026-11-21 objects v1` | `HS_n` |
//! | `I_n,i`, commits and descriptor of image i | `imgctl 2026-11-21 image records v1` | `HS_n` ‖ image id |
//! | `R_n`, roster fields | `imgctl 2026-11-21 roster fields v1` | `HS_n` |
//! | `N`, name tags | `imgctl 2026-11-21 name tags v1` | `HS_0` |
//! | commitment in roster entries | `imgctl 2026-11-21 hs commit v1` | `HS_n` |
//! | seals `HS_n−1` | `imgctl 2026-11-21 previous home secret v1` | `HS_n` |
//! | fields of a join request | `imgctl 2026-11-21 invite fields v1` | invite secret |
//! | cipher key of a field | `imgctl 2026-11-21 field encryption v1` | field key ‖ purpose |
//! | nonce key of a field | `imgctl 2026-11-21 field nonce v1` | field key ‖ purpose |
//! | recovery signing seed | `imgctl 2026-11-21 recovery signing v1` | recovery secret |
//! | recovery receiving key | `imgctl 2026-11-21 recovery receiving v1` | recovery secret |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use img_types::{ImageId, KeyEpoch, NameTag};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::field::FieldKey;
use crate::object::Sealer;

pub(crate) mod context {
    pub(crate) const OBJECTS: &str = "imgctl 2026-11-21 objects v1";
    pub(crate) const IMAGE_RECORDS: &str = "imgctl 2026-11-21 image records v1";
    pub(crate) const ROSTER_FIELDS: &str = "imgctl 2026-11-21 roster fields v1";
    pub(crate) const NAME_TAGS: &str = "imgctl 2026-11-21 name tags v1";
    pub(crate) const COMMITMENT: &str = "imgctl 2026-11-21 hs commit v1";
    pub(crate) const PREVIOUS_SECRET: &str = "imgctl 2026-11-21 previous home secret v1";
    pub(crate) const INVITE_FIELDS: &str = "imgctl 2026-11-21 invite fields v1";
    pub(crate) const FIELD_ENCRYPTION: &str = "imgctl 2026-11-21 field encryption v1";
    pub(crate) const FIELD_NONCE: &str = "imgctl 2026-11-21 field nonce v1";
    pub(crate) const RECOVERY_SIGNING: &str = "imgctl 2026-11-21 recovery signing v1";
    pub(crate) const RECOVERY_RECEIVING: &str = "imgctl 2026-11-21 recovery receiving v1";
}

/// Derives 32 bytes from the concatenation of `material`; only its last part may vary in length.
pub(crate) fn derive(context: &'static str, material: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in material {
        hasher.update(part);
    }
    let key = *hasher.finalize().as_bytes();
    hasher.zeroize();
    key
}

/// Fills an array from the operating system's randomness.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness once it has booted");
    bytes
}

/// The secret that all devices of a home share and the home never has: `HS_n`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct HomeSecret([u8; 32]);

impl HomeSecret {
    /// Makes a new random secret.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Takes a secret that was stored or unwrapped.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the secret, to store or to wrap it.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }

    /// Names the secret without telling it; stands in the roster entry that introduces it, and who
    /// receives a wrap compares.
    pub fn commitment(&self) -> [u8; 32] {
        derive(context::COMMITMENT, &[&self.0])
    }

    pub(crate) fn previous_key(&self) -> FieldKey {
        FieldKey::from_bytes(derive(context::PREVIOUS_SECRET, &[&self.0]))
    }
}

impl fmt::Debug for HomeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HomeSecret(..)")
    }
}

/// Keys the key derivation of objects within one key epoch: `C_n`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ContentKey([u8; 32]);

impl ContentKey {
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey(..)")
    }
}

/// The home secrets that a device knows, with the keys derived from them; never empty.
///
/// Cloning shares the keys.
#[derive(Clone)]
pub struct KeyRing {
    epochs: BTreeMap<KeyEpoch, Arc<EpochKeys>>,
}

struct EpochKeys {
    secret: HomeSecret,
    content: ContentKey,
}

impl EpochKeys {
    fn new(secret: HomeSecret) -> Arc<Self> {
        let content = ContentKey(derive(context::OBJECTS, &[&secret.0]));
        Arc::new(Self { secret, content })
    }
}

impl KeyRing {
    /// Starts with one secret.
    pub fn new(epoch: KeyEpoch, secret: HomeSecret) -> Self {
        Self {
            epochs: BTreeMap::from([(epoch, EpochKeys::new(secret))]),
        }
    }

    /// Adds the secret of another epoch.
    pub fn add(&mut self, epoch: KeyEpoch, secret: HomeSecret) {
        self.epochs.insert(epoch, EpochKeys::new(secret));
    }

    /// The newest epoch: the one to write under.
    pub fn newest(&self) -> KeyEpoch {
        *self.newest_entry().0
    }

    /// The secret of an epoch, to wrap it for another device.
    pub fn secret(&self, epoch: KeyEpoch) -> Option<&HomeSecret> {
        self.epochs.get(&epoch).map(|keys| &keys.secret)
    }

    /// The key of an epoch's objects.
    pub fn content(&self, epoch: KeyEpoch) -> Option<&ContentKey> {
        self.epochs.get(&epoch).map(|keys| &keys.content)
    }

    /// The key of the sealed parts of an image's commits and descriptor.
    pub fn record(&self, epoch: KeyEpoch, image: &ImageId) -> Option<FieldKey> {
        let secret = self.secret(epoch)?;
        let key = derive(context::IMAGE_RECORDS, &[&secret.0, image.as_bytes()]);
        Some(FieldKey::from_bytes(key))
    }

    /// The key of the sealed parts of roster entries.
    pub fn roster(&self, epoch: KeyEpoch) -> Option<FieldKey> {
        let secret = self.secret(epoch)?;
        let key = derive(context::ROSTER_FIELDS, &[&secret.0]);
        Some(FieldKey::from_bytes(key))
    }

    /// Hashes an image's name so that the home can tell equal names apart from others without
    /// reading them; nothing until the secret of epoch 0 has been added, which never rotates.
    pub fn name_tag(&self, name: &str) -> Option<NameTag> {
        let secret = self.secret(KeyEpoch(0))?;
        let key = Zeroizing::new(derive(context::NAME_TAGS, &[&secret.0]));
        let tag = blake3::keyed_hash(&key, name.as_bytes());
        Some(NameTag::from_bytes(*tag.as_bytes()))
    }

    /// Makes a sealer that writes under the newest epoch.
    pub fn sealer(&self) -> Sealer {
        let (epoch, keys) = self.newest_entry();
        Sealer::new(keys.content.clone(), *epoch)
    }

    fn newest_entry(&self) -> (&KeyEpoch, &Arc<EpochKeys>) {
        self.epochs
            .last_key_value()
            .expect("a ring starts with one secret and none is ever taken out")
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing(epochs {:?}, ..)", self.epochs.keys())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_images_and_purposes_have_keys_of_their_own() {
        let mut ring = KeyRing::new(KeyEpoch(1), HomeSecret::from_bytes([1; 32]));
        assert_eq!(ring.name_tag("x"), None);
        assert!(ring.content(KeyEpoch(0)).is_none());
        ring.add(KeyEpoch(0), HomeSecret::from_bytes([0; 32]));
        assert_eq!(ring.newest(), KeyEpoch(1));
        assert_ne!(ring.name_tag("x"), ring.name_tag("y"));

        let mut keys = Vec::new();
        for epoch in [KeyEpoch(0), KeyEpoch(1)] {
            keys.push(*ring.content(epoch).unwrap().as_bytes());
            keys.push(*ring.roster(epoch).unwrap().as_bytes());
            keys.push(ring.secret(epoch).unwrap().commitment());
            keys.push(*ring.secret(epoch).unwrap().previous_key().as_bytes());
            for image in [[1; 32], [2; 32]] {
                let image = ImageId::from_bytes(image);
                keys.push(*ring.record(epoch, &image).unwrap().as_bytes());
            }
        }
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn generated_secrets_differ_and_debug_tells_none() {
        let secret = HomeSecret::generate();
        assert_ne!(*secret.to_bytes(), *HomeSecret::generate().to_bytes());
        let ring = KeyRing::new(KeyEpoch(0), HomeSecret::from_bytes([0xab; 32]));
        for text in [
            format!("{ring:?}"),
            format!("{:?}", ring.secret(KeyEpoch(0))),
            format!("{:?}", ring.content(KeyEpoch(0))),
            format!("{:?}", ring.roster(KeyEpoch(0))),
        ] {
            assert!(!text.contains("171") && !text.contains("ab"), "{text}");
        }
    }
}
