//! The cut of a checkout whose files programs have mapped: which of their changes it holds.
//!
//! What is written by calls is in the tree, in order; what is changed through a shared map comes when the kernel writes
//! it. For an application whose cgroup is known the cut is exact all the same: the maps are flushed while it runs until
//! little is left, then it stands still for the rest and the cut. That takes at most [`STOPPED_MAX`]; when the time is
//! over before the cut, the application goes on and the cut is made without, with the maps as of their last flush.

use std::time::Duration;

use img_records::Maps;

use crate::cgroup::Cgroup;
use crate::mount::Mounted;
use crate::tree::{Cut, FreezeError, Tree};

/// A cut and how it came about.
#[derive(Debug)]
pub(super) struct MappedCut {
    /// Nothing where nothing has changed since the last one.
    pub(super) cut: Option<Cut>,
    /// What it holds of shared maps.
    pub(super) maps: Maps,
    /// How long the application stood still; nothing if it was not stopped.
    pub(super) stopped_us: Option<u64>,
}

/// Cuts a tree, exactly if that can be had; blocks.
pub(super) fn cut(
    tree: &Tree,
    mounted: Option<&Mounted>,
    application: Option<&Cgroup>,
) -> Result<MappedCut, FreezeError> {
    let mut stopped_us = None;
    if let Some(mounted) = mounted
        && tree.has_room_for_cut()
        && !tree.mapped().is_empty()
        && flush_live(mounted)
        && let Some(application) = application
    {
        // So that no fsync of the application, nor the cut, waits long for what was written before.
        tree.sync().ok();
        let (cut, stopped) = cut_stopped(tree, mounted, application);
        stopped_us = stopped.map(|stopped| u64::try_from(stopped.as_micros()).unwrap_or(u64::MAX));
        if let Some(cut) = cut {
            return Ok(MappedCut {
                cut: cut?,
                maps: Maps::Exact,
                stopped_us,
            });
        }
    }
    let cut = tree.freeze()?;
    let mapped = match &cut {
        Some(cut) => cut.mapped,
        None => !tree.mapped().is_empty(),
    };
    Ok(MappedCut {
        cut,
        maps: match mapped {
            true => Maps::LastFlush,
            false => Maps::Exact,
        },
        stopped_us,
    })
}

/// Flushes until little is left for when the application stands still. False if the kernel does not go on: pages
/// are being read, and the home does not answer.
fn flush_live(mounted: &Mounted) -> bool {
    for _ in 0..LIVE_ROUNDS_MAX {
        match mounted.flush_maps() {
            None => return false,
            Some(written) if written < LIVE_ROUND_SMALL => break,
            Some(_) => {}
        }
    }
    true
}

/// Cuts while the application stands still; no cut if that takes too long. Returns for how long it was stopped.
fn cut_stopped(
    tree: &Tree,
    mounted: &Mounted,
    application: &Cgroup,
) -> (Option<Result<Option<Cut>, FreezeError>>, Option<Duration>) {
    let stop = match application.stop() {
        Ok(stop) => stop,
        Err(error) => {
            tracing::debug!(%error, "an application cannot be stopped");
            return (None, None);
        }
    };
    let started = stop.started();
    let until = started + STOPPED_MAX;
    if !stop.is_frozen_by(until) || mounted.flush_maps_until(until).is_none() {
        return (None, Some(stop.end()));
    }
    let mut stopped = None;
    let cut = tree.freeze_until(until, || stopped = Some(stop.end()));
    (cut, Some(stopped.unwrap_or_else(|| started.elapsed())))
}

/// Longest time that an application stands still for a cut.
const STOPPED_MAX: Duration = Duration::from_millis(50);
/// Flushes beside a running application, at most: one that changes maps without end is not caught up with.
const LIVE_ROUNDS_MAX: u32 = 3;
/// A flush that wrote less than this leaves about as little: written within a few milliseconds.
const LIVE_ROUND_SMALL: u64 = 4 * 1024 * 1024;
