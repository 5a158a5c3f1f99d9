//! `cargo xtask bench`: builds everything in release and runs the benchmarks of `tests/bench`.

use anyhow::Result;

use crate::needs;
use crate::shell::cargo;

/// Runs one benchmark with its options.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let leases = ["leases", "lease-rate"];
    if args.iter().any(|arg| leases.contains(&arg.as_str())) {
        // Clients without mounts: neither the daemon nor the kernel's FUSE takes part.
        needs::ensure(&needs::ETCD)?;
        cargo(&["build", "--release", "-p", "imghome", "-p", "contend"])?;
    } else if args.iter().any(|arg| arg == "background") {
        needs::ensure_fuse()?;
        let programs = ["-p", "imgd", "-p", "imgctl", "-p", "imghome"];
        cargo(&[&["build", "--release"][..], &programs[..]].concat())?;
    } else {
        needs::ensure(&needs::BENCHMARKS)?;
        needs::ensure_fuse()?;
        cargo(&["build", "--release", "--workspace", "--bins"])?;
    }
    let args = args.iter().map(String::as_str);
    let args: Vec<_> = ["run", "--release", "-p", "bench", "--"]
        .into_iter()
        .chain(args)
        .collect();
    cargo(&args)
}
