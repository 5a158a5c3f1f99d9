//! Files that are lost: parts of them exist neither on this device nor at home.
//!
//! A home that has lost objects takes no root that names them anew. Here is found which files those are, so that a
//! person can decide to go on without them; and they are taken out of the checkout, so that its next root does not
//! name them. Where a part of the index itself is lost nobody knows what was in it: that is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use img_index::{
    Inode, Key, KeyParts, KeyRange, Node, NodeSource, ReadError, Timestamp, Value, Xattr,
};
use img_proto::Class;
use img_seal::Reference;
use img_types::{CheckoutId, ObjectId};
use rustix::io::Errno;
use serde_json::json;

use super::Shared;
use super::work::CommitError;
use crate::error::{ApiError, Kind};
use crate::images::paths::with_path;
use crate::objects::{FetchError, Objects};
use crate::stream::mend::Lacking;
use crate::stream::{Lost, UploadError};
use crate::tree::{Failure, Tree};

/// A root that the home does not take, because parts of it are lost.
pub(super) struct Loss {
    pub(super) shared: Arc<Shared>,
    pub(super) checkout: CheckoutId,
    pub(super) root: Reference,
    pub(super) name: String,
    pub(super) dir: PathBuf,
    /// The tree that lost files are taken out of, where a person wants that.
    pub(super) tree: Option<Arc<Tree>>,
}

/// A name of a file of which something is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) parent: Inode,
    pub(super) name: Vec<u8>,
    path: PathBuf,
    inode: Inode,
    /// Of the file in the root that names what is lost.
    ctime: Timestamp,
    /// Nothing but this extended attribute.
    xattr: Option<Vec<u8>>,
}

/// What of a file is lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Contents,
    Xattr(Vec<u8>),
}

impl Loss {
    /// Takes what is lost out of the checkout, or says what it is.
    ///
    /// # Errors
    /// Nobody wants that, or it cannot be done; [`CommitError::Forbidden`] names the files.
    pub(super) async fn leave_out(self, lost: Lost) -> Result<Vec<LeftOut>, CommitError> {
        let uploader = self.shared.uploader(self.checkout);
        let lacking = uploader.lacking(self.root.id).await?;
        if lacking.nowhere.is_empty() {
            // Something else is wrong with the outbox, or it has turned up again.
            return Err(UploadError::Lost(lost).into());
        }
        let objects = self.shared.home.objects();
        let Some(parts) = parts(objects, self.root, &lacking).await? else {
            return Err(self.index_is_lost());
        };
        let files = names(objects, self.root, parts).await?;
        let Some(tree) = &self.tree else {
            return Err(self.files_are_lost(&files));
        };
        let mut gone = Vec::new();
        for file in files.chunk_by(|a, b| (a.inode, &a.xattr) == (b.inode, &b.xattr)) {
            match take_out(tree, file).await {
                Ok(true) => gone.extend_from_slice(file),
                // It was changed since: whether it is whole now is seen when that is sealed.
                Ok(false) => {}
                Err(error) if gone.is_empty() => return Err(error),
                // What went is told; the next round meets the fault again.
                Err(_) => break,
            }
        }
        let stats = tree.stats();
        if gone.is_empty() && !stats.changed && stats.closed == 0 {
            return Err(self.files_are_open());
        }
        Ok(gone)
    }

    fn files_are_lost(&self, files: &[LeftOut]) -> CommitError {
        let json: Vec<_> = files.iter().map(LeftOut::to_json).collect();
        let list = told(files);
        let dir = self.dir.display();
        let error = ApiError::new(
            Kind::Corrupt,
            format!(
                "{} cannot be committed: parts of these files exist neither on this device nor at home.{list}\nEverything that is here is kept.",
                self.name
            ),
            format!(
                "Copy out of {dir} what can still be read of them; then `imgctl commit {dir} --branch NEW --partial` saves everything else as a new image and leaves them out."
            ),
        );
        forbidden(error.with("lost", json))
    }

    fn index_is_lost(&self) -> CommitError {
        forbidden(ApiError::new(
            Kind::Corrupt,
            format!(
                "{} cannot be committed: a part of its list of files exists neither on this device nor at home. Everything that is here is kept.",
                self.name
            ),
            format!(
                "Copy out of {} what can be read, and make a new image of it with `imgctl create NEW --from FOLDER`.",
                self.dir.display()
            ),
        ))
    }

    fn files_are_open(&self) -> CommitError {
        let dir = self.dir.display();
        forbidden(ApiError::new(
            Kind::Busy,
            format!(
                "{} cannot be saved: parts of files that are deleted but still open exist neither on this device nor at home.",
                self.name
            ),
            format!("Close the programs that use {dir}, and ask again."),
        ))
    }
}

impl LeftOut {
    /// As it is listed.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let mut object = json!({});
        if let Some(name) = &self.xattr {
            object["xattr"] = json!(String::from_utf8_lossy(name));
        }
        with_path(object, &self.path)
    }
}

/// The paths of files, each on a line of its own, as many as a message can name.
fn told(files: &[LeftOut]) -> String {
    let paths: BTreeSet<_> = files.iter().map(|file| &file.path).collect();
    let mut list = String::new();
    for path in paths.iter().take(PATHS_TOLD_MAX) {
        // A name may hold a line break or worse.
        list.push_str(&format!(
            "\n  {}",
            path.display().to_string().escape_debug()
        ));
    }
    if paths.len() > PATHS_TOLD_MAX {
        list.push_str(&format!("\n  and {} more", paths.len() - PATHS_TOLD_MAX));
    }
    list
}

/// What is lost of which inode; nothing if a part of the index is lost itself.
async fn parts(
    objects: &Arc<Objects>,
    root: Reference,
    lacking: &Lacking,
) -> Result<Option<BTreeSet<(Inode, Part)>>, FetchError> {
    let lost: BTreeSet<ObjectId> = lacking.nowhere.iter().copied().collect();
    let here: BTreeSet<ObjectId> = lacking.here.iter().copied().collect();
    let mut found = BTreeSet::new();
    let mut ways = vec![root];
    while let Some(reference) = ways.pop() {
        if lost.contains(&reference.id) {
            return Ok(None);
        }
        // The home has the others, with all that is below them.
        if !here.contains(&reference.id) {
            continue;
        }
        let node = node(objects, &reference).await?;
        for position in 0..node.len() {
            if node.level() > 0 {
                ways.push(node.child(position));
                continue;
            }
            let (key, value) = node.entry(position);
            if value.references().any(|part| lost.contains(&part.id)) {
                found.extend(part(&key, &value));
            }
        }
    }
    Ok(Some(found))
}

fn part(key: &Key, value: &Value) -> Option<(Inode, Part)> {
    match (key.parts(), value) {
        (KeyParts::Extent { inode, .. }, _) => Some((inode, Part::Contents)),
        (KeyParts::Xattr { inode, name }, Value::Xattr(Xattr::Block(_))) => {
            Some((inode, Part::Xattr(name.to_vec())))
        }
        _ => None,
    }
}

/// All names of the files: one pass over the metadata finds their entries, one more for each level of folders
/// above them. Only what is lost is kept in memory.
async fn names(
    objects: &Arc<Objects>,
    root: Reference,
    parts: BTreeSet<(Inode, Part)>,
) -> Result<Vec<LeftOut>, FetchError> {
    let mut entries: BTreeMap<Inode, Vec<(Inode, Vec<u8>)>> = BTreeMap::new();
    let mut ctimes = BTreeMap::new();
    let mut wanted: BTreeSet<Inode> = parts.iter().map(|(inode, _)| *inode).collect();
    while !wanted.is_empty() {
        let mut rest = metadata();
        loop {
            let some = listed(objects, root, &rest).await?;
            let Some((last, _)) = some.last() else {
                break;
            };
            rest.start = last.successor();
            for (key, value) in &some {
                match (key.parts(), value) {
                    (KeyParts::Entry { parent, name, .. }, Value::Entry { inode, .. })
                        if wanted.contains(inode) =>
                    {
                        let of_inode = entries.entry(*inode).or_default();
                        of_inode.push((parent, name.to_vec()));
                    }
                    (KeyParts::Attributes(inode), Value::Attributes(attributes))
                        if wanted.contains(&inode) =>
                    {
                        ctimes.insert(inode, attributes.ctime);
                    }
                    _ => {}
                }
            }
        }
        let above = wanted.iter().filter_map(|inode| entries.get(inode));
        let above = above.flatten().map(|(parent, _)| *parent);
        wanted = above
            .filter(|parent| *parent != Inode::ROOT && !entries.contains_key(parent))
            .collect();
    }
    let mut files = Vec::new();
    for (inode, part) in parts {
        let Some(ctime) = ctimes.get(&inode) else {
            continue;
        };
        for (parent, name) in entries.get(&inode).into_iter().flatten() {
            files.push(LeftOut {
                parent: *parent,
                name: name.clone(),
                path: path(&entries, *parent, name),
                inode,
                ctime: *ctime,
                xattr: match &part {
                    Part::Contents => None,
                    Part::Xattr(xattr) => Some(xattr.clone()),
                },
            });
        }
    }
    Ok(files)
}

fn path(
    entries: &BTreeMap<Inode, Vec<(Inode, Vec<u8>)>>,
    mut parent: Inode,
    name: &[u8],
) -> PathBuf {
    let mut names = vec![name];
    while parent != Inode::ROOT
        && names.len() < DEPTH_MAX
        && let Some((above, name)) = entries.get(&parent).and_then(|names| names.first())
    {
        names.push(name);
        parent = *above;
    }
    let mut path = PathBuf::from("/");
    path.extend(names.iter().rev().map(|name| OsStr::from_bytes(name)));
    path
}

/// The keys of all metadata.
fn metadata() -> KeyRange {
    KeyRange {
        start: KeyRange::open_unlinked().end,
        end: KeyRange::data(Inode(0)).start,
    }
}

async fn listed(
    objects: &Arc<Objects>,
    root: Reference,
    range: &KeyRange,
) -> Result<Vec<(Key, Value)>, FetchError> {
    loop {
        match img_index::range(&**objects, &root, range, ENTRIES_AT_ONCE) {
            Ok(some) => return Ok(some),
            Err(ReadError::Absent(absent)) => {
                objects.fetch_nodes(&absent.0, Class::Control).await?;
            }
            Err(ReadError::Misplaced(id)) => return Err(FetchError::Corrupt(id)),
        }
    }
}

async fn node(objects: &Arc<Objects>, reference: &Reference) -> Result<Arc<Node>, FetchError> {
    loop {
        if let Some(node) = objects.node(reference) {
            return Ok(node);
        }
        objects.fetch_nodes(&[*reference], Class::Control).await?;
    }
}

/// Removes all names of a file, or an attribute of it; tells whether it was as it had been sealed.
async fn take_out(tree: &Arc<Tree>, file: &[LeftOut]) -> Result<bool, CommitError> {
    let Some(first) = file.first() else {
        return Ok(false);
    };
    let (inode, ctime) = (first.inode, first.ctime);
    let names: Vec<_> = file
        .iter()
        .map(|name| (name.parent, name.name.as_slice()))
        .collect();
    let remove = |tree: &Tree| match &first.xattr {
        Some(_) if tree.attributes(inode)?.attributes.ctime != ctime => Err(Errno::STALE.into()),
        Some(name) => tree.remove_xattr(inode, name),
        None => tree.unlink_unchanged(inode, ctime, &names),
    };
    let removed = match remove(tree) {
        Ok(()) => Ok(()),
        Err(Failure::Refused(errno)) => Err(errno),
        Err(Failure::Absent(wanted)) => Arc::clone(tree).repeat(wanted, remove).await,
    };
    match removed {
        Ok(()) => Ok(true),
        // Somebody was faster.
        Err(Errno::NOENT | Errno::NODATA | Errno::STALE) => Ok(false),
        Err(error) => Err(forbidden(ApiError::failed(format!(
            "{} cannot be left out: {error}",
            first.path.display()
        )))),
    }
}

fn forbidden(error: ApiError) -> CommitError {
    CommitError::Forbidden(Box::new(error))
}

/// Paths that a message names; all of them are in its JSON.
const PATHS_TOLD_MAX: usize = 10;
/// Entries of the index that are looked at together.
const ENTRIES_AT_ONCE: usize = 4_096;
/// Folders above a file: more than any path that a program can name.
const DEPTH_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> LeftOut {
        LeftOut {
            parent: Inode::ROOT,
            name: Vec::new(),
            path: path.into(),
            inode: Inode(2),
            ctime: Timestamp {
                seconds: 0,
                nanos: 0,
            },
            xattr: None,
        }
    }

    #[test]
    fn a_message_names_some_paths_and_counts_the_rest() {
        let few = [file("/b"), file("/a\n"), file("/b")];
        assert_eq!(told(&few), "\n  /a\\n\n  /b");
        let many: Vec<_> = (0..100).map(|number| file(&format!("/{number}"))).collect();
        let list = told(&many);
        assert_eq!(list.lines().count(), PATHS_TOLD_MAX + 2);
        assert!(list.ends_with("and 90 more"), "{list}");
    }

    #[test]
    fn a_path_goes_up_to_the_root_and_ends_in_a_circle_too() {
        let (root, a, b) = (Inode::ROOT, Inode(2), Inode(3));
        let up = BTreeMap::from([
            (a, vec![(root, b"a".to_vec())]),
            (b, vec![(a, b"b".to_vec())]),
        ]);
        assert_eq!(path(&up, b, b"file"), PathBuf::from("/a/b/file"));
        let circle = BTreeMap::from([(a, vec![(b, b"a".to_vec())]), (b, vec![(a, b"b".to_vec())])]);
        assert!(path(&circle, b, b"file").ends_with("file"));
    }
}
