//! Identifiers: 32 bytes each, one type per meaning, no conversion between kinds.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Says why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 hexadecimal digits")]
pub struct ParseIdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Length of the identifier in bytes.
            pub const LEN: usize = 32;

            /// Takes the bytes as they are.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Takes a slice of exactly 32 bytes, or nothing.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Shows the bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Renders the first ten hexadecimal digits, for people; never an address.
            pub fn short(&self) -> String {
                HEXLOWER.encode(&self.0[..5])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| ParseIdError)?;
                Self::from_slice(&bytes).ok_or(ParseIdError)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

id!(
    /// Addresses a stored object by its content; see [`crate::object`].
    ObjectId
);
id!(
    /// Names a commit: the derive-hash of its record without the signature.
    CommitId
);
id!(
    /// Names an image; random, chosen when the image or branch is created.
    ImageId
);
id!(
    /// Names an enrolled device: the derive-hash of its three public keys.
    DeviceId
);
id!(
    /// Names one checkout at one device; random.
    CheckoutId
);
id!(
    /// Names a home: the derive-hash of its genesis record.
    HomeId
);
id!(
    /// The home's Ed25519 public key: its TLS identity and the verifier of its receipts.
    HomeKey
);
id!(
    /// Names one database of a home; random, new after a restore from a backup.
    Incarnation
);
id!(
    /// Names a mutating call so that a repeated one has no second effect: a daemon nonce's first
    /// 16 bytes, then 16 random bytes.
    RequestId
);
id!(
    /// A keyed hash of an image's name, equal for equal names within one home.
    NameTag
);
id!(
    /// Names a roster entry: the derive-hash of its record without the signature.
    EntryId
);
id!(
    /// The hash chain of a home's log up to one position.
    LogRoot
);
id!(
    /// Names an upload session at the home; random.
    UploadId
);
id!(
    /// Names an invite: the derive-hash of its one-time secret.
    InviteId
);
id!(
    /// Random value of one daemon start; the home turns it into an [`crate::Instance`].
    DaemonNonce
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_refuses_other_lengths() {
        let id = ObjectId::from_bytes([0xab; 32]);
        assert_eq!(id.to_string().parse::<ObjectId>(), Ok(id));
        assert_eq!("abab".parse::<ObjectId>(), Err(ParseIdError));
        assert_eq!("zz".repeat(32).parse::<ObjectId>(), Err(ParseIdError));
        assert_eq!(id.short(), "ababababab");
    }

    #[test]
    fn serialises_as_hex_for_people_and_as_bytes_on_the_wire() {
        let id = ImageId::from_bytes([7; 32]);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<ImageId>(&json).unwrap(), id);
        let wire = postcard::to_allocvec(&id).unwrap();
        assert_eq!(wire, [7; 32]);
        assert_eq!(postcard::from_bytes::<ImageId>(&wire).unwrap(), id);
    }
}
