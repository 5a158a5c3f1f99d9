//! What checkpoints that stream cost the application whose work they save.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Device, World};

use crate::ours;
use crate::timing::{Comparison, time};

/// Bytes per second that the application wants to write.
const RATE: f64 = 50e6;
/// Bytes of one write.
const CHUNK: usize = 1 << 20;
/// Writes of one round: about 12 seconds.
const CHUNKS: usize = 600;
/// The file that it writes over, in chunks.
const FILE: usize = 256;

/// One application without checkpoints, and with one every two seconds, each of them a commit.
pub(crate) fn run(rounds: usize) -> Result<Comparison> {
    let mut comparison = Comparison::new(format!(
        "an application that writes {:.0} MB at up to {:.0} MB/s",
        (CHUNKS * CHUNK) as f64 / 1e6,
        RATE / 1e6
    ));
    let mut noise = vec![0; CHUNK + CHUNKS];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    for _ in 0..rounds {
        for (side, interval) in [("no checkpoints", "off"), ("one every 2 s", "2s")] {
            let world = World::new()?;
            let mut device = world.founder("bench")?;
            device.stop()?;
            device.configure(&format!("[checkpoints]\ninterval = \"{interval}\"\n"))?;
            device.restart()?;
            device.json(&["create", "app"])?;
            let mount = device.checkout("app", &[])?;
            let cost = time(
                || ours::core_seconds(&world, &[&device]),
                || {
                    write(&mount.join("data"), &noise)?;
                    Ok(0)
                },
            )?;
            let (commits, bytes) = came_home(&device)?;
            ensure!(interval == "off" || commits >= 3, "{commits} commits");
            comparison.add(side, crate::timing::Cost { bytes, ..cost });
        }
    }
    Ok(comparison)
}

/// Writes at the wanted rate, or as fast as it goes.
fn write(path: &Path, noise: &[u8]) -> Result<()> {
    let file = File::create(path)?;
    let start = Instant::now();
    for number in 0..CHUNKS {
        let due = Duration::from_secs_f64((number * CHUNK) as f64 / RATE);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        // Nothing that was there before.
        let content = &noise[number..number + CHUNK];
        file.write_all_at(content, ((number % FILE) * CHUNK) as u64)?;
    }
    Ok(())
}

/// Commits that came home by themselves, and the bytes that were sealed for them.
fn came_home(device: &Device) -> Result<(usize, u64)> {
    let log = device.json(&["log", "app"])?;
    let rows = log.as_array().cloned().unwrap_or_else(|| vec![log]);
    let commits = rows
        .iter()
        .filter(|row| row["automatic"] == true && row["home"] == true);
    let bytes: Option<Vec<_>> = commits.map(|row| row["sealed_bytes"].as_u64()).collect();
    let bytes = bytes.context("sealed_bytes")?;
    Ok((bytes.len(), bytes.iter().sum()))
}
