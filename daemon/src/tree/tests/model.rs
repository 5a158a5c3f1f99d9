//! A file system of maps and vectors that is obviously right.

use std::collections::{BTreeMap, BTreeSet};

use img_index::FileKind;
use rustix::io::Errno;

/// Number of an inode in the model; the same as the tree's, since both count alike.
pub(super) type Number = u64;

pub(super) const ROOT: Number = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) data: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) entries: BTreeMap<Vec<u8>, Number>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What the tree must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) files: BTreeMap<Number, File>,
    pub(super) open: BTreeMap<Number, u32>,
    pub(super) next: Number,
}

impl File {
    fn new(kind: FileKind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            data: Vec::new(),
            target: Vec::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
        }
    }
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            files: BTreeMap::from([(ROOT, File::new(FileKind::Directory, 0o755))]),
            open: BTreeMap::new(),
            next: 2,
        }
    }

    /// Files that have no name and are not open, which only a crash makes: they cannot be reached.
    pub(super) fn crash(&mut self) {
        self.open.clear();
        let reached = self.reached();
        self.files.retain(|number, _| reached.contains(number));
    }

    fn reached(&self) -> BTreeSet<Number> {
        let mut reached = BTreeSet::from([ROOT]);
        let mut ahead = vec![ROOT];
        while let Some(number) = ahead.pop() {
            for &child in self.files[&number].entries.values() {
                if reached.insert(child) {
                    ahead.push(child);
                }
            }
        }
        reached
    }

    /// Whether a directory stands below another one, or is it.
    pub(super) fn is_below(&self, number: Number, above: Number) -> bool {
        number == above
            || self.files[&above].entries.values().any(|&child| {
                self.files[&child].kind == FileKind::Directory && self.is_below(number, child)
            })
    }

    pub(super) fn lookup(&self, parent: Number, name: &[u8]) -> Option<Number> {
        self.files[&parent].entries.get(name).copied()
    }

    pub(super) fn make(
        &mut self,
        parent: Number,
        name: &[u8],
        kind: FileKind,
        target: &[u8],
    ) -> Result<Number, Errno> {
        if self.lookup(parent, name).is_some() {
            return Err(Errno::EXIST);
        }
        let number = self.next;
        self.next += 1;
        let mode = if kind == FileKind::Symlink {
            0o777
        } else {
            0o640
        };
        let mut file = File::new(kind, mode);
        file.target = target.to_vec();
        self.files.insert(number, file);
        self.file(parent).entries.insert(name.to_vec(), number);
        if kind == FileKind::Directory {
            self.file(parent).nlink += 1;
        }
        Ok(number)
    }

    pub(super) fn link(
        &mut self,
        number: Number,
        parent: Number,
        name: &[u8],
    ) -> Result<(), Errno> {
        let file = &self.files[&number];
        if file.kind == FileKind::Directory {
            return Err(Errno::PERM);
        }
        if file.nlink == 0 {
            return Err(Errno::NOENT);
        }
        if self.lookup(parent, name).is_some() {
            return Err(Errno::EXIST);
        }
        self.file(number).nlink += 1;
        self.file(parent).entries.insert(name.to_vec(), number);
        Ok(())
    }

    pub(super) fn remove(
        &mut self,
        parent: Number,
        name: &[u8],
        directory: bool,
    ) -> Result<(), Errno> {
        let number = self.lookup(parent, name).ok_or(Errno::NOENT)?;
        let file = &self.files[&number];
        match (directory, file.kind == FileKind::Directory) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (true, true) if !file.entries.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        self.file(parent).entries.remove(name);
        self.unlink(number, parent);
        Ok(())
    }

    fn unlink(&mut self, number: Number, parent: Number) {
        if self.files[&number].kind == FileKind::Directory {
            self.file(parent).nlink -= 1;
            self.file(number).nlink = 0;
        } else {
            self.file(number).nlink -= 1;
        }
        if self.files[&number].nlink == 0 && !self.open.contains_key(&number) {
            self.files.remove(&number);
        }
    }

    pub(super) fn rename(
        &mut self,
        (parent, name): (Number, &[u8]),
        (new_parent, new_name): (Number, &[u8]),
        mode: super::super::RenameMode,
    ) -> Result<(), Errno> {
        use super::super::RenameMode;
        let moved = self.lookup(parent, name).ok_or(Errno::NOENT)?;
        let there = self.lookup(new_parent, new_name);
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            (_, Some(there)) if there == moved => return Ok(()),
            _ => {}
        }
        let is_directory = |model: &Self, number| model.files[&number].kind == FileKind::Directory;
        if mode == RenameMode::Exchange {
            let there = there.unwrap();
            self.file(parent).entries.insert(name.to_vec(), there);
            self.file(new_parent)
                .entries
                .insert(new_name.to_vec(), moved);
            let difference =
                i32::from(is_directory(self, there)) - i32::from(is_directory(self, moved));
            if parent != new_parent {
                let file = self.file(parent);
                file.nlink = file.nlink.checked_add_signed(difference).unwrap();
                let file = self.file(new_parent);
                file.nlink = file.nlink.checked_add_signed(-difference).unwrap();
            }
            return Ok(());
        }
        if let Some(there) = there {
            match (is_directory(self, moved), is_directory(self, there)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.files[&there].entries.is_empty() => {
                    return Err(Errno::NOTEMPTY);
                }
                _ => {}
            }
        }
        self.file(parent).entries.remove(name);
        self.file(new_parent)
            .entries
            .insert(new_name.to_vec(), moved);
        if let Some(there) = there {
            self.unlink(there, new_parent);
        }
        if is_directory(self, moved) {
            self.file(parent).nlink -= 1;
            self.file(new_parent).nlink += 1;
        }
        Ok(())
    }

    pub(super) fn open(&mut self, number: Number) {
        *self.open.entry(number).or_default() += 1;
    }

    pub(super) fn release(&mut self, number: Number) {
        let Some(count) = self.open.get_mut(&number) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.open.remove(&number);
            if self.files[&number].nlink == 0 {
                self.files.remove(&number);
            }
        }
    }

    pub(super) fn write(&mut self, number: Number, offset: usize, bytes: &[u8]) {
        let data = &mut self.file(number).data;
        if data.len() < offset + bytes.len() {
            data.resize(offset + bytes.len(), 0);
        }
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn zero(&mut self, number: Number, offset: usize, len: usize, keep_size: bool) {
        let data = &mut self.file(number).data;
        if !keep_size && data.len() < offset + len {
            data.resize(offset + len, 0);
        }
        let end = data.len().min(offset + len);
        if offset < end {
            data[offset..end].fill(0);
        }
    }

    pub(super) fn file(&mut self, number: Number) -> &mut File {
        self.files
            .get_mut(&number)
            .expect("the test names files that are there")
    }
}
