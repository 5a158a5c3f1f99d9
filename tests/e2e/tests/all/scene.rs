//! What several tests begin with, and what they wait for.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::{Device, World};
use serde_json::Value;

/// What a device says of one of its checkouts, and when.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) event: Value,
    pub(crate) at: Instant,
}

/// A home with an image that the laptop has checked out, and a desktop.
pub(crate) fn held() -> Result<(World, Device, Device)> {
    let world = World::new()?;
    let laptop = world.founder("laptop")?;
    laptop.json(&["create", "vm"])?;
    let mount = laptop.checkout("vm", &[])?;
    fs::write(mount.join("first"), "1")?;
    laptop.json(&["commit", "vm"])?;
    let desktop = world.joined("desktop", &laptop)?;
    Ok((world, laptop, desktop))
}

/// Checkpoints and waits until the checkpoint is staged at home.
pub(crate) fn stage(device: &Device, image: &str) -> Result<String> {
    let before = device.status(image)?["staged"].clone();
    device.json(&["checkpoint", image])?;
    e2e::wait_for("the checkpoint to be staged", || {
        let staged = device.status(image)?["staged"].clone();
        Ok(staged
            .as_str()
            .filter(|_| staged != before)
            .map(str::to_owned))
    })
}

/// What a device says of its checkouts from now on.
pub(crate) fn events(device: &Device) -> Result<mpsc::Receiver<Told>> {
    let mut socket = UnixStream::connect(device.socket())?;
    socket.write_all(b"GET /v1/events HTTP/1.1\r\nhost: imgd\r\n\r\n")?;
    let mut lines = BufReader::new(socket).lines();
    // The answer's head: from here on nothing is missed.
    while !lines.next().context("no answer")??.is_empty() {}
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut of_checkout = false;
        for line in lines.map_while(Result::ok) {
            let at = Instant::now();
            if let Some(name) = line.strip_prefix("event: ") {
                of_checkout = name == "checkout";
            } else if let Some(data) = line.strip_prefix("data: ").filter(|_| of_checkout)
                && let Ok(event) = serde_json::from_str(data)
                && sender.send(Told { event, at }).is_err()
            {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Waits until a checkout gets into this state.
pub(crate) fn told(events: &mpsc::Receiver<Told>, state: &str) -> Result<Told> {
    loop {
        let told = events.recv_timeout(e2e::SOON);
        let told = told.with_context(|| format!("nobody said {state}"))?;
        if told.event["state"] == state {
            return Ok(told);
        }
    }
}

/// A moment between nothing and what an operation takes, different for each round.
pub(crate) fn moment(round: u32, longest: Duration) -> Duration {
    let hash = blake3::hash(&round.to_le_bytes());
    longest * u32::from(hash.as_bytes()[0]) / 256
}
