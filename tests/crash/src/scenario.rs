//! The plays: what the programs do while they are crashed, and what must be there afterwards.

mod device;
mod home;
mod words;

use anyhow::Result;

use crate::ledger::Ledger;
use crate::stage::{Cast, Place, Stage};

/// One play.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is asked for by.
    pub name: &'static str,
    /// Whose disk is crashed.
    pub victim: Place,
    /// Brings the stage to where every visit begins; all of it runs in good order and is ended then.
    pub prepare: fn(&mut Stage, &mut Ledger) -> Result<()>,
    /// Does what is crashed, and notes what is acknowledged. Fails at the first thing that does.
    pub play: fn(&mut Cast, &mut Ledger) -> Result<()>,
    /// Checks, after the victim runs again, that all is there and that work goes on.
    pub check: fn(&mut Stage, &mut Ledger) -> Result<()>,
}

/// All plays.
pub const ALL: [Scenario; 8] = [
    device::WRITE,
    device::CHURN,
    device::RESTART,
    device::RELEASE,
    device::IMPORT,
    home::HOME,
    home::BACKUP,
    home::RESTORE,
];

/// The image that the plays are about.
const IMAGE: &str = "vm";
