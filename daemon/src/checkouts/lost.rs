//! Files that are lost: parts of them exist neither on this device nor at home.
//!
//! A home that has lost objects takes no root that names them anew, and a seal cannot do with nodes that are
//! nowhere. Here is found which files those are, so that a person can decide to go on without them; and they are
//! taken out of the checkout, so that its next root does not name them. Where a part of the list of files itself is
//! lost nobody knows what was in it: that is refused, and said as far as it can be.

mod names;
mod sealing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use img_index::{Gap, Inode, Key, KeyParts, Node, Value, Xattr};
use img_proto::Class;
use img_seal::Reference;
use img_types::limits::BLOCK_SIZE;
use img_types::{CheckoutId, ObjectId};
use rustix::io::Errno;
use serde_json::json;

use super::Shared;
use super::work::CommitError;
use crate::error::{ApiError, Kind};
use crate::images::paths::with_path;
use crate::objects::{FetchError, Objects};
use crate::seal::{SealError, lost_contents};
use crate::stream::mend::Lacking;
use crate::stream::{Lost, UploadError};
use crate::tree::{Failure, Tree};

use names::Names;
pub(super) use sealing::{Place, seal_oldest};

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
    /// Nothing but this extended attribute.
    xattr: Option<Vec<u8>>,
}

/// What of a file is lost.
#[derive(Debug, Clone, Default, PartialEq)]
struct Parts {
    /// Ranges of its bytes.
    contents: Vec<(u64, u64)>,
    /// Extended attributes, with the values that are lost.
    xattrs: Vec<(Vec<u8>, Value)>,
}

/// Lost parts by file.
type Files = BTreeMap<Inode, Parts>;

impl Loss {
    /// Takes what is lost out of the checkout, or says what it is. Nothing of it is in the tree afterwards, so that
    /// roots made from then on do not name it.
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
        let files = match lost_parts(objects, self.root, &lacking).await {
            Err(SealError::LostIndex(gap)) => {
                let around = around(objects, self.root, gap.as_deref()).await;
                let told = index_is_lost(&self.name, &self.dir, &around);
                return Err(forbidden(told));
            }
            Err(SealError::Fetch(error)) => return Err(error.into()),
            Err(error) => return Err(forbidden(ApiError::failed(error))),
            Ok(files) => files,
        };
        let Some(tree) = &self.tree else {
            let names = Names::Root {
                objects,
                root: self.root,
                unread: None,
            };
            let files = named(&files, &names.of(files.keys().copied().collect()).await?);
            return Err(forbidden(files_are_lost(&self.name, &self.dir, &files)));
        };
        let taken = take_out(tree, files).await.map_err(forbidden)?;
        let stats = tree.stats();
        if !taken.any && !stats.changed && stats.closed == 0 {
            // The tree stands on this root, and needs nothing that is lost of it.
            return Err(UploadError::Lost(lost).into());
        }
        Ok(taken.names)
    }
}

fn files_are_lost(name: &str, dir: &std::path::Path, files: &[LeftOut]) -> ApiError {
    let json: Vec<_> = files.iter().map(LeftOut::to_json).collect();
    let list = told(files);
    let dir = dir.display();
    let error = ApiError::new(
        Kind::Corrupt,
        format!(
            "{name} cannot be committed: parts of these files exist neither on this device nor at home.{list}\nEverything that is here is kept."
        ),
        format!(
            "Copy out of {dir} what can still be read of them; then `imgctl commit {dir} --branch NEW --partial` saves everything else as a new image and leaves them out."
        ),
    );
    error.with("lost", json)
}

fn index_is_lost(name: &str, dir: &std::path::Path, around: &[PathBuf]) -> ApiError {
    let near = match around {
        [] => String::new(),
        paths => {
            let paths: Vec<_> = paths.iter().map(|path| shown(path)).collect();
            format!(" What is lost lay near {}.", paths.join(" and "))
        }
    };
    ApiError::new(
        Kind::Corrupt,
        format!(
            "{name} cannot be committed: a part of its list of files exists neither on this device nor at home.{near} Everything that is here is kept."
        ),
        format!(
            "Copy out of {} what can be read, and make a new image of it with `imgctl create NEW --from FOLDER`.",
            dir.display()
        ),
    )
}

/// Where in the image a lost part of the list of files was: the paths next to it, as far as they can be told.
async fn around(objects: &Arc<Objects>, root: Reference, gap: Option<&Gap>) -> Vec<PathBuf> {
    let Some(gap) = gap else {
        return Vec::new();
    };
    let (before, last) = gap.neighbours();
    let inodes: BTreeSet<_> = before.into_iter().chain(last).collect();
    let names = Names::Root {
        objects,
        root,
        unread: Some(gap.range()),
    };
    // It only helps a person.
    let found = names.of(inodes.clone()).await.unwrap_or_default();
    let paths = inodes.into_iter().flat_map(|inode| found.of_inode(inode));
    paths.map(|(_, _, path)| path).collect()
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
        list.push_str(&format!("\n  {}", shown(path)));
    }
    if paths.len() > PATHS_TOLD_MAX {
        list.push_str(&format!("\n  and {} more", paths.len() - PATHS_TOLD_MAX));
    }
    if paths.is_empty() {
        list.push_str("\n  files that have been deleted since");
    }
    list
}

/// A path in a message: a name may hold a line break or worse.
fn shown(path: &std::path::Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

/// What is lost of which file.
async fn lost_parts(
    objects: &Arc<Objects>,
    root: Reference,
    lacking: &Lacking,
) -> Result<Files, SealError> {
    let lost: BTreeSet<ObjectId> = lacking.nowhere.iter().copied().collect();
    let here: BTreeSet<ObjectId> = lacking.here.iter().copied().collect();
    let mut files = Files::new();
    let mut nodes = BTreeSet::new();
    let mut ways = vec![root];
    while let Some(reference) = ways.pop() {
        if lost.contains(&reference.id) {
            nodes.insert(reference.id);
            continue;
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
                add_part(&mut files, &key, value);
            }
        }
    }
    if !nodes.is_empty() {
        for (inode, range) in lost_contents(objects, root, nodes).await? {
            files.entry(inode).or_default().contents.push(range);
        }
    }
    Ok(files)
}

fn add_part(files: &mut Files, key: &Key, value: Value) {
    match (key.parts(), value) {
        (KeyParts::Extent { inode, offset }, _) => {
            let end = offset + BLOCK_SIZE as u64;
            files.entry(inode).or_default().contents.push((offset, end));
        }
        (KeyParts::Xattr { inode, name }, value @ Value::Xattr(Xattr::Block(_))) => {
            let parts = files.entry(inode).or_default();
            parts.xattrs.push((name.to_vec(), value));
        }
        _ => {}
    }
}

/// The names of lost parts, one for each name of their files; the top folder has none but `/`.
fn named(files: &Files, names: &names::Found) -> Vec<LeftOut> {
    let mut left_out = Vec::new();
    for (inode, parts) in files {
        let contents = (!parts.contents.is_empty()).then_some(None);
        let xattrs = parts.xattrs.iter().map(|(name, _)| Some(name.clone()));
        for xattr in contents.into_iter().chain(xattrs) {
            for (parent, name, path) in names.of_inode(*inode) {
                left_out.push(LeftOut {
                    parent,
                    name,
                    path,
                    xattr: xattr.clone(),
                });
            }
        }
    }
    left_out
}

/// What has been taken out of a tree.
struct Taken {
    /// Those of it that had a name.
    names: Vec<LeftOut>,
    any: bool,
}

/// Removes what the tree still needs of lost parts: files with all their names, extended attributes alone. Files
/// that are open are gone for those who have them open, too; what has no name is dropped without a word.
///
/// # Errors
/// Something else is in the way, or programs rename the files again and again.
async fn take_out(tree: &Arc<Tree>, mut files: Files) -> Result<Taken, ApiError> {
    let mut taken = Taken {
        names: Vec::new(),
        any: false,
    };
    for _ in 0..ROUNDS_MAX {
        let names = Names::Tree(tree);
        let names = names.of(files.keys().copied().collect()).await;
        let names = names.map_err(cannot_be_left_out)?;
        let mut moved = Files::new();
        for (inode, parts) in files {
            let whole = |xattrs: &[(Vec<u8>, Value)]| {
                let part = Parts {
                    contents: parts.contents.clone(),
                    xattrs: xattrs.to_vec(),
                };
                named(&Files::from([(inode, part)]), &names)
            };
            match take_file(tree, inode, &parts.contents, &names).await {
                Ok(true) => {
                    taken.any = true;
                    taken.names.extend(whole(&[]));
                    continue;
                }
                Ok(false) => {}
                Err(Errno::STALE) => {
                    moved.insert(inode, parts);
                    continue;
                }
                Err(errno) => return Err(cannot_be_left_out(errno)),
            }
            for (name, value) in &parts.xattrs {
                let remove = |tree: &Tree| tree.take_out_xattr(inode, name, value);
                if finish(tree, remove).await.map_err(cannot_be_left_out)? {
                    taken.any = true;
                    let part = Parts {
                        contents: Vec::new(),
                        xattrs: vec![(name.clone(), value.clone())],
                    };
                    let gone = named(&Files::from([(inode, part)]), &names);
                    taken.names.extend(gone);
                }
            }
        }
        if moved.is_empty() {
            return Ok(taken);
        }
        files = moved;
    }
    let names = Names::Tree(tree);
    let names = names.of(files.keys().copied().collect()).await;
    let left = named(&files, &names.unwrap_or_default());
    Err(ApiError::new(
        Kind::Busy,
        format!(
            "Lost files cannot be left out, programs rename them all the time:{}",
            told(&left)
        ),
        "Close the programs that use them, and ask again.",
    ))
}

async fn take_file(
    tree: &Arc<Tree>,
    inode: Inode,
    contents: &[(u64, u64)],
    names: &names::Found,
) -> Result<bool, Errno> {
    if contents.is_empty() {
        return Ok(false);
    }
    let names = names.of_inode(inode);
    let names: Vec<_> = names
        .iter()
        .map(|(parent, name, _)| (*parent, name.as_slice()))
        .collect();
    finish(tree, |tree| tree.take_out(inode, contents, &names)).await
}

/// Does something with a tree, and fetches what that needs.
async fn finish<T>(
    tree: &Arc<Tree>,
    operation: impl Fn(&Tree) -> Result<T, Failure>,
) -> Result<T, Errno> {
    match operation(tree) {
        Ok(done) => Ok(done),
        Err(Failure::Refused(errno)) => Err(errno),
        Err(Failure::Absent(wanted)) => Arc::clone(tree).repeat(wanted, operation).await,
    }
}

fn cannot_be_left_out(error: impl std::fmt::Display) -> ApiError {
    ApiError::failed(format!("Lost files cannot be left out: {error}"))
}

async fn node(objects: &Arc<Objects>, reference: &Reference) -> Result<Arc<Node>, FetchError> {
    use img_index::NodeSource;
    loop {
        if let Some(node) = objects.node(reference) {
            return Ok(node);
        }
        objects.fetch_nodes(&[*reference], Class::Control).await?;
    }
}

fn forbidden(error: ApiError) -> CommitError {
    CommitError::Forbidden(Box::new(error))
}

/// Paths that a message names; all of them are in its JSON.
const PATHS_TOLD_MAX: usize = 10;
/// How often names are looked for that have gone when they are to be removed.
const ROUNDS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> LeftOut {
        LeftOut {
            parent: Inode::ROOT,
            name: Vec::new(),
            path: path.into(),
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
        assert!(told(&[]).contains("deleted since"));
    }

    #[test]
    fn a_lost_part_of_the_list_of_files_is_told_with_its_surroundings() {
        let near = [PathBuf::from("/a/b"), PathBuf::from("/c")];
        let told = index_is_lost("vm", "/mnt/vm".as_ref(), &near);
        assert!(told.message.contains("near /a/b and /c."), "{told:?}");
        assert!(
            !index_is_lost("vm", "/mnt/vm".as_ref(), &[])
                .message
                .contains("near")
        );
    }
}
