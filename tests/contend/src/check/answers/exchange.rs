//! Requests with their answers, in time.

use img_proto::{Call, Reply, Request};
use img_types::DeviceId;

use crate::journal::{Line as Written, Nanos};

/// A request and its answer.
pub(super) struct Exchange<'a> {
    pub(super) number: u32,
    pub(super) life: usize,
    pub(super) device: DeviceId,
    pub(super) sent: Nanos,
    pub(super) heard: Nanos,
    pub(super) request: &'a Request,
    pub(super) reply: &'a Reply,
    /// Where the home stood at least when the request was sent.
    pub(super) floor: u64,
    /// The same for the first time that this request was sent.
    pub(super) first_floor: u64,
    /// Where the home stood when it answered.
    pub(super) at: u64,
}

/// Where the home stood at least, over time.
#[derive(Default)]
pub(super) struct Floors(pub(super) Vec<(Nanos, u64)>);

/// Requests with their answers, and when they were sent and answered.
pub(super) fn exchanges(
    lines: &[Written],
) -> impl Iterator<Item = (Nanos, Nanos, &Request, &Reply)> {
    // A Hello may be answered between a request and its answer, on a new connection.
    let mut sent = None;
    lines.iter().filter_map(move |line| match line {
        Written::Sent(at, request) => {
            sent = Some((*at, request));
            None
        }
        Written::Answered(heard, reply) => sent
            .take()
            .map(|(at, request)| (at, *heard, request, reply)),
        Written::Hello(..) | Written::Fenced(_) | Written::Broken(..) => None,
    })
}

pub(super) fn name_of(call: &Call) -> String {
    let shown = format!("{call:?}");
    shown
        .split([' ', '{', '('])
        .next()
        .unwrap_or_default()
        .to_owned()
}

impl Floors {
    /// Makes each floor at least as high as those before.
    pub(super) fn settle(&mut self) {
        self.0.sort_unstable();
        let mut highest = 0;
        for (_, position) in &mut self.0 {
            highest = highest.max(*position);
            *position = highest;
        }
    }

    pub(super) fn at(&self, time: Nanos) -> u64 {
        let before = self.0.partition_point(|(at, _)| *at < time);
        before.checked_sub(1).map_or(0, |last| self.0[last].1)
    }

    /// When somebody was first told of a position.
    pub(super) fn told(&self, position: u64) -> Option<Nanos> {
        let before = self.0.partition_point(|(_, at)| *at < position);
        self.0.get(before).map(|(time, _)| *time)
    }
}
