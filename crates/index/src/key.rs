//! Keys of the map: `zone ‖ inode ‖ kind ‖ rest`, compared as bytes.
//!
//! | zone | inode | kind | rest | what |
//! |---|---|---|---|---|
//! | 0 | 0 | 1 | – | next inode |
//! | 0 | 0 | 2 | – | manifest |
//! | 0 | 0 | 3 | – | totals |
//! | 0 | 0 | 4 | – | owner |
//! | 0 | n | 5 | – | inode n is open but unlinked |
//! | 1 | n | 1 | – | attributes |
//! | 1 | n | 2 | name hash, 8 bytes ‖ name | directory entry of directory n |
//! | 1 | n | 3 | – | symlink target |
//! | 1 | n | 4 | name | extended attribute |
//! | 2 | n | 1 | – | inline contents |
//! | 2 | n | 2 | byte offset, 8 bytes | extent |
//!
//! Zone and kind are one byte, the inode is eight; numbers are big-endian, so that byte order is
//! numeric order.

use std::fmt;

use img_types::bytes::DecodeError;
use img_types::limits::{BLOCK_SIZE, ENTRY_NAME_LEN_MAX};

/// Number of a file within an image; also the number that the kernel knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(pub u64);

impl Inode {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// A directory entry's hash: its place in a listing and its cookie, below 2⁶³.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameHash(u64);

impl NameHash {
    /// Takes a number, its top bit cleared.
    pub const fn new(value: u64) -> Self {
        Self(value & (u64::MAX >> 1))
    }

    /// The number.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// A fact about the image as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// One more than the highest inode ever used.
    NextInode,
    /// The image's manifest.
    Manifest,
    /// Counts of files and bytes.
    Totals,
    /// User and group of the root directory when the image was created.
    Owner,
}

/// A key of the map, or a bound between keys.
///
/// Its `Debug` form leaves names out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<[u8]>);

/// A key taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyParts<'a> {
    /// A fact about the image.
    Fact(Fact),
    /// The inode is open but has no name any more.
    OpenUnlinked(Inode),
    /// Attributes of an inode.
    Attributes(Inode),
    /// An entry of a directory.
    Entry {
        /// The directory.
        parent: Inode,
        /// The name's hash.
        hash: NameHash,
        /// The name.
        name: &'a [u8],
    },
    /// The target of a symlink.
    Symlink(Inode),
    /// An extended attribute.
    Xattr {
        /// Whose attribute.
        inode: Inode,
        /// Its full name, such as `user.comment`.
        name: &'a [u8],
    },
    /// Contents kept in the index itself.
    Inline(Inode),
    /// The references of one block of a file.
    Extent {
        /// Which file.
        inode: Inode,
        /// Where the block starts, a multiple of [`BLOCK_SIZE`].
        offset: u64,
    },
    /// No entry's key: a bound of a range, or malformed.
    Bound,
}

impl Key {
    /// The key of a fact about the image.
    pub fn fact(fact: Fact) -> Self {
        let kind = match fact {
            Fact::NextInode => KIND_NEXT_INODE,
            Fact::Manifest => KIND_MANIFEST,
            Fact::Totals => KIND_TOTALS,
            Fact::Owner => KIND_OWNER,
        };
        Self::new(ZONE_FACTS, NO_INODE, kind, &[&[]])
    }

    /// The key that says that an inode is open but unlinked.
    pub fn open_unlinked(inode: Inode) -> Self {
        Self::new(ZONE_FACTS, inode, KIND_OPEN_UNLINKED, &[&[]])
    }

    /// The key of an inode's attributes.
    pub fn attributes(inode: Inode) -> Self {
        Self::new(ZONE_METADATA, inode, KIND_ATTRIBUTES, &[&[]])
    }

    /// The key of a directory entry. The name must be one that [`name_allowed`] allows.
    pub fn entry(parent: Inode, hash: NameHash, name: &[u8]) -> Self {
        let hash = hash.0.to_be_bytes();
        Self::new(ZONE_METADATA, parent, KIND_ENTRY, &[&hash, name])
    }

    /// The key of a symlink's target.
    pub fn symlink(inode: Inode) -> Self {
        Self::new(ZONE_METADATA, inode, KIND_SYMLINK, &[&[]])
    }

    /// The key of an extended attribute.
    pub fn xattr(inode: Inode, name: &[u8]) -> Self {
        Self::new(ZONE_METADATA, inode, KIND_XATTR, &[name])
    }

    /// The key of a file's inline contents.
    pub fn inline(inode: Inode) -> Self {
        Self::new(ZONE_DATA, inode, KIND_INLINE, &[&[]])
    }

    /// The key of the extent that starts at `offset`, a multiple of [`BLOCK_SIZE`].
    pub fn extent(inode: Inode, offset: u64) -> Self {
        Self::new(ZONE_DATA, inode, KIND_EXTENT, &[&offset.to_be_bytes()])
    }

    /// Reads the key of an entry.
    ///
    /// # Errors
    /// The bytes are no entry's key: among others, a name that is empty, `.`, `..`, too long, or
    /// holds a slash or NUL.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match parts_of(bytes) {
            KeyParts::Bound => Err(DecodeError("no index key")),
            _ => Ok(Self(bytes.into())),
        }
    }

    /// Takes the key apart.
    pub fn parts(&self) -> KeyParts<'_> {
        parts_of(&self.0)
    }

    /// The bytes, as they stand in a node.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The smallest bound above this key: where to go on after it.
    pub fn successor(&self) -> Self {
        Self([&self.0[..], &[0]].concat().into())
    }

    /// Takes bytes that were checked before, as those of an opened node.
    pub(crate) fn from_checked(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    fn new(zone: u8, inode: Inode, kind: u8, rest: &[&[u8]]) -> Self {
        let rest_len: usize = rest.iter().map(|part| part.len()).sum();
        let mut bytes = Vec::with_capacity(FIXED_LEN + rest_len);
        bytes.push(zone);
        bytes.extend_from_slice(&inode.0.to_be_bytes());
        bytes.push(kind);
        for part in rest {
            bytes.extend_from_slice(part);
        }
        Self(bytes.into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            KeyParts::Entry { parent, hash, .. } => {
                write!(f, "Entry({}, {:016x})", parent.0, hash.0)
            }
            KeyParts::Xattr { inode, name } => write!(f, "Xattr({}, {} B)", inode.0, name.len()),
            KeyParts::Bound => write!(f, "Bound({:02x?})", self.0),
            parts => parts.fmt(f),
        }
    }
}

/// All keys from `start` on and below `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key inside.
    pub start: Key,
    /// The first key outside.
    pub end: Key,
}

impl KeyRange {
    /// Everything.
    pub fn all() -> Self {
        let start = Key(Box::new([]));
        let end = Key(Box::new([ZONE_DATA + 1]));
        Self { start, end }
    }

    /// The entries of a directory, in the order of their hashes.
    pub fn entries(parent: Inode) -> Self {
        Self::kind(ZONE_METADATA, parent, KIND_ENTRY)
    }

    /// The entries of a directory from a hash on.
    pub fn entries_from(parent: Inode, hash: NameHash) -> Self {
        Self {
            start: Key::new(ZONE_METADATA, parent, KIND_ENTRY, &[&hash.0.to_be_bytes()]),
            ..Self::entries(parent)
        }
    }

    /// The extended attributes of an inode.
    pub fn xattrs(inode: Inode) -> Self {
        Self::kind(ZONE_METADATA, inode, KIND_XATTR)
    }

    /// All metadata of an inode: attributes, entries, symlink target, extended attributes.
    pub fn inode_metadata(inode: Inode) -> Self {
        Self::inode(ZONE_METADATA, inode)
    }

    /// All data of an inode: inline contents and extents.
    pub fn data(inode: Inode) -> Self {
        Self::inode(ZONE_DATA, inode)
    }

    /// The extents of an inode whose offsets are at least `from` and below `to`, both in bytes.
    pub fn extents(inode: Inode, from: u64, to: u64) -> Self {
        Self {
            start: Key::extent(inode, from),
            end: Key::extent(inode, to),
        }
    }

    /// The inodes that are open but unlinked.
    pub fn open_unlinked() -> Self {
        Self {
            start: Key::new(ZONE_FACTS, Inode(1), 0, &[]),
            end: Key(Box::new([ZONE_METADATA])),
        }
    }

    /// Tells whether a key lies inside.
    pub fn contains(&self, key: &Key) -> bool {
        self.start <= *key && *key < self.end
    }

    /// Tells whether no key can lie inside.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    fn kind(zone: u8, inode: Inode, kind: u8) -> Self {
        Self {
            start: Key::new(zone, inode, kind, &[]),
            end: Key::new(zone, inode, kind + 1, &[]),
        }
    }

    fn inode(zone: u8, inode: Inode) -> Self {
        Self {
            start: Key::new(zone, inode, 0, &[]),
            end: Key::new(zone, inode, u8::MAX, &[]),
        }
    }
}

/// Tells whether a directory entry may have this name: 1 to 255 bytes, no `/`, no NUL, not `.` or
/// `..`.
pub fn name_allowed(name: &[u8]) -> bool {
    (1..=ENTRY_NAME_LEN_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Takes the bytes of a key apart; [`KeyParts::Bound`] if they are none.
pub(crate) fn parts_of(key: &[u8]) -> KeyParts<'_> {
    let Some((&[zone, a, b, c, d, e, f, g, h, kind], rest)) = key.split_first_chunk::<FIXED_LEN>()
    else {
        return KeyParts::Bound;
    };
    let inode = Inode(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    if inode == NO_INODE {
        return match (zone, kind, rest) {
            (ZONE_FACTS, KIND_NEXT_INODE, []) => KeyParts::Fact(Fact::NextInode),
            (ZONE_FACTS, KIND_MANIFEST, []) => KeyParts::Fact(Fact::Manifest),
            (ZONE_FACTS, KIND_TOTALS, []) => KeyParts::Fact(Fact::Totals),
            (ZONE_FACTS, KIND_OWNER, []) => KeyParts::Fact(Fact::Owner),
            _ => KeyParts::Bound,
        };
    }
    match (zone, kind, rest) {
        (ZONE_FACTS, KIND_OPEN_UNLINKED, []) => KeyParts::OpenUnlinked(inode),
        (ZONE_METADATA, KIND_ATTRIBUTES, []) => KeyParts::Attributes(inode),
        (ZONE_METADATA, KIND_ENTRY, rest) => entry_of(inode, rest),
        (ZONE_METADATA, KIND_SYMLINK, []) => KeyParts::Symlink(inode),
        (ZONE_METADATA, KIND_XATTR, name)
            if (1..=ENTRY_NAME_LEN_MAX).contains(&name.len()) && !name.contains(&0) =>
        {
            KeyParts::Xattr { inode, name }
        }
        (ZONE_DATA, KIND_INLINE, []) => KeyParts::Inline(inode),
        (ZONE_DATA, KIND_EXTENT, rest) => match rest.try_into().map(u64::from_be_bytes) {
            Ok(offset) if offset.is_multiple_of(BLOCK_SIZE as u64) && offset <= OFFSET_MAX => {
                KeyParts::Extent { inode, offset }
            }
            _ => KeyParts::Bound,
        },
        _ => KeyParts::Bound,
    }
}

fn entry_of(parent: Inode, rest: &[u8]) -> KeyParts<'_> {
    match rest.split_first_chunk::<8>() {
        Some((hash, name)) if hash[0] < 0x80 && name_allowed(name) => KeyParts::Entry {
            parent,
            hash: NameHash(u64::from_be_bytes(*hash)),
            name,
        },
        _ => KeyParts::Bound,
    }
}

const FIXED_LEN: usize = 10;
const NO_INODE: Inode = Inode(0);
/// Offsets of files are signed in the kernel.
const OFFSET_MAX: u64 = i64::MAX as u64;

pub(crate) const ZONE_FACTS: u8 = 0;
pub(crate) const ZONE_METADATA: u8 = 1;
pub(crate) const ZONE_DATA: u8 = 2;

const KIND_NEXT_INODE: u8 = 1;
const KIND_MANIFEST: u8 = 2;
const KIND_TOTALS: u8 = 3;
const KIND_OWNER: u8 = 4;
const KIND_OPEN_UNLINKED: u8 = 5;

const KIND_ATTRIBUTES: u8 = 1;
const KIND_ENTRY: u8 = 2;
const KIND_SYMLINK: u8 = 3;
const KIND_XATTR: u8 = 4;

const KIND_INLINE: u8 = 1;
const KIND_EXTENT: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_is_read_back() {
        let hash = NameHash::new(u64::MAX);
        for (key, parts) in [
            (Key::fact(Fact::Totals), KeyParts::Fact(Fact::Totals)),
            (
                Key::open_unlinked(Inode(7)),
                KeyParts::OpenUnlinked(Inode(7)),
            ),
            (Key::attributes(Inode(7)), KeyParts::Attributes(Inode(7))),
            (
                Key::entry(Inode::ROOT, hash, b"name"),
                KeyParts::Entry {
                    parent: Inode::ROOT,
                    hash,
                    name: b"name",
                },
            ),
            (Key::symlink(Inode(7)), KeyParts::Symlink(Inode(7))),
            (
                Key::xattr(Inode(7), b"user.a"),
                KeyParts::Xattr {
                    inode: Inode(7),
                    name: b"user.a",
                },
            ),
            (Key::inline(Inode(7)), KeyParts::Inline(Inode(7))),
            (
                Key::extent(Inode(7), 1 << 40),
                KeyParts::Extent {
                    inode: Inode(7),
                    offset: 1 << 40,
                },
            ),
        ] {
            assert_eq!(key.parts(), parts);
            assert_eq!(Key::decode(key.as_bytes()), Ok(key));
        }
    }

    #[test]
    fn names_that_could_leave_a_directory_are_no_keys() {
        let long = [b'a'; ENTRY_NAME_LEN_MAX + 1];
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &long] {
            let key = Key::entry(Inode::ROOT, NameHash::new(1), name);
            assert!(Key::decode(key.as_bytes()).is_err(), "{name:?}");
        }
        let longest = Key::entry(Inode::ROOT, NameHash::new(1), &long[1..]);
        assert!(Key::decode(longest.as_bytes()).is_ok());
        assert!(Key::decode(Key::entry(Inode::ROOT, NameHash::new(1), b"...").as_bytes()).is_ok());
    }

    #[test]
    fn malformed_keys_are_refused() {
        let mut high_hash = Key::entry(Inode::ROOT, NameHash::new(0), b"a").0.to_vec();
        high_hash[10] = 0x80;
        for bytes in [
            vec![],
            vec![9; 10],
            high_hash,
            Key::attributes(Inode(0)).0.to_vec(),
            Key::extent(Inode(7), 1).0.to_vec(),
            Key::extent(Inode(7), 1 << 63).0.to_vec(),
            Key::attributes(Inode(7)).successor().0.to_vec(),
            Key::xattr(Inode(7), b"").0.to_vec(),
            Key::new(ZONE_METADATA, Inode(7), 9, &[]).0.to_vec(),
        ] {
            assert!(Key::decode(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn ranges_hold_what_they_name() {
        let entry = Key::entry(Inode(7), NameHash::new(5), b"a");
        assert!(KeyRange::entries(Inode(7)).contains(&entry));
        assert!(KeyRange::entries_from(Inode(7), NameHash::new(5)).contains(&entry));
        assert!(!KeyRange::entries_from(Inode(7), NameHash::new(6)).contains(&entry));
        assert!(!KeyRange::entries(Inode(8)).contains(&entry));
        assert!(KeyRange::inode_metadata(Inode(7)).contains(&entry));
        assert!(KeyRange::all().contains(&entry));
        let last = Key::extent(Inode(u64::MAX), OFFSET_MAX & !(BLOCK_SIZE as u64 - 1));
        assert!(KeyRange::data(Inode(u64::MAX)).contains(&last));
        assert!(KeyRange::extents(Inode(u64::MAX), 0, u64::MAX).contains(&last));
        assert!(KeyRange::all().contains(&last));
        let block = BLOCK_SIZE as u64;
        let range = KeyRange::extents(Inode(7), block, 3 * block);
        assert!(!range.contains(&Key::extent(Inode(7), 0)));
        assert!(range.contains(&Key::extent(Inode(7), 2 * block)));
        assert!(!range.contains(&Key::extent(Inode(7), 3 * block)));
        assert!(KeyRange::open_unlinked().contains(&Key::open_unlinked(Inode(1))));
        assert!(!KeyRange::open_unlinked().contains(&Key::fact(Fact::Owner)));
    }
}
