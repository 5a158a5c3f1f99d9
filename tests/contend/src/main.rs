//! One life of a client: `contend-client FOLDER NUMBER LIFE`. Started by the fleet only.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use contend::client::{FENCED, live};

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || {
        arguments
            .next()
            .context("contend-client FOLDER NUMBER LIFE")
    };
    let (dir, number, life) = (argument()?, argument()?.parse()?, argument()?.parse()?);
    let done = live(Path::new(&dir), number, life)?;
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FENCED)
    })
}
