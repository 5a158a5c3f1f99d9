//! Programs of the system that a task needs, installed where that is possible.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    program: &'static str,
    package: &'static str,
}

/// What a mount needs.
pub(crate) const MOUNTS: [Need; 1] = [need("fusermount3", "fuse3")];

/// What the end-to-end tests run inside of a mount, and how they look at it.
pub(crate) const TESTS: [Need; 8] = [
    need("fusermount3", "fuse3"),
    need("git", "git"),
    need("gcc", "gcc"),
    need("mke2fs", "e2fsprogs"),
    need("debugfs", "e2fsprogs"),
    need("python3", "python3"),
    need("setfacl", "acl"),
    need("setfattr", "attr"),
];

/// What the benchmarks run beside this project.
pub(crate) const BENCHMARKS: [Need; 3] = [
    need("fusermount3", "fuse3"),
    need("restic", "restic"),
    need("mke2fs", "e2fsprogs"),
];

/// What the lease benchmark runs beside this project.
pub(crate) const ETCD: [Need; 1] = [need("etcd", "etcd-server")];

const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package }
}

/// Installs what is missing, as root on a system with apt; otherwise says what to type.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut packages: Vec<_> = needs
        .iter()
        .filter(|need| !is_installed(need.program))
        .map(|need| need.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let install = format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !is_installed("apt-get") {
        bail!("these packages are missing: {}", packages.join(" "));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("something is missing on this machine; run: sudo {install}");
    }
    shell::run("apt-get", ["-q", "update"])?;
    shell::run("apt-get", install.split(' ').skip(1))
}

/// Checks that file systems can be mounted here.
pub(crate) fn ensure_fuse() -> Result<()> {
    let device = Path::new("/dev/fuse");
    if !device.exists() && rustix::process::geteuid().is_root() {
        // Where the kernel has no such module either, the check below says so.
        let _ = Command::new("modprobe").arg("fuse").status();
    }
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "/dev/fuse cannot be opened ({error}); load the kernel's module with: sudo modprobe fuse"
        ),
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH on Debian leaves out where administrative programs are.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}
