//! Plays in which a device's daemon is the victim.

use anyhow::Result;

use super::{IMAGE, Scenario, check_log, checkpoint, commit, goes_on, mounted};
use crate::ledger::{Ledger, Writer, noise};
use crate::stage::{Cast, Place, Stage};

/// Files that are written, overwritten and synced; a checkpoint, which is sealed and streamed; a commit.
pub(super) const WRITE: Scenario = Scenario {
    name: "write",
    victim: Place::A,
    prepare: checked_out,
    play: write,
    check: stands,
};

/// An image with a few files, checked out on `a`.
fn checked_out(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let a = &stage.cast.a;
    a.json(&["create", IMAGE])?;
    let mount = a.checkout(IMAGE, &[])?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("large", 0, &noise(1, 300_000))?;
    writer.sync("large")?;
    commit(a, ledger)
}

fn write(cast: &mut Cast, ledger: &mut Ledger) -> Result<()> {
    let a = &mut cast.a;
    a.restart()?;
    let mount = mounted(a)?;
    cast.arm();
    let a = &cast.a;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("small", 0, &noise(2, 100))?;
    writer.sync("small")?;
    writer.write("large", 5_000, &noise(3, 90_000))?;
    writer.sync("large")?;
    checkpoint(a, ledger)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.append("small", &noise(4, 9_000))?;
    writer.sync("small")?;
    commit(a, ledger)?;
    let mut writer = Writer::new(&mount, ledger);
    writer.write("large", 200_000, &noise(5, 150_000))?;
    writer.write("last", 0, &noise(6, 20_000))?;
    writer.sync("last")?;
    writer.write("large", 0, &noise(7, 10))
}

/// The checkout is mounted again by itself, with all that was promised, and work goes on.
fn stands(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let mount = mounted(&stage.cast.a)?;
    ledger.check(&mount)?;
    check_log(&stage.cast.a, ledger)?;
    goes_on(stage, ledger)
}
