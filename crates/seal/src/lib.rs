//! Content keys; seals and opens objects, fields of records and home secrets.
//!
//! This is the only crate in which plaintext and ciphertext meet. It owns the key derivations from
//! a home secret, the sealing of objects and of the secret fields that signed records carry, the
//! wrapping of home secrets for devices, and the recovery words. Bytes in, bytes out: it knows no
//! records, no index, no I/O. The home does not link it. `docs/formats.md` describes its bytes,
//! `docs/threat-model.md` what they are meant to withstand.

pub mod field;
pub mod keys;
pub mod object;
mod packing;
pub mod recovery;
pub mod reference;
pub mod wrap;

#[cfg(test)]
mod golden;

pub use field::{FieldError, FieldKey, open_field, seal_field};
pub use keys::{ContentKey, HomeSecret, KeyRing};
pub use object::{OpenError, Opened, SealError, Sealed, Sealer, open};
pub use recovery::{RecoverySecret, RecoveryWordsError};
pub use reference::{BlockKey, Reference};
pub use wrap::{
    KemSecret, WrapError, WrapInfo, open_previous, seal_previous, unwrap_secret, wrap_secret,
};
