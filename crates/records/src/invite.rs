//! Invites: one line of text that lets a device find a home, and its inviter or founder recognise it.
//!
//! A line is a prefix and base64url, without padding, of body ‖ first 4 bytes of
//! `derive_hash("imgctl invite check v1", prefix ‖ body)`, so that a typing mistake is told apart
//! from an invite for another home.
//!
//! Member invite, prefix `imgctl-invite-`: version 1 (1), home key hash (32), home id (32), roster
//! number (8), newest roster entry (32), secret (16), expiry in milliseconds (8), log position (8),
//! address (4 + n). Founding invite, prefix `imgctl-found-`: version 1 (1), home key hash (32),
//! secret (16), address (4 + n).

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::{EntryId, HomeId, InviteId, LogPosition, WallMillis};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::signed::{text, version};

const VERSION: u8 = 1;
const MEMBER_PREFIX: &str = "imgctl-invite-";
const FOUNDING_PREFIX: &str = "imgctl-found-";
const ID_CONTEXT: &str = "imgctl invite id v1";
const CHECK_CONTEXT: &str = "imgctl invite check v1";
const CHECK_LEN: usize = 4;
/// Longest address of a home: the longest host name and a port.
pub const ADDRESS_LEN_MAX: usize = 253 + 6;
const LINE_LEN_MAX: usize = 1024;

/// Lets one device join a founded home.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Invite {
    /// Where the home listens: host and port.
    #[zeroize(skip)]
    pub address: String,
    /// BLAKE3 of the home's public key.
    #[zeroize(skip)]
    pub home_key_hash: [u8; 32],
    /// Which home.
    #[zeroize(skip)]
    pub home: HomeId,
    /// Number of the newest roster entry that the inviter knew.
    #[zeroize(skip)]
    pub roster_seq: u64,
    /// That entry; the joiner refuses a roster without it.
    #[zeroize(skip)]
    pub roster_head: EntryId,
    /// One-time secret between inviter and joiner.
    pub secret: [u8; 16],
    /// When the inviter stops accepting it.
    #[zeroize(skip)]
    pub expires: WallMillis,
    /// Newest position of the home's log that the inviter knew.
    #[zeroize(skip)]
    pub position: LogPosition,
}

impl Invite {
    /// The id under which the home relays requests.
    pub fn id(&self) -> InviteId {
        InviteId::from_bytes(blake3::derive_key(ID_CONTEXT, &self.secret))
    }

    fn body(&self) -> Vec<u8> {
        let mut body = vec![VERSION];
        body.extend_from_slice(&self.home_key_hash);
        body.extend_from_slice(self.home.as_bytes());
        body.put_u64(self.roster_seq);
        body.extend_from_slice(self.roster_head.as_bytes());
        body.extend_from_slice(&self.secret);
        body.put_i64(self.expires.0);
        body.put_u64(self.position.0);
        body.put_bytes(self.address.as_bytes());
        body
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        version(&mut reader, VERSION)?;
        let home_key_hash = reader.array()?;
        let home = HomeId::from_bytes(reader.array()?);
        let roster_seq = reader.u64()?;
        let roster_head = EntryId::from_bytes(reader.array()?);
        let secret = reader.array()?;
        let expires = WallMillis(reader.i64()?);
        let position = LogPosition(reader.u64()?);
        let address = address(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            address,
            home_key_hash,
            home,
            roster_seq,
            roster_head,
            secret,
            expires,
            position,
        })
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&line(MEMBER_PREFIX, self.body()))
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("address", &self.address)
            .field("home", &self.home)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Lets one device found a new home.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct FoundingInvite {
    /// Where the home listens: host and port.
    #[zeroize(skip)]
    pub address: String,
    /// BLAKE3 of the home's public key.
    #[zeroize(skip)]
    pub home_key_hash: [u8; 32],
    /// What the home itself checks.
    pub secret: [u8; 16],
}

impl FoundingInvite {
    fn body(&self) -> Vec<u8> {
        let mut body = vec![VERSION];
        body.extend_from_slice(&self.home_key_hash);
        body.extend_from_slice(&self.secret);
        body.put_bytes(self.address.as_bytes());
        body
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        version(&mut reader, VERSION)?;
        let home_key_hash = reader.array()?;
        let secret = reader.array()?;
        let address = address(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            address,
            home_key_hash,
            secret,
        })
    }
}

impl fmt::Display for FoundingInvite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&line(FOUNDING_PREFIX, self.body()))
    }
}

impl fmt::Debug for FoundingInvite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundingInvite")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// An invite of either kind, as `join` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyInvite {
    /// Founds a home.
    Founding(FoundingInvite),
    /// Joins one.
    Member(Invite),
}

impl fmt::Display for AnyInvite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Founding(invite) => invite.fmt(f),
            Self::Member(invite) => invite.fmt(f),
        }
    }
}

impl FromStr for AnyInvite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix(FOUNDING_PREFIX) {
            let body = body(FOUNDING_PREFIX, rest)?;
            Ok(Self::Founding(FoundingInvite::decode(&body)?))
        } else if let Some(rest) = text.strip_prefix(MEMBER_PREFIX) {
            let body = body(MEMBER_PREFIX, rest)?;
            Ok(Self::Member(Invite::decode(&body)?))
        } else {
            Err(InviteError::NotAnInvite)
        }
    }
}

/// Says why a text is no invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// It does not begin like one.
    #[error("an invite begins with {MEMBER_PREFIX} or {FOUNDING_PREFIX}")]
    NotAnInvite,
    /// It was not copied completely and correctly.
    #[error("the invite was not copied correctly: its check does not match")]
    Mistyped,
    /// It was copied correctly, but this version does not read it.
    #[error("the invite is of a kind that this version does not know: {0}")]
    Malformed(#[from] DecodeError),
}

fn line(prefix: &str, mut body: Vec<u8>) -> String {
    let check = check(prefix, &body);
    body.extend_from_slice(&check);
    let line = format!("{prefix}{}", BASE64URL_NOPAD.encode(&body));
    body.zeroize();
    line
}

fn body(prefix: &str, encoded: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, InviteError> {
    if encoded.len() > LINE_LEN_MAX {
        return Err(InviteError::Mistyped);
    }
    let mut body = BASE64URL_NOPAD
        .decode(encoded.as_bytes())
        .map(zeroize::Zeroizing::new)
        .map_err(|_| InviteError::Mistyped)?;
    let len = body
        .len()
        .checked_sub(CHECK_LEN)
        .ok_or(InviteError::Mistyped)?;
    if check(prefix, &body[..len])[..] != body[len..] {
        return Err(InviteError::Mistyped);
    }
    body.truncate(len);
    Ok(body)
}

fn check(prefix: &str, body: &[u8]) -> [u8; CHECK_LEN] {
    let mut hasher = blake3::Hasher::new_derive_key(CHECK_CONTEXT);
    hasher.update(prefix.as_bytes()).update(body);
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_LEN]);
    check
}

fn address(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let address = text(reader, ADDRESS_LEN_MAX)?;
    if address.is_empty() || address.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(DecodeError("not an address"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member() -> Invite {
        Invite {
            address: "home.example:4460".to_owned(),
            home_key_hash: [1; 32],
            home: HomeId::from_bytes([2; 32]),
            roster_seq: 3,
            roster_head: EntryId::from_bytes([4; 32]),
            secret: [0xab; 16],
            expires: WallMillis(5),
            position: LogPosition(6),
        }
    }

    fn founding() -> FoundingInvite {
        FoundingInvite {
            address: "[::1]:4460".to_owned(),
            home_key_hash: [1; 32],
            secret: [0xab; 16],
        }
    }

    #[test]
    fn lines_are_read_back() {
        for invite in [AnyInvite::Member(member()), AnyInvite::Founding(founding())] {
            let line = invite.to_string();
            assert!(line.len() < 300 && !line.contains(char::is_whitespace));
            assert_eq!(format!(" {line}\n").parse(), Ok(invite));
        }
    }

    #[test]
    fn mistakes_are_told_apart() {
        let parse = |text: &str| text.parse::<AnyInvite>().unwrap_err();
        assert_eq!(parse(""), InviteError::NotAnInvite);
        assert_eq!(parse("http://example.org"), InviteError::NotAnInvite);
        let line = member().to_string();
        for at in MEMBER_PREFIX.len()..line.len() {
            let wrong = if line.as_bytes()[at] == b'A' {
                "B"
            } else {
                "A"
            };
            let typed = format!("{}{wrong}{}", &line[..at], &line[at + 1..]);
            assert_eq!(parse(&typed), InviteError::Mistyped, "{at}");
        }
        assert_eq!(parse(&line[..line.len() - 3]), InviteError::Mistyped);
        assert_eq!(parse(MEMBER_PREFIX), InviteError::Mistyped);
        let swapped = line.replace(MEMBER_PREFIX, FOUNDING_PREFIX);
        assert_eq!(parse(&swapped), InviteError::Mistyped);
        let newer = super::line(MEMBER_PREFIX, vec![2, 0, 0]);
        assert!(matches!(parse(&newer), InviteError::Malformed(_)));
        let mut nowhere = founding();
        nowhere.address = "a b".to_owned();
        assert!(matches!(
            parse(&nowhere.to_string()),
            InviteError::Malformed(_)
        ));
    }

    #[test]
    fn debug_does_not_tell_the_secret() {
        for text in [format!("{:?}", member()), format!("{:?}", founding())] {
            assert!(!text.contains("secret") && !text.contains("171"), "{text}");
        }
        assert_eq!(member().id(), member().id());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(found: bool, text in "[A-Za-z0-9_-]{0,80}") {
            let prefix = if found { FOUNDING_PREFIX } else { MEMBER_PREFIX };
            let _ = format!("{prefix}{text}").parse::<AnyInvite>();
        }

        #[test]
        fn decoding_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Invite::decode(&body);
            let _ = FoundingInvite::decode(&body);
            let _ = line(MEMBER_PREFIX, body).parse::<AnyInvite>();
        }
    }
}
