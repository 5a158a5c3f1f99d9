//! A cgroup for an application: what the daemon makes stand still for an exact cut, and what tells when all has ended.
//!
//! It is made below the root of the cgroups (version 2) where one may, else below this program's own cgroup where that
//! has been delegated to its user. This program enters it only to start the application there.

use std::io;
use std::path::{Path, PathBuf};

/// A cgroup that was made for an application, and the one to go back to.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    own: PathBuf,
}

impl Cgroup {
    /// Makes one of this name; nothing where none can be made and entered.
    pub(crate) fn make(name: &str) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let (root, own) = places(&mounts, &cgroups)?;
        let all = root.join("imgctl");
        // Where it is missing and cannot be made, nothing can be made in it either.
        std::fs::create_dir(&all).ok();
        [all, own.clone()].iter().find_map(|parent| {
            let dir = parent.join(name);
            // Left by a program of the same number.
            std::fs::remove_dir(&dir).ok();
            std::fs::create_dir(&dir).ok()?;
            let made = Self {
                dir,
                own: own.clone(),
            };
            let enters = made.enter().and_then(|()| made.leave());
            match enters {
                Ok(()) => Some(made),
                Err(_) => {
                    made.leave().ok();
                    made.remove();
                    None
                }
            }
        })
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves this program into it; what it starts then begins there.
    pub(crate) fn enter(&self) -> io::Result<()> {
        std::fs::write(self.dir.join(PROCESSES), "0")
    }

    /// Moves this program back to where it was.
    pub(crate) fn leave(&self) -> io::Result<()> {
        std::fs::write(self.own.join(PROCESSES), "0")
    }

    /// Whether a process is in it.
    pub(crate) fn is_populated(&self) -> bool {
        let events = std::fs::read_to_string(self.dir.join("cgroup.events"));
        events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// The processes that are directly in it.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let listed = std::fs::read_to_string(self.dir.join(PROCESSES)).unwrap_or_default();
        listed
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    /// Removes it; the daemon does as well.
    pub(crate) fn remove(&self) {
        std::fs::remove_dir(&self.dir).ok();
    }
}

/// The root of the cgroups of version 2 as it is mounted, and this program's own cgroup.
fn places(mounts: &str, cgroups: &str) -> Option<(PathBuf, PathBuf)> {
    let (root, dir) = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, dir) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup2 ").then_some((root, dir))
    })?;
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Only a part of the tree may be mounted here.
    let own = Path::new(own).strip_prefix(root).ok()?;
    let stays = own.components().all(|part| part.as_os_str() != "..");
    stays.then(|| (PathBuf::from(dir), Path::new(dir).join(own)))
}

const PROCESSES: &str = "cgroup.procs";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_and_the_own_cgroup_are_found() {
        let hybrid = "19 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      20 41 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let cgroups = "9:name=systemd:/x\n0::/user.slice/a.scope\n";
        let root = PathBuf::from("/sys/fs/cgroup/unified");
        let own = root.join("user.slice/a.scope");
        assert_eq!(places(hybrid, cgroups), Some((root, own)));
        let part = "20 41 0:38 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let root = PathBuf::from("/sys/fs/cgroup");
        let own = root.join("a");
        assert_eq!(places(part, "0::/box/a\n"), Some((root, own)));
        assert_eq!(places(part, "0::/elsewhere\n"), None);
        let whole = "20 41 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(places(whole, "0::/../outside\n"), None);
        assert_eq!(places("", "0::/\n"), None);
    }
}
