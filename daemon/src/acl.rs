//! POSIX access control lists.
//!
//! An image keeps a list as Linux hands it over, as the extended attribute [`ACCESS`] or [`DEFAULT`]: a
//! version u32 of 2, then entries in the order of their tags, each tag u16 ‖ permissions u16 ‖ id u32,
//! little-endian. The kernel enforces it; this module knows what else hangs on one: the mode's bits, what a
//! new file inherits, whose ids it names, and its form as text in a tar.

use img_types::limits::INLINE_LEN_MAX;

/// The attribute of the list that says who may do what.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of the list that new entries of a folder inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// A list that the kernel would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// What a mode cannot say about an access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// The new file's permission bits.
    pub mode: u32,
    /// Its list; nothing if the mode says it all.
    pub access: Option<Acl>,
}

impl Acl {
    /// Reads a list; nothing if it is none that the kernel would take, or longer than is kept.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, entries) = bytes.split_first_chunk()?;
        if u32::from_le_bytes(*version) != VERSION || bytes.len() > INLINE_LEN_MAX {
            return None;
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_LEN>();
        let entries = entries.iter().map(|&[a, b, c, d, e, f, g, h]| Entry {
            tag: u16::from_le_bytes([a, b]),
            permissions: u16::from_le_bytes([c, d]),
            id: u32::from_le_bytes([e, f, g, h]),
        });
        let acl = Self(entries.collect());
        (rest.is_empty() && acl.is_valid()).then_some(acl)
    }

    /// The list as [`Self::decode`] reads it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// Whether a mode says as much.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// A mode with the permission bits that go with this access list: the group's are the mask.
    pub fn mode(&self, mode: u32) -> u32 {
        let bits = |tag| self.of(tag).map_or(0, |entry| u32::from(entry.permissions));
        mode & !0o777 | bits(USER_OBJ) << 6 | bits(self.group_tag()) << 3 | bits(OTHER)
    }

    /// Takes over the permission bits of a mode, as chmod does: the group's become the mask.
    pub fn chmod(&mut self, mode: u32) {
        let group = self.group_tag();
        for (tag, shift) in [(USER_OBJ, 6), (group, 3), (OTHER, 0)] {
            if let Some(entry) = self.0.iter_mut().find(|entry| entry.tag == tag) {
                entry.permissions = (mode >> shift & 0o7) as u16;
            }
        }
    }

    /// What a file gets that is made with a mode in a folder with this default list; the umask has no say.
    pub fn inherited(&self, mode: u32) -> Inherited {
        let mut access = self.clone();
        access.chmod(self.mode(0) & mode);
        Inherited {
            mode: access.mode(mode),
            access: (!access.is_minimal()).then_some(access),
        }
    }

    /// Changes the ids of the users and groups that the list names.
    pub fn map_ids(&mut self, user: impl Fn(u32) -> u32, group: impl Fn(u32) -> u32) {
        for entry in &mut self.0 {
            match entry.tag {
                USER => entry.id = user(entry.id),
                GROUP => entry.id = group(entry.id),
                _ => {}
            }
        }
    }

    /// The list as text, with numbers for names.
    pub fn to_text(&self) -> String {
        let entries = self.0.iter().map(|entry| {
            let tag = TAGS.iter().find(|(tag, ..)| *tag == entry.tag);
            let word = tag.map_or("other", |(_, word, _)| word);
            let id = match entry.tag {
                USER | GROUP => entry.id.to_string(),
                _ => String::new(),
            };
            let bit = |bit, letter| {
                if entry.permissions & bit != 0 {
                    letter
                } else {
                    '-'
                }
            };
            format!("{word}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'))
        });
        entries.collect::<Vec<_>>().join(",")
    }

    /// Reads a list as tars have it; nothing if it is none, or names somebody without a number.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut entries = Vec::new();
        for line in text.split([',', '\n']) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let mut fields = line.split(':');
            let (word, who, permissions) = (fields.next()?, fields.next()?, fields.next()?);
            let named = !who.is_empty();
            let (tag, ..) = TAGS.iter().find(|(_, long, is_named)| {
                (word == *long || word == &long[..1]) && named == *is_named
            })?;
            let mut bits = 0;
            for letter in permissions.trim().chars() {
                bits |= match letter {
                    'r' => 4,
                    'w' => 2,
                    'x' => 1,
                    '-' => 0,
                    _ => return None,
                };
            }
            let id = match named {
                true => fields.next().unwrap_or(who).parse().ok()?,
                false => NO_ID,
            };
            entries.push(Entry {
                tag: *tag,
                permissions: bits,
                id,
            });
        }
        entries.sort_by_key(|entry| (entry.tag, entry.id));
        let acl = Self(entries);
        (acl.is_valid() && acl.encode().len() <= INLINE_LEN_MAX).then_some(acl)
    }

    fn of(&self, tag: u16) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.tag == tag)
    }

    /// Whose permissions a mode shows as the group's.
    fn group_tag(&self) -> u16 {
        self.of(MASK).map_or(GROUP_OBJ, |mask| mask.tag)
    }

    /// The rules of the kernel: tags in order, each of the plain ones once, a mask if somebody is named.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let is_named = count(USER) + count(GROUP) > 0;
        let known = |entry: &Entry| TAGS.iter().any(|(tag, ..)| *tag == entry.tag);
        self.0.is_sorted_by_key(|entry| entry.tag)
            && self
                .0
                .iter()
                .all(|entry| known(entry) && entry.permissions <= 0o7)
            && [USER_OBJ, GROUP_OBJ, OTHER]
                .iter()
                .all(|tag| count(*tag) == 1)
            && count(MASK) <= 1
            && (!is_named || count(MASK) == 1)
    }
}

const VERSION: u32 = 2;
const ENTRY_LEN: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that name nobody.
const NO_ID: u32 = u32::MAX;
/// Each tag with its word in text, and whether it names somebody.
const TAGS: [(u16, &str, bool); 6] = [
    (USER_OBJ, "user", false),
    (USER, "user", true),
    (GROUP_OBJ, "group", false),
    (GROUP, "group", true),
    (MASK, "mask", false),
    (OTHER, "other", false),
];

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "user::rw-,user:1000:rwx,group::r-x,group:7:---,mask::r-x,other::r--";

    #[test]
    fn text_and_bytes_say_the_same() {
        let acl = Acl::from_text(TEXT).unwrap();
        assert_eq!(acl.to_text(), TEXT);
        assert_eq!(Acl::decode(&acl.encode()).unwrap(), acl);
        let other =
            "u::rw-\nuser:anna:rwx:1000  #effective:r-x\ng::r-x,group:7:---\nm::r-x\no::r--\n";
        assert_eq!(Acl::from_text(other).unwrap(), acl);
        for odd in [
            "",
            "user::rwx",
            "user::rwx,user:1:r--,group::r--,other::r--",
            "user::rwx,user:anna:r--,group::r--,mask::r--,other::r--",
            "user::rwx,group::rzx,other::r--",
            "user::rwx,user::rwx,group::r-x,other::r--",
        ] {
            assert_eq!(Acl::from_text(odd), None, "{odd}");
        }
    }

    #[test]
    fn bytes_that_are_no_list_are_refused() {
        let bytes = Acl::from_text(TEXT).unwrap().encode();
        for len in 0..bytes.len() {
            assert_eq!(Acl::decode(&bytes[..len]), None);
        }
        let mut odd = bytes.clone();
        odd[0] = 3;
        assert_eq!(Acl::decode(&odd), None);
        let mut swapped = bytes.clone();
        swapped[4..12].copy_from_slice(&bytes[12..20]);
        swapped[12..20].copy_from_slice(&bytes[4..12]);
        assert_eq!(Acl::decode(&swapped), None);
    }

    #[test]
    fn the_mode_shows_the_mask_and_sets_it() {
        let mut acl = Acl::from_text(TEXT).unwrap();
        assert_eq!(acl.mode(0o4000), 0o4654);
        acl.chmod(0o640);
        assert_eq!(acl.mode(0), 0o640);
        assert!(acl.to_text().contains("group::r-x") && acl.to_text().contains("mask::r--"));
        let mut minimal = Acl::from_text("user::rwx,group::rwx,other::rwx").unwrap();
        minimal.chmod(0o750);
        assert_eq!(minimal.to_text(), "user::rwx,group::r-x,other::---");
    }

    #[test]
    fn what_is_made_inherits_no_more_than_its_mode() {
        let default = Acl::from_text("u::rwx,u:9:rwx,g::r-x,m::rwx,o::---").unwrap();
        let file = default.inherited(0o100_666 & 0o7777);
        assert_eq!(file.mode, 0o660);
        let text = file.access.unwrap().to_text();
        assert_eq!(text, "user::rw-,user:9:rwx,group::r-x,mask::rw-,other::---");
        let plain = Acl::from_text("u::rwx,g::r-x,o::---").unwrap();
        let file = plain.inherited(0o666);
        assert_eq!((file.mode, file.access), (0o640, None));
    }

    #[test]
    fn only_ids_that_name_somebody_are_changed() {
        let mut acl = Acl::from_text(TEXT).unwrap();
        acl.map_ids(|user| user + 1, |group| group + 2);
        assert!(acl.to_text().contains("user:1001:") && acl.to_text().contains("group:9:"));
        assert_eq!(Acl::decode(&acl.encode()).unwrap(), acl);
    }
}
