//! Which entries of folders came and went, of what is in both states: so that a name that went and one that came are
//! known to be one move, wherever in the image they are.

use std::collections::{BTreeMap, BTreeSet};

use img_index::{Difference, FileKind, Inode, KeyParts, Value};
use img_seal::Reference;

use super::DiffError;
use super::names::Name;
use super::reader::{Reader, metadata};

/// Names that came or went, of inodes that are in both states and of folders.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Names that are only in the first state.
    pub(super) gone: BTreeMap<Inode, BTreeSet<Name>>,
    /// Names that are only in the second state.
    pub(super) come: BTreeMap<Inode, BTreeSet<Name>>,
    count: usize,
}

/// What a directory entry names in one of the states.
pub(super) type Target = Option<(Inode, FileKind)>;

impl Moves {
    pub(super) fn find(
        reader: &Reader<'_>,
        before: Reference,
        after: Reference,
    ) -> Result<Self, DiffError> {
        let mut moves = Self::default();
        let mut differences = reader.differences(before, after, metadata());
        // Beyond the limit moves are told as what they are made of.
        while moves.count < MOVES_MAX
            && let Some(difference) = differences.next_if(|_| true)?
        {
            let Some((name, was, is)) = entry(&difference) else {
                continue;
            };
            if let Some((inode, kind)) = was
                && (kind == FileKind::Directory || reader.attributes(&after, inode)?.is_some())
            {
                moves.gone.entry(inode).or_default().insert(name.clone());
                moves.count += 1;
            }
            if let Some((inode, kind)) = is
                && (kind == FileKind::Directory || reader.attributes(&before, inode)?.is_some())
            {
                moves.come.entry(inode).or_default().insert(name);
                moves.count += 1;
            }
        }
        Ok(moves)
    }

    /// Where something that has this name now had another one that went.
    pub(super) fn from(&self, inode: Inode, to: &Name) -> Option<&Name> {
        pair(&self.come, &self.gone, inode, to)
    }

    /// Where something is now that had this name.
    pub(super) fn to(&self, inode: Inode, from: &Name) -> Option<&Name> {
        pair(&self.gone, &self.come, inode, from)
    }

    /// Whether this name is new.
    pub(super) fn has_come(&self, inode: Inode, name: &Name) -> bool {
        self.come
            .get(&inode)
            .is_some_and(|come| come.contains(name))
    }
}

/// Of several names that came and went each is paired with the one at the same place.
fn pair<'m>(
    of: &BTreeMap<Inode, BTreeSet<Name>>,
    with: &'m BTreeMap<Inode, BTreeSet<Name>>,
    inode: Inode,
    name: &Name,
) -> Option<&'m Name> {
    let place = of.get(&inode)?.iter().position(|other| other == name)?;
    with.get(&inode)?.iter().nth(place)
}

/// A directory entry whose target changed, and what it was and is; nothing where only the repeated kind did.
pub(super) fn entry(difference: &Difference) -> Option<(Name, Target, Target)> {
    let KeyParts::Entry { parent, name, .. } = difference.key.parts() else {
        return None;
    };
    let target = |value: &Option<Value>| match value {
        Some(Value::Entry { inode, kind }) => Some((*inode, *kind)),
        _ => None,
    };
    let (was, is) = (target(&difference.before), target(&difference.after));
    let name = name.to_vec();
    Some((Name { parent, name }, was, is))
}

/// Moves that are kept in memory: some 20 MB with their names.
const MOVES_MAX: usize = 100_000;
