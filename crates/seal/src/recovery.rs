//! The recovery secret, which a person keeps on paper as 24 words.
//!
//! The words are BIP 39, English: 256 bits and a checksum. From the secret come a signing seed,
//! which may sign one roster entry, and a receiving key, to which every home secret is wrapped.

use std::fmt;

use bip39::{Language, Mnemonic};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::keys::{context, derive, random};
use crate::wrap::KemSecret;

/// Number of words.
pub const RECOVERY_WORDS: usize = 24;

/// 256 random bits that can bring a device back into a home when all others are lost.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RecoverySecret([u8; 32]);

impl RecoverySecret {
    /// Makes a new random secret.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Takes a secret that was stored until a person had written it down.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the secret, to store it until a person has written it down.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }

    /// The words, with one space between them.
    pub fn words(&self) -> Zeroizing<String> {
        let mnemonic = Mnemonic::from_entropy(&self.0).expect("BIP 39 takes 256 bits");
        Zeroizing::new(mnemonic.to_string())
    }

    /// Reads the words as a person types them: in any case, with any white space between.
    ///
    /// # Errors
    /// [`RecoveryWordsError`] says which word is wrong, as far as that can be told.
    pub fn parse(text: &str) -> Result<Self, RecoveryWordsError> {
        let text = Zeroizing::new(text.to_lowercase());
        let words: Vec<_> = text.split_whitespace().collect();
        if words.len() != RECOVERY_WORDS {
            return Err(RecoveryWordsError::Count(words.len()));
        }
        let text = Zeroizing::new(words.join(" "));
        let mnemonic = Mnemonic::parse_in_normalized(Language::English, &text).map_err(
            |error| match error {
                bip39::Error::UnknownWord(position) => RecoveryWordsError::Unknown(position + 1),
                _ => RecoveryWordsError::Checksum,
            },
        )?;
        let entropy = Zeroizing::new(mnemonic.to_entropy());
        let secret = entropy
            .as_slice()
            .try_into()
            .expect("24 words carry 256 bits");
        Ok(Self(secret))
    }

    /// The seed of the Ed25519 key that may sign one roster entry.
    pub fn signing_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(derive(context::RECOVERY_SIGNING, &[&self.0]))
    }

    /// The key to which home secrets are wrapped.
    pub fn kem(&self) -> KemSecret {
        KemSecret::from_bytes(derive(context::RECOVERY_RECEIVING, &[&self.0]))
    }
}

impl fmt::Debug for RecoverySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoverySecret(..)")
    }
}

/// Says what is wrong with typed recovery words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryWordsError {
    /// There are more or fewer than 24.
    #[error("there are {RECOVERY_WORDS} recovery words, not {0}")]
    Count(usize),
    /// One is not in the list of words; counted from 1.
    #[error("word {0} is not a recovery word")]
    Unknown(usize),
    /// All are words, but not in this combination.
    #[error("these recovery words do not belong together: at least one is wrong or misplaced")]
    Checksum,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_standard() {
        let words = RecoverySecret::from_bytes([0; 32]).words();
        assert_eq!(*words, "abandon ".repeat(23) + "art");
    }

    #[test]
    fn words_are_read_back_as_people_type_them() {
        let secret = RecoverySecret::generate();
        let words = secret.words();
        let typed = format!("  {}\n", words.to_uppercase().replace(' ', " \n\t"));
        let parsed = RecoverySecret::parse(&typed).unwrap();
        assert_eq!(*parsed.to_bytes(), *secret.to_bytes());
        assert_eq!(*parsed.signing_seed(), *secret.signing_seed());
        assert_eq!(parsed.kem().public(), secret.kem().public());
        assert_ne!(*secret.signing_seed(), *secret.kem().to_bytes());
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |text: &str| RecoverySecret::parse(text).unwrap_err();
        assert_eq!(refused(""), RecoveryWordsError::Count(0));
        assert_eq!(
            refused(&"abandon ".repeat(12)),
            RecoveryWordsError::Count(12)
        );
        assert_eq!(
            refused(&"abandon ".repeat(24)),
            RecoveryWordsError::Checksum
        );
        let typo = "abandon ".repeat(3) + "abandom " + &"abandon ".repeat(19) + "art";
        assert_eq!(refused(&typo), RecoveryWordsError::Unknown(4));
    }
}
