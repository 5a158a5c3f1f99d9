//! Full disks: a clear error, nothing lost, and work goes on once there is room.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use e2e::{World, wait_for};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file system in memory with this much room; gone when it goes out of scope.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn new(path: PathBuf, mebibytes: u32) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let size = std::ffi::CString::new(format!("size={mebibytes}m"))?;
        mount(
            "tmpfs",
            &path,
            "tmpfs",
            MountFlags::empty(),
            Some(size.as_c_str()),
        )?;
        Ok(Self { path })
    }

    fn free(&self) -> Result<u64> {
        let free = rustix::fs::statvfs(&self.path)?;
        Ok(free.f_bavail * free.f_frsize)
    }

    /// Takes room away until `mebibytes` are left.
    fn fill_up_to(&self, mebibytes: u64) -> Result<PathBuf> {
        let free = self.free()?;
        let ballast = self.path.join("ballast");
        let file = fs::File::create(&ballast)?;
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            free.saturating_sub(mebibytes << 20).max(1),
        )?;
        Ok(ballast)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still open lives on until it is closed.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut content);
    content
}

/// Writes files of 1 MiB until one is refused; returns how many were taken.
fn write_until_full(folder: &Path, files_max: u32) -> Result<u32> {
    for n in 0..files_max {
        let file = fs::File::create(folder.join(format!("file-{n}")));
        let written = file.and_then(|file| {
            file.write_all_at(&noise(n, 1 << 20), 0)?;
            file.sync_all()
        });
        match written {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
                return Ok(n);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(files_max)
}

#[test]
fn a_device_without_room_refuses_writes_and_keeps_what_it_took() -> Result<()> {
    let world = World::new()?;
    let disk = SmallDisk::new(world.path("a"), 420)?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    let taken = write_until_full(&mount, 400)?;
    ensure!(
        (1..400).contains(&taken),
        "{taken} files of 1 MiB were taken"
    );
    for n in 0..taken {
        ensure!(
            fs::read(mount.join(format!("file-{n}")))? == noise(n, 1 << 20),
            "file-{n}"
        );
    }
    a.json(&["commit", "vm"])?;
    a.json(&["release", "vm"])?;
    let b = world.joined("b", &a)?;
    let copy = b.checkout("vm", &[])?;
    for n in 0..taken {
        ensure!(
            fs::read(copy.join(format!("file-{n}")))? == noise(n, 1 << 20),
            "file-{n}"
        );
    }
    drop(a);
    drop(disk);
    Ok(())
}

#[test]
fn what_was_read_takes_no_room_from_what_is_written() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    let folder = a.work().join("large");
    fs::create_dir(&folder)?;
    for n in 0..450 {
        fs::write(folder.join(format!("old-{n}")), noise(1_000 + n, 1 << 20))?;
    }
    a.json(&["create", "vm", "--from", "large"])?;

    let disk = SmallDisk::new(world.path("b"), 600)?;
    let mut b = world.joined("b", &a)?;
    let mount = b.checkout("vm", &[])?;
    let read_all = || -> Result<()> {
        for n in 0..450 {
            let found = fs::read(mount.join(format!("old-{n}")))?;
            ensure!(found == noise(1_000 + n, 1 << 20), "old-{n}");
        }
        Ok(())
    };
    read_all()?;
    let free = disk.free()?;
    ensure!(free > 400 << 20, "the cache left {} MiB", free >> 20);
    let refused = b.fails(9, &["hydrate", "vm"])?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(message.contains("does not fit"), "{message}");
    let problem = b.status("vm")?["problem"].clone();
    ensure!(
        problem.as_str() == Some(message),
        "a status that says {problem}"
    );
    let free = disk.free()?;
    ensure!(free > 400 << 20, "hydrating left {} MiB", free >> 20);
    let cache = b.json(&["cache"])?;
    let evictable = cache["evictable_bytes"].as_u64();
    ensure!(evictable > Some(40 << 20), "{cache}");

    // As many as fit on a disk without a cache, and not 128, which would fit beside it.
    let new = mount.join("new");
    fs::create_dir(&new)?;
    let taken = write_until_full(&new, 400)?;
    ensure!((140..400).contains(&taken), "{taken} files were taken");
    b.kill()?;
    b.restart()?;
    wait_for("the checkout to be mounted", || {
        Ok(new.join("file-0").exists().then_some(()))
    })?;
    for n in 0..taken {
        ensure!(
            fs::read(new.join(format!("file-{n}")))? == noise(n, 1 << 20),
            "file-{n}"
        );
    }
    b.json(&["commit", "vm"])?;
    read_all()?;
    fs::write(mount.join("after"), noise(7, 20 << 20))?;
    b.json(&["commit", "vm"])?;

    let cache = b.json(&["cache", "--limit", "10M"])?;
    ensure!(cache["used_bytes"].as_u64() <= Some(10 << 20), "{cache}");
    b.stop()?;
    b.restart()?;
    let cache = b.json(&["cache"])?;
    ensure!(cache["limit_bytes"] == 10 << 20, "{cache}");
    wait_for("the checkout to be mounted", || {
        Ok(mount.join("after").exists().then_some(()))
    })?;
    read_all()?;
    let cache = b.json(&["cache"])?;
    ensure!(cache["used_bytes"].as_u64() <= Some(10 << 20), "{cache}");
    b.json(&["release", "vm"])?;
    drop(b);
    drop(disk);
    Ok(())
}

#[test]
fn a_home_without_room_refuses_and_takes_the_commit_once_there_is_room() -> Result<()> {
    let mut world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "vm"])?;
    let mount = a.checkout("vm", &[])?;
    fs::write(mount.join("before"), "1")?;
    a.json(&["commit", "vm"])?;

    world.home.stop()?;
    let disk = SmallDisk::new(world.path("small"), 600)?;
    world.home.move_to(&disk.path.join("home"))?;
    let ballast = disk.fill_up_to(200)?;
    world.home.start()?;
    fs::write(mount.join("large"), noise(7, 40 << 20))?;
    let refused = a.imgctl(&["commit", "vm", "--json"])?;
    ensure!(refused.code == Some(9), "a full home: {refused}");
    ensure!(
        refused.stdout.contains("tried again by itself"),
        "{refused}"
    );
    ensure!(
        fs::read_to_string(mount.join("before"))? == "1",
        "the mount goes on"
    );
    fs::remove_file(ballast)?;
    // Nobody asks again.
    wait_for("the commit to be taken", || {
        let status = a.status("vm")?;
        let is_home = status["checkpoints_local"] == 0 && status["problem"].is_null();
        Ok(is_home.then_some(()))
    })?;
    a.json(&["release", "vm"])?;
    let b = world.joined("b", &a)?;
    let copy = b.checkout("vm", &[])?;
    ensure!(fs::read(copy.join("large"))? == noise(7, 40 << 20));
    drop((a, b));
    world.home.stop()?;
    Ok(())
}
