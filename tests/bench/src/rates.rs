//! Calls per second of two servers, and the comparison.

use std::fmt;
use std::time::Duration;

/// What a server did in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Calls that were answered.
    pub(crate) calls: u64,
    /// In this time.
    pub(crate) took: Duration,
    /// Core-seconds of the server's process.
    pub(crate) core: f64,
}

/// The rounds of one kind of call; the first side is the reference.
#[derive(Debug)]
pub(crate) struct Rates {
    title: String,
    sides: Vec<(&'static str, Vec<Rate>)>,
}

impl Rates {
    pub(crate) fn new(title: String) -> Self {
        let sides = Vec::new();
        Self { title, sides }
    }

    /// Adds a round of one side.
    pub(crate) fn add(&mut self, side: &'static str, rate: Rate) {
        match self.sides.iter_mut().find(|(name, _)| *name == side) {
            Some((_, rounds)) => rounds.push(rate),
            None => self.sides.push((side, vec![rate])),
        }
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let mut reference = None;
        for (name, rounds) in &self.sides {
            let median = |value: fn(&Rate) -> f64| {
                let mut values: Vec<_> = rounds.iter().map(value).collect();
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
            };
            let rate = median(|rate| rate.calls as f64 / rate.took.as_secs_f64());
            let core = median(|rate| rate.core / rate.calls as f64 * 1e6);
            let reference = *reference.get_or_insert(rate);
            writeln!(
                f,
                "{name:<30} {rate:>8.0} calls/s  {core:>6.0} us of the server's cores each  {:>6.2} x",
                rate / reference
            )?;
        }
        Ok(())
    }
}
