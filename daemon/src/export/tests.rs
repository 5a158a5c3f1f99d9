use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, BoxStream, StreamExt};
use img_index::{
    Attributes, Extent, Inode, Key, Loader, NameHash, NodeSink, Patch, PatchPart, PatchRange,
    Timestamp, Value, name_hash,
};
use img_proto::Class;
use img_seal::Sealed;
use img_store::Cache;
use img_types::limits::BLOCK_SIZE;
use img_types::object::ObjectKind;

use super::*;
use crate::events::Phase;
use crate::identity::Keys;
use crate::import::ObjectSink;
use crate::import::tests::{BOUNDARY, Kept, imported, keys, make_tree, noise};
use crate::objects::{Arrival, Remote};

/// A home that holds what an import kept.
struct FakeHome(BTreeMap<ObjectId, Bytes>);

impl Remote for FakeHome {
    fn fetch(&self, ids: Vec<ObjectId>, _: Class) -> BoxStream<'static, Arrival> {
        let found: Vec<_> = ids
            .into_iter()
            .map(|id| Ok((id, self.0.get(&id).cloned())))
            .collect();
        stream::iter(found).boxed()
    }

    fn reachable(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

/// A device beside that home, with an empty cache.
struct Device {
    runtime: tokio::runtime::Runtime,
    objects: Arc<Objects>,
    _dir: tempfile::TempDir,
}

impl Device {
    fn new(kept: &Kept) -> Self {
        let objects = kept.objects();
        let objects = objects
            .iter()
            .map(|(id, bytes)| (*id, Bytes::copy_from_slice(bytes)));
        let home = FakeHome(objects.collect());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1 << 30).unwrap();
        let objects = {
            let _within = runtime.enter();
            Objects::new(cache, Arc::new(home), Keys::new(keys()))
        };
        Self {
            runtime,
            objects,
            _dir: dir,
        }
    }

    fn export(&self, root: Reference, dest: &Path) -> Export {
        Export {
            objects: Arc::clone(&self.objects),
            root,
            boundary: BOUNDARY,
            path: None,
            kind: None,
            dest: dest.to_owned(),
            partial: false,
        }
    }

    fn run(&self, export: &Export) -> Result<Exported, ExportError> {
        let reporter = Reporter::new(Phase::Export);
        let exported = export.run(self.runtime.handle(), &reporter, &Cancel::default());
        if let Ok(exported) = &exported {
            assert_eq!(reporter.now().files.unwrap_or(0), exported.files);
        }
        exported
    }
}

/// Writes an image to a folder.
pub(crate) fn unpack(kept: &Kept, root: Reference, dest: &Path) {
    let device = Device::new(kept);
    let exported = device.run(&device.export(root, dest)).unwrap();
    assert_eq!(exported.skipped, []);
}

/// All that two trees must have alike, by path. Sockets are left out.
fn tree_of(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    let mut links: HashMap<u64, PathBuf> = HashMap::new();
    let mut waiting = vec![PathBuf::new()];
    let mut paths = Vec::new();
    while let Some(path) = waiting.pop() {
        let full = place(top, &path);
        if full.symlink_metadata().unwrap().is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                waiting.push(path.join(entry.unwrap().file_name()));
            }
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let full = place(top, &path);
        let metadata = full.symlink_metadata().unwrap();
        if metadata.file_type().is_socket() {
            continue;
        }
        let first = links.entry(metadata.ino()).or_insert(path.clone()).clone();
        let mut content = String::new();
        if metadata.is_file() {
            content = blake3::hash(&std::fs::read(&full).unwrap()).to_string();
        } else if metadata.is_symlink() {
            content = format!("{:?}", std::fs::read_link(&full).unwrap());
        }
        let mut names = vec![0; 65_536];
        let len = rustix::fs::llistxattr(&full, &mut names[..]).unwrap_or(0);
        let mut xattrs = BTreeMap::new();
        for name in names[..len]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(&full, name, &mut value[..]).unwrap();
            value.truncate(len);
            xattrs.insert(name.to_vec(), value);
        }
        let size = if metadata.is_dir() { 0 } else { metadata.len() };
        let nlink = if metadata.is_dir() {
            0
        } else {
            metadata.nlink()
        };
        let what = format!(
            "{:o} {}:{} {} {} {}.{:09} {:?} {first:?} {content} {xattrs:?}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            size,
            nlink,
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.rdev(),
        );
        tree.insert(path, what);
    }
    tree
}

fn place(top: &Path, path: &Path) -> PathBuf {
    // Joining nothing would make a folder of a file.
    match path.as_os_str().is_empty() {
        true => top.to_owned(),
        false => top.join(path),
    }
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (tree_of(a), tree_of(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (path, what) in &a {
        assert_eq!(what, &b[path], "{path:?}");
    }
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (source, dest) = (dir.path().join("source"), dir.path().join("dest"));
    std::fs::create_dir(&source).unwrap();
    make_tree(&source);
    let kept = Kept::default();
    let tree = imported(&source, &kept);
    let device = Device::new(&kept);
    let exported = device.run(&device.export(tree.root, &dest)).unwrap();
    assert_eq!(exported.skipped, []);
    assert_same(&source, &dest);
    let sparse = dest.join("sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes are holes");

    let again = device.run(&device.export(tree.root, &dest));
    assert!(matches!(again, Err(ExportError::NotEmpty)));
    let file = dir.path().join("file");
    std::fs::write(&file, b"mine").unwrap();
    let mut export = device.export(tree.root, &file);
    for kind in [ExportKind::Tree, ExportKind::Tar] {
        export.kind = Some(kind);
        assert!(matches!(device.run(&export), Err(ExportError::NotEmpty)));
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    export.kind = Some(ExportKind::Disk);
    assert!(matches!(device.run(&export), Err(ExportError::NotADisk)));
}

#[test]
fn a_tar_holds_all_and_is_an_image_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    make_tree(&source);
    let kept = Kept::default();
    let tree = imported(&source, &kept);
    let device = Device::new(&kept);
    let tar = dir.path().join("image.tar");
    device.run(&device.export(tree.root, &tar)).unwrap();

    // Another program reads it.
    let unpacked = dir.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let status = std::process::Command::new("tar")
        .args([
            "--numeric-owner",
            "--same-owner",
            "--xattrs",
            "--acls",
            "-xpf",
        ])
        .arg(&tar)
        .arg("-C")
        .arg(&unpacked)
        .status();
    assert!(status.unwrap().success());
    assert_same(&source, &unpacked);

    // So does the import.
    let kept = Kept::default();
    let again = imported(&tar, &kept);
    assert_eq!(again.skipped, []);
    assert_eq!(again.logical_bytes, tree.logical_bytes);
    let dest = dir.path().join("again");
    unpack(&kept, again.root, &dest);
    assert_same(&source, &dest);
    for tree in [&unpacked, &dest] {
        let sparse = tree.join("sparse").metadata().unwrap();
        assert!(sparse.blocks() * 512 < 1 << 20, "holes are holes");
    }
    assert!(
        tar.metadata().unwrap().len() < 8 << 20,
        "also in the archive"
    );
}

#[test]
fn a_disk_comes_back_as_a_sparse_file() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let (source, dest) = (dir.path().join("source"), dir.path().join("dest.raw"));
    let disk = std::fs::File::create(&source).unwrap();
    disk.set_len((200 << 20) + 1_024).unwrap();
    for at in 0..40u64 {
        disk.write_all_at(&noise(at, 100_000), at * 5_000_000)
            .unwrap();
    }
    let kept = Kept::default();
    let image = imported(&source, &kept);
    let device = Device::new(&kept);
    let exported = device.run(&device.export(image.root, &dest)).unwrap();
    assert_eq!((exported.files, exported.bytes), (1, (200 << 20) + 1_024));
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&dest).unwrap());
    assert!(dest.metadata().unwrap().blocks() * 512 < 8 << 20);

    // In a folder that is there, the same image is a tree.
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    device.run(&device.export(image.root, &folder)).unwrap();
    let file = folder.join(DISK_NAME).metadata().unwrap();
    assert_eq!(file.len(), (200 << 20) + 1_024);
    let again = device.run(&device.export(image.root, &dest));
    assert!(matches!(again, Err(ExportError::NotEmpty)));
}

#[test]
fn a_part_can_be_written_alone() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    make_tree(&source);
    let kept = Kept::default();
    let tree = imported(&source, &kept);
    let device = Device::new(&kept);
    let mut export = device.export(tree.root, &dir.path().join("folder"));
    export.path = Some("/deep/er/".into());
    device.run(&export).unwrap();
    assert_same(&source.join("deep/er"), &export.dest);

    export.dest = dir.path().join("one file");
    export.path = Some("deep/er/many blocks".into());
    device.run(&export).unwrap();
    assert_same(&source.join("deep/er/many blocks"), &export.dest);

    export.dest = dir.path().join("nothing");
    for path in ["deep/absent", "small/below", "../source"] {
        export.path = Some(path.into());
        assert!(matches!(device.run(&export), Err(ExportError::NoSuchPath)));
        assert!(!export.dest.exists());
    }
}

#[test]
fn a_socket_is_made_anew_and_a_tar_leaves_it_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut forged = Forged::default();
    forged.inode(1, FileKind::Directory, 0);
    forged.inode(2, FileKind::Socket, 0);
    let hash = name_hash(&BOUNDARY, b"socket");
    forged.name(1, hash, b"socket", 2, FileKind::Socket);
    let (device, root) = forged.device();
    let dest = dir.path().join("folder");
    assert_eq!(device.run(&device.export(root, &dest)).unwrap().skipped, []);
    let made = dest.join("socket").symlink_metadata().unwrap();
    assert!(made.file_type().is_socket());
    let tar = device.export(root, &dir.path().join("a.tar"));
    assert_eq!(device.run(&tar).unwrap().skipped.len(), 1);
}

/// An image put together by hand.
#[derive(Default)]
struct Forged {
    kept: Kept,
    entries: BTreeMap<Key, Value>,
}

impl NodeSink for &Kept {
    fn put(&mut self, sealed: Sealed, _: Arc<img_index::Node>) {
        ObjectSink::put(*self, sealed).unwrap();
    }
}

impl Forged {
    fn inode(&mut self, inode: u64, kind: FileKind, size: u64) {
        let time = Timestamp {
            seconds: 1,
            nanos: 0,
        };
        let attributes = Attributes {
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 1,
            size,
            mtime: time,
            ctime: time,
            rdev: 0,
            extents: None,
        };
        let key = Key::attributes(Inode(inode));
        self.entries.insert(key, Value::Attributes(attributes));
    }

    fn name(&mut self, parent: u64, hash: NameHash, name: &[u8], inode: u64, kind: FileKind) {
        let key = Key::entry(Inode(parent), hash, name);
        let inode = Inode(inode);
        self.entries.insert(key, Value::Entry { inode, kind });
    }

    fn device(&self) -> (Device, Reference) {
        let (mut sealer, mut sink) = (keys().sealer(), &self.kept);
        let mut loader = Loader::new(&mut sink, &mut sealer, &BOUNDARY);
        for (key, value) in &self.entries {
            loader.put(key, value).unwrap();
        }
        let root = loader.finish().unwrap();
        (Device::new(&self.kept), root)
    }
}

#[test]
fn a_hostile_image_writes_nothing_outside_of_its_destination() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    // The same name twice: a symlink that leads out, and a folder or file to be written through it.
    for kind in [FileKind::Directory, FileKind::File] {
        let mut forged = Forged::default();
        let target = match kind {
            FileKind::Directory => outside.clone(),
            _ => outside.join("evil"),
        };
        forged.inode(1, FileKind::Directory, 0);
        forged.inode(2, FileKind::Symlink, 0);
        let target = target.as_os_str().as_bytes().to_vec();
        forged
            .entries
            .insert(Key::symlink(Inode(2)), Value::Symlink(target));
        forged.inode(3, kind, 4);
        forged.inode(4, FileKind::File, 4);
        forged.name(1, NameHash::new(1), b"x", 2, FileKind::Symlink);
        forged.name(1, NameHash::new(2), b"x", 3, kind);
        forged.name(3, NameHash::new(1), b"evil", 4, FileKind::File);
        for inode in [3, 4] {
            let value = Value::Inline(b"evil".to_vec());
            forged.entries.insert(Key::inline(Inode(inode)), value);
        }
        let (device, root) = forged.device();
        let dest = dir.path().join(format!("{kind:?}"));
        let outcome = device.run(&device.export(root, &dest));
        assert!(matches!(outcome, Err(ExportError::Dest(_))), "{outcome:?}");
        assert!(std::fs::read_dir(&outside).unwrap().next().is_none());
    }
}

#[test]
fn a_folder_that_lies_in_itself_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut forged = Forged::default();
    forged.inode(1, FileKind::Directory, 0);
    forged.inode(2, FileKind::Directory, 0);
    forged.name(1, NameHash::new(1), b"a", 2, FileKind::Directory);
    forged.name(2, NameHash::new(1), b"b", 1, FileKind::Directory);
    let (device, root) = forged.device();
    for dest in ["folder", "file.tar"] {
        let exported = device.run(&device.export(root, &dir.path().join(dest)));
        assert_eq!(exported.unwrap().skipped.len(), 1);
    }
}

#[test]
fn patches_are_part_of_a_blocks_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut forged = Forged::default();
    let mut sealer = keys().sealer();
    let mut seal = |kind, content: &[u8]| {
        let sealed = sealer.seal(kind, content).unwrap();
        let reference = sealed.reference;
        ObjectSink::put(&forged.kept, sealed).unwrap();
        reference
    };
    let base = seal(ObjectKind::Block, b"0123456789");
    let range = |offset, bytes: Option<&[u8]>, len| PatchRange {
        offset,
        len,
        bytes: bytes.map(<[u8]>::to_vec),
    };
    let patch = Patch {
        sections: vec![
            vec![range(0, Some(b"other"), 5)],
            vec![
                range(2, Some(b"xy"), 2),
                range(6, None, 2),
                range(20, Some(b"end"), 3),
            ],
        ],
    };
    let reference = seal(ObjectKind::Patch, &patch.encode().unwrap());
    forged.inode(1, FileKind::Directory, 0);
    forged.inode(2, FileKind::File, 22);
    let hash = name_hash(&BOUNDARY, b"patched");
    forged.name(1, hash, b"patched", 2, FileKind::File);
    let extent = Extent {
        base: Some(base),
        patches: vec![PatchPart {
            reference,
            section: 1,
        }],
    };
    forged
        .entries
        .insert(Key::extent(Inode(2), 0), Value::Extent(extent));
    let (device, root) = forged.device();
    let mut export = device.export(root, &dir.path().join("patched"));
    export.path = Some("patched".into());
    device.run(&export).unwrap();
    let content = std::fs::read(&export.dest).unwrap();
    assert_eq!(content, b"01xy45\0\089\0\0\0\0\0\0\0\0\0\0en");
    assert!(content.len() < BLOCK_SIZE);
}

#[test]
fn what_the_home_lacks_ends_the_export() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), noise(1, 500_000)).unwrap();
    let kept = Kept::default();
    let image = imported(&source, &kept);
    let lost = *kept
        .objects()
        .iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap()
        .0;
    kept.objects().remove(&lost);
    let device = Device::new(&kept);
    for dest in ["folder", "file.tar"] {
        let outcome = device.run(&device.export(image.root, &dir.path().join(dest)));
        match outcome {
            Err(ExportError::Fetch(FetchError::Missing(id))) => assert_eq!(id, lost),
            outcome => panic!("{outcome:?}"),
        }
    }
}
