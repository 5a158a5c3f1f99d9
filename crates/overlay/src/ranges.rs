//! A map of byte ranges of one inode: which are dirty, and where their bytes come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use img_index::Extent;

/// The end of a range that has none, as of a truncation. File offsets are below 2⁶³.
pub const INFINITY: u64 = u64::MAX;

/// Where the bytes of a range come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The generation's arena, from this position on.
    Arena(u64),
    /// Nowhere: they are zero.
    Zero,
    /// The same place of a block that another file's extent describes. Never crosses a block.
    Copied(Arc<Extent>),
}

impl Source {
    /// The source of what begins `bytes` further on.
    fn skip(&self, bytes: u64) -> Self {
        match self {
            Self::Arena(position) => Self::Arena(position + bytes),
            other => other.clone(),
        }
    }

    /// Whether `next` goes on where this source ends after `len` bytes.
    fn joins(&self, len: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Arena(here), Self::Arena(there)) => here + len == *there,
            (Self::Zero, Self::Zero) => true,
            _ => false,
        }
    }

    fn is_arena(&self) -> bool {
        matches!(self, Self::Arena(_))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    end: u64,
    source: Source,
}

/// A range of a file clipped to what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) source: Source,
}

/// Disjoint dirty ranges in order; neighbours that continue each other are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    segments: BTreeMap<u64, Segment>,
    arena_bytes: u64,
}

impl Ranges {
    /// Bytes of the ranges that an arena holds.
    pub(crate) fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// How many ranges there are.
    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    /// Makes `start..end` come from `source`, whatever it was before.
    pub(crate) fn insert(&mut self, start: u64, end: u64, source: Source) {
        if start >= end || self.holds(start, end, &source) {
            return;
        }
        self.carve(start, end);
        if source.is_arena() {
            self.arena_bytes += end - start;
        }
        let (mut start, mut end, mut source) = (start, end, source);
        if let Some((&left, segment)) = self.segments.range(..start).next_back()
            && segment.end == start
            && segment.source.joins(start - left, &source)
        {
            source = segment.source.clone();
            start = left;
        }
        if let Some(segment) = self.segments.get(&end)
            && source.joins(end - start, &segment.source)
        {
            let joined = segment.end;
            self.segments.remove(&end);
            end = joined;
        }
        self.segments.insert(start, Segment { end, source });
    }

    /// The ranges within `start..end`, clipped, in order.
    pub(crate) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Span> + '_ {
        let from = match self.segments.range(..start).next_back() {
            Some((&left, segment)) if segment.end > start => left,
            _ => start,
        };
        // An empty or reversed question has no answer; `range` would panic on a reversed one.
        self.segments
            .range(from..end.max(from))
            .map(move |(&left, segment)| {
                let clipped = left.max(start);
                Span {
                    start: clipped,
                    end: segment.end.min(end),
                    source: segment.source.skip(clipped - left),
                }
            })
            .filter(|span| span.start < span.end)
    }

    /// All ranges in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.segments.iter().map(|(&start, segment)| Span {
            start,
            end: segment.end,
            source: segment.source.clone(),
        })
    }

    /// Whether one range already says all that inserting would: an overwrite in place.
    fn holds(&self, start: u64, end: u64, source: &Source) -> bool {
        self.segments
            .range(..=start)
            .next_back()
            .is_some_and(|(&left, segment)| {
                segment.end >= end && segment.source.skip(start - left) == *source
            })
    }

    /// Takes `start..end` out of whatever ranges cover it.
    fn carve(&mut self, start: u64, end: u64) {
        if let Some((&left, segment)) = self.segments.range_mut(..start).next_back()
            && segment.end > start
        {
            let right = segment.end;
            let rest = segment.source.skip(end.min(right) - left);
            let arena = segment.source.is_arena();
            segment.end = start;
            if arena {
                self.arena_bytes -= end.min(right) - start;
            }
            if right > end {
                let segment = Segment {
                    end: right,
                    source: rest,
                };
                self.segments.insert(end, segment);
                return;
            }
        }
        while let Some((&left, _)) = self.segments.range(start..end).next() {
            let Some(segment) = self.segments.remove(&left) else {
                return;
            };
            if segment.source.is_arena() {
                self.arena_bytes -= segment.end.min(end) - left;
            }
            if segment.end > end {
                let rest = Segment {
                    end: segment.end,
                    source: segment.source.skip(end - left),
                };
                self.segments.insert(end, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(ranges: &Ranges) -> Vec<(u64, u64, Source)> {
        ranges.iter().map(|s| (s.start, s.end, s.source)).collect()
    }

    #[test]
    fn neighbours_join_only_where_the_arena_goes_on() {
        let mut ranges = Ranges::default();
        ranges.insert(0, 10, Source::Arena(100));
        ranges.insert(20, 30, Source::Arena(120));
        ranges.insert(10, 20, Source::Arena(110));
        assert_eq!(spans(&ranges), [(0, 30, Source::Arena(100))]);
        ranges.insert(30, 40, Source::Arena(0));
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges.arena_bytes(), 40);
    }

    #[test]
    fn an_insert_splits_what_it_lands_in() {
        let mut ranges = Ranges::default();
        ranges.insert(0, 100, Source::Arena(1000));
        ranges.insert(40, 60, Source::Zero);
        assert_eq!(
            spans(&ranges),
            [
                (0, 40, Source::Arena(1000)),
                (40, 60, Source::Zero),
                (60, 100, Source::Arena(1060)),
            ]
        );
        assert_eq!(ranges.arena_bytes(), 80);
        ranges.insert(50, INFINITY, Source::Zero);
        assert_eq!(
            spans(&ranges),
            [(0, 40, Source::Arena(1000)), (40, INFINITY, Source::Zero)]
        );
        assert_eq!(ranges.arena_bytes(), 40);
        let clipped: Vec<_> = ranges.within(30, 50).map(|s| (s.start, s.end)).collect();
        assert_eq!(clipped, [(30, 40), (40, 50)]);
        assert_eq!(ranges.within(50, 50).count(), 0);
    }

    #[test]
    fn writing_the_same_place_again_changes_nothing() {
        let mut ranges = Ranges::default();
        ranges.insert(0, 100, Source::Arena(7));
        let before = ranges.clone();
        ranges.insert(10, 20, Source::Arena(17));
        assert_eq!(ranges, before);
    }
}
