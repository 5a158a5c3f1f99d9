//! The device's own keys, and the home secrets that the roster wraps for them.
//!
//! Three files of 32 bytes, mode 0600: the signing key, the TLS key and the key that receives wrapped
//! secrets. `docs/formats.md` says what each is for. Home secrets are never stored: the roster carries them, wrapped.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use img_net::TlsIdentity;
use img_records::{Change, PublicKeys, Roster, RosterEntry, SigningSecret};
use img_seal::{KemSecret, KeyRing, WrapError, WrapInfo, open_previous, unwrap_secret};
use img_types::{DeviceId, EntryId, HomeId, KeyEpoch};
use zeroize::Zeroizing;

/// The device's secrets.
#[derive(Debug)]
pub struct Identity {
    sign: SigningSecret,
    tls: SigningSecret,
    kem: KemSecret,
}

/// Why a roster gives this device no keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// No entry wraps a secret for this device.
    #[error("the roster has no keys for this device")]
    NoWrap,
    /// A wrap or a sealed older secret does not open.
    #[error(transparent)]
    Wrap(#[from] WrapError),
    /// A secret is not the one that the signed entry promises.
    #[error("a home secret is not the one that its roster entry names")]
    Commitment,
}

impl Identity {
    /// Reads the identity, or makes one that is durable when this returns.
    ///
    /// # Errors
    /// The folder cannot be read or written, or a file is no key.
    pub fn load_or_create(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            sign: SigningSecret::from_bytes(*load_or_create(dir, "sign.key")?),
            tls: SigningSecret::from_bytes(*load_or_create(dir, "tls.key")?),
            kem: KemSecret::from_bytes(*load_or_create(dir, "kem.key")?),
        })
    }

    /// The public halves.
    pub fn public(&self) -> PublicKeys {
        PublicKeys {
            sign: self.sign.public(),
            tls: self.tls.public(),
            kem: self.kem.public(),
        }
    }

    /// The device's id.
    pub fn device(&self) -> DeviceId {
        self.public().device_id()
    }

    /// Signs records.
    pub fn signer(&self) -> &SigningSecret {
        &self.sign
    }

    /// Receives wrapped secrets.
    pub fn kem(&self) -> &KemSecret {
        &self.kem
    }

    /// Proves who this device is to the home.
    pub fn tls(&self) -> TlsIdentity {
        TlsIdentity::from_seed(&self.tls.to_bytes())
    }
}

/// The home secrets known now, shared by all who seal and open.
#[derive(Debug, Clone)]
pub struct Keys(Arc<RwLock<Arc<KeyRing>>>);

impl Keys {
    /// Begins with a ring.
    pub fn new(ring: KeyRing) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(ring))))
    }

    /// The ring as it is now.
    pub fn now(&self) -> Arc<KeyRing> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes newer epochs into use.
    pub fn replace(&self, ring: KeyRing) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
    }
}

/// Opens every home secret that a roster holds for a receiving key.
///
/// # Errors
/// [`KeysError`].
pub fn key_ring(receiver: &KemSecret, roster: &Roster) -> Result<KeyRing, KeysError> {
    let mut ring: Option<KeyRing> = None;
    let mut promised = Vec::new();
    for entry in roster.entries() {
        let entry = &entry.record;
        let Some(content) = secrets_of(entry) else {
            continue;
        };
        promised.push(content);
        let Some(wrap) = content
            .wraps
            .iter()
            .find(|wrap| wrap.receiver == receiver.public())
        else {
            continue;
        };
        let info = WrapInfo {
            home: home_of(entry, roster.home()),
            previous: entry.previous,
            epoch: content.epoch,
        };
        let mut secret = unwrap_secret(receiver, info, &wrap.bytes)?;
        let mut epoch = content.epoch;
        if secret.commitment() != content.commitment {
            return Err(KeysError::Commitment);
        }
        let mut keys = match ring.take() {
            Some(mut ring) => {
                ring.add(epoch, secret.clone());
                ring
            }
            None => KeyRing::new(epoch, secret.clone()),
        };
        // From the newest one down, each entry that rotated seals the one before it.
        for older in promised.iter().rev() {
            if older.epoch != epoch {
                continue;
            }
            let Some(sealed) = older.sealed_previous else {
                continue;
            };
            let Some(before) = epoch.0.checked_sub(1).map(KeyEpoch) else {
                break;
            };
            if keys.secret(before).is_some() {
                break;
            }
            secret = open_previous(&secret, epoch, sealed)?;
            epoch = before;
            if commitment_of(&promised, epoch) != Some(secret.commitment()) {
                return Err(KeysError::Commitment);
            }
            keys.add(epoch, secret.clone());
        }
        ring = Some(keys);
    }
    ring.ok_or(KeysError::NoWrap)
}

/// What an entry says about home secrets.
#[derive(Clone, Copy)]
struct Secrets<'a> {
    epoch: KeyEpoch,
    commitment: [u8; 32],
    wraps: &'a [img_records::Wrap],
    sealed_previous: Option<&'a [u8]>,
}

fn secrets_of(entry: &RosterEntry) -> Option<Secrets<'_>> {
    match &entry.change {
        Change::Genesis {
            secret_commitment,
            wraps,
            ..
        } => Some(Secrets {
            epoch: KeyEpoch(0),
            commitment: *secret_commitment,
            wraps,
            sealed_previous: None,
        }),
        Change::Add {
            key_epoch,
            secret_commitment,
            wrap,
            ..
        } => Some(Secrets {
            epoch: *key_epoch,
            commitment: *secret_commitment,
            wraps: std::slice::from_ref(wrap),
            sealed_previous: None,
        }),
        Change::Revoke {
            key_epoch,
            secret_commitment,
            sealed_previous,
            wraps,
            ..
        }
        | Change::Recover {
            key_epoch,
            secret_commitment,
            sealed_previous,
            wraps,
            ..
        } => Some(Secrets {
            epoch: *key_epoch,
            commitment: *secret_commitment,
            wraps,
            sealed_previous: Some(sealed_previous),
        }),
    }
}

fn commitment_of(promised: &[Secrets<'_>], epoch: KeyEpoch) -> Option<[u8; 32]> {
    let found = promised.iter().find(|secrets| secrets.epoch == epoch);
    found.map(|secrets| secrets.commitment)
}

/// The home id that a wrap of this entry was bound to: zeros in the genesis entry, which makes the id.
fn home_of(entry: &RosterEntry, home: HomeId) -> HomeId {
    match entry.change {
        Change::Genesis { .. } => HomeId::from_bytes([0; 32]),
        _ => home,
    }
}

/// The entry before the genesis entry.
pub const BEFORE_GENESIS: EntryId = EntryId::from_bytes([0; 32]);

fn load_or_create(dir: &Path, name: &str) -> io::Result<Zeroizing<[u8; 32]>> {
    let path = dir.join(name);
    match std::fs::read(&path).map(Zeroizing::new) {
        Ok(bytes) => {
            let key = bytes.as_slice().try_into().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no key"))
            })?;
            Ok(Zeroizing::new(key))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = Zeroizing::new([0; 32]);
            getrandom::fill(key.as_mut())?;
            write_durably(dir, name, key.as_ref())?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = dir.join(format!("{name}.new"));
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, dir.join(name))?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_identity_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = Identity::load_or_create(dir.path()).unwrap();
        let again = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(made.device(), again.device());
        for name in ["sign.key", "tls.key", "kem.key"] {
            let found = std::fs::metadata(dir.path().join(name)).unwrap();
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
        }
        std::fs::write(dir.path().join("sign.key"), b"short").unwrap();
        assert!(Identity::load_or_create(dir.path()).is_err());
    }
}
