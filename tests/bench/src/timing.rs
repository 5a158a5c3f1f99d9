//! Wall time and core-seconds of a piece of work, and the comparison of two sides.

use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result};

/// What one round of work took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Seconds on the wall.
    pub(crate) wall: f64,
    /// Seconds of all cores together, in user and system mode.
    pub(crate) core: f64,
    /// Bytes that were stored or sent.
    pub(crate) bytes: u64,
}

/// Times `work`, which tells the bytes it stored; `core_seconds` reads the counter of the processes
/// that do it.
pub(crate) fn time(
    core_seconds: impl Fn() -> Result<f64>,
    work: impl FnOnce() -> Result<u64>,
) -> Result<Cost> {
    let core = core_seconds()?;
    let start = Instant::now();
    let bytes = work()?;
    Ok(Cost {
        wall: start.elapsed().as_secs_f64(),
        core: core_seconds()? - core,
        bytes,
    })
}

/// Core-seconds that a running process and its waited-for children have used.
pub(crate) fn core_seconds_of(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The command, in parentheses, may hold spaces; utime is the 14th field of proc_pid_stat(5).
    let fields = stat.rsplit_once(')').context("stat has a command")?.1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The rounds of two sides.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    title: String,
    sides: Vec<(&'static str, Vec<Cost>)>,
}

impl Comparison {
    pub(crate) fn new(title: String) -> Self {
        Self {
            title,
            sides: Vec::new(),
        }
    }

    /// Adds a round of one side.
    pub(crate) fn add(&mut self, side: &'static str, cost: Cost) {
        match self.sides.iter_mut().find(|(name, _)| *name == side) {
            Some((_, rounds)) => rounds.push(cost),
            None => self.sides.push((side, vec![cost])),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let mut reference = None;
        for (name, rounds) in &self.sides {
            let wall = median(rounds.iter().map(|cost| cost.wall).collect());
            let core = median(rounds.iter().map(|cost| cost.core).collect());
            let bytes = median(rounds.iter().map(|cost| cost.bytes as f64).collect());
            let reference = *reference.get_or_insert(wall);
            writeln!(
                f,
                "{name:<22} {wall:>8.2} s  {core:>8.2} core-s  {:>9.1} MB  {:>6.2} x",
                bytes / 1e6,
                wall / reference
            )?;
        }
        Ok(())
    }
}
