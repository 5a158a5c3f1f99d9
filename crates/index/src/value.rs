//! Values of the map. The kind of a value stands in its key, so its bytes do not repeat it.
//!
//! | key | bytes, little-endian |
//! |---|---|
//! | next inode | u64 |
//! | manifest | up to 8 KiB |
//! | totals | files u64 ‖ logical bytes u64 |
//! | owner | uid u32 ‖ gid u32 |
//! | open but unlinked | none |
//! | attributes | kind u8 ‖ mode u16 ‖ uid u32 ‖ gid u32 ‖ nlink u32 ‖ size u64 ‖ mtime ‖ ctime ‖ rdev u32 ‖ extents u64 of a file with holes; a time is seconds i64 ‖ nanoseconds u32 |
//! | directory entry | inode u64 ‖ kind u8 |
//! | symlink | the target, 1 to 4,095 bytes |
//! | extended attribute | 0 ‖ up to 2 KiB, or 1 ‖ reference of a block that holds exactly the value |
//! | inline | up to 2 KiB of contents from offset 0, without zeros at the end |
//! | extent | flags u8 (1: has a base) ‖ count of patches u8 ‖ base, if any ‖ patches: reference ‖ section u16 |
//!
//! A file's kind is 1 file, 2 directory, 3 symlink, 4 FIFO, 5 character device, 6 block device, 7 socket.

use img_seal::Reference;
use img_types::ObjectId;
use img_types::bytes::{DecodeError, Reader, Write};
use img_types::limits::{
    BLOCK_SIZE, INDEX_VALUE_LEN_MAX, INLINE_LEN_MAX, PATCH_LEN_MAX, PATCHES_MAX,
};

use crate::key::{Fact, Inode, Key, KeyParts};

/// Longest target of a symlink in bytes, as in Linux.
pub const SYMLINK_LEN_MAX: usize = 4_095;

/// What a key of the map holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The next inode.
    Number(u64),
    /// The image's manifest.
    Manifest(Vec<u8>),
    /// Counts over the whole image.
    Totals {
        /// Inodes that are no directories.
        files: u64,
        /// Sum of all sizes of files in bytes.
        logical_bytes: u64,
    },
    /// Owner of the root directory when the image was created.
    Owner {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The key itself says all.
    Mark,
    /// Attributes of an inode.
    Attributes(Attributes),
    /// A directory entry.
    Entry {
        /// What the name stands for.
        inode: Inode,
        /// Its kind, so that a listing need not look further.
        kind: FileKind,
    },
    /// The target of a symlink.
    Symlink(Vec<u8>),
    /// An extended attribute.
    Xattr(Xattr),
    /// Contents of a small file from offset 0; readers add zeros up to the file's size.
    Inline(Vec<u8>),
    /// References of one block.
    Extent(Extent),
}

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// The name of a socket.
    Socket,
}

/// A moment since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest, below 10⁹.
    pub nanos: u32,
}

/// Attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Kind of the file.
    pub kind: FileKind,
    /// Permissions: the low 12 bits of a mode.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names the inode has; for directories as Linux counts them.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Number of a device node, else zero.
    pub rdev: u32,
    /// How many extents a file with holes has; nothing: as many as its size takes. Only a seal and an import
    /// know, see [`Attributes::count_extents`].
    pub extents: Option<u64>,
}

/// The value of an extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xattr {
    /// Up to [`INLINE_LEN_MAX`] bytes.
    Inline(Vec<u8>),
    /// A block object whose content is exactly the value.
    Block(Reference),
}

/// References of one block of a file: a base and the patches to apply to it, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The block; nothing stands for zeros.
    pub base: Option<Reference>,
    /// At most [`PATCHES_MAX`]; not empty if there is no base.
    pub patches: Vec<PatchPart>,
}

/// One section of a patch object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchPart {
    /// The patch object.
    pub reference: Reference,
    /// Which of its sections belongs to the block.
    pub section: u16,
}

impl FileKind {
    fn code(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::Symlink => 3,
            Self::Fifo => 4,
            Self::CharDevice => 5,
            Self::BlockDevice => 6,
            Self::Socket => 7,
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::CharDevice,
            6 => Self::BlockDevice,
            7 => Self::Socket,
            _ => return Err(DecodeError("unknown kind of file")),
        })
    }
}

impl Timestamp {
    fn encode(self, record: &mut Vec<u8>) {
        record.put_i64(self.seconds);
        record.put_u32(self.nanos);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let seconds = reader.i64()?;
        let nanos = reader.u32()?;
        if nanos >= 1_000_000_000 {
            return Err(DecodeError("nanoseconds beyond a second"));
        }
        Ok(Self { seconds, nanos })
    }
}

impl Attributes {
    fn encode(&self, record: &mut Vec<u8>) {
        record.put_u8(self.kind.code());
        record.put_u16((self.mode & MODE_MASK) as u16);
        record.put_u32(self.uid);
        record.put_u32(self.gid);
        record.put_u32(self.nlink);
        record.put_u64(self.size);
        self.mtime.encode(record);
        self.ctime.encode(record);
        record.put_u32(self.rdev);
        if let Some(extents) = self.extents {
            record.put_u64(extents);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = FileKind::decode(reader)?;
        let mode = u32::from(reader.u16()?);
        if mode & !MODE_MASK != 0 {
            return Err(DecodeError("mode has more than 12 bits"));
        }
        let mut attributes = Self {
            kind,
            mode,
            uid: reader.u32()?,
            gid: reader.u32()?,
            nlink: reader.u32()?,
            size: reader.u64()?,
            mtime: Timestamp::decode(reader)?,
            ctime: Timestamp::decode(reader)?,
            rdev: reader.u32()?,
            extents: None,
        };
        if reader.remaining() > 0 {
            let extents = reader.u64()?;
            attributes.count_extents(extents);
            if attributes.extents.is_none() {
                return Err(DecodeError("a count of extents where there are no holes"));
            }
        }
        Ok(attributes)
    }

    /// Notes how many extents a file has. That is kept only where it has holes, and where its contents cannot
    /// be inline.
    pub fn count_extents(&mut self, extents: u64) {
        let may_have_holes = self.kind == FileKind::File && self.size > INLINE_LEN_MAX as u64;
        let has_holes = may_have_holes && extents < self.size.div_ceil(BLOCK_SIZE as u64);
        self.extents = has_holes.then_some(extents);
    }

    /// How many bytes of a file are in extents, whole ones but for the end of the file.
    pub fn allocated(&self) -> u64 {
        match self.extents {
            Some(extents) => self.size.min(extents.saturating_mul(BLOCK_SIZE as u64)),
            None => self.size,
        }
    }
}

impl Extent {
    fn encode(&self, record: &mut Vec<u8>) {
        record.put_u8(u8::from(self.base.is_some()));
        record.put_u8(u8::try_from(self.patches.len()).unwrap_or(u8::MAX));
        if let Some(base) = &self.base {
            base.encode(record);
        }
        for patch in &self.patches {
            patch.reference.encode(record);
            record.put_u16(patch.section);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut base = None;
        let mut patches = Vec::new();
        read_extent(reader, &mut |reference, section| match section {
            None => base = Some(reference),
            Some(section) => patches.push(PatchPart { reference, section }),
        })?;
        Ok(Self { base, patches })
    }
}

impl Value {
    /// Appends the value's bytes. Zeros at the end of inline contents are left out.
    pub fn encode(&self, record: &mut Vec<u8>) {
        match self {
            Self::Number(number) => record.put_u64(*number),
            Self::Manifest(bytes) | Self::Symlink(bytes) => record.extend_from_slice(bytes),
            Self::Totals {
                files,
                logical_bytes,
            } => {
                record.put_u64(*files);
                record.put_u64(*logical_bytes);
            }
            Self::Owner { uid, gid } => {
                record.put_u32(*uid);
                record.put_u32(*gid);
            }
            Self::Mark => {}
            Self::Attributes(attributes) => attributes.encode(record),
            Self::Entry { inode, kind } => {
                record.put_u64(inode.0);
                record.put_u8(kind.code());
            }
            Self::Xattr(Xattr::Inline(bytes)) => {
                record.put_u8(XATTR_INLINE);
                record.extend_from_slice(bytes);
            }
            Self::Xattr(Xattr::Block(reference)) => {
                record.put_u8(XATTR_BLOCK);
                reference.encode(record);
            }
            Self::Inline(bytes) => record.extend_from_slice(without_zeros_at_end(bytes)),
            Self::Extent(extent) => extent.encode(record),
        }
    }

    /// Reads the value of `key`.
    ///
    /// # Errors
    /// The bytes are not the canonical form of a value of that kind of key.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_parts(&key.parts(), bytes)
    }

    /// Shows the objects that the value names, in the order of its bytes.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        let (first, patches) = match self {
            Self::Xattr(Xattr::Block(reference)) => (Some(reference), &[][..]),
            Self::Extent(extent) => (extent.base.as_ref(), &extent.patches[..]),
            _ => (None, &[][..]),
        };
        first
            .into_iter()
            .chain(patches.iter().map(|patch| &patch.reference))
    }

    /// Tells whether a key of this kind holds values of this kind.
    pub(crate) fn belongs_to(&self, parts: &KeyParts<'_>) -> bool {
        matches!(
            (parts, self),
            (KeyParts::Fact(Fact::NextInode), Self::Number(_))
                | (KeyParts::Fact(Fact::Manifest), Self::Manifest(_))
                | (KeyParts::Fact(Fact::Totals), Self::Totals { .. })
                | (KeyParts::Fact(Fact::Owner), Self::Owner { .. })
                | (KeyParts::OpenUnlinked(_), Self::Mark)
                | (KeyParts::Attributes(_), Self::Attributes(_))
                | (KeyParts::Entry { .. }, Self::Entry { .. })
                | (KeyParts::Symlink(_), Self::Symlink(_))
                | (KeyParts::Xattr { .. }, Self::Xattr(_))
                | (KeyParts::Inline(_), Self::Inline(_))
                | (KeyParts::Extent { .. }, Self::Extent(_))
        )
    }

    pub(crate) fn decode_parts(parts: &KeyParts<'_>, bytes: &[u8]) -> Result<Self, DecodeError> {
        check(parts, bytes, &mut |_| {})?;
        let mut reader = Reader::new(bytes);
        let value = match parts {
            KeyParts::Fact(Fact::NextInode) => Self::Number(reader.u64()?),
            KeyParts::Fact(Fact::Manifest) => return Ok(Self::Manifest(bytes.to_vec())),
            KeyParts::Fact(Fact::Totals) => Self::Totals {
                files: reader.u64()?,
                logical_bytes: reader.u64()?,
            },
            KeyParts::Fact(Fact::Owner) => Self::Owner {
                uid: reader.u32()?,
                gid: reader.u32()?,
            },
            KeyParts::OpenUnlinked(_) => Self::Mark,
            KeyParts::Attributes(_) => Self::Attributes(Attributes::decode(&mut reader)?),
            KeyParts::Entry { .. } => {
                let (inode, kind) = read_entry(&mut reader)?;
                Self::Entry { inode, kind }
            }
            KeyParts::Symlink(_) => return Ok(Self::Symlink(bytes.to_vec())),
            KeyParts::Xattr { .. } => match reader.u8()? {
                XATTR_INLINE => return Ok(Self::Xattr(Xattr::Inline(bytes[1..].to_vec()))),
                _ => Self::Xattr(Xattr::Block(Reference::decode(&mut reader)?)),
            },
            KeyParts::Inline(_) => return Ok(Self::Inline(bytes.to_vec())),
            KeyParts::Extent { .. } => Self::Extent(Extent::decode(&mut reader)?),
            KeyParts::Bound => return Err(DecodeError("a bound has no value")),
        };
        reader.finish()?;
        Ok(value)
    }
}

/// Checks the bytes of a value without keeping any, and shows each object that it names.
pub(crate) fn check(
    parts: &KeyParts<'_>,
    bytes: &[u8],
    named: &mut dyn FnMut(ObjectId),
) -> Result<(), DecodeError> {
    let mut reader = Reader::new(bytes);
    match parts {
        KeyParts::Fact(Fact::NextInode) => {
            reader.u64()?;
        }
        KeyParts::Fact(Fact::Manifest) => return len_at_most(bytes, INDEX_VALUE_LEN_MAX),
        KeyParts::Fact(Fact::Totals) => {
            reader.take(16)?;
        }
        KeyParts::Fact(Fact::Owner) => {
            reader.take(8)?;
        }
        KeyParts::OpenUnlinked(_) => {}
        KeyParts::Attributes(_) => {
            Attributes::decode(&mut reader)?;
        }
        KeyParts::Entry { .. } => {
            read_entry(&mut reader)?;
        }
        KeyParts::Symlink(_) => {
            if bytes.is_empty() || bytes.contains(&0) {
                return Err(DecodeError("no symlink target"));
            }
            return len_at_most(bytes, SYMLINK_LEN_MAX);
        }
        KeyParts::Xattr { .. } => match reader.u8()? {
            XATTR_INLINE => return len_at_most(&bytes[1..], INLINE_LEN_MAX),
            XATTR_BLOCK => {
                let reference = Reference::decode(&mut reader)?;
                if reference.len as usize > BLOCK_SIZE {
                    return Err(DecodeError("extended attribute too long"));
                }
                named(reference.id);
            }
            _ => return Err(DecodeError("unknown form of extended attribute")),
        },
        KeyParts::Inline(_) => {
            if bytes.last() == Some(&0) {
                return Err(DecodeError("inline contents end in zeros"));
            }
            return len_at_most(bytes, INLINE_LEN_MAX);
        }
        KeyParts::Extent { .. } => {
            read_extent(&mut reader, &mut |reference, _| named(reference.id))?;
        }
        KeyParts::Bound => return Err(DecodeError("a bound has no value")),
    }
    reader.finish()
}

fn read_entry(reader: &mut Reader<'_>) -> Result<(Inode, FileKind), DecodeError> {
    let inode = Inode(reader.u64()?);
    if inode.0 == 0 {
        return Err(DecodeError("no inode has number zero"));
    }
    Ok((inode, FileKind::decode(reader)?))
}

/// Shows the base without and each patch with its section.
fn read_extent(
    reader: &mut Reader<'_>,
    part: &mut dyn FnMut(Reference, Option<u16>),
) -> Result<(), DecodeError> {
    let flags = reader.u8()?;
    let patches = usize::from(reader.u8()?);
    if flags > 1 {
        return Err(DecodeError("unknown flag of an extent"));
    }
    if flags == 0 && patches == 0 {
        return Err(DecodeError("empty extent"));
    }
    if patches > PATCHES_MAX {
        return Err(DecodeError("too many patches"));
    }
    if flags == 1 {
        let base = Reference::decode(reader)?;
        if base.len as usize > BLOCK_SIZE {
            return Err(DecodeError("block too long"));
        }
        part(base, None);
    }
    for _ in 0..patches {
        let patch = Reference::decode(reader)?;
        if patch.len as usize > PATCH_LEN_MAX {
            return Err(DecodeError("patch too long"));
        }
        part(patch, Some(reader.u16()?));
    }
    Ok(())
}

fn len_at_most(bytes: &[u8], max: usize) -> Result<(), DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError("value too long"));
    }
    Ok(())
}

fn without_zeros_at_end(bytes: &[u8]) -> &[u8] {
    let len = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    &bytes[..len]
}

const MODE_MASK: u32 = 0o7777;
const XATTR_INLINE: u8 = 0;
const XATTR_BLOCK: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::samples::{any_entry, reference};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_are_read_back((key, value) in any_entry()) {
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            prop_assert!(value.belongs_to(&key.parts()));
            prop_assert_eq!(Value::decode(&key, &bytes), Ok(value.clone()));
            let mut named = Vec::new();
            check(&key.parts(), &bytes, &mut |id| named.push(id)).unwrap();
            let expected: Vec<_> = value.references().map(|reference| reference.id).collect();
            prop_assert_eq!(named, expected);
        }

        #[test]
        fn decoding_never_panics_and_is_canonical(
            (key, _) in any_entry(),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(value) = Value::decode(&key, &bytes) {
                let mut again = Vec::new();
                value.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }

    #[test]
    fn inline_contents_lose_their_zeros() {
        let mut bytes = Vec::new();
        Value::Inline(b"ab\0c\0\0".to_vec()).encode(&mut bytes);
        assert_eq!(bytes, b"ab\0c");
        assert!(Value::decode(&Key::inline(Inode(2)), b"a\0").is_err());
    }

    #[test]
    fn extents_have_limits() {
        let key = Key::extent(Inode(2), 0);
        let patch = PatchPart {
            reference: reference(1),
            section: 0,
        };
        for (extent, good) in [
            (0, false),
            (1, true),
            (PATCHES_MAX, true),
            (PATCHES_MAX + 1, false),
        ]
        .map(|(count, good)| {
            let patches = vec![patch; count];
            (
                Extent {
                    base: None,
                    patches,
                },
                good,
            )
        }) {
            let mut bytes = Vec::new();
            Value::Extent(extent).encode(&mut bytes);
            assert_eq!(Value::decode(&key, &bytes).is_ok(), good);
        }
    }
}
