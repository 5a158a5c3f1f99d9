//! Random operations on a tree and on the model; everything is compared as it goes.

use std::collections::BTreeMap;

use img_index::{FileKind, Inode};
use proptest::prelude::*;
use proptest::sample::Index;
use rustix::io::Errno;

use super::super::{
    Access, Allocation, COOKIE_FIRST, NewInode, RenameMode, Seek, SetAttributes, SetXattr,
};
use super::Place;
use super::model::{Model, Number, ROOT};

#[derive(Debug, Clone)]
enum Step {
    Make(Index, u8, u8),
    Link(Index, Index, u8),
    Unlink(Index, u8),
    Rmdir(Index, u8),
    Rename(Index, u8, Index, u8, u8),
    Open(Index),
    Release(Index),
    Write(Index, u32, u32, u8),
    Resize(Index, u32),
    Zero(Index, u32, u32, bool),
    Chmod(Index, u32),
    SetXattr(Index, u8, u8, u8),
    RemoveXattr(Index, u8),
    Sync,
    Freeze,
    Seal,
    Forget,
    Crash,
    Compare,
}

/// Names are few, so that they meet.
fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let name = || 0..6_u8;
    // Some three blocks, more often near the beginning.
    let offset = || prop_oneof![0..3_000_u32, 0..200_000_u32];
    let len = || prop_oneof![1..200_u32, 1..100_000_u32];
    prop_oneof![
        6 => (index(), name(), 0..8_u8).prop_map(|(p, n, k)| Step::Make(p, n, k)),
        2 => (index(), index(), name()).prop_map(|(f, p, n)| Step::Link(f, p, n)),
        3 => (index(), name()).prop_map(|(p, n)| Step::Unlink(p, n)),
        2 => (index(), name()).prop_map(|(p, n)| Step::Rmdir(p, n)),
        4 => (index(), name(), index(), name(), 0..3_u8)
            .prop_map(|(p, n, q, m, f)| Step::Rename(p, n, q, m, f)),
        2 => index().prop_map(Step::Open),
        2 => index().prop_map(Step::Release),
        10 => (index(), offset(), len(), 1..=255_u8).prop_map(|(f, o, l, b)| Step::Write(f, o, l, b)),
        3 => (index(), offset()).prop_map(|(f, s)| Step::Resize(f, s)),
        3 => (index(), offset(), len(), any::<bool>()).prop_map(|(f, o, l, k)| Step::Zero(f, o, l, k)),
        1 => (index(), 0..0o10000_u32).prop_map(|(f, m)| Step::Chmod(f, m)),
        2 => (index(), 0..3_u8, 0..3_u8, any::<u8>()).prop_map(|(f, n, m, v)| Step::SetXattr(f, n, m, v)),
        1 => (index(), 0..3_u8).prop_map(|(f, n)| Step::RemoveXattr(f, n)),
        1 => Just(Step::Sync),
        3 => Just(Step::Freeze),
        3 => Just(Step::Seal),
        1 => Just(Step::Forget),
        1 => Just(Step::Crash),
        1 => Just(Step::Compare),
    ]
}

/// The tree, the model, and the model as it was last synced.
struct Both {
    place: Place,
    model: Model,
    synced: Model,
    /// Bytes written since the last sync: file, offset, length, value. A crash may keep them where
    /// they overwrote, in place, what was synced.
    unsynced: Vec<(Number, usize, usize, u8)>,
}

impl Both {
    fn new() -> Self {
        Self {
            place: Place::new(),
            model: Model::new(),
            synced: Model::new(),
            unsynced: Vec::new(),
        }
    }

    fn pick(&self, index: &Index, kinds: &[FileKind]) -> Option<Number> {
        let fitting = |number: &&Number| kinds.contains(&self.model.files[number].kind);
        let numbers: Vec<_> = self.model.files.keys().filter(fitting).collect();
        (!numbers.is_empty()).then(|| *numbers[index.index(numbers.len())])
    }

    /// A directory that has a name still.
    fn directory(&self, index: &Index) -> Number {
        self.pick(index, &[FileKind::Directory]).unwrap_or(ROOT)
    }

    fn is_synced(&mut self) {
        self.synced = self.model.clone();
        self.unsynced.clear();
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Sync => {
                self.place.sync();
                return self.is_synced();
            }
            Step::Freeze => {
                if self.place.freeze() {
                    self.is_synced();
                }
                return;
            }
            Step::Seal => {
                // Its end writes the journal, so the model must know what that holds.
                self.place.sync();
                self.is_synced();
                return self.place.seal();
            }
            Step::Forget => return self.place.memory.forget(),
            Step::Crash => return self.crash(),
            Step::Compare => return self.compare(),
            _ => {}
        }
        self.operate(step);
    }

    fn operate(&mut self, step: &Step) {
        let all = [
            FileKind::File,
            FileKind::Directory,
            FileKind::Symlink,
            FileKind::Fifo,
        ];
        match step {
            Step::Make(parent, name, kind) => {
                let (parent, name) = (self.directory(parent), name_of(*name));
                let kind = match kind {
                    0..=3 => FileKind::File,
                    4..=5 => FileKind::Directory,
                    6 => FileKind::Symlink,
                    _ => FileKind::Fifo,
                };
                let target = if kind == FileKind::Symlink {
                    name.repeat(9)
                } else {
                    Vec::new()
                };
                let made = self.place.run(|tree| match kind {
                    FileKind::Symlink => tree.symlink(Inode(parent), &name, &target, 5, 6),
                    _ => tree.make(Inode(parent), &name, new(kind)),
                });
                let expected = self.model.make(parent, &name, kind, &target);
                assert_eq!(made.map(|shown| shown.inode.0), expected);
            }
            Step::Link(file, parent, name) => {
                let number = self.pick(file, &all).unwrap();
                let (parent, name) = (self.directory(parent), name_of(*name));
                let linked = self
                    .place
                    .run(|tree| tree.link(Inode(number), Inode(parent), &name));
                let expected = self.model.link(number, parent, &name);
                assert_eq!(linked.map(|_| ()), expected);
            }
            Step::Unlink(parent, name) => {
                let (parent, name) = (self.directory(parent), name_of(*name));
                let outcome = self.place.run(|tree| tree.unlink(Inode(parent), &name));
                assert_eq!(outcome, self.model.remove(parent, &name, false));
            }
            Step::Rmdir(parent, name) => {
                let (parent, name) = (self.directory(parent), name_of(*name));
                let outcome = self.place.run(|tree| tree.rmdir(Inode(parent), &name));
                assert_eq!(outcome, self.model.remove(parent, &name, true));
            }
            Step::Rename(parent, name, new_parent, new_name, mode) => {
                let from = (self.directory(parent), name_of(*name));
                let to = (self.directory(new_parent), name_of(*new_name));
                let mode = [
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ][usize::from(*mode)];
                // The kernel refuses to move a directory below itself before the tree is asked.
                let below = |model: &Model, place: &(Number, Vec<u8>), other: Number| {
                    let moved = model.lookup(place.0, &place.1);
                    moved.is_some_and(|m| {
                        model.files[&m].kind == FileKind::Directory && model.is_below(other, m)
                    })
                };
                if below(&self.model, &from, to.0) || below(&self.model, &to, from.0) {
                    return;
                }
                let outcome = self
                    .place
                    .run(|tree| tree.rename(Inode(from.0), &from.1, Inode(to.0), &to.1, mode));
                let expected = self.model.rename((from.0, &from.1), (to.0, &to.1), mode);
                assert_eq!(outcome, expected);
            }
            Step::Open(file) => {
                if let Some(number) = self.pick(file, &[FileKind::File]) {
                    let access = Access::default();
                    self.place
                        .run(|tree| tree.open(Inode(number), access))
                        .unwrap();
                    self.model.open(number);
                }
            }
            Step::Release(file) => {
                let open: Vec<_> = self.model.open.keys().copied().collect();
                if !open.is_empty() {
                    let number = open[file.index(open.len())];
                    self.place
                        .tree()
                        .release(Inode(number), Access::default(), 0);
                    self.model.release(number);
                }
            }
            Step::SetXattr(file, name, mode, value) => {
                let number = self.pick(file, &all).unwrap();
                let name = format!("user.{name}").into_bytes();
                let value = vec![*value; usize::from(*value)];
                let mode = [SetXattr::Any, SetXattr::Create, SetXattr::Replace][usize::from(*mode)];
                let outcome = self
                    .place
                    .run(|tree| tree.set_xattr(Inode(number), &name, &value, mode, false));
                let xattrs = &mut self.model.file(number).xattrs;
                let expected = match (mode, xattrs.contains_key(&name)) {
                    (SetXattr::Create, true) => Err(Errno::EXIST),
                    (SetXattr::Replace, false) => Err(Errno::NODATA),
                    _ => {
                        xattrs.insert(name, value);
                        Ok(())
                    }
                };
                assert_eq!(outcome, expected);
            }
            Step::RemoveXattr(file, name) => {
                let number = self.pick(file, &all).unwrap();
                let name = format!("user.{name}").into_bytes();
                let outcome = self
                    .place
                    .run(|tree| tree.remove_xattr(Inode(number), &name));
                let removed = self.model.file(number).xattrs.remove(&name);
                assert_eq!(outcome, removed.map(|_| ()).ok_or(Errno::NODATA));
            }
            _ => self.change_data(step),
        }
    }

    fn change_data(&mut self, step: &Step) {
        let (Step::Write(file, ..)
        | Step::Resize(file, _)
        | Step::Zero(file, ..)
        | Step::Chmod(file, _)) = step
        else {
            return;
        };
        let Some(number) = self.pick(file, &[FileKind::File]) else {
            return;
        };
        let inode = Inode(number);
        match *step {
            Step::Write(_, offset, len, value) => {
                let bytes = vec![value; len as usize];
                self.place
                    .run(|tree| tree.write(inode, u64::from(offset), &bytes, false))
                    .unwrap();
                self.model.write(number, offset as usize, &bytes);
                self.unsynced
                    .push((number, offset as usize, len as usize, value));
            }
            Step::Resize(_, size) => {
                let set = SetAttributes {
                    size: Some(u64::from(size)),
                    ..SetAttributes::default()
                };
                let shown = self
                    .place
                    .run(|tree| tree.set_attributes(inode, set))
                    .unwrap();
                assert_eq!(shown.attributes.size, u64::from(size));
                self.model.file(number).data.resize(size as usize, 0);
            }
            Step::Zero(_, offset, len, keep_size) => {
                let what = if keep_size {
                    Allocation::Punch
                } else {
                    Allocation::Zero
                };
                self.place
                    .run(|tree| tree.allocate(inode, offset.into(), len.into(), what, keep_size))
                    .unwrap();
                self.model
                    .zero(number, offset as usize, len as usize, keep_size);
            }
            Step::Chmod(_, mode) => {
                let set = SetAttributes {
                    mode: Some(mode),
                    ..SetAttributes::default()
                };
                self.place
                    .run(|tree| tree.set_attributes(inode, set))
                    .unwrap();
                self.model.file(number).mode = mode;
            }
            _ => {}
        }
    }

    /// Ends both lives: the tree goes on from what was synced, and so does the model, but for bytes
    /// that were overwritten in place since.
    fn crash(&mut self) {
        self.place.crash();
        self.model = self.synced.clone();
        self.model.crash();
        let unsynced = std::mem::take(&mut self.unsynced);
        let mut written: BTreeMap<Number, Vec<(usize, usize, u8)>> = BTreeMap::new();
        for (number, offset, len, value) in unsynced {
            written
                .entry(number)
                .or_default()
                .push((offset, len, value));
        }
        for (number, file) in &mut self.model.files {
            let Some(written) = written.get(number) else {
                continue;
            };
            let found = self
                .place
                .run(|tree| tree.read_data(Inode(*number), 0, u64::MAX))
                .unwrap();
            assert_eq!(found.len(), file.data.len());
            for (at, (found, kept)) in found.iter().zip(&mut file.data).enumerate() {
                let overwritten = |(offset, len, value): &(usize, usize, u8)| {
                    (*offset..offset + len).contains(&at) && value == found
                };
                assert!(found == kept || written.iter().any(overwritten));
                *kept = *found;
            }
        }
        self.is_synced();
        self.compare();
    }

    /// Compares everything that can be reached, and the files that are only open.
    fn compare(&self) {
        for (&number, file) in &self.model.files {
            let inode = Inode(number);
            let shown = self.place.run(|tree| tree.attributes(inode)).unwrap();
            let attributes = shown.attributes;
            assert_eq!(
                (attributes.kind, attributes.mode, attributes.nlink),
                (file.kind, file.mode, file.nlink),
                "inode {number}"
            );
            let names = self.place.run(|tree| tree.xattr_names(inode)).unwrap();
            let expected: Vec<u8> = file
                .xattrs
                .keys()
                .flat_map(|name| [&name[..], &[0]].concat())
                .collect();
            assert_eq!(names, expected);
            for (name, value) in &file.xattrs {
                assert_eq!(
                    &self.place.run(|tree| tree.xattr(inode, name)).unwrap(),
                    value
                );
            }
            match file.kind {
                FileKind::Directory => self.compare_listing(number),
                FileKind::File => self.compare_data(number),
                FileKind::Symlink => {
                    let target = self.place.run(|tree| tree.readlink(inode)).unwrap();
                    assert_eq!(target, file.target);
                }
                _ => {}
            }
        }
    }

    fn compare_listing(&self, number: Number) {
        let mut found = BTreeMap::new();
        let mut cookie = COOKIE_FIRST;
        loop {
            // In small steps, so that every cookie is gone on from.
            let listed = self
                .place
                .run(|tree| tree.list_shown(Inode(number), cookie, 2))
                .unwrap();
            let Some((last, _)) = listed.last() else {
                break;
            };
            cookie = last.cookie;
            for (entry, shown) in listed {
                assert_eq!(shown.attributes.kind, entry.entry.kind);
                assert!(found.insert(entry.name, entry.entry.inode.0).is_none());
            }
        }
        assert_eq!(found, self.model.files[&number].entries);
        for name in 0..6 {
            let name = name_of(name);
            let there = self
                .place
                .run(|tree| tree.lookup(Inode(number), &name))
                .unwrap();
            assert_eq!(
                there.map(|shown| shown.inode.0),
                self.model.lookup(number, &name)
            );
        }
    }

    fn compare_data(&self, number: Number) {
        let expected = &self.model.files[&number].data;
        let found = self
            .place
            .run(|tree| tree.read_data(Inode(number), 0, u64::MAX))
            .unwrap();
        assert!(found == *expected, "contents of {number} differ");
        // Data and holes alternate, and holes are zeros.
        let mut at = 0;
        while at < expected.len() as u64 {
            let seek = |what| self.place.run(|tree| tree.seek(Inode(number), at, what));
            let hole = seek(Seek::Hole).unwrap();
            assert!(hole >= at);
            if hole > at {
                at = hole;
                continue;
            }
            let data = seek(Seek::Data).unwrap_or(expected.len() as u64);
            assert!(data > at);
            assert!(expected[at as usize..data as usize].iter().all(|&b| b == 0));
            at = data;
        }
    }
}

fn name_of(number: u8) -> Vec<u8> {
    format!("name {number}").into_bytes()
}

fn new(kind: FileKind) -> NewInode {
    NewInode {
        kind,
        mode: 0o640,
        umask: 0,
        uid: 5,
        gid: 6,
        rdev: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_tree_is_what_the_model_says(steps in proptest::collection::vec(step(), 1..150)) {
        let mut both = Both::new();
        for step in &steps {
            both.apply(step);
        }
        both.compare();
        both.place.sync();
        both.is_synced();
        both.crash();
    }
}
