//! What one owner holds of one file: runs of bytes that do not overlap, in order, each with its mode.

use super::LockMode;
use crate::units::ByteRange;
use bincode::{Decode, Encode};

/// A run of bytes of a file that is locked, or is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockRun {
    /// First byte.
    pub start: u64,
    /// One past the last byte; `u64::MAX`: without an end.
    pub end: u64,
    /// How.
    pub mode: LockMode,
}

impl LockRun {
    /// Its bytes; none where it is no run at all.
    pub fn range(&self) -> ByteRange {
        ByteRange::new(self.start, self.end)
    }
}

/// See the module. Neighbours of one mode are one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockRuns(Vec<LockRun>);

impl LockRuns {
    /// The runs, in order.
    pub fn runs(&self) -> &[LockRun] {
        &self.0
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The runs of which a part is in `range`.
    pub fn in_range(&self, range: ByteRange) -> impl Iterator<Item = &LockRun> {
        let first = self.0.partition_point(|run| run.end <= range.start);
        let rest = self.0.iter().skip(first);
        rest.take_while(move |run| run.start < range.end)
    }

    /// The first run in `range` that does not go together with somebody else's lock in this mode.
    pub fn conflict(&self, range: ByteRange, mode: LockMode) -> Option<&LockRun> {
        let exclusive = mode == LockMode::Exclusive;
        let mut runs = self.in_range(range);
        runs.find(|run| exclusive || run.mode == LockMode::Exclusive)
    }

    /// Whether all of `range` is held in just this mode.
    pub fn holds(&self, range: ByteRange, mode: LockMode) -> bool {
        let mut runs = self.in_range(range);
        range.is_empty()
            || runs.next().is_some_and(|run| {
                run.mode == mode && run.start <= range.start && range.end <= run.end
            })
    }

    /// By how many runs [`LockRuns::set`] would change their number.
    pub fn growth(&self, range: ByteRange, mode: Option<LockMode>) -> isize {
        let (touched, new) = self.replacement(range, mode);
        new.len() as isize - touched.len() as isize
    }

    /// Holds `range` in this mode from here on, or not at all.
    pub fn set(&mut self, range: ByteRange, mode: Option<LockMode>) {
        let (touched, new) = self.replacement(range, mode);
        self.0.splice(touched, new);
    }

    /// Which runs are to be replaced, and by what.
    fn replacement(
        &self,
        range: ByteRange,
        mode: Option<LockMode>,
    ) -> (std::ops::Range<usize>, Vec<LockRun>) {
        if range.is_empty() {
            return (0..0, Vec::new());
        }
        // Neighbours as well: they may become one with it.
        let first = self.0.partition_point(|run| run.end < range.start);
        let last = self.0.partition_point(|run| run.start <= range.end);
        let touched = &self.0[first..last];
        let before = touched.iter().filter(|run| run.start < range.start);
        let before = before.map(|run| LockRun {
            end: run.end.min(range.start),
            ..*run
        });
        let after = touched.iter().filter(|run| run.end > range.end);
        let after = after.map(|run| LockRun {
            start: run.start.max(range.end),
            ..*run
        });
        let own = mode.map(|mode| LockRun {
            start: range.start,
            end: range.end,
            mode,
        });
        let mut new: Vec<LockRun> = Vec::with_capacity(3);
        for run in before.chain(own).chain(after) {
            match new.last_mut() {
                Some(last) if last.end == run.start && last.mode == run.mode => last.end = run.end,
                _ => new.push(run),
            }
        }
        (first..last, new)
    }
}
