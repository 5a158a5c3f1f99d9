//! This project: real processes over loopback QUIC.

use anyhow::Result;
use e2e::{Device, World};

use crate::timing::core_seconds_of;

/// Core-seconds of the home, the daemons and everything they and this process started.
pub(crate) fn core_seconds(world: &World, devices: &[&Device]) -> Result<f64> {
    let mut seconds = core_seconds_of(std::process::id())?;
    seconds += core_seconds_of(world.home.process_id()?)?;
    for device in devices {
        seconds += core_seconds_of(device.process_id()?)?;
    }
    Ok(seconds)
}
